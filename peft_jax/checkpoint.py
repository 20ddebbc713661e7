"""Adapter directories: Orbax and numpy, with a manifest, strict both ways.

    adapter/manifest.json   what it is (see `manifest`)
    adapter/orbax/          the leaves as an Orbax checkpoint
    adapter/adapter.npz     the same leaves for numpy alone

Leaves are stored replicated, float32, one module per layer, so that any
number of devices, or none, can read them.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from peft_jax import layout, orbax_io, trees
from peft_jax import manifest as manifests
from peft_jax.inject import Adapted
from peft_jax.manifest import Manifest
from peft_jax.rules import Rule

ORBAX = "orbax"
NPZ = "adapter.npz"


class AdapterError(ValueError):
  """An adapter that cannot be written or read as it should."""


def save(
  directory: str | Path,
  adapter: Any,
  rules: Sequence[Rule],
  *,
  model: Mapping[str, Any],
  backbone: Mapping[str, Any],
  training: Mapping[str, Any] | None = None,
) -> Manifest:
  """Writes an adapter directory, reads it back, and only then names it.

  Args:
    directory: must not exist, or be empty.
    adapter: the adapter's leaves, in either view of the layers.
    rules: the rules that made them.
    model: name and configuration of the backbone's network.
    backbone: where the backbone came from, and its fingerprint.
    training: step, task, metrics; whatever is known.

  Raises:
    AdapterError: if the directory is taken or a bucket, or there are no
      leaves.
  """
  directory = orbax_io.vacant(directory, AdapterError)
  leaves = jax.tree.map(_storable, layout.to_layers(adapter))
  if not jax.tree.leaves(leaves):
    raise AdapterError(
      "expected adapter leaves, found none; nothing was written. Pass the"
      " second result of peft_jax.split."
    )
  manifest = manifests.make(
    leaves, rules, model=model, backbone=backbone, training=training
  )
  with orbax_io.finished(directory) as partial:
    np.savez(partial / NPZ, **trees.flatten(leaves))
    orbax_io.write(partial / ORBAX, leaves)
    text = json.dumps(manifests.to_json(manifest), indent=2, sort_keys=True)
    (partial / manifests.FILE_NAME).write_text(text + "\n")
    verify(manifest, read_orbax(partial / ORBAX), source=str(directory))
    verify(manifest, read_npz(partial / NPZ), source=str(directory))
  return manifest


def load(directory: str | Path) -> tuple[Manifest, dict]:
  """Reads an adapter directory: its manifest and its leaves, verified.

  Args:
    directory: as `save` wrote it.

  Returns:
    The manifest, and the leaves as numpy arrays, one module per layer.

  Raises:
    ManifestError: if the manifest is missing or broken.
    AdapterError: if a leaf is missing, extra, misshapen or altered.
  """
  where = orbax_io.locate(directory)
  manifest = manifests.read(where)
  leaves = read_orbax(where / ORBAX)
  verify(manifest, leaves, source=str(where))
  return manifest, trees.unflatten(leaves)


def restore(
  directory: str | Path, model: Adapted, spec: Any, *, fingerprint: str = ""
) -> dict:
  """Reads an adapter for a given network; loads all of it or nothing.

  Args:
    directory: as `save` wrote it.
    model: the network with its rules.
    spec: the adapter's leaves as the network has them, arrays or shapes.
    fingerprint: of the backbone in use; checked if given.

  Returns:
    The leaves as numpy arrays, in the view of the layers that `spec` has.

  Raises:
    ManifestError: if the rules or their hyper-parameters differ.
    AdapterError: if the leaves differ, or the backbone is another one.
  """
  manifest, leaves = load(directory)
  manifests.check_rules(manifest, model.rules)
  check_fits(leaves, spec, source=str(directory))
  check_backbone(manifest, fingerprint, source=str(directory))
  return layout.like(leaves, spec)


def verify(
  manifest: Manifest, leaves: Mapping[str, np.ndarray], *, source: str
) -> None:
  """Raises unless the leaves are those of the manifest, byte for byte.

  Raises:
    AdapterError: naming the first leaf that differs.
  """
  missing = sorted(manifest.leaves.keys() - leaves.keys())
  extra = sorted(leaves.keys() - manifest.leaves.keys())
  if missing or extra:
    raise AdapterError(
      f"expected the {len(manifest.leaves)} leaves of the manifest in"
      f" {source}, found {len(missing)} missing and {len(extra)} extra (first"
      f" {(missing + extra)[0]}). Nothing was loaded; copy the adapter again."
    )
  for path, leaf in leaves.items():
    found = manifests.leaf_to_json(leaf)
    if found != manifest.leaves[path]:
      raise AdapterError(
        f"expected leaf {path} of {source} to have the manifest's bytes, found"
        " others: the file is damaged. Nothing was loaded; copy the adapter"
        " again."
      )


def check_fits(leaves: Any, spec: Any, *, source: str) -> None:
  """Raises unless the leaves have the paths and shapes of the network's.

  Raises:
    AdapterError: with the number and the first of the leaves that differ.
  """
  found = {p: tuple(x.shape) for p, x in trees.flatten(leaves).items()}
  wanted = _per_layer_shapes(spec)
  extra = sorted(found.keys() - wanted.keys())
  missing = sorted(wanted.keys() - found.keys())
  if extra or missing:
    depth = f"{_depth(found)} layers, this network has {_depth(wanted)}"
    raise AdapterError(
      f"{len(extra)} of {len(found)} adapter leaves are not in this network and"
      f" {len(missing)} of its {len(wanted)} are not in {source} (first"
      f" {(extra + missing)[0]}). The adapter is for {depth}. Nothing was"
      " loaded; use the network that the manifest names."
    )
  for path, shape in found.items():
    if shape != wanted[path]:
      raise AdapterError(
        f"expected {path} of shape {wanted[path]}, found {shape} in {source}."
        " Nothing was loaded; use the network that the manifest names."
      )


def check_backbone(
  manifest: Manifest, fingerprint: str, *, source: str
) -> None:
  """Raises if the adapter was trained on another backbone.

  Raises:
    AdapterError: with both fingerprints.
  """
  wanted = manifest.backbone.get("fingerprint", "")
  if fingerprint and wanted and fingerprint != wanted:
    raise AdapterError(
      f"{source} was trained on backbone {manifest.backbone.get('source')!r}"
      f" ({wanted[:12]}), found one with fingerprint {fingerprint[:12]}."
      " Nothing was loaded; pass the backbone that the manifest names."
    )


def read_npz(path: str | Path) -> dict[str, np.ndarray]:
  """Reads leaves from an `.npz` file; numpy alone.

  Raises:
    AdapterError: if the file is truncated or damaged.
  """
  try:
    # numpy leaves a file open that it cannot read; ours it leaves to us.
    with orbax_io.locate(path).open("rb") as file, np.load(file) as leaves:
      return {name: leaves[name] for name in leaves.files}
  except Exception as error:  # zipfile, zlib and numpy raise many kinds
    raise AdapterError(
      f"expected a whole .npz file at {path}, found a damaged one ({error})."
      " Nothing was loaded; copy it again."
    ) from error


def read_orbax(path: Path) -> dict[str, np.ndarray]:
  """Reads the leaves of an Orbax checkpoint as numpy arrays.

  Raises:
    AdapterError: if it cannot be read.
  """
  try:
    tree = orbax_io.read(path)
  except Exception as error:  # tensorstore and orbax raise many kinds
    raise AdapterError(
      f"expected an Orbax checkpoint at {path}, found one that cannot be read"
      f" ({str(error)[:200]}). Nothing was loaded; copy the adapter again."
    ) from error
  return trees.flatten(tree)


def _storable(leaf: Any) -> np.ndarray:
  """Trained leaves are stored in float32; indices stay whole numbers."""
  array = np.asarray(leaf)
  if np.issubdtype(array.dtype, np.integer):
    return array
  return array.astype(np.float32)


def _per_layer_shapes(spec: Any) -> dict[str, tuple[int, ...]]:
  return {
    path: shape
    for stacked, leaf in trees.flatten(spec).items()
    for path, shape in layout.rows_of(stacked, leaf)
  }


def _depth(paths: Mapping[str, Any]) -> int:
  """Number of different layers among the paths."""
  return len({tuple(p.split("/")[:2]) for p in paths if "/layers_" in p})
