"""Freezing, for those who hold the whole parameter tree, such as T5X.

Where only the adapter's leaves are differentiated nothing needs freezing; that
is the cheaper way, and the library's own.
"""

from collections.abc import Callable
from typing import Any

import jax
import optax

Mask = optax.Params | Callable[[optax.Params], optax.Params]


def freeze(
  tx: optax.GradientTransformation, trainable_mask: Mask
) -> optax.GradientTransformationExtraArgs:
  """Makes `tx` train some leaves and leave the others alone.

  >>> import jax
  >>> import jax.numpy as jnp
  >>> import optax
  >>> def is_adapter(path, leaf):
  ...   return 'ia3' in jax.tree_util.keystr(path, simple=True, separator='/')
  >>> def mask(params):
  ...   return jax.tree_util.tree_map_with_path(is_adapter, params)
  >>> tx = freeze(optax.sgd(0.5), mask)
  >>> params = {'kernel': jnp.ones((2, 2)), 'ia3': jnp.ones(2)}
  >>> gradients = jax.tree.map(jnp.ones_like, params)
  >>> updates, _ = tx.update(gradients, tx.init(params), params)
  >>> jax.tree.map(lambda update: update.tolist(), updates)
  {'ia3': [-0.5, -0.5], 'kernel': [[0.0, 0.0], [0.0, 0.0]]}

  The updates of the frozen leaves are 0, not their gradients as from
  `optax.masked` alone, and `tx` keeps no state for them. Leaves may have any
  shape, and the trees keep their type (T5X's are `FrozenDict`s).

  Args:
    tx: the optimizer of the trainable leaves.
    trainable_mask: a tree of bools of the parameters' structure (or one that
      ends early, with one bool for a whole branch), True for the leaves to
      train; or a function from the parameters (or their gradients) to such a
      tree. Map over the parameters to make one, so that the tree's type stays.

  Returns:
    The gradient transformation.

  Raises:
    ValueError: if the mask has something else than bools, trains nothing, or
      does not fit the parameters. A function's mask is seen by `init` and
      `update` only, and so refused there.
  """
  if not callable(trainable_mask):
    _check(trainable_mask)

  def trainable(params: optax.Params) -> optax.Params:
    mask = (
      trainable_mask(params) if callable(trainable_mask) else trainable_mask
    )
    _check(mask)
    _check_fit(mask, params)
    return mask

  def frozen(params: optax.Params) -> optax.Params:
    return jax.tree.map(lambda trained: not trained, trainable(params))

  return optax.chain(
    optax.masked(tx, trainable), optax.masked(optax.set_to_zero(), frozen)
  )


def _check(mask: optax.Params) -> None:
  leaves, _ = jax.tree_util.tree_flatten_with_path(mask)
  for path, leaf in leaves:
    if not isinstance(leaf, bool):
      raise ValueError(
        "freeze: expected every leaf of trainable_mask to be True or False,"
        f" found {leaf!r} of type {type(leaf).__name__} at"
        f" {_name(path)!r}. Write bool(...) around it."
      )
  if not any(leaf for _, leaf in leaves):
    raise ValueError(
      "freeze: expected trainable_mask to be True for one leaf or more, found"
      f" {len(leaves)} leaves and none of them True, so nothing would be"
      " trained. Check the pattern that chooses the leaves against their names"
      + (f", such as {_name(leaves[0][0])!r}." if leaves else ".")
    )


def _check_fit(mask: optax.Params, params: optax.Params) -> None:
  try:
    jax.tree.map(lambda trained, branch: None, mask, params)
  except ValueError as error:
    raise ValueError(
      "freeze: expected trainable_mask to have the structure of the parameters,"
      f" found a {type(mask).__name__} for a {type(params).__name__}, and this"
      f" difference: {error} Make the mask with"
      " jax.tree_util.tree_map_with_path over the parameters."
    ) from error


def _name(path: tuple[Any, ...]) -> str:
  return jax.tree_util.keystr(path, simple=True, separator="/")
