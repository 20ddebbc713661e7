"""What a row is told does not depend on the rows beside it, nor on padding."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import methods, tiny

from peft_jax import Adapted, decoding, partition, sharding

TEXTS = [[3, 4, 5], [6], [7, 8, 9, 10], [11, 3], [4], [5, 5, 6], [9, 8]]
NETWORKS = {
  "t5": tiny.t5,
  "llama": tiny.decoder_only,
  "bloom": functools.partial(tiny.decoder_only, positions="alibi"),
  "gpt2": functools.partial(
    tiny.decoder_only, positions="learned", max_positions=20, norm="layer"
  ),
  "mistral": functools.partial(tiny.decoder_only, sliding_window=3),
}


def arrays(texts, width, left):
  tokens = np.zeros((len(texts), width), np.int32)
  mask = np.zeros((len(texts), width), np.int32)
  for row, text in enumerate(texts):
    where = slice(width - len(text), None) if left else slice(0, len(text))
    tokens[row, where], mask[row, where] = text, 1
  return jnp.asarray(tokens), jnp.asarray(mask)


@functools.cache
def adapted(name):
  network = NETWORKS[name]()
  model = Adapted(network, methods.rules("all_together", network))
  frozen, adapter = partition.split(tiny.params(model), model)
  return model, partition.join(frozen, tiny.randomize(adapter))


@functools.cache
def greedy(model):
  return jax.jit(
    functools.partial(decoding.greedy, model, max_decode_length=4, eos_id=-1)
  )


def generate(name, texts, width, left=False):
  model, params = adapted(name)
  tokens, mask = arrays(texts, width, left)
  extra = {} if name == "t5" else {"inputs_mask": mask}
  return np.asarray(greedy(model)(params, tokens, **extra))


@pytest.mark.parametrize("name", NETWORKS)
def test_generation(name):
  expected = generate(name, TEXTS, 4)
  assert len({tuple(row) for row in expected}) > 2
  for size in (1, 2):
    for start in (0, 3):
      rows = slice(start, start + size)
      found = generate(name, TEXTS[rows], 4)
      np.testing.assert_array_equal(found, expected[rows])
  np.testing.assert_array_equal(generate(name, TEXTS, 6), expected)
  if name != "t5":  # an encoder-decoder pads behind
    np.testing.assert_array_equal(generate(name, TEXTS, 6, True), expected)


@pytest.mark.parametrize("name", [n for n in NETWORKS if n != "t5"])
def test_likelihood(name):
  """Of the last real token, whatever stands around the text."""
  model, params = adapted(name)

  def scores(texts, width, left):
    tokens, mask = arrays(texts, width, left)
    logits = tiny.logits(model)(
      params, {"decoder_input_tokens": tokens, "decoder_segment_ids": mask}
    )
    last = width - 1 - np.argmax(np.asarray(mask)[:, ::-1], axis=1)
    return np.asarray(logits)[np.arange(len(texts)), last]

  expected = scores(TEXTS, 4, False)
  for texts, width, left, rows in (
    (TEXTS, 6, False, slice(None)),
    (TEXTS, 5, True, slice(None)),
    (TEXTS[2:4], 4, False, slice(2, 4)),
    (TEXTS[2:3], 7, True, slice(2, 3)),
  ):
    tiny.assert_close(scores(texts, width, left), expected[rows])


SIZES = {"num_heads": 4, "head_dim": 8, "mlp_dim": 32}


@pytest.mark.parametrize(
  "make",
  [
    functools.partial(tiny.t5, **SIZES),
    functools.partial(tiny.decoder_only, num_kv_heads=2, **SIZES),
  ],
)
@pytest.mark.parametrize("scan", [False, True])
def test_eight_devices_say_the_same_as_one(make, scan):
  network = make(scan_layers=scan)
  model = Adapted(network, methods.rules("all_together", network))
  params = tiny.params(model)
  batch = tiny.batch(model, padded=False)
  inputs = batch[
    "decoder_input_tokens"
    if tiny.is_decoder_only(model)
    else "encoder_input_tokens"
  ]
  expected = tiny.logits(model)(params, batch)
  generated = functools.partial(
    decoding.greedy, model, max_decode_length=4, eos_id=-1
  )
  ids = jax.jit(generated)(params, inputs)
  mesh = sharding.make_mesh(data=2, model=4)
  with sharding.use(mesh):
    variables = tiny.variables(model)
    places = sharding.shardings(
      variables["params"], variables["params_axes"], mesh
    )
    spread = jax.tree.map(jax.device_put, params, places)
    rows = sharding.batch_sharding(mesh)
    place = functools.partial(jax.device_put, device=rows)
    # A function of its own: what was compiled knows no mesh.
    logits = jax.jit(lambda p, b: tiny.logits.__wrapped__(model)(p, b))(
      spread, jax.tree.map(place, batch)
    )
    tiny.assert_close(logits, expected)
    assert any(
      not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(spread)
    )
    found = jax.jit(lambda p, x: generated(p, x))(spread, place(inputs))
  np.testing.assert_array_equal(found, ids)
