"""The methods: one small module each."""

from peft_jax.adapters.base import Adapter, Site
from peft_jax.adapters.bitfit import BitFit
from peft_jax.adapters.bottleneck import Bottleneck
from peft_jax.adapters.compacter import Compacter
from peft_jax.adapters.deep_prompt import DeepPrompt
from peft_jax.adapters.dora import DoRA
from peft_jax.adapters.fish_mask import FishMask
from peft_jax.adapters.ia3 import IA3
from peft_jax.adapters.intrinsic_said import IntrinsicSAID
from peft_jax.adapters.lora import LoRA
from peft_jax.adapters.lora_embedding import EmbeddingLoRA
from peft_jax.adapters.low_rank_adapter import LowRankAdapter
from peft_jax.adapters.pissa import PiSSA
from peft_jax.adapters.prefix import Prefix
from peft_jax.adapters.prompt import Prompt
from peft_jax.adapters.unfreeze import Unfreeze
from peft_jax.adapters.vera import VeRA

# By the name that the command line and the manifest use.
METHODS: dict[str, type[Adapter]] = {
  "bitfit": BitFit,
  "bottleneck": Bottleneck,
  "compacter": Compacter,
  "deep_prompt": DeepPrompt,
  "dora": DoRA,
  "fish_mask": FishMask,
  "ia3": IA3,
  "intrinsic_said": IntrinsicSAID,
  "lora": LoRA,
  "lora_embedding": EmbeddingLoRA,
  "low_rank_adapter": LowRankAdapter,
  "pissa": PiSSA,
  "prefix": Prefix,
  "prompt": Prompt,
  "unfreeze": Unfreeze,
  "vera": VeRA,
}

__all__ = [
  "IA3",
  "METHODS",
  "Adapter",
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
  "Site",
  "Unfreeze",
  "VeRA",
]
