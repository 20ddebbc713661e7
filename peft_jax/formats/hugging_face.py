"""Backbones in Hugging Face's form: `config.json` and safetensors.

Read tensor by tensor onto the devices, and written back bit by bit. No PyTorch
and no class of Hugging Face takes part.
"""

import dataclasses
import functools
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from peft_jax import layout, orbax_io, trees
from peft_jax.formats import architectures, safetensors_io
from peft_jax.formats.architectures import Architecture, Module
from peft_jax.formats.safetensors_io import FormatError, Tensors
from peft_jax.networks import DecoderOnly, EncoderDecoder, from_config

# What a model's directory holds besides its tensors, and a copy should too.
_COMPANIONS = ("*.json", "*.model", "*.txt", "*.bpe", "*.jinja")
_LEAVES = {"kernel": "weight", "embedding": "weight", "scale": "weight"}
_HEAD = "lm_head.weight"
PREFIX = "hf:"


@dataclasses.dataclass(frozen=True)
class _Place:
  """Where a leaf of ours lies: the tensor's name, and how it lies in it."""

  name: str
  module: Module
  transposed: bool = False


def folder_of(directory: str | Path) -> Path:
  """Returns the folder that a name such as `hf:DIR` or `DIR` means.

  Example:
    >>> str(folder_of("hf:models/t5"))
    'models/t5'
  """
  return Path(str(directory).removeprefix(PREFIX))


def read_config(directory: str | Path) -> dict[str, Any]:
  """Returns the parsed `config.json`.

  Raises:
    FormatError: if there is none.
  """
  path = folder_of(directory) / "config.json"
  if not path.is_file():
    raise FormatError(
      f"expected a Hugging Face model with config.json, found none in"
      f" {directory}."
    )
  return json.loads(path.read_text("utf-8"))


def network(
  directory: str | Path, **overrides: Any
) -> EncoderDecoder | DecoderOnly:
  """Returns the network that a directory's tensors are for.

  Args:
    directory: with `config.json` and safetensors; `hf:` may stand in front.
    **overrides: fields of `TransformerConfig` to replace.

  Raises:
    ArchitectureError: for what these networks cannot be.
    FormatError: for a file that is not what it should be.
  """
  config = read_config(directory)
  result = architectures.network_config(config, **overrides)
  tensors = safetensors_io.open_directory(folder_of(directory))
  embedding = architectures.of(config).modules["token_embedder"].name
  if (
    result.logits_via_embedding
    and "decoder/logits_dense" in architectures.of(config).modules
    and _HEAD in tensors
    and not _same(tensors[_HEAD], tensors.get(f"{embedding}.weight"))
  ):
    # Newer configurations of T5 1.1 say tied where the tensors are not.
    result = dataclasses.replace(result, logits_via_embedding=False)
  return from_config(result)


def _same(a: np.ndarray, b: np.ndarray | None) -> bool:
  return b is not None and a.shape == b.shape and a.tobytes() == b.tobytes()


def load(
  directory: str | Path,
  network: Any,
  *,
  dtype: Any = jnp.float32,
  shardings: Any = None,
) -> dict:
  """Returns the parameters of a directory for a network; all or nothing.

  Args:
    directory: with `config.json` and safetensors.
    network: as `network` made it, scanned or not.
    dtype: of the result, or a tree of them.
    shardings: tree of shardings to place the leaves on; default: one device.

  Raises:
    FormatError: naming tensors that are missing, extra or misshapen.
    ArchitectureError: for an unknown architecture.
  """
  architecture = architectures.of(read_config(directory))
  tensors = safetensors_io.open_directory(folder_of(directory))
  spec = trees.flatten(shapes(network))
  prefix = _file_prefix(architecture, tensors)
  places = {
    layer: _place(architecture, layer, prefix)
    for path, leaf in spec.items()
    for layer, _ in layout.rows_of(path, leaf)
  }
  _check(architecture, places, spec, tensors, directory)
  targets = trees.flatten(shardings) if shardings is not None else {}
  dtypes = layout.dtypes(dtype, shapes(network))
  read = lambda layer, shape: _read(
    tensors, places[layer], shape, network.config
  )
  return trees.unflatten(
    {
      path: _assemble(path, leaf, read, dtypes[path], targets.get(path))
      for path, leaf in spec.items()
    }
  )


def shapes(network: Any) -> dict:
  """Returns the shapes of a network's parameters, computing nothing."""
  blank = np.ones((1, 2), np.int32)
  variables = jax.eval_shape(
    network.init, jax.random.key(0), blank, blank, blank
  )
  return variables["params"]


def _file_prefix(architecture: Architecture, tensors: Tensors) -> str:
  """Returns what the file leaves out in front of all names, or ''."""
  prefix = architecture.prefix
  return "" if any(name.startswith(prefix) for name in tensors) else prefix


def _place(architecture: Architecture, path: str, prefix: str) -> _Place:
  """Returns where a leaf, one module per layer, lies."""
  match = re.fullmatch(r"((?:encoder|decoder)/layers_)(\d+)(/.+)", path)
  index = match[2] if match else ""
  general = f"{match[1]}{{}}{match[3]}" if match else path
  if general in architecture.leaves:
    module = Module(architecture.leaves[general])
    return _Place(module.name.removeprefix(prefix), module)
  parent, _, leaf = general.rpartition("/")
  module = architecture.modules.get(parent)
  if module is None:
    raise FormatError(
      f"expected the architecture to have a place for {path}, found none: this"
      " network is another one."
    )
  kind = "bias" if leaf == "bias" else _LEAVES.get(leaf, "weight")
  name = f"{module.name.format(index)}.{kind}".removeprefix(prefix)
  turned = leaf == "kernel" and architecture.transposed
  # An output layer is torch's Linear everywhere.
  turned |= leaf == "kernel" and parent == "decoder/logits_dense"
  return _Place(name, module, turned or leaf == "rel_embedding")


def _check(
  architecture: Architecture,
  places: Mapping[str, _Place],
  spec: Mapping[str, Any],
  tensors: Tensors,
  directory: str | Path,
) -> None:
  wanted = {place.name: path for path, place in places.items()}
  missing = sorted(wanted.keys() - tensors.keys())
  if missing:
    raise FormatError(
      f"expected {len(wanted)} tensors in {directory}, found {len(missing)} of"
      f" them missing: {', '.join(missing[:3])}. Nothing was loaded; is its"
      " config.json of another model?"
    )
  extra = [
    name
    for name in sorted(tensors.keys() - wanted.keys())
    if not name.endswith(architecture.ignored or ("\0",))
    and not (name == _HEAD and "decoder/logits_dense/kernel" not in spec)
  ]
  if extra:
    raise FormatError(
      f"expected {len(wanted)} tensors in {directory}, found {len(extra)} that"
      f" the network does not have: {', '.join(extra[:3])}. Nothing was loaded;"
      " is its config.json of another model?"
    )
  shapes = dict(
    row for path, leaf in spec.items() for row in layout.rows_of(path, leaf)
  )
  for path, place in places.items():
    expected = _file_shape(place, shapes[path])
    found = tuple(tensors[place.name].shape)
    if _squeezed(found) != _squeezed(expected):
      raise FormatError(
        f"expected {place.name} of shape {expected}, found {found} in"
        f" {directory}. Nothing was loaded; is its config.json of another"
        " model?"
      )


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
  """BART's bias of the output is [1, V]."""
  return tuple(size for size in shape if size != 1)


def _file_shape(place: _Place, shape: tuple[int, ...]) -> tuple[int, ...]:
  """Returns the shape that the whole tensor has for a leaf of ours."""
  if place.module.fused:
    shape = (*shape[:-1], 3 * shape[-1])
  return shape[::-1] if place.transposed else shape


def _read(
  tensors: Tensors, place: _Place, shape: tuple[int, ...], config: Any
) -> np.ndarray:
  """Returns a leaf of ours, not yet copied out of the file."""
  x = tensors[place.name]
  x = x.T if place.transposed else x
  if place.module.fused:
    parts = fused_view(x, place.module, config)
    x = parts[..., place.module.part, :]
  return x.reshape(shape)


def fused_view(x: np.ndarray, module: Module, config: Any) -> np.ndarray:
  """Returns x [..., 3 * H * K] with the thirds apart, on the axis before last.

  Args:
    x: an array whose last axis is a fused module's output.
    module: says how it is fused.
    config: of the network.
  """
  if module.fused == "blocks":
    return x.reshape(*x.shape[:-1], 3, -1)
  return x.reshape(*x.shape[:-1], config.num_heads, 3, config.head_dim)


def _assemble(
  path: str, leaf: Any, read: Any, dtype: Any, place: Any
) -> jax.Array:
  """Returns a leaf on its devices; a stack is filled layer by layer."""
  axis = layout.stack_axis(path)
  rows = layout.rows_of(path, leaf)
  if axis is None:
    [(layer, shape)] = rows
    return _put(read(layer, shape), dtype, place)
  whole = jnp.zeros(leaf.shape, dtype, device=place)
  for i, (layer, shape) in enumerate(rows):
    row = np.asarray(read(layer, shape)).astype(dtype)
    whole = _set_row(whole, row, i, axis)
  return whole


def _put(x: np.ndarray, dtype: Any, place: Any) -> jax.Array:
  if place is None:
    return jnp.asarray(x.astype(dtype))
  # Each device's share is copied out of the file on its own.
  return jax.make_array_from_callback(
    x.shape, place, lambda index: x[index].astype(dtype)
  )


@functools.partial(jax.jit, donate_argnums=0, static_argnums=3)
def _set_row(whole: jax.Array, row: Any, i: int, axis: int) -> jax.Array:
  return jax.lax.dynamic_update_index_in_dim(whole, row, i, axis)


def save(
  directory: str | Path, params: Any, network: Any, *, like: str | Path
) -> None:
  """Writes parameters as a directory that Hugging Face reads.

  Names, dtypes, sharding into files and everything that is no tensor are those
  of `like`, the directory that the backbone was read from.

  Args:
    directory: must not exist, or be empty.
    params: the backbone's, in either view of the layers; adapters merged.
    network: the backbone's network.
    like: directory of the backbone.

  Raises:
    FormatError: if the directory is taken or a bucket, or the parameters are
      not the network's.
  """
  directory, like = orbax_io.vacant(directory, FormatError), folder_of(like)
  architecture = architectures.of(read_config(like))
  tensors = safetensors_io.open_directory(like)
  flat = trees.flatten(layout.to_layers(params))
  prefix = _file_prefix(architecture, tensors)
  places = {path: _place(architecture, path, prefix) for path in flat}
  _check(architecture, places, flat, tensors, like)
  whole = _Whole(flat, places, tensors, network.config)
  with orbax_io.finished(directory) as partial:
    for pattern in _COMPANIONS:
      for path in like.glob(pattern):
        shutil.copyfile(path, partial / path.name)
    for name, names in _files(like, tensors).items():
      safetensors_io.write(partial / name, whole.only(names))


def _files(directory: Path, tensors: Tensors) -> dict[str, list[str]]:
  """Returns file -> names of its tensors."""
  index = directory / safetensors_io.INDEX
  if not index.is_file():
    return {safetensors_io.SINGLE: list(tensors)}
  files: dict[str, list[str]] = {}
  for name, file in json.loads(index.read_text("utf-8"))["weight_map"].items():
    files.setdefault(file, []).append(name)
  return files


@dataclasses.dataclass(frozen=True)
class _Whole(Mapping):
  """Tensor name -> array in Hugging Face's form, made when asked for."""

  flat: Mapping[str, Any]
  places: Mapping[str, _Place]
  tensors: Tensors
  config: Any
  names: tuple[str, ...] = ()

  def only(self, names: list[str]) -> "_Whole":
    """Returns those of one file."""
    return dataclasses.replace(self, names=tuple(names))

  @functools.cached_property
  def _paths(self) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for path, place in self.places.items():
      found.setdefault(place.name, []).append(path)
    return found

  def __getitem__(self, name: str) -> np.ndarray:
    old = self.tensors[name]
    paths = self._paths.get(name)
    if paths is None:  # a copy of the embedding, or a constant
      if old.shape == np.shape(self.flat["token_embedder/embedding"]):
        return np.asarray(self.flat["token_embedder/embedding"], old.dtype)
      return old
    parts = sorted(paths, key=lambda path: self.places[path].module.part)
    arrays = [np.asarray(self.flat[path]) for path in parts]
    place = self.places[paths[0]]
    whole = arrays[0]
    if place.module.fused:
      views = [
        x.reshape(*x.shape[:-1], *self._heads(place.module)) for x in arrays
      ]
      whole = np.stack(views, axis=-2).reshape(*arrays[0].shape[:-1], -1)
    whole = whole.T if place.transposed else whole
    return whole.reshape(old.shape).astype(old.dtype)

  def _heads(self, module: Module) -> tuple[int, ...]:
    if module.fused == "blocks":
      return (self.config.num_heads * self.config.head_dim,)
    return (self.config.num_heads, self.config.head_dim)

  def __iter__(self) -> Iterator[str]:
    return iter(self.names)

  def __len__(self) -> int:
    return len(self.names)

  def __eq__(self, other: object) -> bool:
    return self is other
