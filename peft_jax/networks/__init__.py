"""Backbones: one set of layers, T5X's names."""

from peft_jax.networks.config import Rotary, TransformerConfig
from peft_jax.networks.decoder_only import DecoderOnly
from peft_jax.networks.encoder_decoder import EncoderDecoder
from peft_jax.networks.sizes import (
  CONFIGS,
  create,
  default_dtype,
  from_config,
)

__all__ = [
  "CONFIGS",
  "DecoderOnly",
  "EncoderDecoder",
  "Rotary",
  "TransformerConfig",
  "create",
  "default_dtype",
  "from_config",
]
