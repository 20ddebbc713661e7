"""Merging: folded in order, rounded once, refused where it cannot be."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
from helpers import tiny

from peft_jax import IA3, Adapted, LoRA, Rule, layout, merge, split
from peft_jax.adapters import Adapter
from peft_jax.merge import MergeError
from peft_jax.partition import PartitionError

SITE = "encoder/layers_0/attention/value"


class Bottleneck(Adapter):
  """An adapter that folds into nothing, because it is not linear."""

  @property
  def position(self):
    return "output"

  @nn.compact
  def __call__(self, x, y, site, deterministic):
    scale = self.param("scale", nn.initializers.ones, (1,))
    return nn.relu(y) * scale.reshape((1,) * y.ndim)


def leaves(model, scale=1.0):
  params = tiny.randomize(tiny.params(model), scale=scale)
  return params, flatten_dict(params, sep="/")


def test_only_kernels_with_adapters_change():
  model = Adapted(tiny.t5(), [Rule(SITE, LoRA(rank=2, alpha=3))])
  params, flat = leaves(model)
  merged = flatten_dict(merge(params, model), sep="/")
  frozen = flatten_dict(split(params, model)[0], sep="/")
  assert merged.keys() == frozen.keys()
  changed = [p for p in frozen if np.any(merged[p] != frozen[p])]
  assert changed == [f"{SITE}/kernel"]
  a, b = (np.float64(flat[f"{SITE}/lora/{name}"]) for name in "ab")
  np.testing.assert_allclose(
    merged[f"{SITE}/kernel"], flat[f"{SITE}/kernel"] + 1.5 * a @ b, rtol=1e-5
  )


@pytest.mark.parametrize("ia3_first", [False, True])
def test_folds_in_the_order_of_the_rules(ia3_first):
  rules = [Rule(SITE, LoRA(rank=2)), Rule(SITE, IA3())]
  model = Adapted(tiny.t5(), rules[::-1] if ia3_first else rules)
  params, flat = leaves(model)
  kernel = np.asarray(flat[f"{SITE}/kernel"], np.float64)
  low = np.float64(flat[f"{SITE}/lora/a"]) @ np.float64(flat[f"{SITE}/lora/b"])
  scaling = np.float64(flat[f"{SITE}/ia3/scaling"])
  expected = kernel * scaling + low if ia3_first else (kernel + low) * scaling
  found = flatten_dict(merge(params, model), sep="/")[f"{SITE}/kernel"]
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_scanned_merges_as_unscanned():
  rules = [Rule("all_linear", LoRA(rank=2)), Rule("kv", IA3())]
  model = Adapted(tiny.t5(), rules)
  scanned = Adapted(tiny.t5(scan_layers=True), rules)
  params, _ = leaves(model)
  expected = merge(params, model)
  found = merge(layout.to_scanned(params), scanned)
  assert layout.is_scanned(found)
  tiny.assert_same(layout.to_layers(found), expected)


def test_rounds_once():
  """In bfloat16, adding in float32 keeps what adding in bfloat16 would lose."""
  model = Adapted(
    tiny.t5(), [Rule(SITE, LoRA(rank=1)), Rule(SITE, LoRA(rank=1), name="two")]
  )
  params, flat = leaves(model)
  flat = {path: jnp.ones_like(leaf) for path, leaf in flat.items()}
  for name, value in (("lora", 2**-8), ("two", 2**-8)):
    # One of these alone is half a unit in the last place of bfloat16's 1.
    flat[f"{SITE}/{name}/b"] *= value
  flat[f"{SITE}/kernel"] = flat[f"{SITE}/kernel"].astype(jnp.bfloat16)
  params = unflatten_dict(flat, sep="/")
  found = flatten_dict(merge(params, model), sep="/")[f"{SITE}/kernel"]
  assert found.dtype == jnp.bfloat16
  np.testing.assert_array_equal(found.astype(jnp.float32), 1 + 2**-7)


def test_dtype_of_the_result():
  model = Adapted(tiny.t5(), [Rule(SITE, IA3())])
  params, _ = leaves(model)
  merged = merge(params, model, dtype=jnp.bfloat16)
  dtypes = {leaf.dtype for leaf in flatten_dict(merged).values()}
  assert dtypes == {jnp.dtype("bfloat16")}
  # Rounded from the float32 sum.
  expected = flatten_dict(merge(params, model), sep="/")
  for path, leaf in flatten_dict(merged, sep="/").items():
    np.testing.assert_array_equal(leaf, expected[path].astype(jnp.bfloat16))


def test_names_every_rule_that_cannot_be_merged():
  rules = [
    Rule("kv", IA3()),
    Rule(SITE, Bottleneck(), name="one"),
    Rule("encoder/.*wo", Bottleneck(), name="two"),
  ]
  model = Adapted(tiny.t5(), rules)
  with pytest.raises(MergeError) as error:
    merge(tiny.shapes(model), model)
  message = str(error.value)
  assert f"'one' at {SITE!r}, 'two' at 'encoder/.*wo'" in message
  assert "'kv'" not in message
  assert "merge a model without them" in message


def test_a_site_without_a_kernel():
  """(IA)3 on a whole attention block has nothing to be folded into."""
  model = Adapted(tiny.t5(), [Rule("encoder/layers_0/attention", IA3())])
  with pytest.raises(MergeError) as error:
    merge(tiny.params(model), model)
  message = str(error.value)
  assert "expected a kernel at encoder/layers_0/attention" in message
  assert "fold ia3 into" in message


def test_a_tree_without_the_adapter():
  model = Adapted(tiny.t5(), [Rule("kv", IA3())])
  with pytest.raises(PartitionError, match="found none"):
    merge(tiny.shapes(tiny.t5()), model)
