"""Adapters of Hugging Face PEFT and of LLM-Adapters, read in.

Their semantics are kept; where ours store or count differently,
`Imported.notes` says so. A fused query, key and value is three modules here:
the adapter of one is divided among them.
"""

import dataclasses
import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from peft_jax import layout, trees
from peft_jax.adapters import IA3, Bottleneck, DoRA, LoRA, Prefix, Prompt
from peft_jax.adapters.base import Adapter
from peft_jax.formats import (
  architectures,
  hugging_face,
  safetensors_io,
  torch_file,
)
from peft_jax.formats.architectures import Module
from peft_jax.formats.safetensors_io import FormatError
from peft_jax.rules import Rule

CONFIG = "adapter_config.json"
TENSORS = "adapter_model.safetensors"
OLD_TENSORS = "adapter_model.bin"  # LLM-Adapters' files, and old ones of PEFT
_PREFIX = "base_model.model."

# Settings that change what an adapter computes and that are not read here.
_REFUSED = {
  "modules_to_save": None,
  "layer_replication": None,
  "lora_bias": False,
  "trainable_token_indices": None,
  "target_parameters": None,
  "use_qalora": False,
}

Leaves = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Imported:
  """An adapter that was read in.

  Attributes:
    rules: what places it.
    adapter: its leaves, one module per layer.
    notes: how it differs from the file, a sentence each.
    file_parameters: parameters in the file, as Hugging Face counts them.
  """

  rules: tuple[Rule, ...]
  adapter: dict
  notes: tuple[str, ...]
  file_parameters: int


@dataclasses.dataclass(frozen=True)
class _Site:
  """One of their modules, as ours.

  Attributes:
    module: where it lies in their tree.
    path: of our module, `{}` is the layer.
    layer: its index; '' outside of layers.
  """

  module: Module
  path: str
  layer: str

  @property
  def full(self) -> str:
    return self.path.format(self.layer)


def read(directory: str | Path, base: str | Path, network: Any) -> Imported:
  """Reads an adapter for a backbone.

  Args:
    directory: with `adapter_config.json` and `adapter_model.safetensors`, or
      `adapter_model.bin`, which is read without running what is in it.
    base: directory of the backbone, for its `config.json`.
    network: the backbone's network.

  Raises:
    FormatError: for a file that is cut off, a method or a setting that is not
      known, or tensors of another model.
  """
  directory = Path(directory)
  config = _read_config(directory)
  tensors: Mapping[str, Any] = (
    safetensors_io.Tensors([directory / TENSORS])
    if (directory / TENSORS).is_file()
    else torch_file.read(directory / OLD_TENSORS)
  )
  kind = config.get("peft_type")
  readers: dict[str, Callable[..., tuple[list[Rule], Leaves, list[str]]]] = {
    "LORA": _read_lora,
    "IA3": _read_ia3,
    "BOTTLENECK": _read_bottleneck,
    "PROMPT_TUNING": _read_prompt,
    "PREFIX_TUNING": _read_prefix,
  }
  if kind not in readers:
    raise FormatError(
      f"expected peft_type to be one of {sorted(readers)}, found {kind!r} in"
      f" {directory / CONFIG}."
    )
  refused = [
    f"{name}={config[name]!r}"
    for name, default in _REFUSED.items()
    if config.get(name, default) not in (default, [], {})
  ]
  if refused:
    raise FormatError(
      f"expected an adapter without {', '.join(refused)}, which is not read in."
      " Nothing was loaded."
    )
  tables = _Tables(hugging_face.read_config(base), network)
  rules, leaves, notes = readers[kind](config, tensors, tables)
  count = sum(int(np.prod(tensors[name].shape)) for name in tensors)
  found = sum(leaf.size for leaf in leaves.values())
  if found != count:
    notes.append(f"{count:,} parameters in the file are {found:,} here.")
  return Imported(tuple(rules), trees.unflatten(leaves), tuple(notes), count)


def _read_config(directory: Path) -> dict[str, Any]:
  for names in ((CONFIG,), (TENSORS, OLD_TENSORS)):
    if not any((directory / name).is_file() for name in names):
      raise FormatError(
        f"expected an adapter with {CONFIG} and {TENSORS} or {OLD_TENSORS} in"
        f" {directory}, found no {names[0]}."
      )
  return json.loads((directory / CONFIG).read_text("utf-8"))


class _Tables:
  """From their module names to our modules, for one backbone."""

  def __init__(self, config: Mapping[str, Any], network: Any) -> None:
    self.network = network
    self.config = network.config
    flat = layout.to_layers(hugging_face.shapes(network))
    self.shapes = {
      path: tuple(leaf.shape) for path, leaf in trees.flatten(flat).items()
    }
    modules = {path.rpartition("/")[0] for path in self.shapes}
    self._sites: dict[str, list[_Site]] = {}
    for path, module in architectures.of(config).modules.items():
      for layer in self._layers(path):
        if path.format(layer) in modules:
          name = module.name.format(layer)
          site = _Site(module, path, layer)
          self._sites.setdefault(name, []).append(site)

  def _layers(self, path: str) -> Iterable[str]:
    if "{}" not in path:
      return ("",)
    stack = path.split("/")[0]
    count = getattr(self.config, f"num_{stack}_layers")
    return map(str, range(count))

  def sites(self, name: str) -> list[_Site]:
    """Returns our modules for a dotted name of theirs, part by part."""
    short = name.removeprefix(_PREFIX)
    if short not in self._sites:
      raise FormatError(
        f"expected modules of the backbone, found {short}, which it does not"
        " have. Nothing was loaded; is it an adapter for another model?"
      )
    return sorted(self._sites[short], key=lambda site: site.module.part)

  def divide(self, x: np.ndarray, sites: list[_Site]) -> list[np.ndarray]:
    """Divides x [..., outputs] among the parts of a fused module."""
    module = sites[0].module
    if not module.fused:
      return [x]
    view = hugging_face.fused_view(x, module, self.config)
    return [
      view[..., site.module.part, :].reshape(*x.shape[:-1], -1)
      for site in sites
    ]

  def kernel(self, site: _Site) -> tuple[int, ...]:
    """Shape [inputs, outputs] of a site's kernel."""
    return self.shapes[f"{site.full}/kernel"]

  def pattern(self, sites: Iterable[_Site]) -> str:
    """Returns a regular expression for exactly these modules."""
    by_path: dict[str, set[str]] = {}
    for site in sites:
      by_path.setdefault(site.path, set()).add(site.layer)
    parts = []
    for path, layers in sorted(by_path.items()):
      every = set(self._layers(path))
      number = r"\d+" if layers == every else f"({'|'.join(sorted(layers))})"
      parts.append(path.format(number))
    return "|".join(parts)


def _by_module(
  tensors: Mapping[str, np.ndarray], suffixes: tuple[str, ...]
) -> dict[str, dict[str, np.ndarray]]:
  """Returns module -> suffix -> array.

  Raises:
    FormatError: for a tensor with another ending.
  """
  result: dict[str, dict[str, np.ndarray]] = {}
  for name in tensors:
    ending = next((s for s in suffixes if name.endswith(f".{s}")), None)
    if ending is None:
      raise FormatError(
        f"expected tensors that end in {', '.join(suffixes)}, found {name}."
        " Nothing was loaded."
      )
    module = name.removesuffix(f".{ending}")
    result.setdefault(module, {})[ending] = np.asarray(tensors[name])
  return result


def _grouped(
  placed: Mapping[Adapter, list[_Site]], tables: _Tables
) -> list[Rule]:
  """Returns one rule per adapter's settings."""
  return [
    Rule(tables.pattern(sites), adapter) for adapter, sites in placed.items()
  ]


def _read_lora(
  config: Mapping[str, Any],
  tensors: Mapping[str, np.ndarray],
  tables: _Tables,
) -> tuple[list[Rule], Leaves, list[str]]:
  down, up = "lora_A.weight", "lora_B.weight"
  magnitudes = ("lora_magnitude_vector", "lora_magnitude_vector.weight")
  modules = _by_module(tensors, (down, up, *magnitudes))
  placed: dict[Adapter, list[_Site]] = {}
  leaves, notes = {}, []
  for name, found in modules.items():
    adapter = _lora_of(config, name.removeprefix(_PREFIX))
    if {down, up} - found.keys():
      raise FormatError(
        f"expected {down} and {up} at {name}, found {sorted(found)}. Nothing"
        " was loaded."
      )
    sites = tables.sites(name)
    if len(sites) > 1:
      notes = [
        "Query, key and value are three modules here: each has its own copy of"
        " lora_A, and its third of lora_B."
      ]
    parts = tables.divide(found[up].T, sites)
    magnitude = [found[m] for m in magnitudes if m in found]
    scales = tables.divide(magnitude[0], sites) if magnitude else []
    for i, (site, b) in enumerate(zip(sites, parts, strict=True)):
      scope = f"{site.full}/{adapter.default_name}"
      leaves[f"{scope}/a"] = _float32(found[down].T)
      leaves[f"{scope}/b"] = _float32(b)
      if scales:
        leaves[f"{scope}/magnitude"] = _float32(scales[i])
      placed.setdefault(adapter, []).append(site)
  return _grouped(placed, tables), leaves, notes


def _lora_of(config: Mapping[str, Any], module: str) -> Adapter:
  """Returns the settings of one module: patterns may replace the common."""
  rank = _by_pattern(config.get("rank_pattern"), module, config["r"])
  alpha = _by_pattern(config.get("alpha_pattern"), module, config["lora_alpha"])
  method = DoRA if config.get("use_dora") else LoRA
  return method(
    rank=rank,
    alpha=alpha,
    rank_stabilized=bool(config.get("use_rslora")),
    dropout_rate=config.get("lora_dropout") or 0.0,
  )


def _by_pattern(
  patterns: Mapping[str, Any] | None, module: str, default: Any
) -> Any:
  """As PEFT looks a module up: the pattern must match its end."""
  for pattern, value in (patterns or {}).items():
    if re.match(rf"(.*\.)?({pattern})$", module):
      return value
  return default


def _read_ia3(
  config: Mapping[str, Any],
  tensors: Mapping[str, np.ndarray],
  tables: _Tables,
) -> tuple[list[Rule], Leaves, list[str]]:
  del config  # the shapes say which side is scaled
  placed: dict[Adapter, list[_Site]] = {}
  leaves: Leaves = {}
  for name, found in _by_module(tensors, ("ia3_l",)).items():
    vector, sites = found["ia3_l"], tables.sites(name)
    on_input = vector.shape[0] == 1
    adapter = IA3(side="input") if on_input else IA3()
    flat = vector.reshape(-1)
    parts = [flat] * len(sites) if on_input else tables.divide(flat, sites)
    for site, part in zip(sites, parts, strict=True):
      leaves[f"{site.full}/ia3/scaling"] = _float32(part)
      placed.setdefault(adapter, []).append(site)
  return _grouped(placed, tables), leaves, []


def _read_bottleneck(
  config: Mapping[str, Any],
  tensors: Mapping[str, np.ndarray],
  tables: _Tables,
) -> tuple[list[Rule], Leaves, list[str]]:
  """LLM-Adapters' own format: around one projection, without biases."""
  down, up = "adapter_down.weight", "adapter_up.weight"
  placed: dict[Adapter, list[_Site]] = {}
  leaves: Leaves = {}
  for name, found in _by_module(tensors, (down, up)).items():
    sites = tables.sites(name)
    if len(sites) > 1:
      raise FormatError(
        f"expected adapters at single projections, found one at {name}, which"
        " is three here: what it adds cannot be divided. Nothing was loaded."
      )
    [site] = sites
    inputs, outputs = tables.kernel(site)
    read, written = found[down].shape[1], found[up].shape[0]
    if config.get("use_parallel_adapter"):
      placement = "parallel"
    elif _is_first(site):
      placement = "before"
    else:
      placement = "after"
    expected = {
      "parallel": (inputs, outputs),
      "before": (inputs, inputs),
      "after": (outputs, outputs),
    }[placement]
    if (read, written) != expected:
      raise FormatError(
        f"expected an adapter from {expected[0]} to {expected[1]} at {name},"
        f" found one from {read} to {written}. Nothing was loaded; is it an"
        " adapter for another model?"
      )
    scaling = config.get("scaling", 1.0)
    adapter = Bottleneck(
      size=found[down].shape[0],
      placement=placement,
      activation=config.get("non_linearity") or "tanh",
      scaling=scaling if scaling == "learned" else float(scaling),
      initializer="bert",
      use_bias=False,
      dropout_rate=config.get("adapter_dropout") or 0.0,
    )
    leaves[f"{site.full}/bottleneck/down"] = _float32(found[down].T)
    leaves[f"{site.full}/bottleneck/up"] = _float32(found[up].T)
    placed.setdefault(adapter, []).append(site)
  return _grouped(placed, tables), leaves, []


def _is_first(site: _Site) -> bool:
  """Whether LLM-Adapters puts its series adapter before the projection."""
  return site.path.rsplit("/", 1)[-1].startswith("wi")


def _read_prompt(
  config: Mapping[str, Any],
  tensors: Mapping[str, np.ndarray],
  tables: _Tables,
) -> tuple[list[Rule], Leaves, list[str]]:
  stack = "encoder" if tables.config.num_encoder_layers else "decoder"
  length, notes = config["num_virtual_tokens"], []
  rows = _float32(_only(tensors))
  if rows.shape[0] > length:
    notes.append(
      f"The file has {rows.shape[0]} rows; Hugging Face's forward pass uses the"
      f" first {length}, in the encoder, and they are what was read."
    )
  # There, tokens are scaled before the prompt joins them.
  rows = rows[:length] / np.float32(tables.config.embedding_scale)
  if rows.shape != (length, tables.config.emb_dim):
    raise FormatError(
      f"expected a prompt of shape {(length, tables.config.emb_dim)}, found"
      f" {rows.shape}. Nothing was loaded; is it for another model?"
    )
  rule = Rule(stack, Prompt(length=length, initializer="uniform"))
  return [rule], {f"{stack}/prompt/prompt": rows}, notes


def _read_prefix(
  config: Mapping[str, Any],
  tensors: Mapping[str, np.ndarray],
  tables: _Tables,
) -> tuple[list[Rule], Leaves, list[str]]:
  length, cfg = config["num_virtual_tokens"], tables.config
  rows = _float32(_only(tensors))
  size = cfg.kv_heads * cfg.head_dim
  wanted = (length, 2 * cfg.num_decoder_layers * size)
  if rows.shape != wanted:
    raise FormatError(
      f"expected a prefix of shape {wanted}, found {rows.shape}. Nothing was"
      " loaded; is it for another model?"
    )
  notes, stride = [], 2
  if cfg.num_encoder_layers:
    # It writes the rows down twice and deals out four to each layer, of which
    # the last two, meant for cross-attention, are lost before they are used.
    stride = 4
    notes.append(
      "Hugging Face's prefix of an encoder-decoder is in the decoder's"
      " self-attention only, and its layers share rows, as they do here; the"
      " paper's is in all attentions, with rows for each."
    )
  if cfg.sliding_window:
    notes.append(
      "Every query sees the prefix here; Hugging Face's sliding window leaves"
      f" it behind after {cfg.sliding_window} tokens."
    )
  both = rows.reshape(length, 2 * cfg.num_decoder_layers, size)
  leaves = {
    f"decoder/layers_{i}/self_attention/prefix/{name}": both[
      :, (stride * i + j) % (2 * cfg.num_decoder_layers)
    ]
    for i in range(cfg.num_decoder_layers)
    for j, name in enumerate(("key", "value"))
  }
  adapter = Prefix(length=length, hidden_size=0, own_positions=True)
  rule = Rule(r"decoder/layers_\d+/self_attention", adapter)
  return [rule], leaves, notes


def _only(tensors: Mapping[str, np.ndarray]) -> np.ndarray:
  if list(tensors) != ["prompt_embeddings"]:
    raise FormatError(
      f"expected one tensor, prompt_embeddings, found {sorted(tensors)[:3]}."
      " Nothing was loaded."
    )
  return np.asarray(tensors["prompt_embeddings"])


def _float32(x: np.ndarray) -> np.ndarray:
  return np.ascontiguousarray(x, np.float32)
