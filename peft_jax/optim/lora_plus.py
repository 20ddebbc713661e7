"""LoRA+: a larger learning rate for LoRA's second factor (2402.12354)."""

from typing import Any

import jax
import optax

from peft_jax.optim import _checks


def lora_plus(
  tx: optax.GradientTransformation, *, ratio: float = 16.0
) -> optax.GradientTransformationExtraArgs:
  """Multiplies the updates of every `b` beside an `a` by `ratio`.

  >>> import jax.numpy as jnp
  >>> from peft_jax.optim import sgd
  >>> tx = lora_plus(sgd(learning_rate=1.0), ratio=4.0)
  >>> params = {'query': {'lora': {'a': jnp.ones(()), 'b': jnp.ones(())}}}
  >>> updates, _ = tx.update(params, tx.init(params))
  >>> updates['query']['lora']['b'].item(), updates['query']['lora']['a'].item()
  (-4.0, -1.0)

  Args:
    tx: the optimizer; its learning rate is that of `a`.
    ratio: learning rate of `b` over that of `a`. Default 16 (section 5: 2^4).

  Returns:
    The gradient transformation.

  Raises:
    ValueError: if `ratio` is not above 0, or the parameters have no such pair.
  """
  _checks.above("ratio", ratio, 0.0)
  tx = optax.with_extra_args_support(tx)

  def init(params: optax.Params) -> optax.OptState:
    if not _second_factors(params):
      raise ValueError(
        "expected parameters with LoRA's factors a and b side by side, found"
        " none. Use lora_plus with LoRA, DoRA or PiSSA."
      )
    return tx.init(params)

  def update(
    updates: optax.Updates,
    state: optax.OptState,
    params: optax.Params | None = None,
    **extra_args: Any,
  ) -> tuple[optax.Updates, optax.OptState]:
    updates, state = tx.update(updates, state, params, **extra_args)
    faster = _second_factors(updates)
    scaled = jax.tree_util.tree_map_with_path(
      lambda path, u: u * ratio if _names(path) in faster else u, updates
    )
    return scaled, state

  return optax.GradientTransformationExtraArgs(init, update)


def _names(path: tuple) -> tuple[str, ...]:
  return tuple(str(getattr(key, "key", key)) for key in path)


def _second_factors(tree: Any) -> set[tuple[str, ...]]:
  """Returns the paths that end in `b` and have an `a` beside them.

  Not those of an embedder: there `a` is the factor that starts at zero.
  """
  paths = {_names(p) for p, _ in jax.tree_util.tree_leaves_with_path(tree)}
  return {
    p
    for p in paths
    if p[-1] == "b" and (*p[:-1], "a") in paths and p[0] != "token_embedder"
  }
