"""Folds adapters into the backbone: a new tree, nothing extra at inference."""

from typing import Any

import jax.numpy as jnp

from peft_jax import layout, partition, trees
from peft_jax.inject import Adapted
from peft_jax.rules import Rule


class MergeError(ValueError):
  """An adapter that no backbone can hold."""


def merge(params: Any, model: Adapted, *, dtype: Any = None) -> dict:
  """Returns the backbone's tree that acts as backbone and adapters together.

  Adapters are folded in the order of the rules, in float32, and rounded once.
  Going back is keeping the old tree: there is no unmerge.

  Example:
    >>> import numpy as np
    >>> from peft_jax import IA3, Rule
    >>> model = Adapted(None, [Rule("key", IA3())])
    >>> params = {"key": {"kernel": np.ones((1, 2), np.float32),
    ...   "ia3": {"scaling": np.array([1, 3], np.float32)}}}
    >>> merge(params, model)["key"]["kernel"].tolist()
    [[1.0, 3.0]]

  Args:
    params: backbone and adapters in one tree.
    model: the network with its rules.
    dtype: dtype of the result; default: each kernel keeps its own.

  Raises:
    MergeError: naming every rule that cannot be merged.
    PartitionError: if the tree does not hold what the rules say.
  """
  stuck = [rule for rule in model.rules if not rule.adapter.mergeable]
  if stuck:
    names = ", ".join(f"{r.name!r} at {r.pattern!r}" for r in stuck)
    raise MergeError(
      f"expected adapters that fold into a kernel, found {names}. Keep them"
      " unmerged, or merge a model without them."
    )
  _, adapter = partition.split(params, model)
  acted = model.effective(trees.flatten(params))
  view = partition.backbone_of(acted, model)
  kernels = trees.flatten(layout.to_layers(view))
  by_site: dict[str, dict[Rule, dict[str, Any]]] = {}
  for path, leaf in trees.flatten(layout.to_layers(adapter)).items():
    owner = model.rule_of(path)
    assert owner is not None
    rule, site, name = owner
    if rule.adapter.position not in ("leaves", "backbone"):
      by_site.setdefault(site, {}).setdefault(rule, {})[name] = leaf

  for site, by_rule in by_site.items():
    path = _kernel_of(site, kernels, by_rule)
    kernels[path] = _fold(path, kernels[path], by_rule, model)
    bias = f"{site}/bias"
    if bias in kernels:
      kernels[bias] = _fold_bias(kernels[bias], by_rule, model)
  if dtype is not None:
    kernels = {path: leaf.astype(dtype) for path, leaf in kernels.items()}
  return layout.like(trees.unflatten(kernels), view)


def _kernel_of(site: str, kernels: dict, by_rule: dict[Rule, Any]) -> str:
  for name in ("kernel", "embedding"):
    if f"{site}/{name}" in kernels:
      return f"{site}/{name}"
  names = ", ".join(rule.name for rule in by_rule)
  raise MergeError(
    f"expected a kernel at {site} to fold {names} into, found none. Keep the"
    " adapter unmerged."
  )


def _fold_bias(bias: Any, by_rule: dict[Rule, dict], model: Adapted) -> Any:
  """Folds all adapters of one site; bias: [outputs]."""
  folded = jnp.asarray(bias, jnp.float32)
  for rule in model.rules:
    if rule in by_rule:
      folded = rule.adapter.fold_bias(folded, by_rule[rule])
  return folded.astype(bias.dtype)


def _fold(
  path: str, kernel: Any, by_rule: dict[Rule, dict], model: Adapted
) -> Any:
  """Folds all adapters of one site; kernel: [inputs, outputs]."""
  folded = layout.as_matrix(path, jnp.asarray(kernel, jnp.float32))
  for rule in model.rules:
    if rule in by_rule:
      leaves = {
        name: jnp.asarray(leaf, jnp.float32)
        for name, leaf in by_rule[rule].items()
      }
      folded = rule.adapter.fold(folded, leaves)
  return folded.reshape(kernel.shape).astype(kernel.dtype)
