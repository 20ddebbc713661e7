"""T5X optimizers that are given the adapter's leaves and no others.

T5X keeps one tree and hands all of it to the optimizer. What an optimizer never
sees stays as it is, and costs no state; and as nothing reads the gradients of
the frozen leaves, XLA does not compute them.
"""

from typing import Any

import jax.numpy as jnp
import optax
from flax.core import FrozenDict, freeze, unfreeze
from flax.serialization import from_state_dict, to_state_dict
from t5x import adafactor as t5x_adafactor
from t5x import optimizers
from t5x.optimizers import Optimizer, OptimizerDef, OptimizerState

from peft_jax import optim, partition, sharding, trees
from peft_jax.inject import Adapted


class AdapterOptimizer(OptimizerDef):
  """Trains what `Adapted` trains with another optimizer of T5X's.

  Example:
    >>> from peft_jax import IA3, Rule
    >>> import numpy as np
    >>> model = Adapted(None, [Rule("key", IA3())])
    >>> tx = AdapterOptimizer(t5x_adafactor.Adafactor(), model)
    >>> params = {"key": {"kernel": np.ones((2, 2), np.float32),
    ...   "ia3": {"scaling": np.ones(2, np.float32)}}}
    >>> sorted(tx.init_state(params).param_states["key"])
    ['ia3']
  """

  def __init__(self, inner: OptimizerDef, module: Adapted) -> None:
    """Wraps an optimizer.

    Args:
      inner: the optimizer for the trained leaves.
      module: the network with its rules.
    """
    super().__init__(inner.hyper_params)
    self.inner = inner
    self.module = module

  def init_state(self, params: Any) -> OptimizerState:
    """Returns the inner optimizer's state, for the trained leaves."""
    state = self.inner.init_state(self._trained(params))
    self.hyper_params = self.inner.hyper_params
    return state

  def apply_gradient(
    self, hyper_params: Any, params: Any, state: Any, grads: Any
  ) -> tuple[Any, Any]:
    """Returns new parameters, the frozen ones untouched, and the new state."""
    trained, state = self.inner.apply_gradient(
      hyper_params, self._trained(params), state, self._trained(grads)
    )
    return _like(params, partition.overlay(params, trained)), state

  def update_hyper_params(self, **overrides: Any) -> Any:
    """Returns the inner optimizer's settings with the step's learning rate."""
    return self.inner.update_hyper_params(**overrides)

  def set_param_axes(self, axes: Any) -> None:
    """Tells the inner optimizer the logical axes, if it wants to know."""
    if hasattr(self.inner, "set_param_axes"):
      self.inner.set_param_axes(self._trained(axes))

  def derive_logical_axes(self, optimizer: Any, axes: Any) -> Any:
    """Returns the optimizer with logical axes in the place of its arrays.

    A slot of a leaf's shape lies as the leaf does; all others, which are small,
    are whole on every device. So a state needs no rule of its own.
    """
    shapes = {
      path: tuple(leaf.shape)
      for path, leaf in _flat(self._trained(optimizer.target)).items()
    }
    names = _flat(axes)

    def of(path: str, leaf: Any) -> Any:
      for name, shape in shapes.items():
        if f"/{name}/" in f"/{path}/" and jnp.shape(leaf) == shape:
          return names[name]
      return None

    state = to_state_dict(optimizer.state)
    derived = trees.unflatten(
      {path: of(path, leaf) for path, leaf in _flat(state).items()}
    )
    _, derived = self.restore_state(
      optimizer.target, optimizer.state, {"target": {}, "state": derived}
    )
    return Optimizer(self, derived, axes)

  def state_dict(self, target: Any, state: Any) -> Any:
    """Returns target and state as nested dicts."""
    return {
      "target": to_state_dict(target),
      "state": self.inner.state_dict({}, state)["state"],
    }

  def restore_state(
    self, opt_target: Any, opt_state: Any, state_dict: Any
  ) -> tuple[Any, Any]:
    """Returns target and state with the values of nested dicts."""
    found = state_dict["target"]
    target = from_state_dict(opt_target, found) if found else opt_target
    _, state = self.inner.restore_state(
      {}, opt_state, {"target": {}, "state": state_dict["state"]}
    )
    return target, state

  def _trained(self, tree: Any) -> Any:
    chosen = {
      path: leaf
      for path, leaf in _flat(tree).items()
      if partition.is_trained(path, self.module)
    }
    return _like(tree, trees.unflatten(chosen))


def from_optax(
  tx: optax.GradientTransformation,
  module: Adapted,
  *,
  lora_plus_ratio: float = 0.0,
  gradient_clip: float = 0.0,
) -> AdapterOptimizer:
  """Returns T5X's optimizer of an optax one, for the adapter alone.

  Its learning rate is its own, not that of T5X's trainer, and its step counts
  from 0 whatever T5X's says.

  Args:
    tx: the optimizer.
    module: the network with its rules.
    lora_plus_ratio: see `optim.lora_plus`; 0: one learning rate for all.
    gradient_clip: largest global norm of the adapter's gradient; 0: none.
  """
  if lora_plus_ratio:
    tx = optim.lora_plus(tx, ratio=lora_plus_ratio)
  if gradient_clip:
    tx = optim.with_clipping(tx, max_norm=gradient_clip)
  return AdapterOptimizer(optimizers.OptaxWrapper(tx), module)


def adafactor(module: Adapted, **settings: Any) -> AdapterOptimizer:
  """Returns T5X's own Adafactor, for the adapter alone.

  The learning rate is that of T5X's trainer. Its decay counts T5X's steps less
  `step_offset`: with a counter that starts at 0 both start afresh; with one
  that goes on from the checkpoint's step (START_STEP='checkpoint') and
  `step_offset=0` it is what prompt tuning's released runs did.

  Args:
    module: the network with its rules.
    **settings: of `t5x.adafactor.Adafactor`.
  """
  settings.setdefault("logical_factor_rules", factor_rules())
  return AdapterOptimizer(t5x_adafactor.Adafactor(**settings), module)


def factor_rules() -> FrozenDict:
  """Returns T5X's rules for factoring, with the axes that adapters have.

  Example:
    >>> factor_rules()["lora_rank"].name
    'NONE'
  """
  rules = dict(t5x_adafactor.standard_logical_factor_rules())
  for axis, _ in sharding.DEFAULT_RULES:
    rules.setdefault(axis, t5x_adafactor.FactorDim.NONE)
  return freeze(rules)


def _flat(tree: Any) -> dict[str, Any]:
  plain = unfreeze(tree) if isinstance(tree, FrozenDict) else dict(tree)
  return trees.flatten(plain)


def _like(tree: Any, found: dict) -> Any:
  """T5X's trees are FrozenDicts, and must stay so."""
  return freeze(found) if isinstance(tree, FrozenDict) else found
