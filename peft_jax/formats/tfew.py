"""T-Few's (IA)3 vectors: read in and written (r-three/t-few at 114dece)."""

import re
from pathlib import Path
from typing import Any

import numpy as np

from peft_jax import layout, trees
from peft_jax.adapters import IA3
from peft_jax.formats import hugging_face, torch_file
from peft_jax.formats.safetensors_io import FormatError
from peft_jax.rules import Rule

# T-Few rescales what `wi_1` gives, and the hidden activation is the product of
# that and the gate: the same as rescaling what `wo` is given.
RULES = (Rule("kv", IA3()), Rule("mlp_out", IA3(side="input")))

_LEAF = "multi_lora_b"
_MODULES = {
  "encoder/layers_{}/attention": "encoder.block.{}.layer.0.SelfAttention",
  "encoder/layers_{}/mlp": "encoder.block.{}.layer.1.DenseReluDense",
  "decoder/layers_{}/self_attention": "decoder.block.{}.layer.0.SelfAttention",
  "decoder/layers_{}/encoder_decoder_attention": (
    "decoder.block.{}.layer.1.EncDecAttention"
  ),
  "decoder/layers_{}/mlp": "decoder.block.{}.layer.2.DenseReluDense",
}
_PARTS = {"key": "k", "value": "v", "wo": "wi_1"}


def read(path: str | Path, network: Any) -> dict:
  """Returns the adapter of `RULES`, one module per layer.

  Args:
    path: such as T-Few's `pretrained_checkpoints/t03b_ia3_finish.pt`, or a
      `global_step*.pt` or `finish.pt` of its own runs.
    network: a T5 of that size, with a gated feed-forward block.

  Raises:
    FormatError: for another method's file, or another size's: each vector that
      is missing, extra or misshapen is named.
  """
  tensors = torch_file.read(path)
  others = sorted(name for name in tensors if not name.endswith(f".{_LEAF}"))
  if others:
    raise FormatError(
      f"expected T-Few's (IA)3 vectors (*.{_LEAF}) in {path}, found"
      f" {len(others)} other tensors, first {others[0]}. Nothing was loaded."
    )
  wanted = names(network)
  shapes = {name: (size, 1) for name, size in wanted.values()}
  for name, array in tensors.items():
    if array.shape != shapes.get(name, array.shape):
      raise FormatError(
        f"expected {name} of shape {shapes[name]} in {path}, found"
        f" {array.shape}. Is it of another size? Nothing was loaded."
      )
  missing, extra = (
    shapes.keys() - tensors.keys(),
    tensors.keys() - shapes.keys(),
  )
  if missing or extra:
    raise FormatError(
      f"expected the {len(shapes)} vectors of this network in {path}, found"
      f" {len(missing)} missing{_first(missing)}, {len(extra)} extra"
      f"{_first(extra)}. Is it of another size? Nothing was loaded."
    )
  return trees.unflatten(
    {
      path: np.asarray(tensors[name], np.float32).reshape(-1)
      for path, (name, _) in wanted.items()
    }
  )


def write(path: str | Path, adapter: Any) -> None:
  """Writes the vectors of `RULES` as T-Few loads them.

  Args:
    path: replaced if it exists.
    adapter: its leaves, in either view of the layers.

  Raises:
    FormatError: if there are leaves of another method, which T-Few's code
      cannot place.
  """
  tensors = {}
  for leaf, array in trees.flatten(layout.to_layers(adapter)).items():
    name = _name(leaf)
    if name is None:
      raise FormatError(
        f"expected (IA)3 vectors at keys, values and wo, found {leaf}. Nothing"
        " was written."
      )
    tensors[name] = np.asarray(array, np.float32).reshape(-1, 1)
  torch_file.write(path, tensors)


def names(network: Any) -> dict[str, tuple[str, int]]:
  """Returns our leaf -> T-Few's name and length, for all vectors of a network.

  Example:
    >>> from peft_jax import networks
    >>> names(networks.create("tiny"))["encoder/layers_0/mlp/wo/ia3/scaling"]
    ('encoder.block.0.layer.1.DenseReluDense.wi_1.multi_lora_b', 256)

  Raises:
    FormatError: if its feed-forward block has no gate: T-Few's configuration
      gives such a block no vector.
  """
  config = network.config
  if len(config.mlp_activations) < 2:
    raise FormatError(
      "expected a network with a gated feed-forward block (T5 1.1, T0), found"
      f" activations {config.mlp_activations}."
    )
  found = {}
  for path, leaf in trees.flatten(
    layout.to_layers(hugging_face.shapes(network))
  ).items():
    module, kernel = path.rpartition("/")[::2]
    name = _name(f"{module}/ia3/scaling")
    if kernel == "kernel" and name:
      rows, columns = layout.matrix_shape(path, leaf.shape)
      size = rows if module.endswith("/wo") else columns
      found[f"{module}/ia3/scaling"] = name, size
  return found


def _name(leaf: str) -> str | None:
  """Returns T-Few's name of a leaf of ours; None: it has none."""
  match = re.fullmatch(r"(.+/layers_)(\d+)(/\w+)/(\w+)/ia3/scaling", leaf)
  if not match:
    return None
  module, part = _MODULES.get(f"{match[1]}{{}}{match[3]}"), match[4]
  if module is None or part not in _PARTS:
    return None
  return f"{module.format(match[2])}.{_PARTS[part]}.{_LEAF}"


def _first(names: Any) -> str:
  return f" (first {min(names)})" if names else ""
