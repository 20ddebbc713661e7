"""The manifest: what an adapter file says about itself.

A small JSON file beside the adapter: methods and all their hyper-parameters,
every leaf with shape, dtype and hash, the backbone it belongs to, and where it
comes from.
"""

import dataclasses
import hashlib
import json
import math
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from peft_jax import adapters, layout, trees
from peft_jax.adapters.base import Adapter
from peft_jax.orbax_io import locate
from peft_jax.rules import Rule

FORMAT = 1
FILE_NAME = "manifest.json"

# Values per leaf that enter a backbone's fingerprint: enough to tell two models
# apart, few enough to read from 11 billion parameters in a moment.
_SAMPLES = 64


class ManifestError(ValueError):
  """A manifest that is broken, or that contradicts what was asked for."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
  """Describes one adapter.

  Attributes:
    rules: one dict per rule: pattern, name, method, hyperparameters.
    leaves: per-layer leaf path -> shape, dtype, sha256.
    model: name and configuration of the backbone's network.
    backbone: where the backbone came from, and its fingerprint.
    training: step, task, metrics, tokenizer hash, gin text; what is known.
    versions: of Python and the packages that wrote it.
    format: version of this layout.
  """

  rules: list[dict[str, Any]]
  leaves: dict[str, dict[str, Any]]
  model: dict[str, Any]
  backbone: dict[str, Any]
  training: dict[str, Any] = dataclasses.field(default_factory=dict)
  versions: dict[str, str] = dataclasses.field(default_factory=dict)
  format: int = FORMAT


def make(
  adapter: Any,
  rules: Sequence[Rule],
  *,
  model: Mapping[str, Any],
  backbone: Mapping[str, Any],
  training: Mapping[str, Any] | None = None,
) -> Manifest:
  """Returns the manifest of an adapter.

  Args:
    adapter: its leaves, one module per layer.
    rules: the rules that made them.
    model: see `Manifest`.
    backbone: see `Manifest`.
    training: see `Manifest`.
  """
  return Manifest(
    rules=[rule_to_json(rule) for rule in rules],
    leaves={
      path: leaf_to_json(leaf)
      for path, leaf in sorted(trees.flatten(adapter).items())
    },
    model=dict(model),
    backbone=dict(backbone),
    training=dict(training or {}),
    versions=versions(),
  )


def leaf_to_json(leaf: Any) -> dict[str, Any]:
  """Returns shape, dtype and hash of one array.

  Example:
    >>> leaf_to_json(np.zeros(2, np.float32))["shape"]
    [2]
  """
  array = np.ascontiguousarray(leaf)
  return {
    "shape": list(array.shape),
    "dtype": array.dtype.name,
    "sha256": hashlib.sha256(array.tobytes()).hexdigest(),
  }


def hyperparameters(adapter: Adapter) -> dict[str, Any]:
  """Returns an adapter's own fields.

  Example:
    >>> hyperparameters(adapters.IA3())
    {'side': 'output'}
  """
  return {
    field.name: _as_json(getattr(adapter, field.name))
    for field in dataclasses.fields(adapter)
    if field.name not in ("parent", "name")
  }


def _as_json(value: Any) -> Any:
  """Tuples as the lists that JSON gives back, so that both compare equal."""
  if isinstance(value, tuple | list):
    return [_as_json(item) for item in value]
  return value


def rule_to_json(rule: Rule) -> dict[str, Any]:
  """Returns a rule as JSON values.

  Example:
    >>> rule_to_json(Rule("kv", adapters.IA3()))["method"]
    'ia3'
  """
  return {
    "pattern": rule.regex,
    "name": rule.name,
    "method": _method_name(rule.adapter),
    "hyperparameters": hyperparameters(rule.adapter),
  }


def rule_from_json(entry: Mapping[str, Any]) -> Rule:
  """Returns the rule of a manifest's entry; the inverse of `rule_to_json`.

  Example:
    >>> rule_from_json(rule_to_json(Rule("kv", adapters.IA3()))).name
    'ia3'

  Raises:
    ManifestError: for a method that this version does not have.
  """
  method = entry["method"]
  if method not in adapters.METHODS:
    raise ManifestError(
      f"expected a method of {sorted(adapters.METHODS)}, found {method!r}."
      " The adapter was made by another version of peft_jax."
    )
  adapter = adapters.METHODS[method](**entry["hyperparameters"])
  return Rule(entry["pattern"], adapter, name=entry["name"])


def _method_name(adapter: Adapter) -> str:
  names = {cls: name for name, cls in adapters.METHODS.items()}
  # gin wraps classes, so the class itself may be a subclass of the method's.
  for cls in type(adapter).__mro__:
    if cls in names:
      return names[cls]
  return adapter.default_name


def check_rules(
  manifest: Manifest, rules: Sequence[Rule], *, any_start: bool = False
) -> None:
  """Raises where the rules that were asked for differ from the adapter's.

  Args:
    manifest: the adapter's.
    rules: those asked for.
    any_start: whether they may differ in where leaves start, which changes
      nothing for leaves that are there (see `Adapter.start_fields`).

  Raises:
    ManifestError: naming the first field that differs.
  """
  wanted = [rule_to_json(rule) for rule in rules]
  found = manifest.rules
  key = lambda entry: (entry["method"], entry["name"], entry["pattern"])
  if sorted(map(key, wanted)) != sorted(map(key, found)):
    raise ManifestError(
      f"expected the adapter's rules {[key(e) for e in found]}, found"
      f" {[key(e) for e in wanted]}. Take the rules from the adapter (omit"
      " them), or load another adapter."
    )
  for want, have in zip(
    sorted(wanted, key=key), sorted(found, key=key), strict=True
  ):
    method = adapters.METHODS.get(want["method"], Adapter)
    start = method.start_fields if any_start else ()
    for field, value in have["hyperparameters"].items():
      given = want["hyperparameters"].get(field)
      if given != value and field not in start:
        raise ManifestError(
          f"{field}={given} given, the adapter has {field}={value} for"
          f" {want['pattern']!r}. Set {field}={value} to use the adapter."
        )


def to_json(manifest: Manifest) -> dict[str, Any]:
  """Returns the manifest as JSON values."""
  return json.loads(json.dumps(dataclasses.asdict(manifest)))


def from_json(values: Any, *, source: str) -> Manifest:
  """Returns the manifest of JSON values.

  Args:
    values: as `to_json` makes them.
    source: file name for the error.

  Raises:
    ManifestError: if a field is missing or the format is unknown.
  """
  fields = {field.name: field for field in dataclasses.fields(Manifest)}
  needed = {
    name
    for name, field in fields.items()
    if field.default is field.default_factory is dataclasses.MISSING
  }
  if not isinstance(values, dict) or not needed <= values.keys():
    raise ManifestError(
      f"expected a manifest with {sorted(needed)} in {source}, found"
      f" {sorted(values) if isinstance(values, dict) else type(values)}. The"
      " file is not an adapter's manifest."
    )
  if values.get("format") != FORMAT:
    raise ManifestError(
      f"expected manifest format {FORMAT} in {source}, found"
      f" {values.get('format')}. Use the version of peft_jax that wrote it:"
      f" {values.get('versions', {}).get('peft_jax', 'unknown')}."
    )
  return Manifest(**{k: v for k, v in values.items() if k in fields})


def read(directory: str | Path) -> Manifest:
  """Reads the manifest of an adapter directory.

  Raises:
    ManifestError: if there is none or it is broken.
  """
  path = locate(directory) / FILE_NAME
  if not path.is_file():
    raise ManifestError(
      f"expected an adapter directory with {FILE_NAME}, found none in"
      f" {directory}. Make one with `peft-jax export`."
    )
  try:
    values = json.loads(path.read_text())
  except ValueError as error:
    raise ManifestError(
      f"expected JSON in {path}, found a broken file ({error}). Copy the"
      " adapter again."
    ) from error
  return from_json(values, source=str(path))


def fingerprint(backbone: Any) -> str:
  """Returns a short hash that tells one backbone from another.

  It covers every leaf's path and shape and 64 of its values, rounded to
  bfloat16, so that it is the same in either precision and either view of the
  layers.

  Example:
    >>> kernel = np.arange(4, dtype=np.float32)
    >>> fingerprint({"kernel": kernel}) == fingerprint({"kernel": kernel + 1})
    False

  Args:
    backbone: tree of arrays, without adapter leaves.
  """
  digest = hashlib.sha256()
  samples = _samples(backbone)
  for path in sorted(samples):
    shape, values = samples[path]
    digest.update(f"{path} {shape}".encode())
    digest.update(values)
  return digest.hexdigest()


def _samples(backbone: Any) -> dict[str, tuple[tuple[int, ...], bytes]]:
  """Returns per-layer leaf -> its shape and a few of its values as bytes."""
  found = {}
  for path, leaf in trees.flatten(backbone).items():
    axis = layout.stack_axis(path)
    rows = layout.rows_of(path, leaf)
    size = math.prod(rows[0][1])
    index = np.linspace(0, size - 1, min(size, _SAMPLES)).astype(np.int64)
    if axis:
      leaf = jnp.moveaxis(leaf, axis, 0)
    values = _take(leaf, len(rows), index)
    for i, (layer_path, shape) in enumerate(rows):
      shape = layout.matrix_shape(layer_path, shape)
      found[layer_path] = (shape, values[i].tobytes())
  return found


def _take(leaf: Any, rows: int, index: np.ndarray) -> np.ndarray:
  """leaf: [rows, ...] or [...] -> [rows, samples] bfloat16."""
  flat = jnp.reshape(leaf, (rows, -1))[:, index].astype(jnp.bfloat16)
  if isinstance(flat, jax.Array) and not flat.is_fully_addressable:
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(flat, tiled=True))
  return np.asarray(flat)


def versions() -> dict[str, str]:
  """Returns the versions of Python and of the packages that matter.

  Example:
    >>> sorted(versions())[:3]
    ['flax', 'jax', 'jaxlib']
  """
  names = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
  from peft_jax._version import __version__

  return {
    "python": platform.python_version(),
    "peft_jax": __version__,
    **{name: metadata.version(name) for name in names},
  }
