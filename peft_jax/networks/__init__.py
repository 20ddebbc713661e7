"""Backbones: one set of layers, T5X's names."""

from peft_jax.networks.sizes import (
  CONFIGS,
  create,
  default_dtype,
  num_layers,
)
from peft_jax.networks.t5 import T5, T5Config

__all__ = ["CONFIGS", "T5", "T5Config", "create", "default_dtype", "num_layers"]
