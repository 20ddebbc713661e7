"""The methods that the contract suite holds to its promises.

A new method is one line: a name and its rules, written for T5X's module names.
"""

import dataclasses

from peft_jax import (
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
  Rule,
  Unfreeze,
  VeRA,
)

BLOCKS = r".*(attention|mlp)"
IA3_RULES = (Rule("kv", IA3()), Rule("mlp_out", IA3(side="input")))
PROMPT = Prompt(length=3, population=20)

METHODS = {
  "ia3": IA3_RULES,
  "lora": (Rule("attention", LoRA(rank=2, alpha=4)),),
  # The two meet at `key`, `value` and `wo`.
  "lora+ia3": (Rule("all_linear", LoRA(rank=2)), *IA3_RULES),
  "lora_scaling": (
    Rule("all_linear", IA3(side="input"), name="lora_a"),
    Rule("all_linear", IA3(), name="lora_b"),
  ),
  "dora": (Rule("qv", DoRA(rank=2, alpha=4)), Rule("mlp_out", DoRA(rank=2))),
  "lora_embedding": (Rule("token_embedder", EmbeddingLoRA(rank=2)),),
  "fish_mask": (Rule(r".*/kernel", FishMask(keep=0.05)),),
  "intrinsic_said": (Rule(r".*/kernel", IntrinsicSAID(dimension=50)),),
  "vera": (Rule("qv", VeRA(rank=8)),),
  "pissa": (Rule("qv", PiSSA(rank=2)),),
  "bitfit": (
    Rule("all_linear", BitFit()),
    Rule(r".*norm/scale", Unfreeze()),
  ),
  "houlsby": (Rule(BLOCKS, Bottleneck(size=4, initializer="houlsby")),),
  "pfeiffer": (Rule(r".*/mlp", Bottleneck(size=4, layer_norm=True)),),
  "parallel": (
    Rule(
      r".*/mlp", Bottleneck(size=4, placement="parallel", scaling="learned")
    ),
  ),
  "llm_adapters_series": (
    Rule(
      r".*/mlp/wi.*",
      Bottleneck(size=4, placement="before", use_bias=False, activation="tanh"),
    ),
    Rule("mlp_out", Bottleneck(size=4, initializer="bert", use_bias=False)),
  ),
  "compacter": (Rule(BLOCKS, Compacter(size=4, division=2)),),
  "low_rank_adapter": (Rule(r".*/mlp", LowRankAdapter(size=4)),),
  "prompt": (Rule("encoder", PROMPT),),
  "prompt_encoder": (Rule("encoder", PROMPT.clone(encoder_size=8)),),
  "deep_prompt": (Rule(r"encoder/layers_\d+", DeepPrompt(length=3)),),
  "deep_prompt_added": (
    Rule("encoder", PROMPT),
    Rule(r"encoder/layers_\d+", DeepPrompt(length=3, combine="add")),
  ),
  "prefix": (Rule(r".*attention", Prefix(length=3, hidden_size=8)),),
  "prefix_direct": (Rule(r".*attention", Prefix(length=3, hidden_size=0)),),
  "infix": (Rule(r"decoder/.*attention", Prefix(length=3, hidden_size=0)),),
  "layer_norm": (Rule(r".*norm/scale", Unfreeze()),),
  "top_layer": (Rule(r"decoder/(layers_1/.*|decoder_norm/.*)", Unfreeze()),),
  "full": (Rule(r".*", Unfreeze()),),
  "mam": (
    Rule(r".*attention", Prefix(length=3, hidden_size=8)),
    Rule(r".*/mlp", Bottleneck(size=8, placement="parallel", scaling=4.0)),
  ),
  "unipelt": (
    Rule(r".*attention", Prefix(length=3, hidden_size=0, gated=True)),
    Rule("qv", LoRA(rank=2, gated=True)),
    Rule(r".*/mlp", Bottleneck(size=4, gated=True)),
  ),
  "all_together": (
    *IA3_RULES,
    Rule("qv", LoRA(rank=2)),
    Rule("encoder", PROMPT),
    Rule(r".*attention", Prefix(length=2, hidden_size=8)),
    Rule(r".*/mlp", Bottleneck(size=4, placement="parallel")),
  ),
}


def rules(name, network):
  """Returns a method's rules: prompts stand in the network's first stack."""
  config = getattr(network, "config", None)
  if getattr(config, "num_encoder_layers", 1):
    return METHODS[name]
  moved = {"encoder": "decoder", r"encoder/layers_\d+": r"decoder/layers_\d+"}
  return tuple(
    dataclasses.replace(rule, pattern=moved.get(rule.pattern, rule.pattern))
    for rule in METHODS[name]
  )


# Leaves that get no gradient at the first step, because what multiplies them is
# zero at the start: LoRA's `b`, an adapter's `up`.
STILL_AT_FIRST = {
  "lora": {"a"},
  "lora+ia3": {"a"},
  "dora": {"a"},
  "lora_embedding": {"b"},
  "intrinsic_said": {"scaling"},
  "vera": {"d"},
  "pfeiffer": {"down", "down_bias", "norm_scale"},
  "parallel": {"down", "down_bias", "scaling"},
  "llm_adapters_series": {"down"},
  "compacter": {
    *("down_s", "down_t", "down_bias", "down_rule", "up_s", "up_rule")
  },
  "low_rank_adapter": {"down_left", "down_right", "down_bias", "up_left"},
  "mam": {"down", "down_bias"},
  "unipelt": {"a", "gate", "down", "down_bias"},
  "all_together": {"a", "down", "down_bias"},
}

# Methods that change what the model does from the start, by design.
NOT_THE_IDENTITY = {
  *("prompt", "prompt_encoder", "deep_prompt", "deep_prompt_added"),
  *("prefix", "prefix_direct", "infix", "mam", "unipelt", "all_together"),
  *("houlsby", "llm_adapters_series"),
}

# Methods that add and take away the same, or divide by what they multiply with.
ROUNDED = {"dora", "pissa"}
