"""T5X's own networks by the names of the published sizes."""

import dataclasses
from typing import Any

from flax import linen as nn
from t5x.examples.scalable_t5 import network as scalable
from t5x.examples.t5 import network as minimal

from peft_jax import backbone, networks
from peft_jax.t5x import published

# What T5X's configurations and ours have in common.
_SHARED = (
  "vocab_size",
  "emb_dim",
  "num_heads",
  "num_encoder_layers",
  "num_decoder_layers",
  "head_dim",
  "mlp_dim",
  "mlp_activations",
  "logits_via_embedding",
)


def create(
  name: str,
  *,
  scan_layers: bool = False,
  remat: str = "none",
  dtype: Any = None,
  dropout_rate: float = 0.1,
  **overrides: Any,
) -> nn.Module:
  """Returns T5X's network of a published size.

  Example:
    >>> create("t5_1_1_xl", scan_layers=True).config.emb_dim
    2048

  Args:
    name: a key of `published.MODELS`.
    scan_layers: T5X's `scalable_t5`, which compiles one layer per stack and can
      recompute activations; otherwise its minimal T5. Both read the same
      checkpoints.
    remat: of scalable_t5: 'none', 'minimal' or 'full'.
    dtype: of the activations; default `networks.default_dtype()`.
    dropout_rate: in training. Default 0.1, as T5X's fine-tuning.
    **overrides: sizes to replace, such as `vocab_size`.

  Raises:
    ValueError: for an unknown name, or remat without scan_layers.
  """
  if remat != "none" and not scan_layers:
    raise ValueError(
      f"expected remat='none' for T5X's minimal T5, found {remat!r}: it cannot"
      " recompute. Set scan_layers=True."
    )
  size, rows = published.sizes(name)
  overrides = rows | overrides
  ours = dataclasses.replace(networks.create(size).config, **overrides)
  fields = {field: getattr(ours, field) for field in _SHARED}
  fields["dropout_rate"] = dropout_rate
  fields["dtype"] = networks.default_dtype() if dtype is None else dtype
  if scan_layers:
    return scalable.Transformer(
      scalable.T5Config(**fields, remat_policy=remat, scan_layers=True)
    )
  return minimal.Transformer(minimal.T5Config(**fields))


def describe(network: nn.Module, name: str = "") -> dict[str, Any]:
  """Returns what a manifest says of a network.

  T5X's T5 is described as ours of the same sizes, which takes its parameters
  as they are: so `peft-jax` opens what T5X trained.

  Example:
    >>> describe(create("tiny"), "tiny")["class"]
    'EncoderDecoder'

  Args:
    network: one of T5X's, or ours.
    name: of its size.
  """
  config: Any = getattr(network, "config", None)
  if isinstance(config, minimal.T5Config | scalable.T5Config):
    fields = {field: getattr(config, field) for field in _SHARED}
    fields["mlp_activations"] = tuple(fields["mlp_activations"])
    if isinstance(config, scalable.T5Config):
      fields["positions"] = "relative_per_layer"
    twin = networks.from_config(networks.TransformerConfig(**fields))
    return backbone.describe(twin, name)
  if isinstance(config, networks.TransformerConfig):
    return backbone.describe(network, name)
  sizes = dataclasses.asdict(config) if dataclasses.is_dataclass(config) else {}
  return {
    "name": name,
    "class": type(network).__qualname__,
    "config": {k: v for k, v in sizes.items() if isinstance(v, int | str)},
  }
