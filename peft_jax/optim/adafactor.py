"""Adafactor as T5X and as Hugging Face's transformers compute it.

The two differ where it shows in the numbers, so each is a named variant:

| | `'t5x'` | `'hugging_face'` |
|---|---|---|
| factored leaves | the two largest axes, both >= 128 | the last two axes |
| weight decay | `rate * parameter` | `rate * step size * parameter` |
| share of the new square | `1 - (1 - t**-0.8)`, rounded | `t**-0.8` |

The last line matters when the counter starts at 1,100,000, as it did for the
released prompts: float32 leaves `1 - t**-0.8` only a few digits there.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from peft_jax import layout
from peft_jax.optim import _checks

Variant = Literal["t5x", "hugging_face"]
AxisRole = Literal["row", "column", "batch", "none"]
FactorRule = Callable[[str, tuple[int, ...]], Sequence[AxisRole] | None]

_VARIANTS = ("t5x", "hugging_face")
_ROLES = ("row", "column", "batch", "none")
_MIN_DIM_SIZE_TO_FACTOR = 128


# The name does not end in `State`: T5X's OptaxWrapper refuses every such name
# that it does not know, and replicates the arrays of any other container.
class AdafactorSlots(NamedTuple):
  """What Adafactor remembers between steps.

  Each tree has the structure of the parameters. A leaf that a tree does not
  need is an `optax.MaskedNode`, which holds no array.

  Attributes:
    count: int32 scalar, the step the next update is for.
    row: mean squares over the column axes, for factored leaves; of a leaf
      [D, F] it is [D] where F is the column axis.
    column: mean squares over the row axes, for factored leaves; [F] above.
    full: mean squares, of the leaf's own shape, for the other leaves.
    momentum: moving average of the steps, of the leaf's own shape, if `beta1`
      is given.
  """

  count: jax.Array
  row: optax.Params
  column: optax.Params
  full: optax.Params
  momentum: optax.Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Plan:
  """Which axes of one leaf are averaged together, and how it is factored."""

  averaged: tuple[int, ...]
  rows: tuple[int, ...] = ()
  columns: tuple[int, ...] = ()

  @property
  def factored(self) -> bool:
    return bool(self.rows and self.columns)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Settings:
  variant: Variant
  learning_rate: optax.ScalarOrSchedule
  multiply_by_parameter_scale: bool
  decay_rate: float
  step_offset: int
  initial_step: int
  clipping_threshold: float | None
  weight_decay_rate: float | None
  beta1: float | None
  epsilon1: float
  epsilon2: float
  factored: bool
  min_dim_size_to_factor: int
  factor_rule: FactorRule | None


class _Leaf(NamedTuple):
  """The slots of one leaf."""

  row: Any
  column: Any
  full: Any
  momentum: Any


class _Step(NamedTuple):
  """The scalars of one step, float32."""

  learning_rate: jax.Array
  kept: jax.Array
  mixed: jax.Array


def adafactor(
  *,
  learning_rate: optax.ScalarOrSchedule,
  variant: Variant = "t5x",
  multiply_by_parameter_scale: bool = True,
  decay_rate: float = 0.8,
  step_offset: int = 0,
  initial_step: int = 0,
  clipping_threshold: float | None = 1.0,
  weight_decay_rate: float | None = None,
  beta1: float | None = None,
  epsilon1: float = 1e-30,
  epsilon2: float = 1e-3,
  factored: bool | None = None,
  min_dim_size_to_factor: int | None = None,
  factor_rule: FactorRule | None = None,
) -> optax.GradientTransformationExtraArgs:
  """Makes Adafactor with T5X's or with Hugging Face's arithmetic.

  T-Few's optimizer for (IA)3, and prompt tuning's for a prompt whose training
  went on from the language model's step 1,100,000:

  >>> import jax.numpy as jnp
  >>> import optax
  >>> tfew = adafactor(learning_rate=3e-3, variant='hugging_face')
  >>> prompt_tuning = adafactor(
  ...   learning_rate=0.3,
  ...   multiply_by_parameter_scale=False,
  ...   weight_decay_rate=1e-5,
  ...   initial_step=1_100_000,
  ... )
  >>> params = {'scale': jnp.ones(4)}
  >>> gradients = {'scale': jnp.array([1.0, -2.0, 0.5, -0.1])}
  >>> slots = tfew.init(params)
  >>> updates, slots = tfew.update(gradients, slots, params)
  >>> optax.apply_updates(params, updates)['scale']
  Array([0.997, 1.003, 0.997, 1.003], dtype=float32)

  A leaf may have any shape: (IA)3's [F] is never factored; a prompt [T, D] or
  LoRA's [D, R] and [R, D] are factored by `'hugging_face'` always and by
  `'t5x'` only where both axes have 128 elements or more. The slots are
  float32 and the arithmetic is too, whatever the parameters are; an update
  has its parameter's type. (With bfloat16 parameters there are two small
  differences: the update is rounded too, so a value that a step carries close
  to zero has the rounding of the value before; and T5X itself, which keeps
  parameters in float32, would average their squares in bfloat16.)

  A leaf that holds the layers of a scanned stack is as many leaves: each layer
  is factored, scaled and clipped apart, as it is without the scan.

  Hugging Face's class is reproduced with `relative_step=False`. Its names:
  `lr` is `learning_rate`, `scale_parameter` `multiply_by_parameter_scale`,
  `eps` `(epsilon1, epsilon2)`, `clip_threshold` `clipping_threshold`,
  `weight_decay` `weight_decay_rate`, and its `decay_rate=-0.8` is 0.8 here.

  Args:
    learning_rate: a number, or a function of the step. The step it is given
      counts from `initial_step`, as in T5X; shift a schedule that should
      begin there with `starting_at`.
    variant: `'t5x'` or `'hugging_face'`, see the table above.
    multiply_by_parameter_scale: multiply the step size by the leaf's root
      mean square, at least `epsilon2`. True in both (Adafactor paper,
      section 8); prompt tuning says False.
    decay_rate: exponent of the decay, 0.8 in both (paper, section 7.2): the
      moving average keeps `1 - t**-decay_rate`, with t = 1 at the first step.
    step_offset: taken off the step to get t, 0 in both. The training's first
      step here makes t start at 1.
    initial_step: the first step's number, 0 in both. A T5X fine-tuning run
      goes on from the number in its backbone's checkpoint, with empty slots.
    clipping_threshold: the largest root mean square of an update before the
      step size, 1.0 in both (paper, section 6); None for no limit.
    weight_decay_rate: None (the default) or 0 for no decay; prompt tuning
      says 1e-5.
    beta1: None (the default in both) for no momentum, else its decay.
    epsilon1: added to each square, 1e-30 in both (paper, section 9).
    epsilon2: the least parameter scale, 1e-3 in both (paper, section 9).
    factored: T5X only; False keeps every square. Default True.
    min_dim_size_to_factor: T5X only; the least length of a factored axis.
      Default 128 (T5X's own).
    factor_rule: T5X only, and needed there for leaves of three axes or more:
      from a leaf's `/`-joined path and shape to one role per axis, such as
      `('batch', 'row', 'column')`. Squares are averaged over the `'row'` and
      the `'column'` axes in turn; `'batch'` axes hold separate parameters
      that are scaled and clipped apart. None (and any rule without `'batch'`
      for two axes or fewer) falls back to the length of the axes.

  Returns:
    The gradient transformation. Its `update` needs the parameters.

  Raises:
    ValueError: if an option is out of range or not one of the variant's, or,
      from `init` and `update`, if a leaf cannot be factored as asked or the
      parameters are missing.
  """
  _check_variant(variant, factored, min_dim_size_to_factor, factor_rule)
  _check_numbers(
    learning_rate, decay_rate, clipping_threshold, weight_decay_rate, beta1
  )
  _checks.at_least("epsilon1", epsilon1, 0.0)
  _checks.at_least("epsilon2", epsilon2, 0.0)
  _checks.whole("step_offset", step_offset, 0)
  # So that t = initial_step - step_offset + 1 begins at 1 or more: t**-0.8 is
  # infinite at 0 and not a number below.
  _checks.whole(
    "initial_step",
    initial_step,
    step_offset,
    hint="The first step cannot come before step_offset.",
  )
  settings = _Settings(
    variant=variant,
    learning_rate=learning_rate,
    multiply_by_parameter_scale=multiply_by_parameter_scale,
    decay_rate=decay_rate,
    step_offset=step_offset,
    initial_step=initial_step,
    clipping_threshold=clipping_threshold,
    weight_decay_rate=weight_decay_rate,
    beta1=beta1,
    epsilon1=epsilon1,
    epsilon2=epsilon2,
    factored=factored is not False,
    min_dim_size_to_factor=(
      _MIN_DIM_SIZE_TO_FACTOR
      if min_dim_size_to_factor is None
      else min_dim_size_to_factor
    ),
    factor_rule=factor_rule,
  )

  def init(params: optax.Params) -> AdafactorSlots:
    return _init(settings, params)

  def update(
    updates: optax.Updates,
    state: AdafactorSlots,
    params: optax.Params | None = None,
    **extra_args: Any,
  ) -> tuple[optax.Updates, AdafactorSlots]:
    del extra_args
    return _update(settings, updates, state, params)

  return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore


def _check_variant(
  variant: str,
  factored: bool | None,
  min_dim_size_to_factor: int | None,
  factor_rule: FactorRule | None,
) -> None:
  if variant not in _VARIANTS:
    raise ValueError(
      f"adafactor: expected variant to be one of {_VARIANTS}, found"
      f" {variant!r}. Use 'hugging_face' for T-Few's recipes and 't5x' for"
      " prompt tuning's."
    )
  given = {
    "factored": factored,
    "min_dim_size_to_factor": min_dim_size_to_factor,
    "factor_rule": factor_rule,
  }
  given = {name: value for name, value in given.items() if value is not None}
  if variant == "hugging_face" and given:
    raise ValueError(
      "adafactor: expected variant='hugging_face' without T5X's options, which"
      " it has no counterpart for (it factors the last two axes of every leaf"
      f" that has them); found {sorted(given)}. Drop them or use"
      " variant='t5x'."
    )
  if min_dim_size_to_factor is not None:
    _checks.whole("min_dim_size_to_factor", min_dim_size_to_factor, 1)
  if factored is False and factor_rule is not None:
    raise ValueError(
      "adafactor: expected no factor_rule where factored=False, found both."
      " Drop one of them."
    )


def _check_numbers(
  learning_rate: optax.ScalarOrSchedule,
  decay_rate: float,
  clipping_threshold: float | None,
  weight_decay_rate: float | None,
  beta1: float | None,
) -> None:
  _checks.learning_rate(learning_rate)
  _checks.above(
    "decay_rate", decay_rate, 0.0, hint="Hugging Face's -0.8 is 0.8 here."
  )
  if clipping_threshold is not None:
    _checks.above(
      "clipping_threshold", clipping_threshold, 0.0, hint="None is no limit."
    )
  if weight_decay_rate is not None:
    _checks.at_least("weight_decay_rate", weight_decay_rate, 0.0)
  if beta1 is not None:
    _checks.fraction("beta1", beta1)


def _init(settings: _Settings, params: optax.Params) -> AdafactorSlots:
  leaves, treedef = jax.tree_util.tree_flatten_with_path(params)
  slots = [
    _init_leaf(settings, _plan(settings, path, leaf.shape), leaf.shape)
    for path, leaf in leaves
  ]
  return AdafactorSlots(
    jnp.asarray(settings.initial_step, jnp.int32), *_trees(treedef, slots)
  )


def _update(
  settings: _Settings,
  updates: optax.Updates,
  state: AdafactorSlots,
  params: optax.Params | None,
) -> tuple[optax.Updates, AdafactorSlots]:
  if params is None:
    raise ValueError(
      "adafactor: expected update(gradients, state, params), found no params."
      " Pass the parameters that the gradients belong to: the step size and"
      " the weight decay depend on them."
    )
  step = _step(settings, state.count)
  gradients, treedef = jax.tree_util.tree_flatten_with_path(updates)
  parameters = treedef.flatten_up_to(params)
  slots = zip(*map(treedef.flatten_up_to, state[1:]), strict=True)
  results = [
    _update_leaf(
      settings,
      _plan(settings, path, gradient.shape),
      step,
      gradient,
      parameter,
      _Leaf(*leaf),
    )
    for (path, gradient), parameter, leaf in zip(
      gradients, parameters, slots, strict=True
    )
  ]
  count = jnp.asarray(optax.safe_increment(state.count))
  return treedef.unflatten([change for change, _ in results]), AdafactorSlots(
    count, *_trees(treedef, [leaf for _, leaf in results])
  )


def _trees(treedef: Any, slots: Sequence[_Leaf]) -> list[optax.Params]:
  """One tree for each kind of slot."""
  return [
    treedef.unflatten([getattr(leaf, kind) for leaf in slots])
    for kind in _Leaf._fields
  ]


def _step(settings: _Settings, count: jax.Array) -> _Step:
  rate = settings.learning_rate
  rate = rate(count) if callable(rate) else rate
  t = (count - settings.step_offset).astype(jnp.float32) + 1.0
  mixed = t ** (-settings.decay_rate)
  kept = 1.0 - mixed
  if settings.variant == "t5x":
    # Not `mixed` itself: T5X takes it from the rounded `kept`, and at step
    # 1,100,000 the rounding alone changes it by a third of a percent.
    mixed = 1.0 - kept
  return _Step(jnp.asarray(rate, jnp.float32), kept, mixed)


def _init_leaf(
  settings: _Settings, plan: _Plan, shape: tuple[int, ...]
) -> _Leaf:
  nothing = optax.MaskedNode()
  momentum = (
    nothing if settings.beta1 is None else jnp.zeros(shape, jnp.float32)
  )
  if not plan.factored:
    return _Leaf(nothing, nothing, jnp.zeros(shape, jnp.float32), momentum)
  row = jnp.zeros(_without(shape, plan.columns), jnp.float32)
  column = jnp.zeros(_without(shape, plan.rows), jnp.float32)
  return _Leaf(row, column, nothing, momentum)


def _update_leaf(
  settings: _Settings,
  plan: _Plan,
  step: _Step,
  gradient: jax.Array,
  parameter: jax.Array,
  slots: _Leaf,
) -> tuple[jax.Array, _Leaf]:
  gradient = gradient.astype(jnp.float32)
  value = parameter.astype(jnp.float32)
  direction, slots = _direction(settings, plan, step, gradient, slots)
  size = step.learning_rate
  if settings.multiply_by_parameter_scale:
    scale = _root_mean_square(value, plan.averaged)
    size = size * jnp.maximum(scale, settings.epsilon2)
  change = size * direction
  if settings.beta1 is not None:
    change = settings.beta1 * slots.momentum + (1.0 - settings.beta1) * change
    slots = slots._replace(momentum=change)
  decayed = _decay(settings, size, value)
  # Rounded to the parameter's type before the difference is taken, so that the
  # sum in `optax.apply_updates` gives what the originals round to.
  new_parameter = (decayed - change).astype(parameter.dtype)
  difference = new_parameter.astype(jnp.float32) - value
  return difference.astype(parameter.dtype), slots


def _decay(settings: _Settings, size: jax.Array, value: jax.Array) -> jax.Array:
  rate = settings.weight_decay_rate
  if rate is None:
    return value
  if settings.variant == "hugging_face":
    return value - rate * size * value
  # T5X's decay ignores the step size, and so any warm-up.
  return (1.0 - rate) * value


def _direction(
  settings: _Settings,
  plan: _Plan,
  step: _Step,
  gradient: jax.Array,
  slots: _Leaf,
) -> tuple[jax.Array, _Leaf]:
  """The gradient over its root mean square, clipped, and the new squares."""
  square = gradient * gradient + settings.epsilon1
  if plan.factored:
    row = _average(step, slots.row, jnp.mean(square, axis=plan.columns))
    column = _average(step, slots.column, jnp.mean(square, axis=plan.rows))
    slots = slots._replace(row=row, column=column)
    overall = jnp.mean(row, axis=_rows_in_row(plan), keepdims=True)
    row_factor = jnp.expand_dims((row / overall) ** -0.5, plan.columns)
    column_factor = jnp.expand_dims(column**-0.5, plan.rows)
    direction = gradient * row_factor * column_factor
  else:
    full = _average(step, slots.full, square)
    slots = slots._replace(full=full)
    direction = gradient * full**-0.5
  if settings.clipping_threshold is not None:
    size = _root_mean_square(direction, plan.averaged)
    direction /= jnp.maximum(1.0, size / settings.clipping_threshold)
  return direction, slots


def _average(step: _Step, old: jax.Array, new: jax.Array) -> jax.Array:
  return step.kept * old + step.mixed * new


def _root_mean_square(array: jax.Array, axes: tuple[int, ...]) -> jax.Array:
  return jnp.sqrt(jnp.mean(array * array, axis=axes, keepdims=True))


def _without(shape: tuple[int, ...], axes: tuple[int, ...]) -> tuple[int, ...]:
  return tuple(size for axis, size in enumerate(shape) if axis not in axes)


def _rows_in_row(plan: _Plan) -> tuple[int, ...]:
  """The row axes' positions once the column axes are gone."""
  return tuple(
    axis - sum(column < axis for column in plan.columns) for axis in plan.rows
  )


def _plan(
  settings: _Settings, path: Sequence[Any], shape: tuple[int, ...]
) -> _Plan:
  name = jax.tree_util.keystr(tuple(path), simple=True, separator="/")
  roles = settings.factor_rule and settings.factor_rule(name, shape)
  if roles is not None:
    _check_roles(name, shape, roles)
  stack = layout.stack_axis(name)
  if roles is None and stack is not None:
    # One layer's leaf for each row: what happens to it must not depend on
    # whether its network is scanned.
    row = (*shape[:stack], *shape[stack + 1 :])
    return _plan_of_rows(_plan_leaf(settings, name, row, None), stack)
  return _plan_leaf(settings, name, shape, roles)


def _plan_of_rows(plan: _Plan, stack: int) -> _Plan:
  """The plan of a stack of leaves, from that of one of them."""

  def moved(axes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(axis + (axis >= stack) for axis in axes)

  return _Plan(
    averaged=moved(plan.averaged),
    rows=moved(plan.rows),
    columns=moved(plan.columns),
  )


def _plan_leaf(
  settings: _Settings,
  name: str,
  shape: tuple[int, ...],
  roles: Sequence[AxisRole] | None,
) -> _Plan:
  every = tuple(range(len(shape)))
  if settings.variant == "hugging_face":
    if len(shape) < 2:
      return _Plan(averaged=every)
    return _Plan(averaged=every, rows=every[-2:-1], columns=every[-1:])
  if not settings.factored:
    return _Plan(averaged=every)
  if len(shape) <= 2 and (roles is None or "batch" not in roles):
    return _plan_by_size(settings, shape)
  if roles is None:
    raise ValueError(
      "adafactor: expected a factor_rule for a leaf of three axes or more"
      f" (T5X factors by length only up to two), found none for {name!r} of"
      f" shape {shape}. Give a factor_rule, or factored=False, or use"
      " variant='hugging_face', which factors the last two axes."
    )
  return _plan_by_role(roles)


def _plan_by_size(settings: _Settings, shape: tuple[int, ...]) -> _Plan:
  every = tuple(range(len(shape)))
  if len(shape) < 2 or min(shape) < settings.min_dim_size_to_factor:
    return _Plan(averaged=every)
  shorter, longer = (int(axis) for axis in np.argsort(shape, kind="stable"))
  return _Plan(averaged=every, rows=(shorter,), columns=(longer,))


def _plan_by_role(roles: Sequence[AxisRole]) -> _Plan:
  def axes(role: AxisRole) -> tuple[int, ...]:
    return tuple(axis for axis, found in enumerate(roles) if found == role)

  averaged = tuple(axis for axis, role in enumerate(roles) if role != "batch")
  return _Plan(averaged=averaged, rows=axes("row"), columns=axes("column"))


def _check_roles(
  name: str, shape: tuple[int, ...], roles: Sequence[str]
) -> None:
  """Refuses a rule that does not say what to do with each axis."""
  start = f"adafactor: factor_rule({name!r}, {shape}): expected"
  if len(roles) != len(shape) or any(role not in _ROLES for role in roles):
    raise ValueError(
      f"{start} one of {_ROLES} for each of the {len(shape)} axes, found"
      f" {tuple(roles)}. Return None to factor by the length of the axes."
    )
  if {"row", "column", "none"} <= set(roles):
    raise ValueError(
      f"{start} every axis to be a row, a column or a batch axis once the leaf"
      f" is factored, found {tuple(roles)}. Give the 'none' axes another role,"
      " or call all of them 'none'."
    )
