"""The optimizers and schedules of the papers, and freezing."""

from peft_jax.optim.adafactor import AdafactorSlots, adafactor
from peft_jax.optim.freeze import freeze
from peft_jax.optim.lora_plus import lora_plus
from peft_jax.optim.optimizers import adamw, sgd, with_clipping
from peft_jax.optim.schedules import (
  constant,
  cosine_decay,
  inverse_sqrt,
  linear_decay,
  starting_at,
)

__all__ = [
  "AdafactorSlots",
  "adafactor",
  "adamw",
  "constant",
  "cosine_decay",
  "freeze",
  "inverse_sqrt",
  "linear_decay",
  "lora_plus",
  "sgd",
  "starting_at",
  "with_clipping",
]
