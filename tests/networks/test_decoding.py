"""Decoding against recomputation without a cache, and where it stops."""

import functools
import itertools

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


@functools.cache
def beam_search(net, *, length=LENGTH, **options):
  call = functools.partial(
    decoding.beam_search, net, max_decode_length=length, **options
  )
  return jax.jit(call)


def length_of(sequence, eos_id):
  """Returns the length of ids [T] with their end, T if there is none."""
  sequence = list(sequence)
  return [*sequence, eos_id].index(eos_id) + (eos_id in sequence)


def scores_of(net, params, inputs, tokens, *, eos_id, length_penalty):
  """Returns the scores [B, N] of tokens [B, N, T], by teacher forcing."""
  rows, beams, length = tokens.shape
  flat = np.asarray(tokens).reshape(-1, length)
  shifted = np.concatenate([np.zeros_like(flat[:, :1]), flat[:, :-1]], 1)
  batch = {
    "encoder_input_tokens": jnp.repeat(inputs, beams, axis=0),
    "decoder_input_tokens": jnp.asarray(shifted),
    "decoder_target_tokens": jnp.ones_like(shifted),
  }
  logits = np.asarray(tiny.logits(net)(params, batch), np.float64)
  log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  chosen = np.take_along_axis(log_probs, flat[..., None], -1)[..., 0]
  scores = []
  for row, sequence in zip(chosen, flat, strict=True):
    count = length_of(sequence, eos_id)
    scores.append(row[:count].sum() / ((5 + count) / 6) ** length_penalty)
  return np.reshape(scores, (rows, beams))


def some_end(net, params):
  """Returns an id that ends some, not all, of the four best sequences."""
  tokens, _ = beam_search(net, eos_id=-1)(params, inputs())
  said = np.unique(np.asarray(tokens)[:, :, 1:-1])
  share = [(np.asarray(tokens) == token).any(-1).mean() for token in said]
  return int(said[np.abs(np.array(share) - 0.5).argmin()])


@pytest.mark.parametrize("ends", [False, True])
def test_one_beam_is_greedy(ends):
  p, eos_id = params(), -1
  if ends:
    eos_id = int(np.asarray(greedy(model())(p, inputs()))[0, 2])
  search = beam_search(model(), num_beams=1, length_penalty=0.0, eos_id=eos_id)
  tokens, scores = search(p, inputs())
  expected = np.asarray(greedy(model(), eos_id)(p, inputs()))
  np.testing.assert_array_equal(tokens[:, 0], expected)
  assert (expected == eos_id).any() == ends
  assert tokens.dtype == jnp.int32
  assert scores.dtype == jnp.float32


@pytest.mark.parametrize("length_penalty", [0.0, 0.6, 2.0])
def test_equals_enumeration(length_penalty):
  """Enough beams for all sequences: 21 that end, 64 that do not, 5 to spare."""
  vocab, length, beams, eos_id = 5, 3, 90, 1
  network = tiny.t5(vocab_size=vocab)
  p, x = tiny.params(network), inputs()[:3] % vocab
  search = beam_search(
    network, length=length, num_beams=beams, length_penalty=length_penalty
  )
  tokens, scores = (np.asarray(a) for a in search(p, x))

  every = set()
  for sequence in itertools.product(range(vocab), repeat=length):
    count = length_of(sequence, eos_id)
    every.add(sequence[:count] + (0,) * (length - count))
  every = np.array(sorted(every), np.int32)
  assert len(every) == 85
  expected = scores_of(
    network,
    p,
    x,
    np.broadcast_to(every, (3, *every.shape)),
    eos_id=eos_id,
    length_penalty=length_penalty,
  )
  order = np.argsort(-expected, axis=1)
  np.testing.assert_array_equal(tokens[:, :85], every[order])
  np.testing.assert_allclose(
    scores[:, :85], np.take_along_axis(expected, order, 1), rtol=0, atol=1e-5
  )
  assert not tokens[:, 85:].any()
  assert np.isneginf(scores[:, 85:]).all()


@pytest.mark.parametrize("kind", ["adapted", "scanned"])
def test_scores_are_those_of_the_sequences(kind):
  """Only beams whose cache is their own get the scores of teacher forcing."""
  net = model() if kind == "adapted" else tiny.t5(scan_layers=True)
  # Less noise than in `params`: float32 logits of 10 are rounded too much.
  p = (
    tiny.randomize(tiny.params(net)) if kind == "adapted" else tiny.params(net)
  )
  eos_id = some_end(net, p)
  search = beam_search(net, eos_id=eos_id)
  tokens, scores = (np.asarray(a) for a in search(p, inputs()))
  assert tokens.shape == (4, 4, LENGTH)

  expected = scores_of(
    net, p, inputs(), tokens, eos_id=eos_id, length_penalty=0.6
  )
  np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-5)
  assert (np.diff(scores, axis=1) <= 0).all()
  ended = (tokens == eos_id).any(-1)
  assert ended.any()
  assert not ended.all()
  for row in tokens:
    assert len({tuple(sequence) for sequence in row}) == 4
    for sequence in row:
      assert not sequence[length_of(sequence, eos_id) :].any()

  # A row gives the same whatever is beside it, and however long that takes.
  for i in range(4):
    alone = search(p, jnp.broadcast_to(inputs()[i], (4, 7)))
    np.testing.assert_array_equal(
      alone[0], np.broadcast_to(tokens[i], (4, 4, LENGTH))
    )
    np.testing.assert_allclose(alone[1][0], scores[i], rtol=0, atol=1e-5)


def test_beam_search_beats_greedy():
  p = params()
  tokens, scores = beam_search(model(), length_penalty=0.0, eos_id=-1)(
    p, inputs()
  )
  likely = greedy(model())(p, inputs())[:, None]
  of_greedy = scores_of(
    model(), p, inputs(), likely, eos_id=-1, length_penalty=0.0
  )
  assert (scores[:, 0] >= of_greedy[:, 0] - 1e-5).all()
  assert (tokens[:, :1] != likely).any()


class Script:
  """A network that gives probabilities [T, V], the same to all sequences.

  Its cache has more slots than positions, as with a prefix, and remembers how
  many rows were encoded.
  """

  def __init__(self, probabilities):
    self.log_probs = jnp.log(jnp.asarray(probabilities, jnp.float32))
    self.calls, self.encoded = 0, None
    self.encode = self.decode = None

  def apply(self, variables, *args, method=None, mutable=(), **kwargs):
    if not mutable:
      self.encoded = args[0].shape
      return args[0]
    rows, length = args[2].shape
    if "cache" not in variables:
      keys = jnp.zeros((rows, length + 3, 1, 1))
      return None, {"cache": {"cached_key": keys, "cache_index": jnp.int32(0)}}
    jax.debug.callback(self.count)
    cache = variables["cache"]
    assert cache["cached_key"].shape[0] == rows
    index = cache["cache_index"]
    logits = jnp.broadcast_to(
      self.log_probs[index], (rows, 1, self.log_probs.shape[1])
    )
    return logits, {"cache": cache | {"cache_index": index + 1}}

  def count(self):
    self.calls += 1


def search_of(network, *, rows=1, **options):
  """Returns the beams of `rows` equal rows, and how many steps it took."""
  x = jnp.ones((rows, 3), jnp.int32)
  tokens, scores = decoding.beam_search(network, {}, x, **options)
  jax.effects_barrier()
  return tokens, scores, network.calls


@pytest.mark.parametrize(
  ("length_penalty", "expected", "calls"),
  [
    # log 0.6 is more than log 0.4, and nothing that follows can change that.
    (0.0, [1, 0, 0, 0, 0, 0], 1),
    # But log 0.4 / (11 / 6) ** 2 is more than log 0.6: it had to be awaited.
    (2.0, [2, 2, 2, 2, 2, 1], 6),
    # Short ones are favoured.
    (-1.0, [1, 0, 0, 0, 0, 0], 1),
  ],
)
def test_stops_when_no_beam_can_win(length_penalty, expected, calls):
  tiny_p = 1e-6
  goes_on = [tiny_p, tiny_p, 1 - 3 * tiny_p, tiny_p]
  ends = [tiny_p, 1 - 3 * tiny_p, tiny_p, tiny_p]
  network = Script([[tiny_p, 0.6, 0.4, tiny_p], *[goes_on] * 4, ends])
  tokens, _, found = search_of(
    network,
    rows=2,
    max_decode_length=LENGTH,
    num_beams=1,
    length_penalty=length_penalty,
  )
  assert tokens[:, 0].tolist() == [expected] * 2
  assert found == calls
  assert network.encoded == (2, 3)


def test_what_has_not_ended_only_fills_up():
  """It does not push out what has ended, though it is likelier."""
  network = Script([[0.1, 0.2, 0.7], [0.59, 0.01, 0.4]])
  tokens, scores, _ = search_of(
    network, max_decode_length=2, num_beams=2, length_penalty=0.0
  )
  # Ended: [1] alone; [2, 0] is the best of the others, [2, 2] is left out.
  assert tokens.tolist() == [[[2, 0], [1, 0]]]
  np.testing.assert_allclose(
    scores, np.log([[0.7 * 0.59, 0.2]]), rtol=0, atol=1e-5
  )


def test_an_end_counts_among_the_best_alone():
  """Else one beam would not be greedy: [1] is likelier than what goes on."""
  network = Script([[0.1, 0.4, 0.5], [0.2, 0.1, 0.7]])
  tokens, scores, _ = search_of(
    network, max_decode_length=2, num_beams=1, length_penalty=0.0
  )
  assert tokens.tolist() == [[[2, 2]]]
  np.testing.assert_allclose(scores, np.log([[0.35]]), rtol=0, atol=1e-5)


def test_scores_of_bfloat16_activations_are_float32():
  network = tiny.t5(dtype=jnp.bfloat16)
  tokens, scores = jax.eval_shape(
    beam_search(network), tiny.shapes(network), inputs()
  )
  assert (tokens.shape, tokens.dtype) == ((4, 4, LENGTH), jnp.int32)
  assert (scores.shape, scores.dtype) == ((4, 4), jnp.float32)


@pytest.mark.parametrize("name", ["num_beams", "max_decode_length"])
def test_refuses_sizes_below_one(name):
  options = {"max_decode_length": LENGTH} | {name: 0}
  with pytest.raises(ValueError, match=rf"expected {name} .* found 0"):
    decoding.beam_search(NETWORK, {}, inputs(), **options)


def test_greedy_refuses_a_length_below_one():
  with pytest.raises(
    ValueError, match=r"expected max_decode_length .* found 0"
  ):
    decoding.greedy(NETWORK, {}, inputs(), max_decode_length=0)
