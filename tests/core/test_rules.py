"""Rules: what they match, and what their errors say."""

import re

import jax.numpy as jnp
import pytest
from flax import linen as nn
from helpers import tiny

from peft_jax import IA3, Adapted, DoRA, LoRA, Rule
from peft_jax.rules import TARGETS, TargetError, flatten

INPUTS = tiny.network_inputs(tiny.batch())


def sites(rules, **overrides):
  """Returns the paths of every rule on the tiny T5."""
  model = Adapted(tiny.t5(**overrides), rules)
  return list(model.sites(**INPUTS).values())


@pytest.mark.parametrize(
  ("pattern", "path", "matches"),
  [
    ("lora", "lora", True),
    ("lora", "notlora", False),
    ("lora", "lorax", False),
    ("lora", "a/lora", False),
    (".*/lora", "a/lora", True),
    (".*/lora", "a/notlora", False),
    ("query|value", "value", True),
    ("query|value", "query/kernel", False),
    ("qv", "encoder/layers_0/attention/query", True),
    ("qv", "encoder/layers_0/attention/query/lora", False),
    ("qv", "encoder/layers_0/attention/key", False),
    ("kv", "decoder/layers_0/encoder_decoder_attention/key", True),
    ("mlp_out", "encoder/layers_0/mlp/wo", True),
    ("mlp_out", "encoder/layers_0/notmlp/wo2", False),
    ("mlp", "encoder/layers_10/mlp/wi_0", True),
    ("mlp", "encoder/layers_10/mlp/wi", True),
    ("mlp", "encoder/layers_10/mlp/wi_", False),
    # A dot in a path would match anything; a newline must not end a match.
    ("a.b", "axb", True),
    ("lora", "lora\n", False),
  ],
)
def test_matches_the_whole_path(pattern, path, matches):
  assert Rule(pattern, IA3()).matches(path) is matches


def test_targets_name_these_modules():
  """Presets are counted per layer, and together cover every projection."""
  counts = {name: len(sites([Rule(name, IA3())])[0]) for name in TARGETS}
  # One encoder layer with one attention, two decoder layers with two each.
  assert counts == {
    "attention": 4 * 5,
    "qkv": 3 * 5,
    "qv": 2 * 5,
    "kv": 2 * 5,
    "mlp": 3 * 3,
    "mlp_out": 3,
    "all_linear": 4 * 5 + 3 * 3,
  }


def test_targets_know_the_ungated_mlp():
  [found] = sites([Rule("mlp", IA3())], mlp_activations=("relu",))
  assert found == [
    "encoder/layers_0/mlp/wi",
    "encoder/layers_0/mlp/wo",
    "decoder/layers_0/mlp/wi",
    "decoder/layers_0/mlp/wo",
    "decoder/layers_1/mlp/wi",
    "decoder/layers_1/mlp/wo",
  ]


def test_scanned_layers_are_named_one_by_one():
  rules = [Rule("kv", IA3()), Rule("decoder/.*wo", IA3(side="input"))]
  scanned = sites(rules, scan_layers=True, remat="full")
  assert [set(paths) for paths in scanned] == [
    set(paths) for paths in sites(rules)
  ]


def test_no_match_names_the_nearest_modules():
  with pytest.raises(TargetError) as error:
    sites([Rule("qv", IA3()), Rule(r".*atention/query", IA3())])
  message = str(error.value)
  assert re.search(r"'\.\*atention/query' matched 0 of \d+ modules", message)
  assert "all_linear" in message
  assert re.search(r"Nearest: [^.]*attention/query", message)
  # Layers are written once, not once each.
  assert r"layers_\d+" in message


def test_no_match_is_found_by_init_too():
  model = Adapted(tiny.t5(), [Rule("nothing", IA3())])
  with pytest.raises(TargetError, match="matched 0 of"):
    tiny.shapes(model)


def test_two_rules_of_one_name_cannot_share_a_site():
  rules = [Rule("qv", LoRA()), Rule("qkv", LoRA(rank=2))]
  with pytest.raises(TargetError) as error:
    sites(rules)
  message = str(error.value)
  assert "two: 'qv' and 'qkv'" in message
  assert "encoder/layers_0/attention/query" in message
  assert "name=" in message


def test_two_rules_of_two_names_can():
  rules = [Rule("qv", LoRA()), Rule("qkv", LoRA(rank=2), name="second")]
  first, second = sites(rules)
  assert set(first) < set(second)


def test_what_computes_with_the_kernel_goes_first():
  """Behind (IA)3, DoRA's norms would not be those that it merges into."""
  with pytest.raises(TargetError) as error:
    sites([Rule("kv", IA3()), Rule("qv", DoRA())])
  assert "'qv' of 'dora' before all others at" in str(error.value)
  assert "attention/value, found 'ia3'" in str(error.value)
  assert all(sites([Rule("qv", DoRA()), Rule("kv", IA3())]))


def test_a_rule_for_some_scanned_layers_is_refused():
  rules = [Rule("decoder/layers_1/mlp/wo", IA3())]
  assert sites(rules) == [["decoder/layers_1/mlp/wo"]]
  with pytest.raises(TargetError) as error:
    sites(rules, scan_layers=True)
  message = str(error.value)
  assert "matched 1 of 2 layers (first decoder/layers_1/mlp/wo)" in message
  assert "scan_layers=False" in message


def test_a_module_with_setup_is_refused():
  """No adapter can be made inside a module that is not compact."""
  with pytest.raises(TargetError) as error:
    sites([Rule("token_embedder", IA3())])
  message = str(error.value)
  assert "'token_embedder' matched token_embedder" in message
  assert "not @nn.compact" in message


def test_presets_do_not_match_other_networks():
  class Other(nn.Module):
    @nn.compact
    def __call__(self, x):
      return nn.Dense(3, name="dense")(x)

  x = jnp.ones((1, 2))
  found = Adapted(Other(), [Rule("dense", LoRA(rank=1))]).sites(x)
  assert list(found.values()) == [["dense"]]
  with pytest.raises(TargetError, match="Nearest: dense"):
    Adapted(Other(), [Rule("dens", LoRA(rank=1))]).sites(x)


@pytest.mark.parametrize("adapter", [IA3, "lora", None, "LoRA()"])
def test_refuses_what_is_not_an_adapter(adapter):
  with pytest.raises(TargetError, match="an adapter such as"):
    Rule("qv", adapter)


def test_refuses_a_broken_pattern():
  with pytest.raises(TargetError) as error:
    Rule("(query", IA3())
  assert "'(query'" in str(error.value)
  assert "regular expression or a name of" in str(error.value)


@pytest.mark.parametrize("name", ["a/b", "a b", "lora.1"])
def test_refuses_a_name_of_two_components(name):
  with pytest.raises(TargetError, match="letters, digits and underscores"):
    Rule("qv", LoRA(), name=name)


def test_default_names():
  assert Rule("qv", LoRA()).name == "lora"
  assert Rule("qv", IA3()).name == "ia3"
  assert Rule("qv", IA3(), name="mine").name == "mine"


def test_flatten_keeps_the_order_of_nested_lists():
  a, b, c = Rule("a", IA3()), Rule("b", IA3()), Rule("c", IA3())
  assert flatten([a, [b, (c,)], []]) == (a, b, c)
  assert Adapted(tiny.t5(), [[a], (b, [c])]).rules == (a, b, c)


@pytest.mark.parametrize("bad", ["qv", IA3(), None, 3])
def test_flatten_names_what_is_no_rule(bad):
  with pytest.raises(TargetError, match=r"expected a Rule or a list of them"):
    flatten([[Rule("a", IA3()), bad]])
