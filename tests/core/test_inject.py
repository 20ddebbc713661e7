"""Adapted: the trees it makes, and what it keeps of the network."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.core import FrozenDict
from helpers import tiny

from peft_jax import IA3, Adapted, LoRA, Rule, join, split

# The tiny T5: D=16, H*K=12, F=20.
ENCODER, *DECODER = [
  "encoder/layers_0",
  "decoder/layers_0",
  "decoder/layers_1",
]


def adapter_spec(rules, **overrides):
  model = Adapted(tiny.t5(**overrides), rules)
  return tiny.spec(split(tiny.shapes(model), model)[1])


def test_ia3_tree():
  found = adapter_spec([Rule("kv", IA3()), Rule("mlp_out", IA3(side="input"))])
  assert found == {
    "encoder/layers_0/attention/key/ia3/scaling": ((12,), "float32"),
    "encoder/layers_0/attention/value/ia3/scaling": ((12,), "float32"),
    "encoder/layers_0/mlp/wo/ia3/scaling": ((20,), "float32"),
    **{
      f"{layer}/{attention}/{name}/ia3/scaling": ((12,), "float32")
      for layer in DECODER
      for attention in ("self_attention", "encoder_decoder_attention")
      for name in ("key", "value")
    },
    **{f"{layer}/mlp/wo/ia3/scaling": ((20,), "float32") for layer in DECODER},
  }


def test_lora_tree():
  """Every projection once; `out` reads the joined head axes."""
  found = adapter_spec([Rule("encoder/.*(query|out|wi_0|wo)", LoRA(rank=3))])
  attention = "encoder/layers_0/attention"
  assert found == {
    f"{attention}/query/lora/a": ((16, 3), "float32"),
    f"{attention}/query/lora/b": ((3, 12), "float32"),
    f"{attention}/out/lora/a": ((12, 3), "float32"),
    f"{attention}/out/lora/b": ((3, 16), "float32"),
    "encoder/layers_0/mlp/wi_0/lora/a": ((16, 3), "float32"),
    "encoder/layers_0/mlp/wi_0/lora/b": ((3, 20), "float32"),
    "encoder/layers_0/mlp/wo/lora/a": ((20, 3), "float32"),
    "encoder/layers_0/mlp/wo/lora/b": ((3, 16), "float32"),
  }


def test_scanned_tree():
  found = adapter_spec(
    [Rule("decoder/.*self_attention/out", LoRA(rank=3))], scan_layers=True
  )
  site = "decoder/layers/self_attention/out/lora"
  assert found == {
    f"{site}/a": ((2, 12, 3), "float32"),
    f"{site}/b": ((2, 3, 16), "float32"),
  }


def test_bfloat16_network_has_float32_adapters():
  rules = [Rule("qv", LoRA(rank=2)), Rule("mlp_out", IA3(side="input"))]
  assert adapter_spec(rules, dtype=jnp.bfloat16) == adapter_spec(rules)


def test_two_rules_at_one_site_have_two_scopes():
  found = adapter_spec(
    [
      Rule("encoder/.*query", LoRA(rank=1)),
      Rule("encoder/.*query", LoRA(rank=2), name="second"),
      Rule("encoder/.*query", IA3()),
    ]
  )
  site = "encoder/layers_0/attention/query"
  assert found == {
    f"{site}/lora/a": ((16, 1), "float32"),
    f"{site}/lora/b": ((1, 12), "float32"),
    f"{site}/second/a": ((16, 2), "float32"),
    f"{site}/second/b": ((2, 12), "float32"),
    f"{site}/ia3/scaling": ((12,), "float32"),
  }


class Two(nn.Module):
  """A network of two dense layers, the second of them called twice."""

  @nn.compact
  def __call__(self, x, enable_dropout=False):
    del enable_dropout
    x = nn.Dense(3, name="first", use_bias=False)(x)
    second = nn.Dense(3, name="second", use_bias=False)
    return second(second(x))


X = jnp.asarray(np.random.default_rng(0).standard_normal((2, 5, 4)), "float32")


def parts(model):
  params = tiny.randomize(model.init(jax.random.key(0), X)["params"])
  return params, jax.tree.map(np.asarray, params)


def test_a_plain_flax_network_and_a_shared_module():
  """A module that is called twice has one adapter, which acts both times."""
  model = Adapted(Two(), [Rule("first|second", IA3())])
  params, p = parts(model)
  x = np.asarray(X) @ p["first"]["kernel"] * p["first"]["ia3"]["scaling"]
  for _ in range(2):
    x = x @ p["second"]["kernel"] * p["second"]["ia3"]["scaling"]
  np.testing.assert_allclose(model.apply({"params": params}, X), x, rtol=1e-5)


@pytest.mark.parametrize("ia3_first", [True, False])
@pytest.mark.parametrize("side", ["input", "output"])
def test_rules_at_one_site_nest_in_their_order(ia3_first, side):
  """The first rule is innermost: the next adapts what it gives or is given."""
  rules = [Rule("first", LoRA(rank=2, alpha=3)), Rule("first", IA3(side=side))]
  model = Adapted(Two(), rules[::-1] if ia3_first else rules)
  params, p = parts(model)
  lora, scaling = p["first"]["lora"], p["first"]["ia3"]["scaling"]
  if side == "input":
    scaling = scaling[:, None]
  kernel, low = p["first"]["kernel"], 1.5 * lora["a"] @ lora["b"]
  kernel = kernel * scaling + low if ia3_first else (kernel + low) * scaling
  expected = np.asarray(X) @ kernel @ p["second"]["kernel"]
  expected = expected @ p["second"]["kernel"]
  found = model.apply({"params": params}, X)
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_no_rules_is_the_network():
  model = Adapted(tiny.t5())
  assert tiny.spec(tiny.shapes(model)) == tiny.spec(tiny.shapes(tiny.t5()))
  frozen, adapter = split(tiny.shapes(model), model)
  assert adapter == {}
  assert tiny.spec(frozen) == tiny.spec(tiny.shapes(tiny.t5()))


def test_forwards_what_trainers_read():
  """T5X reads these: a method to apply, its signature, a flag, a copy."""
  network = tiny.t5(scan_layers=True)
  model = Adapted(network, [Rule("kv", IA3())])
  assert model.scan_layers is True
  assert model.config is network.config
  signature = inspect.signature(model.decode).parameters
  assert "max_decode_length" in signature
  assert "cache_encoded" in signature
  copy = model.clone(config=tiny.t5(dropout_rate=0.5).config)
  assert isinstance(copy, Adapted)
  assert copy.rules == model.rules
  assert copy.config.dropout_rate == 0.5
  with pytest.raises(AttributeError, match="no_such_thing"):
    _ = model.no_such_thing


def test_is_a_value():
  """So that it can be a static argument and a key of a cache."""
  make = lambda: Adapted(tiny.t5(), [Rule("kv", IA3()), Rule("qv", LoRA())])
  assert make() == make()
  assert hash(make()) == hash(make())
  assert make() != Adapted(tiny.t5(), [Rule("kv", IA3())])


@pytest.mark.parametrize(
  "name", ["bind", "lazy_init", "init_with_output", "tabulate"]
)
def test_refuses_ways_around_the_interceptor(name):
  model = Adapted(tiny.t5(), [Rule("kv", IA3())])
  with pytest.raises(AttributeError, match="would silently be left out"):
    getattr(model, name)


def test_apply_with_a_method_adapts_it():
  model = Adapted(tiny.t5(), [Rule("encoder/.*key", IA3())])
  params = tiny.params(model)
  tokens = tiny.batch()["encoder_input_tokens"]
  call = lambda params: model.apply(
    {"params": params}, tokens, method=model.encode
  )
  frozen, adapter = split(params, model)
  changed = jax.tree.map(lambda x: 2 * x, adapter)
  assert np.abs(call(params) - call(join(frozen, changed))).max() > 1e-2


def test_frozen_dicts_are_read():
  model = Adapted(tiny.t5(), [Rule("kv", IA3())])
  shapes = tiny.shapes(model)
  tiny.spec(split(shapes, model)[1])
  assert split(FrozenDict(shapes), model) == split(shapes, model)


@pytest.mark.parametrize(
  ("path", "expected"),
  [
    ("encoder/layers_0/attention/key/ia3/scaling", "scaling"),
    ("decoder/layers/mlp/wo/ia3/scaling", None),
    ("decoder/layers/self_attention/key/ia3/scaling", "scaling"),
    ("encoder/layers_0/attention/key/kernel", None),
    ("encoder/layers_0/attention/key/notia3/scaling", None),
    ("encoder/layers_0/attention/query/ia3/scaling", None),
    ("ia3/scaling", None),
    ("scaling", None),
  ],
)
def test_rule_of_a_leaf(path, expected):
  model = Adapted(tiny.t5(), [Rule("kv", IA3())])
  owner = model.rule_of(path)
  assert (owner and owner[2]) == expected
  if owner:
    assert owner[1] == path.removesuffix("/ia3/scaling")
