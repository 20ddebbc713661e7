"""The methods that the contract suite holds to its promises.

A new method is one line: a name and its rules, written for T5X's module names.
"""

from peft_jax import IA3, LoRA, Rule

IA3_RULES = (Rule("kv", IA3()), Rule("mlp_out", IA3(side="input")))

METHODS = {
  "ia3": IA3_RULES,
  "lora": (Rule("attention", LoRA(rank=2, alpha=4)),),
  # The two meet at `key`, `value` and `wo`.
  "lora+ia3": (Rule("all_linear", LoRA(rank=2)), *IA3_RULES),
}

# Leaves that get no gradient at the first step: LoRA's `a`, while `b` is zero.
STILL_AT_FIRST = frozenset({"a"})
