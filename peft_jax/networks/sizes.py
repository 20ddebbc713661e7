"""Published sizes, by name."""

import dataclasses
import difflib
from typing import Any

import jax
import jax.numpy as jnp

from peft_jax.networks.config import TransformerConfig
from peft_jax.networks.decoder_only import DecoderOnly
from peft_jax.networks.encoder_decoder import EncoderDecoder

# name: layers per stack, D, F, H, K.
# Sources: T5 1.1, the released T5X configurations; T5 1.0, arXiv 1910.10683.
_T5_1_1 = {
  "small": (8, 512, 1024, 6, 64),
  "base": (12, 768, 2048, 12, 64),
  "large": (24, 1024, 2816, 16, 64),
  "xl": (24, 2048, 5120, 32, 64),
  "xxl": (24, 4096, 10240, 64, 64),
}
_T5_1_0 = {
  "small": (6, 512, 2048, 8, 64),
  "base": (12, 768, 3072, 12, 64),
  "large": (24, 1024, 4096, 16, 64),
  "3b": (24, 1024, 16384, 32, 128),
  "11b": (24, 1024, 65536, 128, 128),
}


def _config(
  sizes: tuple[int, int, int, int, int], **options: Any
) -> TransformerConfig:
  num_layers, emb_dim, mlp_dim, num_heads, head_dim = sizes
  return TransformerConfig(
    num_encoder_layers=num_layers,
    num_decoder_layers=num_layers,
    emb_dim=emb_dim,
    mlp_dim=mlp_dim,
    num_heads=num_heads,
    head_dim=head_dim,
    **options,
  )


# The tiny model that ships with the package: bytes as its vocabulary.
_TINY = TransformerConfig(
  vocab_size=384,
  emb_dim=128,
  num_heads=4,
  head_dim=32,
  mlp_dim=256,
  num_encoder_layers=3,
  num_decoder_layers=3,
)

# arXiv 2302.13971, table 2; its released configuration has the rest.
_LLAMA_7B = TransformerConfig(
  vocab_size=32000,
  emb_dim=4096,
  num_heads=32,
  head_dim=128,
  mlp_dim=11008,
  num_encoder_layers=0,
  num_decoder_layers=32,
  mlp_activations=("silu", "linear"),
  attention_scale=0.0,
  norm_epsilon=1e-6,
  positions="rotary",
)

# arXiv 2005.14165, table 2.1; for `peft-jax cost`: its weights are not public.
_GPT3_175B = TransformerConfig(
  vocab_size=50257,
  emb_dim=12288,
  num_heads=96,
  head_dim=128,
  mlp_dim=4 * 12288,
  num_encoder_layers=0,
  num_decoder_layers=96,
  mlp_activations=("gelu",),
  mlp_bias=True,
  attention_bias="all",
  attention_scale=0.0,
  norm="layer",
  norm_epsilon=1e-5,
  positions="learned",
  max_positions=2048,
  logits_via_embedding=True,
  logits_scale=1.0,
)

CONFIGS: dict[str, TransformerConfig] = {
  "tiny": _TINY,
  **{f"t5_1_1_{name}": _config(size) for name, size in _T5_1_1.items()},
  **{
    f"t5_1_0_{name}": _config(
      size, mlp_activations=("relu",), logits_via_embedding=True
    )
    for name, size in _T5_1_0.items()
  },
  "llama_7b": _LLAMA_7B,
  "gpt3_175b": _GPT3_175B,
}


def default_dtype() -> Any:
  """Returns the activations' dtype for this machine's devices.

  bfloat16 on TPU and GPU; float32 on CPU, where XLA's bfloat16 is slow.

  Example:
    >>> default_dtype() in (jnp.float32, jnp.bfloat16)
    True
  """
  return jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16


def from_config(config: TransformerConfig) -> EncoderDecoder | DecoderOnly:
  """Returns the network of a configuration.

  Example:
    >>> type(from_config(TransformerConfig(num_encoder_layers=0))).__name__
    'DecoderOnly'
  """
  if config.num_encoder_layers:
    return EncoderDecoder(config)
  return DecoderOnly(config)


def create(name: str, **overrides: Any) -> EncoderDecoder | DecoderOnly:
  """Returns the network of a published size.

  Example:
    >>> create("t5_1_1_xl", scan_layers=True).config.emb_dim
    2048

  Args:
    name: a key of `CONFIGS`.
    **overrides: fields of `TransformerConfig` to replace.

  Raises:
    ValueError: for an unknown name, with the nearest ones.
  """
  if name not in CONFIGS:
    nearest = difflib.get_close_matches(name, CONFIGS, n=3, cutoff=0.3)
    raise ValueError(
      f"expected a model of {sorted(CONFIGS)}, found {name!r}. Nearest:"
      f" {', '.join(nearest) or 'none'}."
    )
  return from_config(dataclasses.replace(CONFIGS[name], **overrides))
