"""Trained parameters against closed formulas, from shapes alone."""

import jax
import numpy as np
import pytest

from peft_jax import (
  IA3,
  Adapted,
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
  networks,
  partition,
)

SIZES = ["small", "base", "large", "xl", "xxl"]
BLOCKS = r".*(attention|mlp)"
P, R, S, M, N = 20, 8, 32, 512, 4


def kernels(d, f, a):
  """Sizes (inputs, outputs) of the linear maps of one layer pair."""
  attention = 3 * [(d, a)] + [(a, d)]
  mlp = [(d, f), (d, f), (f, d)]
  return 3 * attention + 2 * mlp


# name: rules, and their parameters from L layers a stack, D, F, A = H*K, V.
FORMULAS = {
  "ia3": (
    [Rule("kv", IA3()), Rule("mlp_out", IA3(side="input"))],
    lambda n, d, f, a, v: n * (3 * 2 * a + 2 * f),
  ),
  "lora": (
    [Rule("all_linear", LoRA(rank=R))],
    lambda n, d, f, a, v: n * sum(R * (i + o) for i, o in kernels(d, f, a)),
  ),
  "dora": (
    [Rule("qv", DoRA(rank=R))],
    lambda n, d, f, a, v: n * 6 * (R * (d + a) + a),
  ),
  "vera": (
    [Rule("qv", VeRA(rank=256))],
    lambda n, d, f, a, v: n * 6 * (256 + a),
  ),
  "pissa": (
    [Rule("qv", PiSSA(rank=R))],
    lambda n, d, f, a, v: n * 6 * R * (d + a),
  ),
  "lora_embedding": (
    [Rule("token_embedder", EmbeddingLoRA(rank=R))],
    lambda n, d, f, a, v: R * (v + d),
  ),
  "bitfit": (
    [Rule("all_linear", BitFit())],
    lambda n, d, f, a, v: n * sum(o for _, o in kernels(d, f, a)),
  ),
  "houlsby": (
    [Rule(BLOCKS, Bottleneck(size=S))],
    lambda n, d, f, a, v: n * 5 * (2 * d * S + S + d),
  ),
  "llm_adapters_parallel": (
    [Rule("qkv", Bottleneck(size=S, placement="parallel", use_bias=False))],
    lambda n, d, f, a, v: n * 9 * S * (d + a),
  ),
  "compacter": (
    [Rule(BLOCKS, Compacter(size=S, division=N))],
    lambda n, d, f, a, v: n * 5 * (2 * (d + S) + S + d) + 2 * N**3,
  ),
  "low_rank_adapter": (
    [Rule(BLOCKS, LowRankAdapter(size=S, rank=1))],
    lambda n, d, f, a, v: n * 5 * (2 * (d + S) + S + d),
  ),
  "prompt": (
    [Rule("encoder", Prompt(length=P))],
    lambda n, d, f, a, v: P * d,
  ),
  "deep_prompt": (
    [Rule(r"encoder/layers_\d+", DeepPrompt(length=P))],
    lambda n, d, f, a, v: n * P * d,
  ),
  "prefix": (
    [Rule(".*attention", Prefix(length=P, hidden_size=0))],
    lambda n, d, f, a, v: n * 3 * 2 * P * a,
  ),
  "prefix_network": (
    [Rule(".*attention", Prefix(length=P, hidden_size=M))],
    lambda n, d, f, a, v: 3 * (P * d + d * M + M) + n * 3 * (M * 2 * a + 2 * a),
  ),
  "layer_norm": (
    [Rule(".*norm/scale", Unfreeze())],
    lambda n, d, f, a, v: n * 5 * d + 2 * d,
  ),
  "fish_mask": (
    [Rule(r".*layers_\d+/.*/kernel", FishMask(keep=0.005))],
    lambda n, d, f, a, v: (
      -(-n * sum(i * o for i, o in kernels(d, f, a)) * 5 // 1000)
    ),
  ),
  "intrinsic_said": (
    [Rule(r".*layers_\d+/.*/kernel", IntrinsicSAID(dimension=20_000))],
    lambda n, d, f, a, v: 20_000 + n * len(kernels(d, f, a)),
  ),
  "full": (
    [Rule(".*", Unfreeze())],
    lambda n, d, f, a, v: (
      n * sum(i * o for i, o in kernels(d, f, a))
      + n * 5 * d
      + 2 * d
      + 2 * v * d
      + 2 * 32 * a // 64
    ),
  ),
}


def counted(model):
  blank = np.ones((1, 2), np.int32)
  shapes = jax.eval_shape(model.init, jax.random.key(0), blank, blank, blank)
  return partition.counts(shapes["params"], model)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("method", FORMULAS)
def test_counts(method, size):
  rules, formula = FORMULAS[method]
  # Scanned: as many parameters, and a trace of one layer.
  network = networks.create(f"t5_1_1_{size}", scan_layers=True)
  config = network.config
  found = counted(Adapted(network, rules))
  assert found["trained_parameters"] == formula(
    config.num_encoder_layers,
    config.emb_dim,
    config.mlp_dim,
    config.num_heads * config.head_dim,
    config.vocab_size,
  )
  assert found["trained_parameters"] <= found["all_parameters"]
  assert (
    found["backbone_parameters"]
    == counted(Adapted(network, [Rule(".*", Unfreeze())]))["trained_parameters"]
  )


def test_tfews_ia3_for_t0_3b():
  """540,672: counted in the released file of T-Few (r-three/t-few)."""
  rules, _ = FORMULAS["ia3"]
  network = networks.create("t5_1_1_xl", scan_layers=True)
  assert counted(Adapted(network, rules))["trained_parameters"] == 540_672
