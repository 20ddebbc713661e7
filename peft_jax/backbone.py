"""Backbone checkpoints: strict restoring, and writing merged models.

    backbone/backbone.json   the network's name, configuration and leaves
    backbone/params/         the parameters as an Orbax checkpoint

or a single `.npz` file of small models. One module per layer, as T5X has it.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from peft_jax import layout, networks, orbax_io, trees
from peft_jax.checkpoint import read_npz, read_orbax

FILE_NAME = "backbone.json"
PARAMS = "params"
# Fields of a configuration that do not change the parameters.
_HOW_IT_RUNS = (
  *("scan_layers", "remat", "dropout_rate", "dtype"),
  "attention_kernel",
)


class BackboneError(ValueError):
  """A backbone checkpoint that is not the network's."""


def save(
  directory: str | Path, params: Any, *, model: Mapping[str, Any]
) -> None:
  """Writes a backbone directory.

  Args:
    directory: must not exist, or be empty.
    params: the backbone's parameters, in either view of the layers.
    model: name and configuration of the network.

  Raises:
    BackboneError: if the directory is taken, or a bucket.
  """
  directory = orbax_io.vacant(directory, BackboneError)
  tree = layout.to_layers(params)
  leaves = {
    path: {"shape": list(leaf.shape), "dtype": np.dtype(leaf.dtype).name}
    for path, leaf in sorted(trees.flatten(tree).items())
  }
  text = json.dumps({"model": dict(model), "leaves": leaves}, indent=2)
  with orbax_io.finished(directory) as partial:
    orbax_io.write(partial / PARAMS, tree)
    (partial / FILE_NAME).write_text(text + "\n")


def restore(
  path: str | Path,
  spec: Any,
  *,
  dtype: Any = jnp.float32,
  shardings: Any = None,
) -> dict:
  """Reads a backbone for a given network; all of it or nothing.

  Args:
    path: a directory that `save` wrote, or an `.npz` file.
    spec: the backbone's leaves as the network has them, arrays or shapes.
    dtype: dtype of the result, or a tree of them.
    shardings: tree of shardings to place the leaves on; default: one device.

  Returns:
    The parameters in the view of the layers that `spec` has.

  Raises:
    BackboneError: naming the leaves that are missing, extra or misshapen.
  """
  where = orbax_io.locate(path)
  if where.suffix == ".npz":
    tree = trees.unflatten(read_npz(where))
  elif (where / PARAMS).is_dir():
    tree = trees.unflatten(read_orbax(where / PARAMS))
  else:
    raise BackboneError(
      f"expected a backbone directory with {FILE_NAME}, or an .npz file, found"
      f" {'another directory' if where.is_dir() else 'nothing'} at {where}."
    )
  tree = layout.fit(tree, spec)
  check_fits(tree, spec, source=str(where))
  tree = layout.cast(tree, dtype)
  if shardings is None:
    return jax.tree.map(jnp.asarray, tree)
  return jax.tree.map(jax.device_put, tree, shardings)


def check_fits(tree: Any, spec: Any, *, source: str) -> None:
  """Raises unless both trees have the same paths and shapes.

  Raises:
    BackboneError: naming what is missing, extra or misshapen.
  """
  found, wanted = trees.flatten(tree), trees.flatten(spec)
  missing = sorted(wanted.keys() - found.keys())
  extra = sorted(found.keys() - wanted.keys())
  if missing:
    hint = ""
    if "decoder/logits_dense/kernel" in missing:
      hint = " (T5 1.0 ties its output layer: set logits_via_embedding=True)"
    raise BackboneError(
      f"expected {len(wanted)} parameters in {source}, found {len(missing)} of"
      f" them missing, which would be random: {', '.join(missing[:3])}{hint}."
      " Nothing was loaded; choose the model that the checkpoint holds."
    )
  if extra:
    raise BackboneError(
      f"expected {len(wanted)} parameters in {source}, found {len(extra)} that"
      f" the network does not have: {', '.join(extra[:3])}. Nothing was loaded;"
      " choose the model that the checkpoint holds."
    )
  for path, leaf in found.items():
    if tuple(leaf.shape) != tuple(wanted[path].shape):
      raise BackboneError(
        f"expected {path} of shape {tuple(wanted[path].shape)}, found"
        f" {tuple(leaf.shape)} in {source}. Nothing was loaded; choose the"
        " model that the checkpoint holds."
      )


def describe(network: Any, name: str = "") -> dict[str, Any]:
  """Returns the network's name and configuration as JSON values.

  Example:
    >>> from peft_jax import networks
    >>> describe(networks.create("tiny"), "tiny")["config"]["emb_dim"]
    128
  """
  config = dataclasses.asdict(network.config)
  # How it runs is not what it is.
  for field in _HOW_IT_RUNS:
    config.pop(field, None)
  return {
    "name": name,
    "class": type(network).__name__,
    "config": json.loads(json.dumps(config)),
  }


def network(directory: str | Path, **overrides: Any) -> Any:
  """Returns the network that a backbone directory describes.

  Args:
    directory: as `save` wrote it.
    **overrides: fields of `TransformerConfig` to replace.

  Raises:
    BackboneError: if there is none.
  """
  path = orbax_io.locate(directory) / FILE_NAME
  if not path.is_file():
    raise BackboneError(
      f"expected a backbone directory with {FILE_NAME}, found none at"
      f" {directory}."
    )
  return network_of(json.loads(path.read_text("utf-8"))["model"], **overrides)


def network_of(description: Mapping[str, Any], **overrides: Any) -> Any:
  """Returns the network of a description; the inverse of `describe`.

  Example:
    >>> from peft_jax import networks
    >>> tiny = networks.create("tiny")
    >>> network_of(describe(tiny)) == tiny
    True

  Args:
    description: name, class and configuration.
    **overrides: fields of `TransformerConfig` to replace.

  Raises:
    BackboneError: for a network that is not ours.
  """
  fields = dict(description.get("config", {}))
  known = {f.name for f in dataclasses.fields(networks.TransformerConfig)}
  if not fields or not fields.keys() <= known:
    raise BackboneError(
      "expected the configuration of a network of peft_jax, found"
      f" {description.get('class') or 'none'} with"
      f" {sorted(fields.keys() - known)[:3]}. Build the network in Python."
    )
  fields["rotary"] = networks.Rotary(**fields.get("rotary", {}))
  fields["mlp_activations"] = tuple(fields["mlp_activations"])
  config = networks.TransformerConfig(**(fields | overrides))
  return networks.from_config(config)
