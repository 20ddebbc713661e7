"""Adapters that start from the backbone, and prefixes from words."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from helpers import tiny

from peft_jax import (
  Adapted,
  DoRA,
  FishMask,
  PiSSA,
  Prefix,
  Prompt,
  Rule,
  join,
  layout,
  reparametrization,
  split,
  start,
)

WORDS = jnp.array([5, 9, 14])


@pytest.mark.parametrize(
  "adapter", [DoRA(rank=2), PiSSA(rank=2), Prompt(length=2)]
)
def test_forgetting_to_start_shows(adapter):
  pattern = "encoder" if isinstance(adapter, Prompt) else "qv"
  model = Adapted(tiny.t5(), [Rule(pattern, adapter)])
  params = tiny.unstarted(model)
  logits = tiny.logits(model)(params, tiny.batch())
  assert np.isnan(logits).all()
  started = start.from_backbone(params, model, jax.random.key(0))
  assert np.isfinite(tiny.logits(model)(started, tiny.batch())).all()


def attend(model, params, kind, inputs):
  """Returns the first output of an attention, [B, T, D]."""
  _, state = model.apply(
    {"params": params},
    **inputs,
    enable_dropout=False,
    capture_intermediates=lambda module, _: module.name == kind,
    mutable=["intermediates"],
  )
  [found] = [
    leaf[0]
    for path, leaf in flatten_dict(state["intermediates"], sep="/").items()
    if path.endswith(f"layers_0/{kind}/__call__")
  ]
  return np.asarray(found)


@pytest.mark.parametrize("scan", [False, True])
def test_a_prefix_from_words_is_their_keys_and_values(scan):
  """The first layer's keys and values of the words, from numpy alone."""
  network = tiny.t5(scan_layers=scan)
  model = Adapted(
    network, [Rule(".*attention", Prefix(length=3, hidden_size=0))]
  )
  params = tiny.params(model)
  started = start.prefix_from_words(params, model, WORDS, WORDS)
  plain = tiny.params(Adapted(tiny.t5(), model.rules))
  backbone = flatten_dict(plain, sep="/")
  layer = "decoder/layers_0"
  table = np.asarray(backbone["token_embedder/embedding"])[WORDS]
  scale = np.asarray(backbone[f"{layer}/pre_self_attention_layer_norm/scale"])
  normed = table / np.sqrt((table**2).mean(-1, keepdims=True) + 1e-6) * scale
  for name in ("key", "value"):
    site = "decoder/layers/" if scan else f"{layer}/"
    found = flatten_dict(started, sep="/")[
      f"{site}self_attention/prefix/{name}"
    ]
    found = found[0] if scan else found
    kernel = np.asarray(backbone[f"{layer}/self_attention/{name}/kernel"])
    np.testing.assert_allclose(found, normed @ kernel, atol=1e-5)


def test_attention_over_a_prefix_equals_attention_over_its_words():
  """Cross-attention alone: no position bias tells a prefix from words."""
  network = tiny.t5()
  cross = r"decoder/.*/encoder_decoder_attention"
  model = Adapted(network, [Rule(cross, Prefix(length=3, hidden_size=0))])
  params = start.prefix_from_words(tiny.params(model), model, WORDS, WORDS)
  batch = tiny.batch(rows=1, padded=False)
  inputs = {
    "encoder_input_tokens": jnp.zeros((1, 3), jnp.int32),  # all padding
    "decoder_input_tokens": batch["decoder_input_tokens"],
    "decoder_target_tokens": jnp.ones_like(batch["decoder_target_tokens"]),
  }
  name = "encoder_decoder_attention"
  found = attend(model, params, name, inputs)
  words = inputs | {"encoder_input_tokens": WORDS[None]}
  expected = attend(network, split(params, model)[0], name, words)
  np.testing.assert_allclose(found, expected, atol=1e-5)


def test_prefix_from_words_refuses():
  rules = [Rule(".*attention", Prefix(length=2, hidden_size=0))]
  model = Adapted(tiny.t5(), rules)
  with pytest.raises(ValueError, match=r"prefix at .* is long, 2, found 3"):
    start.prefix_from_words(tiny.params(model), model, WORDS, WORDS)
  model = Adapted(tiny.t5(), [Rule(".*attention", Prefix(hidden_size=8))])
  with pytest.raises(ValueError, match="expected hidden_size=0 at"):
    start.prefix_from_words(tiny.params(model), model, WORDS, WORDS)


@pytest.mark.parametrize("scan", [False, True])
def test_a_fish_mask_takes_the_largest_squared_gradients(scan):
  model = Adapted(
    tiny.t5(scan_layers=scan), [Rule(".*mlp/wo/kernel", FishMask(keep=0.01))]
  )
  batches = [tiny.batch(rows=1, seed=seed) for seed in range(3)]

  def loss(params, batch):
    return tiny.logits(model)(params, batch)[..., 3].sum()

  params = tiny.params(model)
  started = start.from_fisher(params, model, loss, batches)
  own = started["fish_mask_shared"]["all"]
  # The same from the unscanned network's gradients, with numpy.
  plain = tiny.t5()
  backbone = tiny.params(plain)
  squares = {}
  for batch in batches:
    grads = jax.grad(lambda p, b: tiny.logits(plain)(p, b)[..., 3].sum())(
      backbone, batch
    )
    for path, grad in flatten_dict(grads, sep="/").items():
      if path.endswith("mlp/wo/kernel"):
        squares[path] = squares.get(path, 0) + np.asarray(grad) ** 2
  paths = sorted(squares)
  every = np.concatenate([squares[path].ravel() for path in paths])
  k = own["values"].shape[0]
  assert k == -(-every.size // 100)
  sizes = np.cumsum([0] + [squares[path].size for path in paths])
  places = sizes[np.asarray(own["leaf"])] + np.asarray(own["offset"])
  expected = np.sort(every)[::-1][:k].sum()
  np.testing.assert_allclose(every[places].sum(), expected, rtol=1e-4)
  assert len(set(places.tolist())) == k


def test_a_fish_mask_needs_batches():
  model = Adapted(tiny.t5(), [Rule(".*wo/kernel", FishMask(keep=0.1))])
  with pytest.raises(ValueError, match="expected at least one batch"):
    start.from_fisher(tiny.params(model), model, lambda p, b: 0.0, [])


@pytest.mark.parametrize("scan", [False, True])
def test_dropping_the_networks_changes_nothing_but_the_size(scan):
  rules = [
    Rule(".*attention", Prefix(length=3, hidden_size=8)),
    Rule("encoder", Prompt(length=2, population=20, encoder_size=5)),
  ]
  model = Adapted(tiny.t5(scan_layers=scan), rules)
  frozen, adapter = split(tiny.params(model), model)
  adapter = tiny.randomize(adapter)
  plain, without = reparametrization.drop(adapter, model)
  assert not any("shared" in path for path in flatten_dict(plain, sep="/"))
  if scan:
    spec = split(tiny.shapes(without), without)[1]
    plain = layout.like(plain, spec)
  expected = tiny.logits(model)(join(frozen, adapter), tiny.batch())
  found = tiny.logits(without)(join(frozen, plain), tiny.batch())
  # Two programs that round apart: by 1.02e-6 with jax 0.12 on one processor.
  tiny.assert_close(found, expected, atol=3e-6)
  # 3 attentions a layer pair: 1 encoder and 2 x 2 decoder ones, keys and values
  # of 3 x 12, and a prompt of 2 x 16.
  size = sum(x.size for x in jax.tree.leaves(plain))
  assert size == 5 * 2 * 3 * 12 + 2 * 16
  whole = sum(x.size for x in jax.tree.leaves(adapter))
  groups, embedding, hidden = 3, 3 * 16, 16 * 8 + 8
  prefix_network = groups * (embedding + hidden) + 5 * (8 * 24 + 24)
  prompt_network = 16 * 5 + 5 + 5 * 16 + 16
  assert whole == prefix_network + prompt_network + 2 * 16
