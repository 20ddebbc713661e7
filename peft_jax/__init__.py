"""Parameter-efficient fine-tuning in JAX.

Axis letters, the same everywhere: B batch, T length (S the length of keys), D
model, H heads, K head dim, F hidden size of the MLP, P prompt length, R rank,
V vocabulary. Docstrings write joined axes with a product, H*K.
"""

from peft_jax import (
  choices,
  ensemble,
  losses,
  networks,
  optim,
  reparametrization,
  start,
)
from peft_jax._version import __version__
from peft_jax.adapters import (
  IA3,
  BitFit,
  Bottleneck,
  Compacter,
  DeepPrompt,
  DoRA,
  EmbeddingLoRA,
  FishMask,
  IntrinsicSAID,
  LoRA,
  LowRankAdapter,
  PiSSA,
  Prefix,
  Prompt,
  Unfreeze,
  VeRA,
)
from peft_jax.checkpoint import load, restore, save
from peft_jax.inject import Adapted
from peft_jax.merge import merge
from peft_jax.partition import join, split
from peft_jax.rules import Rule

__all__ = [
  "IA3",
  "Adapted",
  "BitFit",
  "Bottleneck",
  "Compacter",
  "DeepPrompt",
  "DoRA",
  "EmbeddingLoRA",
  "FishMask",
  "IntrinsicSAID",
  "LoRA",
  "LowRankAdapter",
  "PiSSA",
  "Prefix",
  "Prompt",
  "Rule",
  "Unfreeze",
  "VeRA",
  "__version__",
  "choices",
  "ensemble",
  "join",
  "load",
  "losses",
  "merge",
  "networks",
  "optim",
  "reparametrization",
  "restore",
  "save",
  "split",
  "start",
]
