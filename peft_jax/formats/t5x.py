"""Backbones in T5X's form, read without T5X.

Three kinds are met: one msgpack file; a folder `checkpoint_N` with a msgpack
index and a zarr array per large parameter; and the same as an Orbax checkpoint.
Layers may be modules of their own or stacked along whatever axis.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import serialization

from peft_jax import backbone, layout, trees
from peft_jax.checkpoint import read_orbax
from peft_jax.formats.safetensors_io import FormatError
from peft_jax.orbax_io import locate

_INDEX = "checkpoint"
_ORBAX = "state"
_TARGET = "target."
PREFIX = "t5x:"
_POSITIONS = "relpos_bias/rel_embedding"


def load(
  path: str | Path,
  spec: Any,
  *,
  dtype: Any = jnp.float32,
  shardings: Any = None,
) -> dict:
  """Returns the parameters of a T5X checkpoint; all or nothing.

  The optimizer's state is left where it is.

  Args:
    path: a msgpack file, or a folder `checkpoint_N`.
    spec: the backbone's leaves as the network has them, arrays or shapes.
    dtype: of the result, or a tree of them.
    shardings: tree of shardings to place the leaves on; default: one device.

  Raises:
    FormatError: for what is no T5X checkpoint.
    BackboneError: naming the leaves that are missing, extra or misshapen.
  """
  tree = _with_positions(layout.to_layers(read(path)), spec)
  tree = layout.fit(tree, spec)
  backbone.check_fits(tree, spec, source=str(path))
  tree = layout.cast(tree, dtype)
  if shardings is None:
    return jax.tree.map(jnp.asarray, tree)
  return jax.tree.map(jax.device_put, tree, shardings)


def _with_positions(tree: dict, spec: Any) -> dict:
  """Gives each layer the relative positions that the layers of a stack share.

  T5X's scalable_t5 has them in every layer, the published checkpoints of T5
  once per stack: the same function as long as nothing trains them.
  """
  rows = trees.flatten(tree)
  wanted = {
    layer
    for name, leaf in trees.flatten(spec).items()
    for layer, _ in layout.rows_of(name, leaf)
  }
  for stack in ("encoder", "decoder"):
    shared = f"{stack}/{_POSITIONS}"
    pattern = re.compile(rf"{stack}/layers_\d+/{_POSITIONS}")
    own = list(filter(pattern.fullmatch, wanted))
    if own and shared in rows and shared not in wanted:
      rows |= dict.fromkeys(own, rows.pop(shared))
  return trees.unflatten(rows)


def read(path: str | Path) -> dict:
  """Returns the parameters as they are stored, numpy arrays.

  Raises:
    FormatError: for what is no T5X checkpoint.
  """
  where = locate(path)
  if where.is_file():
    return _read_msgpack(where)
  if (where / _ORBAX).is_dir():
    flat = read_orbax(where / _ORBAX)
    found = {
      name.removeprefix("target/"): leaf
      for name, leaf in flat.items()
      if name.startswith("target/")
    }
    return trees.unflatten(found or flat)
  if (where / _INDEX).is_file():
    small = trees.flatten(_read_msgpack(where / _INDEX))
    # Where a large parameter would be, the index has the place of its array.
    flat = {k: v for k, v in small.items() if isinstance(v, np.ndarray)}
    for folder in sorted(where.glob(f"{_TARGET}*")):
      name = folder.name.removeprefix(_TARGET).replace(".", "/")
      flat[name] = _read_zarr(folder)
    return trees.unflatten(flat)
  raise FormatError(
    "expected a T5X checkpoint: a msgpack file, or a folder checkpoint_N with"
    f" a file {_INDEX} or a folder {_ORBAX}, found"
    f" {'another folder' if where.is_dir() else 'nothing'} at {where}."
  )


def is_checkpoint(path: str | Path) -> bool:
  """Whether there is a checkpoint of T5X, not looking into it."""
  where = locate(path)
  return where.is_file() or any(
    (where / name).exists() for name in (_INDEX, _ORBAX)
  )


def step_of(path: str | Path) -> int:
  """Returns the number of steps that a checkpoint was trained for.

  Raises:
    FormatError: for what is no T5X checkpoint, or does not say.
  """
  where = locate(path)
  if (where / _ORBAX).is_dir():
    step = read_orbax(where / _ORBAX).get("state/step")
  else:
    tree = _parse(where if where.is_file() else where / _INDEX)
    tree = tree.get("optimizer", tree) if isinstance(tree, Mapping) else {}
    step = trees.flatten(tree).get("state/step")
  if step is None:
    raise FormatError(
      f"expected the number of steps in {where}, found none: it holds weights"
      " alone."
    )
  return int(step)


def _parse(path: Path) -> Any:
  try:
    return serialization.msgpack_restore(path.read_bytes())
  except Exception as error:  # msgpack's errors have no common class
    raise FormatError(
      f"expected a msgpack file of T5X at {path}, found one that does not"
      f" parse: {type(error).__name__}: {error}."
    ) from error


def _read_msgpack(path: Path) -> dict:
  tree = _parse(path)
  # Older versions keep the parameters in the optimizer.
  if isinstance(tree, Mapping):
    tree = tree.get("optimizer", tree)
    tree = tree.get("target", None)
  if not isinstance(tree, Mapping):
    raise FormatError(
      f"expected parameters under `target` in {path}, found none: is it"
      " another model's?"
    )
  return dict(tree)


def _read_zarr(folder: Path) -> np.ndarray:
  import tensorstore  # Orbax has it; only this form needs it

  store = tensorstore.open(
    {"driver": "zarr", "kvstore": _kvstore(str(folder))}, open=True, read=True
  )
  return np.asarray(store.result().read().result())


def _kvstore(folder: str) -> dict[str, str]:
  if not folder.startswith("gs://"):
    return {"driver": "file", "path": folder}
  bucket, _, path = folder.removeprefix("gs://").partition("/")
  return {"driver": "gcs", "bucket": bucket, "path": path}
