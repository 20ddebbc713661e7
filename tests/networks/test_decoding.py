"""Greedy decoding against recomputation, and where it stops."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from helpers import methods, tiny

from peft_jax import Adapted, decoding

LENGTH = 6
NETWORK = tiny.t5()


def model():
  return Adapted(NETWORK, methods.METHODS["lora+ia3"])


def params():
  return tiny.randomize(tiny.params(model()), scale=0.5)


def inputs():
  """Returns four rows [4, 7]; tokens differ, so that continuations do."""
  return tiny.batch(seed=3)["encoder_input_tokens"]


@functools.cache
def greedy(net, eos_id=-1):
  call = functools.partial(
    decoding.greedy, net, max_decode_length=LENGTH, eos_id=eos_id
  )
  return jax.jit(call)


def recomputed(net, params, inputs, eos_id=-1):
  """Returns the greedy continuation [B, T] without any cache."""
  rows = inputs.shape[0]
  tokens = np.zeros((rows, LENGTH), np.int32)
  ended = np.zeros(rows, bool)
  for i in range(LENGTH):
    shifted = np.concatenate([np.zeros((rows, 1), np.int32), tokens], 1)
    batch = {
      "encoder_input_tokens": inputs,
      "decoder_input_tokens": jnp.asarray(shifted[:, :LENGTH]),
      # Nothing is padding: what comes later is hidden by causality.
      "decoder_target_tokens": jnp.ones((rows, LENGTH), jnp.int32),
    }
    best = np.asarray(tiny.logits(net)(params, batch)[:, i].argmax(-1))
    tokens[:, i] = np.where(ended, 0, best)
    ended |= best == eos_id
  return tokens


def test_greedy_equals_recomputation():
  found = greedy(model())(params(), inputs())
  expected = recomputed(model(), params(), inputs())
  np.testing.assert_array_equal(found, expected)
  assert found.dtype == jnp.int32
  # Rows that all say one thing, or one token forever, would show little.
  assert len({tuple(row) for row in expected}) > 2
  assert max(len(set(row)) for row in expected) > 2


def test_scanned_layers_decode_alike():
  scanned = tiny.t5(scan_layers=True)
  found = greedy(scanned)(tiny.params(scanned), inputs())
  expected = greedy(NETWORK)(tiny.params(NETWORK), inputs())
  np.testing.assert_array_equal(found, expected)


def test_rows_end_at_eos():
  """It is kept, zeros follow, and the other rows go on."""
  free = np.asarray(greedy(model())(params(), inputs()))
  # A token that some row says in the middle, and not all rows say.
  eos_id = next(
    int(token)
    for token in free[:, 1:-1].flat
    if token and not (free == token).any(1).all()
  )
  found = np.asarray(greedy(model(), eos_id)(params(), inputs()))
  expected = recomputed(model(), params(), inputs(), eos_id)
  np.testing.assert_array_equal(found, expected)
  ends = [row.tolist().index(eos_id) if eos_id in row else None for row in free]
  assert None in ends
  for row, whole, end in zip(found, free, ends, strict=True):
    keep = LENGTH if end is None else end + 1
    np.testing.assert_array_equal(row[:keep], whole[:keep])
    assert not row[keep:].any()


def test_padding_of_the_input_changes_nothing():
  padded = jnp.pad(inputs(), ((0, 0), (0, 2)))
  found = greedy(NETWORK)(tiny.params(NETWORK), padded)
  expected = greedy(NETWORK)(tiny.params(NETWORK), inputs())
  np.testing.assert_array_equal(found, expected)


class Counter:
  """A network that says 5, 6, 7, ... and counts how often it is asked."""

  def __init__(self):
    self.calls = 0
    self.encode = self.decode = None

  def apply(self, variables, *args, method=None, mutable=(), **kwargs):
    if not mutable:
      return args[0]
    if "cache" not in variables:
      return None, {"cache": {"index": jnp.int32(0)}}
    jax.debug.callback(self.count)
    index = variables["cache"]["index"]
    rows = args[1].shape[0]
    # Row r says 5 + r at first, one more at each step.
    ids = 5 + index + jnp.arange(rows)
    return jax.nn.one_hot(ids, 16)[:, None], {"cache": {"index": index + 1}}

  def count(self):
    self.calls += 1


@pytest.mark.parametrize(
  ("eos_id", "expected", "calls"),
  [
    (5, [[5, 0, 0, 0, 0, 0], [6, 7, 8, 9, 10, 11]], 6),
    (7, [[5, 6, 7, 0, 0, 0], [6, 7, 0, 0, 0, 0]], 3),
    (15, [[5, 6, 7, 8, 9, 10], [6, 7, 8, 9, 10, 11]], 6),
  ],
)
def test_stops_when_every_row_has_ended(eos_id, expected, calls):
  network = Counter()
  found = decoding.greedy(
    network,
    {},
    jnp.ones((2, 3), jnp.int32),
    max_decode_length=LENGTH,
    eos_id=eos_id,
  )
  jax.effects_barrier()
  assert found.tolist() == expected
  assert network.calls == calls


def test_several_tokens_at_once_equal_one_by_one():
  """A prompt for the decoder can be written into the cache in one call."""
  p, x = tiny.params(NETWORK), inputs()
  tokens = tiny.batch(seed=5)["decoder_input_tokens"]

  @functools.partial(jax.jit, static_argnums=0)
  def run(steps):
    cache = decoding.make_cache(NETWORK, p, x, 5)
    outputs, start = [], 0
    for count in steps:
      logits, cache = decoding.decode_step(
        NETWORK, p, cache, x, tokens[:, start : start + count], 5
      )
      outputs.append(logits)
      start += count
    return jnp.concatenate(outputs, axis=1)

  batch = {
    "encoder_input_tokens": x,
    "decoder_input_tokens": tokens,
    "decoder_target_tokens": jnp.ones_like(tokens),
  }
  tiny.assert_close(run((3, 2)), tiny.logits(NETWORK)(p, batch))


def test_the_cache_is_of_the_activations_dtype():
  for dtype in (jnp.float32, jnp.bfloat16):
    network = tiny.t5(dtype=dtype)
    make = functools.partial(decoding.make_cache, network, length=LENGTH)
    cache = jax.eval_shape(
      lambda p, x, make=make: make(p, encoder_input_tokens=x),
      tiny.shapes(network),
      inputs(),
    )
    layer = cache["decoder"]["layers_0"]
    found = {
      name: (x.shape, x.dtype)
      for name, x in (
        flatten_dict(layer, sep="/")
        | {"index": cache["decoder"]["cache_index"]}
      ).items()
    }
    assert found == {
      "self_attention/cached_key": ((4, LENGTH, 2, 6), dtype),
      "self_attention/cached_value": ((4, LENGTH, 2, 6), dtype),
      "self_attention/cache_index": ((), jnp.int32),
      "encoder_decoder_attention/cached_key": ((4, 7, 2, 6), dtype),
      "encoder_decoder_attention/cached_value": ((4, 7, 2, 6), dtype),
      "index": ((), jnp.int32),
    }
