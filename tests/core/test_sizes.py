"""Parameter counts of the published sizes, from shapes alone."""

import functools

import jax
import jax.numpy as jnp
import pytest

from peft_jax import IA3, Adapted, LoRA, Rule, networks, split
from peft_jax.partition import count, nbytes

IA3_RULES = (Rule("kv", IA3()), Rule("mlp_out", IA3(side="input")))

# Written down here by themselves: layers per stack, D, F, H, K, and the number
# of parameters that Hugging Face's models of that name have.
PUBLISHED = {
  "t5_1_1_small": (8, 512, 1024, 6, 64, 76_961_152),
  "t5_1_1_base": (12, 768, 2048, 12, 64, 247_577_856),
  "t5_1_1_large": (24, 1024, 2816, 16, 64, 783_150_080),
  "t5_1_1_xl": (24, 2048, 5120, 32, 64, 2_849_757_184),
  "t5_1_1_xxl": (24, 4096, 10240, 64, 64, 11_135_332_352),
  "t5_1_0_small": (6, 512, 2048, 8, 64, 60_506_624),
  "t5_1_0_base": (12, 768, 3072, 12, 64, 222_903_552),
  "t5_1_0_large": (24, 1024, 4096, 16, 64, 737_668_096),
  "t5_1_0_3b": (24, 1024, 16384, 32, 128, 2_851_598_336),
  "t5_1_0_11b": (24, 1024, 65536, 128, 128, 11_307_321_344),
}
VOCABULARY, BUCKETS = 32_128, 32


@functools.cache
def shapes(name, rules=()):
  """Returns the tree of shapes; scanned, which is quicker to trace."""
  model = Adapted(networks.create(name, scan_layers=True), rules)
  tokens = jax.ShapeDtypeStruct((1, 2), jnp.int32)
  init = lambda key, x: model.init(key, x, x, x)["params"]
  return split(jax.eval_shape(init, jax.random.key(0), tokens), model)


def by_hand(layers, d, f, h, k, gated):
  """Returns the number of parameters of a T5 from its sizes."""
  attention = 4 * d * h * k
  mlp = (3 if gated else 2) * d * f
  encoder = layers * (attention + mlp + 2 * d)
  decoder = layers * (2 * attention + mlp + 3 * d)
  around = 2 * (BUCKETS * h + d)  # position table and last norm, per stack
  embeddings = VOCABULARY * d * (2 if gated else 1)
  return encoder + decoder + around + embeddings


def test_all_published_sizes_are_here():
  assert set(networks.CONFIGS) == {
    *("tiny", "llama_7b", "gpt3_175b"),
    *PUBLISHED,
  }


def test_llama_counts():
  # Hugging Face's LLaMA 7B has 6,738,415,616 parameters.
  network = networks.create("llama_7b", scan_layers=True)
  tokens = jax.ShapeDtypeStruct((1, 2), jnp.int32)
  found = jax.eval_shape(network.init, jax.random.key(0), tokens)["params"]
  d, f, layers, v = 4096, 11008, 32, 32000
  by_hand = layers * (4 * d * d + 3 * d * f + 2 * d) + d + 2 * v * d
  assert count(found) == by_hand == 6_738_415_616


def test_gpt3_counts():
  network = networks.create("gpt3_175b", scan_layers=True)
  tokens = jax.ShapeDtypeStruct((1, 2), jnp.int32)
  found = jax.eval_shape(network.init, jax.random.key(0), tokens)["params"]
  d, layers, v, positions = 12288, 96, 50257, 2048
  per_layer = 12 * d * d + 13 * d  # kernels; biases and two norms
  by_hand = layers * per_layer + 2 * d + (v + positions) * d
  assert count(found) == by_hand
  assert 174e9 < by_hand < 175e9


@pytest.mark.parametrize("name", PUBLISHED)
def test_counts(name):
  *sizes, published = PUBLISHED[name]
  frozen, _ = shapes(name)
  gated = name.startswith("t5_1_1")
  assert count(frozen) == by_hand(*sizes, gated=gated) == published


def test_t_few_vectors_of_t0_3b():
  """T0-3B has the shape of T5 1.1 XL; T-Few trains 540,672 parameters."""
  _, adapter = shapes("t5_1_1_xl", IA3_RULES)
  layers, h, k, f = 24, 32, 64, 5120
  assert count(adapter) == layers * (3 * 2 * h * k + 2 * f) == 540_672


def test_ia3_of_xxl_is_a_few_megabytes():
  _, adapter = shapes("t5_1_1_xxl", IA3_RULES)
  assert count(adapter) == 24 * (3 * 2 * 64 * 64 + 2 * 10240)
  assert nbytes(adapter) < 10e6


@pytest.mark.parametrize("rank", [1, 8])
def test_lora_of_base(rank):
  layers, d, f, h, k, _ = PUBLISHED["t5_1_1_base"]
  _, adapter = shapes("t5_1_1_base", (Rule("qv", LoRA(rank=rank)),))
  assert count(adapter) == 3 * layers * 2 * rank * (d + h * k)
  _, adapter = shapes("t5_1_1_base", (Rule("all_linear", LoRA(rank=rank)),))
  per_layer = 3 * 4 * (d + h * k) + 2 * 3 * (d + f)
  assert count(adapter) == layers * rank * per_layer


def test_create_takes_overrides():
  network = networks.create("t5_1_1_base", scan_layers=True, num_heads=3)
  assert network.config.num_heads == 3
  assert network.scan_layers
  assert networks.CONFIGS["t5_1_1_base"].num_heads == 12


def test_create_names_the_nearest():
  with pytest.raises(ValueError, match=r"found 't5_1_1_bass'.*t5_1_1_base"):
    networks.create("t5_1_1_bass")
  with pytest.raises(TypeError, match="no_such_field"):
    networks.create("tiny", no_such_field=1)


def test_default_dtype_on_a_cpu():
  assert networks.default_dtype() == jnp.float32
