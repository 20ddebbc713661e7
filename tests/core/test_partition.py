"""Splitting, joining, counting; and the table of rules."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.core import FrozenDict
from helpers import tiny

from peft_jax import (
  IA3,
  Adapted,
  EmbeddingLoRA,
  LoRA,
  Rule,
  Unfreeze,
  join,
  merge,
  optim,
  split,
)
from peft_jax.partition import (
  PartitionError,
  count,
  format_rule_table,
  nbytes,
  rule_table,
  trainable_mask,
)

RULES = (
  Rule("kv", IA3()),
  Rule("encoder/.*mlp/(wi_0|wo)", LoRA(rank=3)),
)


def model(**overrides):
  return Adapted(tiny.t5(**overrides), RULES)


def test_every_leaf_is_on_one_side():
  shapes = tiny.shapes(model())
  frozen, adapter = split(shapes, model())
  assert tiny.spec(frozen) == tiny.spec(tiny.shapes(tiny.t5()))
  both = tiny.spec(frozen) | tiny.spec(adapter)
  assert both == tiny.spec(shapes)
  assert len(both) == len(tiny.spec(frozen)) + len(tiny.spec(adapter))
  assert tiny.spec(join(frozen, adapter)) == tiny.spec(shapes)


def test_a_tree_without_one_rules_leaves_is_refused():
  """As when a backbone alone is passed, or the tree of another rule."""
  with pytest.raises(PartitionError) as error:
    split(tiny.shapes(tiny.t5()), model())
  message = str(error.value)
  assert "expected parameters of 'kv' named 'ia3', found none" in message
  assert "['decoder', 'encoder', 'token_embedder']" in message
  assert "Adapted.init" in message
  only_ia3 = tiny.shapes(Adapted(tiny.t5(), RULES[:1]))
  with pytest.raises(PartitionError, match="named 'lora', found none"):
    split(only_ia3, model())


def test_join_refuses_common_leaves():
  shapes = tiny.shapes(model())
  frozen, adapter = split(shapes, model())
  with pytest.raises(PartitionError) as error:
    join(shapes, adapter)
  message = str(error.value)
  assert f"found {len(tiny.spec(adapter))}, first 'decoder/layers_0/" in message
  assert "two results of split" in message
  assert tiny.spec(join(frozen, {})) == tiny.spec(frozen)


def test_mask_keeps_the_type_of_the_tree():
  """T5X hands its optimizer FrozenDicts; a mask of dicts would not fit."""
  shapes = tiny.shapes(model())
  mask = trainable_mask(shapes, model())
  frozen_mask = trainable_mask(FrozenDict(shapes), model())
  assert isinstance(frozen_mask, FrozenDict)
  assert frozen_mask == FrozenDict(mask)
  _, adapter = split(shapes, model())
  assert sum(jax.tree.leaves(mask)) == len(jax.tree.leaves(adapter))


def test_mask_freezes_with_optim():
  net = Adapted(tiny.t5(), RULES[:1])
  params = jax.tree.map(lambda x: jnp.zeros(x.shape), tiny.shapes(net))
  tx = optim.freeze(optax.sgd(1.0), trainable_mask(params, net))
  grads = jax.tree.map(jnp.ones_like, params)
  updates, _ = tx.update(grads, tx.init(params), params)
  frozen, adapter = split(updates, net)
  assert not any(np.any(x) for x in jax.tree.leaves(frozen))
  assert all(np.all(x == -1) for x in jax.tree.leaves(adapter))


def test_counts():
  _, adapter = split(tiny.shapes(model()), model())
  vectors = 5 * 2 * 12  # five attentions, keys and values, H*K = 12
  matrices = (16 * 3 + 3 * 20) + (20 * 3 + 3 * 16)
  assert count(adapter) == vectors + matrices
  assert nbytes(adapter) == 4 * count(adapter)
  half = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), adapter
  )
  assert nbytes(half) == 2 * count(adapter)
  assert count({}) == nbytes({}) == 0
  assert count({"scalar": np.float32(1)}) == 1


@pytest.mark.parametrize("scanned", [False, True])
def test_rule_table(scanned):
  """Layers are counted one by one in either view."""
  net = model(scan_layers=scanned)
  _, adapter = split(tiny.shapes(net), net)
  first, second = rule_table(adapter, net)
  assert (first.pattern, first.sites, first.parameters) == ("kv", 10, 120)
  assert second.sites == 2
  assert second.parameters == 3 * (16 + 20) * 2
  assert second.example_path in (
    "encoder/layers_0/mlp/wi_0",
    "encoder/layers_0/mlp/wo",
  )
  text = format_rule_table([first, second])
  lines = text.splitlines()
  assert len(lines) == 3
  assert "layers_0" in lines[1]
  assert (
    len(
      {
        line.index(part)
        for line, part in zip(
          lines, ("pattern", "kv", "encoder/.*"), strict=True
        )
      }
    )
    == 1
  )


def test_rule_table_writes_thousands():
  net = Adapted(tiny.t5(), [Rule("all_linear", LoRA(rank=64))])
  _, adapter = split(tiny.shapes(net), net)
  [row] = rule_table(adapter, net)
  assert f"{row.parameters:,}" in format_rule_table([row])
  assert row.parameters == count(adapter)


@pytest.mark.parametrize(
  "rule",
  [
    Rule("token_embedder", EmbeddingLoRA(rank=2)),
    Rule("token_embedder/embedding", Unfreeze()),
  ],
)
@pytest.mark.parametrize("tied", [False, True])
def test_a_tied_embedding_says_so(rule, tied):
  model = Adapted(tiny.t5(logits_via_embedding=tied), [rule])
  [row] = rule_table(tiny.shapes(model), model)
  assert row.sites == 1
  text = format_rule_table([row])
  assert ("tied: the output layer is the same leaf" in text) == tied


def test_a_tied_embedding_is_one_leaf():
  """Its change reaches the logits, and merging gives the same model."""
  network = tiny.t5(logits_via_embedding=True)
  model = Adapted(network, [Rule("token_embedder", EmbeddingLoRA(rank=2))])
  frozen, adapter = split(tiny.params(model), model)
  params = join(frozen, tiny.randomize(adapter))
  expected = tiny.logits(model)(params, tiny.batch())
  found = tiny.logits(network)(merge(params, model), tiny.batch())
  tiny.assert_close(found, expected)
