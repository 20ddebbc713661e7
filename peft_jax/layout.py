"""One module per layer, or all layers stacked: two views of one tree.

Files, rules and reports speak of one module per layer (`layers_3/...`). A
network that scans keeps the layers of a stack in one module: ours as
`encoder/layers`, its leaves [layers, ...]; T5X's scalable_t5 as
`encoder/encoder`, with the layers as axis 1. The functions here turn one view
into the other.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from peft_jax import trees

# The module that scans, relative to the network.
_SCANNED = re.compile(r"(encoder|decoder)/(layers|\1)/(.+)")
_LAYER = re.compile(r"(encoder|decoder)/layers_(\d+)/(.+)")


def stack_axis(path: str) -> int | None:
  """Returns the axis that the layers of a leaf lie along; None: not stacked.

  Example:
    >>> stack_axis("encoder/layers/mlp/wo/kernel")
    0
    >>> stack_axis("encoder/encoder/mlp/wo/kernel")
    1
    >>> stack_axis("encoder/layers_0/mlp/wo/kernel")
  """
  match = _SCANNED.fullmatch(path)
  if not match:
    return None
  return 0 if match[2] == "layers" else 1


def dtypes(dtype: Any, like: Any) -> dict[str, Any]:
  """Returns path -> dtype of every leaf.

  Example:
    >>> dtypes("float32", {"key": {"kernel": 1}})
    {'key/kernel': 'float32'}

  Args:
    dtype: one for all leaves, or a tree of them.
    like: tree whose leaves are meant.
  """
  if isinstance(dtype, Mapping):
    return trees.flatten(dtype)
  return dict.fromkeys(trees.flatten(like), dtype)


def cast(tree: Any, dtype: Any) -> dict:
  """Returns the tree with its leaves in a dtype, or in a tree of them.

  Example:
    >>> cast({"key": np.ones(2)}, "float32")["key"].dtype.name
    'float32'
  """
  found = dtypes(dtype, tree)
  flat = trees.flatten(tree)
  return trees.unflatten(
    {path: leaf.astype(found[path]) for path, leaf in flat.items()}
  )


def layer_paths(path: str, num_layers: dict[str, int]) -> list[str]:
  """Returns the per-layer paths that a module's path stands for.

  Example:
    >>> layer_paths("encoder/layers/mlp/wo", {"encoder": 2})
    ['encoder/layers_0/mlp/wo', 'encoder/layers_1/mlp/wo']
    >>> layer_paths("decoder/layers", {"decoder": 1})
    ['decoder/layers_0']
    >>> layer_paths("decoder/logits_dense", {"decoder": 2})
    ['decoder/logits_dense']

  Args:
    path: module path in the network that runs.
    num_layers: stack name -> number of layers.
  """
  match = re.fullmatch(r"(encoder|decoder)/(layers|\1)(/.+|)", path)
  if not match:
    return [path]
  stack, _, rest = match.groups()
  return [f"{stack}/layers_{i}{rest}" for i in range(num_layers[stack])]


def is_stacked(path: str) -> bool:
  """Whether a leaf holds all layers of a stack.

  Example:
    >>> is_stacked("encoder/layers/mlp/wo/kernel")
    True
  """
  return stack_axis(path) is not None


def rows_of(path: str, leaf: Any) -> list[tuple[str, tuple[int, ...]]]:
  """Returns per-layer path and shape of all that a leaf holds.

  Example:
    >>> rows_of("encoder/layers/scale", np.ones((2, 4)))
    [('encoder/layers_0/scale', (4,)), ('encoder/layers_1/scale', (4,))]
  """
  axis, shape = stack_axis(path), tuple(leaf.shape)
  if axis is None:
    return [(path, shape)]
  rows = {"encoder": shape[axis], "decoder": shape[axis]}
  rest = shape[:axis] + shape[axis + 1 :]
  return [(layer, rest) for layer in layer_paths(path, rows)]


def is_scanned(params: Any) -> bool:
  """Whether the tree holds stacked layers.

  Example:
    >>> is_scanned({"encoder": {"layers": {"mlp": {"scale": None}}}})
    True
  """
  return any(is_stacked(path) for path in trees.flatten(params))


def to_layers(params: Any) -> dict:
  """Returns the tree with one module per layer; others are left as they are.

  A layer that stands beside its stack (see `adapters.Unfreeze`) replaces the
  stack's row.

  Example:
    >>> tree = {"encoder": {"layers": {"scale": np.ones((2, 4))}}}
    >>> sorted(to_layers(tree)["encoder"])
    ['layers_0', 'layers_1']
  """
  flat, single = {}, {}
  for path, leaf in trees.flatten(params).items():
    axis = stack_axis(path)
    if axis is None:
      single[path] = leaf
      continue
    for i, (layer, _) in enumerate(rows_of(path, leaf)):
      flat[layer] = leaf[(slice(None),) * axis + (i,)]
  return trees.unflatten(flat | single)


def to_scanned(params: Any) -> dict:
  """Returns the tree with the layers of each stack stacked, axis 0.

  Example:
    >>> tree = {"encoder": {"layers_0": {"scale": np.ones(4)},
    ...   "layers_1": {"scale": np.ones(4)}}}
    >>> to_scanned(tree)["encoder"]["layers"]["scale"].shape
    (2, 4)
  """
  flat = trees.flatten(params)
  for (stack, rest), found in _by_stack(flat).items():
    rows = [flat.pop(found[i]) for i in sorted(found)]
    flat[f"{stack}/layers/{rest}"] = _stack(rows, 0)
  return trees.unflatten(flat)


def like(params: Any, target: Any) -> dict:
  """Returns `params` in the view that `target` has.

  Leaves that `target` does not have are kept as they are.

  Example:
    >>> target = {"encoder": {"layers": {"scale": None}}}
    >>> tree = {"encoder": {"layers_0": {"scale": np.ones(4)}}}
    >>> like(tree, target)["encoder"]["layers"]["scale"].shape
    (1, 4)
  """
  flat = trees.flatten(to_layers(params))
  rows = _by_stack(flat)
  result = {}
  for path in trees.flatten(target):
    match = _SCANNED.fullmatch(path)
    found = rows.get((match[1], match[3]), {}) if match else {}
    if match and found:
      axis = stack_axis(path)
      assert axis is not None
      result[path] = _stack([flat.pop(found[i]) for i in sorted(found)], axis)
  return trees.unflatten(flat | result)


def _by_stack(flat: dict[str, Any]) -> dict[tuple[str, str], dict[int, str]]:
  """Returns (stack, path within a layer) -> index -> per-layer path."""
  rows: dict[tuple[str, str], dict[int, str]] = {}
  for path in flat:
    if match := _LAYER.fullmatch(path):
      stack, index, rest = match.groups()
      rows.setdefault((stack, rest), {})[int(index)] = path
  return rows


def _stack(rows: Iterable[Any], axis: int) -> Any:
  rows = list(rows)
  if all(isinstance(row, np.ndarray) for row in rows):
    return np.stack(rows, axis)
  if any(isinstance(row, jax.ShapeDtypeStruct) for row in rows):
    shape = list(rows[0].shape)
    shape.insert(axis, len(rows))
    return jax.ShapeDtypeStruct(tuple(shape), rows[0].dtype)
  return jnp.stack(rows, axis)


def as_matrix(path: str, kernel: Any) -> Any:
  """Returns a kernel as the matrix [inputs, outputs].

  T5X's scalable_t5 keeps the head axes of attention kernels apart.

  Example:
    >>> as_matrix("attention/out/kernel", np.ones((2, 3, 5))).shape
    (6, 5)
    >>> as_matrix("attention/key/kernel", np.ones((5, 2, 3))).shape
    (5, 6)
  """
  return kernel.reshape(matrix_shape(path, kernel.shape))


def matrix_shape(path: str, shape: Sequence[int]) -> tuple[int, ...]:
  """Returns the shape of a kernel as a matrix.

  Example:
    >>> matrix_shape("attention/key/kernel", (5, 2, 3))
    (5, 6)
  """
  shape = tuple(shape)
  if len(shape) <= 2:
    return shape
  inputs = len(shape) - 1 if path.endswith("/out/kernel") else 1
  return math.prod(shape[:inputs]), math.prod(shape[inputs:])


def fit(tree: Any, spec: Any) -> dict:
  """Returns the tree in the view of `spec`, head axes joined or apart as there.

  Leaves that `spec` does not have are kept as they are, and so are those of
  another size.

  Example:
    >>> tree = {"key": {"kernel": np.ones((5, 6))}}
    >>> spec = {"key": {"kernel": np.ones((5, 2, 3))}}
    >>> fit(tree, spec)["key"]["kernel"].shape
    (5, 2, 3)

  Args:
    tree: leaves in either view of the layers.
    spec: arrays or shapes.
  """
  wanted: dict[str, Any] = {
    layer: shape
    for path, leaf in trees.flatten(spec).items()
    for layer, shape in rows_of(path, leaf)
  }
  rows = trees.flatten(to_layers(tree))
  for path, leaf in rows.items():
    shape = wanted.get(path, leaf.shape)
    same = matrix_shape(path, shape) == matrix_shape(path, leaf.shape)
    if same and tuple(leaf.shape) != shape:
      rows[path] = leaf.reshape(shape)
  return like(trees.unflatten(rows), spec)
