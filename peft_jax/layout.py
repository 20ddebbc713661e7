"""One module per layer, or all layers stacked: two views of one tree.

Files, rules and reports speak of one module per layer (`layers_3/...`). A
network that scans keeps the layers of a stack in one module, its leaves
[layers, ...]. The functions here turn one view into the other.
"""

import re
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

# The module that scans, relative to the network: ours is `layers`.
_SCANNED = re.compile(r"(encoder|decoder)/layers/(.+)")
_LAYER = re.compile(r"(encoder|decoder)/layers_(\d+)/(.+)")


def layer_paths(path: str, num_layers: dict[str, int]) -> list[str]:
  """Returns the per-layer paths that a module's path stands for.

  Example:
    >>> layer_paths("encoder/layers/mlp/wo", {"encoder": 2})
    ['encoder/layers_0/mlp/wo', 'encoder/layers_1/mlp/wo']
    >>> layer_paths("decoder/logits_dense", {"decoder": 2})
    ['decoder/logits_dense']

  Args:
    path: module path in the network that runs.
    num_layers: stack name -> number of layers.
  """
  match = _SCANNED.fullmatch(path)
  if not match:
    return [path]
  stack, rest = match.groups()
  return [f"{stack}/layers_{i}/{rest}" for i in range(num_layers[stack])]


def is_stacked(path: str) -> bool:
  """Whether a leaf holds all layers of a stack, axis 0.

  Example:
    >>> is_stacked("encoder/layers/mlp/wo/kernel")
    True
  """
  return _SCANNED.fullmatch(path) is not None


def paths_of(path: str, rows: int) -> list[str]:
  """Returns the per-layer paths of a leaf; itself if it is not stacked.

  Example:
    >>> paths_of("encoder/layers/scale", 2)
    ['encoder/layers_0/scale', 'encoder/layers_1/scale']
  """
  return layer_paths(path, {"encoder": rows, "decoder": rows})


def is_scanned(params: Any) -> bool:
  """Whether the tree holds stacked layers.

  Example:
    >>> is_scanned({"encoder": {"layers": {"mlp": {}}}})
    True
  """
  return any("layers" in params.get(stack, {}) for stack in params)


def to_layers(params: Any) -> dict:
  """Returns the tree with one module per layer; others are left as they are.

  Example:
    >>> tree = {"encoder": {"layers": {"scale": np.ones((2, 4))}}}
    >>> sorted(to_layers(tree)["encoder"])
    ['layers_0', 'layers_1']
  """
  flat = {}
  for path, leaf in flatten_dict(params, sep="/").items():
    if is_stacked(path):
      layers = paths_of(path, leaf.shape[0])
      flat.update({layer: leaf[i] for i, layer in enumerate(layers)})
    else:
      flat[path] = leaf
  return unflatten_dict(flat, sep="/")


def to_scanned(params: Any) -> dict:
  """Returns the tree with the layers of each stack stacked, axis 0.

  Example:
    >>> tree = {"encoder": {"layers_0": {"scale": np.ones(4)},
    ...   "layers_1": {"scale": np.ones(4)}}}
    >>> to_scanned(tree)["encoder"]["layers"]["scale"].shape
    (2, 4)
  """
  flat, stacks = {}, {}
  for path, leaf in flatten_dict(params, sep="/").items():
    match = _LAYER.fullmatch(path)
    if not match:
      flat[path] = leaf
      continue
    stack, index, rest = match.groups()
    stacks.setdefault(f"{stack}/layers/{rest}", {})[int(index)] = leaf
  for path, by_index in stacks.items():
    leaves = [by_index[i] for i in sorted(by_index)]
    stack = np.stack if isinstance(leaves[0], np.ndarray) else jnp.stack
    flat[path] = stack(leaves)
  return unflatten_dict(flat, sep="/")


def like(params: Any, target: Any) -> dict:
  """Returns `params` in the view that `target` has.

  Example:
    >>> target = {"encoder": {"layers": {"scale": None}}}
    >>> tree = {"encoder": {"layers_0": {"scale": np.ones(4)}}}
    >>> like(tree, target)["encoder"]["layers"]["scale"].shape
    (1, 4)
  """
  if is_scanned(target) and not is_scanned(params):
    return to_scanned(params)
  if is_scanned(params) and not is_scanned(target):
    return to_layers(params)
  return params
