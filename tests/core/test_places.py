"""Where an adapter may stand, and what is said where it may not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny

from peft_jax import (
  Adapted,
  DeepPrompt,
  EmbeddingLoRA,
  FishMask,
  Prefix,
  Prompt,
  Rule,
  Unfreeze,
  join,
  split,
)
from peft_jax.partition import counts
from peft_jax.rules import TargetError
from peft_jax.train.forward import network_inputs

PROMPT = Prompt(length=3, population=20)


@pytest.mark.parametrize(
  ("rule", "message"),
  [
    (
      Rule(".*mlp", Prefix(hidden_size=0)),
      r"matched encoder/layers_0/mlp, which is no attention module",
    ),
    (
      Rule("decoder", PROMPT),
      r"matched decoder, which is no stack .* Use one of \['encoder'\]",
    ),
    (
      Rule("encoder", EmbeddingLoRA()),
      r"matched encoder, which is no embedder. Use token_embedder",
    ),
    (
      Rule("token_embedder", Unfreeze()),
      r"matched 0 of \d+ parameters.*Nearest: token_embedder/embedding",
    ),
    (
      Rule("decoder/layers_1/.*", FishMask()),
      r"matched 1 of 2 layers of decoder/.*Match all layers, or use scan",
    ),
  ],
)
def test_says_where_an_adapter_belongs(rule, message):
  scan = isinstance(rule.adapter, FishMask)
  with pytest.raises(TargetError, match=message):
    tiny.shapes(Adapted(tiny.t5(scan_layers=scan), [rule]))


def test_prompts_of_different_lengths():
  rules = [
    Rule("encoder", PROMPT),
    Rule(r"encoder/layers_\d+", DeepPrompt(length=4)),
  ]
  with pytest.raises(TargetError, match=r"have one length, found \[3, 4\]"):
    tiny.shapes(Adapted(tiny.t5(), rules))


def packed():
  batch = network_inputs(tiny.batch(padded=False))
  segments = lambda x: jnp.where(jnp.arange(x.shape[1]) < 3, 1, 2)
  return batch | {
    f"{side}_segment_ids": jnp.broadcast_to(segments(x), x.shape)
    for side, x in (
      ("encoder", batch["encoder_input_tokens"]),
      ("decoder", batch["decoder_input_tokens"]),
    )
  }


def test_a_prompt_refuses_packed_batches():
  model = Adapted(tiny.t5(), [Rule("encoder", PROMPT)])
  params = tiny.params(model)
  with pytest.raises(TargetError, match=r"unpacked batches .* Turn packing"):
    model.apply({"params": params}, **packed())


def test_a_prefix_packs():
  """Every example of a packed row sees the prefix, as it would alone."""
  rule = Rule(".*attention", Prefix(length=3, hidden_size=0))
  model = Adapted(tiny.t5(), [rule])
  params = tiny.params(model)
  batch = packed()
  whole = model.apply({"params": params}, **batch)
  alone = {name: x[:, :3] for name, x in batch.items() if "segment" not in name}
  found = model.apply({"params": params}, **alone)
  tiny.assert_close(whole[:, :3], found)


def test_padding_does_not_change_what_a_prompt_does():
  model = Adapted(tiny.t5(), [Rule("encoder", PROMPT)])
  params = tiny.params(model)
  inputs = network_inputs(tiny.batch(padded=False))
  wider = inputs | {
    "encoder_input_tokens": jnp.pad(
      inputs["encoder_input_tokens"], ((0, 0), (0, 4))
    )
  }
  tiny.assert_close(
    model.apply({"params": params}, **wider),
    model.apply({"params": params}, **inputs),
  )


@pytest.mark.parametrize("scan", [False, True])
def test_layers_beside_their_stack_are_what_is_trained(scan):
  """The stack's stale row has no say, whatever it holds."""
  model = Adapted(
    tiny.t5(scan_layers=scan), [Rule("decoder/layers_1/.*", Unfreeze())]
  )
  frozen, adapter = split(tiny.params(model), model)
  assert set(adapter["decoder"]) == {"layers_1"}
  found = counts(tiny.shapes(model), model)
  network = tiny.shapes(tiny.t5())
  assert found["backbone_parameters"] == sum(
    x.size for x in jax.tree.leaves(network)
  )
  assert found["all_parameters"] == found["backbone_parameters"]
  params = join(frozen, adapter)
  before = tiny.logits(model)(params, tiny.batch())
  if scan:
    stack = frozen["decoder"]["layers"]["mlp"]["wo"]
    stack["kernel"] = stack["kernel"].at[1].set(np.nan)
    after = tiny.logits(model)(join(frozen, adapter), tiny.batch())
    np.testing.assert_array_equal(np.asarray(after), np.asarray(before))
