"""The methods: one small module each."""

from peft_jax.adapters.base import Adapter, Site
from peft_jax.adapters.ia3 import IA3
from peft_jax.adapters.lora import LoRA

# By the name that the command line and the manifest use.
METHODS: dict[str, type[Adapter]] = {"ia3": IA3, "lora": LoRA}

__all__ = ["IA3", "METHODS", "Adapter", "LoRA", "Site"]
