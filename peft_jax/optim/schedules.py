"""Learning rates as functions of the step.

Each function here makes a schedule: from a step, a Python integer or an int32
scalar (traced or not), to a float32 scalar. Optax takes one wherever it takes a
learning rate. Past its end a schedule stays at its final value.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from peft_jax.optim import _checks


def constant(*, learning_rate: float, warmup_steps: int = 0) -> optax.Schedule:
  """Makes a constant learning rate, after an optional linear warm-up.

  >>> schedule = constant(learning_rate=0.5, warmup_steps=2)
  >>> [float(schedule(step)) for step in range(4)]
  [0.0, 0.25, 0.5, 0.5]

  Args:
    learning_rate: the value after the warm-up. Prompt tuning says 0.3
      (Lester et al., section 3).
    warmup_steps: steps to get there from 0 at step 0. Default 0: none.

  Returns:
    The schedule, from a scalar step to a float32 scalar.

  Raises:
    ValueError: if an option is out of range.
  """
  _check(learning_rate, warmup_steps)

  def schedule(step: jax.typing.ArrayLike) -> jax.Array:
    return learning_rate * _warmup(_float(step), warmup_steps)

  return schedule


def linear_decay(
  *,
  learning_rate: float,
  total_steps: int,
  warmup_steps: int = 0,
  final_value: float = 0.0,
) -> optax.Schedule:
  """Makes a linear warm-up followed by a linear decay.

  T-Few warms up over 60 of its 1,000 steps (its ratio is 0.06), so the first
  step changes nothing:

  >>> schedule = linear_decay(
  ...   learning_rate=3e-3, total_steps=1000, warmup_steps=60
  ... )
  >>> [round(float(schedule(step)), 6) for step in (0, 30, 60, 530, 1000)]
  [0.0, 0.0015, 0.003, 0.0015, 0.0]

  With the default `final_value` this is the Hugging Face function
  `get_linear_schedule_with_warmup` times the learning rate.

  Args:
    learning_rate: the value at the end of the warm-up. T-Few says 3e-3 (Liu
      et al., section 3.5).
    total_steps: the step at which `final_value` is reached.
    warmup_steps: steps to go from 0 to `learning_rate`. Default 0: none.
    final_value: the value from `total_steps` on. Default 0 (T-Few).

  Returns:
    The schedule, from a scalar step to a float32 scalar.

  Raises:
    ValueError: if an option is out of range.
  """
  return _decay(
    learning_rate, total_steps, warmup_steps, final_value, lambda left: left
  )


def cosine_decay(
  *,
  learning_rate: float,
  total_steps: int,
  warmup_steps: int = 0,
  final_value: float = 0.0,
) -> optax.Schedule:
  """Makes a linear warm-up followed by half a period of a cosine.

  >>> schedule = cosine_decay(learning_rate=1.0, total_steps=8)
  >>> [round(float(schedule(step)), 3) for step in (0, 2, 4, 8, 9)]
  [1.0, 0.854, 0.5, 0.0, 0.0]

  Up to `total_steps`, and with the default `final_value`, this is the Hugging
  Face function `get_cosine_schedule_with_warmup` times the learning rate.

  Args:
    learning_rate: the value at the end of the warm-up.
    total_steps: the step at which `final_value` is reached.
    warmup_steps: steps to go from 0 to `learning_rate`. Default 0: none.
    final_value: the value from `total_steps` on. Default 0 (SGDR, Loshchilov
      and Hutter, section 3, with one period).

  Returns:
    The schedule, from a scalar step to a float32 scalar.

  Raises:
    ValueError: if an option is out of range.
  """

  def half_cosine(left: jax.Array) -> jax.Array:
    return 0.5 * (1.0 + jnp.cos(jnp.pi * (1.0 - left)))

  return _decay(
    learning_rate, total_steps, warmup_steps, final_value, half_cosine
  )


def inverse_sqrt(
  *,
  learning_rate: float = 1.0,
  warmup_steps: int = 10_000,
  linear_warmup: bool = False,
  final_value: float = 1e-8,
) -> optax.Schedule:
  """Makes `learning_rate / sqrt(max(step, warmup_steps))`, T5's own schedule.

  It is level for `warmup_steps` and falls afterwards. Note that `learning_rate`
  is not its highest value; that is `learning_rate / sqrt(warmup_steps)`:

  >>> schedule = inverse_sqrt(learning_rate=1.0, warmup_steps=100)
  >>> [round(float(schedule(step)), 4) for step in (0, 100, 400, 10_000)]
  [0.1, 0.1, 0.05, 0.01]

  In T5X's words these are the factors `'constant * rsqrt_decay'`, and with
  `linear_warmup` `'constant * linear_warmup * rsqrt_decay'`.

  Args:
    learning_rate: the value times sqrt(step). Default 1 (T5 paper, section
      3.1.2).
    warmup_steps: the steps before the decay. Default 10,000 (same section).
    linear_warmup: also multiply by `min(1, step / warmup_steps)`, so that the
      schedule rises from 0. Default False (T5 paper).
    final_value: the least value the schedule takes, at any step. Default 1e-8
      (T5X's `min_learning_rate`).

  Returns:
    The schedule, from a scalar step to a float32 scalar.

  Raises:
    ValueError: if an option is out of range.
  """
  _check(learning_rate, warmup_steps)
  _checks.whole(
    "warmup_steps",
    warmup_steps,
    1,
    hint="The learning rate is divided by its square root.",
  )
  _checks.at_least("final_value", final_value, 0.0)

  def schedule(step: jax.typing.ArrayLike) -> jax.Array:
    step = _float(step)
    value = learning_rate / jnp.sqrt(jnp.maximum(step, warmup_steps))
    if linear_warmup:
      value = value * _warmup(step, warmup_steps)
    return jnp.maximum(value, final_value)

  return schedule


def starting_at(schedule: optax.Schedule, *, step: int) -> optax.Schedule:
  """Shifts a schedule so that its step 0 is at `step`.

  For a counter that does not start at 0, as with `adafactor(initial_step=...)`:

  >>> warmup = constant(learning_rate=1.0, warmup_steps=4)
  >>> shifted = starting_at(warmup, step=1_100_000)
  >>> [float(shifted(1_100_000 + step)) for step in (-1, 0, 1, 2, 3, 4)]
  [0.0, 0.0, 0.25, 0.5, 0.75, 1.0]

  Args:
    schedule: the schedule to shift, from a scalar step to a scalar.
    step: where it begins. Earlier steps have its first value.

  Returns:
    The shifted schedule.

  Raises:
    ValueError: if `schedule` is not a function or `step` is below 0.
  """
  if not callable(schedule):
    raise ValueError(
      "starting_at: expected a schedule, a function of the step, found"
      f" {schedule!r}. A constant number needs no shift."
    )
  _checks.whole("step", step, 0)

  def shifted(count: jax.typing.ArrayLike) -> jax.Array:
    return jnp.asarray(schedule(jnp.maximum(count - step, 0)))

  return shifted


def _decay(
  learning_rate: float,
  total_steps: int,
  warmup_steps: int,
  final_value: float,
  bend: Callable[[jax.Array], jax.Array],
) -> optax.Schedule:
  """Rises to `learning_rate`, then falls as `bend` says of the share left."""
  _check(learning_rate, warmup_steps)
  _checks.whole(
    "total_steps",
    total_steps,
    max(1, warmup_steps),
    hint="The warm-up is part of the total.",
  )
  _checks.at_least("final_value", final_value, 0.0)

  def schedule(step: jax.typing.ArrayLike) -> jax.Array:
    step = _float(step)
    left = bend(_left(step, total_steps, warmup_steps))
    decayed = final_value + (learning_rate - final_value) * left
    rising = learning_rate * _warmup(step, warmup_steps)
    return jnp.where(step < warmup_steps, rising, decayed)

  return schedule


def _float(step: jax.typing.ArrayLike) -> jax.Array:
  # float32 holds every step up to 16.7 million.
  return jnp.asarray(step, jnp.float32)


def _warmup(step: jax.Array, warmup_steps: int) -> jax.Array:
  """From 0 at step 0 to 1 at `warmup_steps`."""
  if warmup_steps == 0:
    return jnp.ones_like(step)
  return jnp.minimum(1.0, step / warmup_steps)


def _left(step: jax.Array, total_steps: int, warmup_steps: int) -> jax.Array:
  """The share of the decay still ahead: 1 at `warmup_steps`, 0 at the end."""
  return jnp.clip(
    (total_steps - step) / max(1, total_steps - warmup_steps), 0.0, 1.0
  )


def _check(learning_rate: float, warmup_steps: int) -> None:
  _checks.at_least("learning_rate", learning_rate, 0.0)
  _checks.whole("warmup_steps", warmup_steps, 0)
