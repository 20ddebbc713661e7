"""Drawing tokens: the likely ones, reproducibly, row by row."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny

from peft_jax import decoding

NETWORK = tiny.decoder_only()
INPUTS = jnp.asarray([[3, 4, 5], [6, 7, 0]], jnp.int32)
MASK = jnp.asarray([[1, 1, 1], [1, 1, 0]])


def draw(inputs=INPUTS, mask=MASK, key=0, **options):
  return np.asarray(
    decoding.sample(
      NETWORK,
      tiny.params(NETWORK),
      inputs,
      jax.random.key(key),
      max_decode_length=4,
      inputs_mask=mask,
      eos_id=-1,
      **options,
    )
  )


def test_one_likely_token_is_greedy():
  greedy = decoding.greedy(
    NETWORK,
    tiny.params(NETWORK),
    INPUTS,
    max_decode_length=4,
    inputs_mask=MASK,
    eos_id=-1,
  )
  np.testing.assert_array_equal(draw(top_k=1), greedy)
  np.testing.assert_array_equal(draw(top_p=1e-6), greedy)
  np.testing.assert_array_equal(draw(temperature=1e-4), greedy)


def test_keys_and_rows():
  np.testing.assert_array_equal(draw(), draw())
  assert (draw(key=1) != draw()).any()
  alone = draw(inputs=INPUTS[:1], mask=MASK[:1])
  np.testing.assert_array_equal(alone, draw()[:1])
  # Padding on the other side, or more of it, changes nothing.
  left = jnp.asarray([[0, 3, 4, 5], [0, 0, 6, 7]], jnp.int32)
  mask = jnp.asarray([[0, 1, 1, 1], [0, 0, 1, 1]])
  np.testing.assert_array_equal(draw(inputs=left, mask=mask), draw())


@pytest.mark.parametrize(
  ("top_k", "top_p", "kept"),
  [
    (0, 1.0, [0, 1, 2, 3]),
    (2, 1.0, [0, 1]),
    (0, 0.4, [0]),
    (0, 0.5, [0]),
    (0, 0.51, [0, 1]),
    (0, 0.95, [0, 1, 2, 3]),
    (3, 0.6, [0, 1]),
  ],
)
def test_what_is_likely(top_k, top_p, kept):
  logits = jnp.log(jnp.asarray([[0.5, 0.3, 0.1, 0.1]]))
  found = decoding._likely(logits, top_k, top_p)[0]
  assert np.flatnonzero(np.isfinite(found)).tolist() == kept


def test_frequencies_are_the_probabilities():
  logits = jnp.log(jnp.asarray([0.7, 0.2, 0.1]))
  keys = jax.random.split(jax.random.key(0), 4000)
  drawn = jax.vmap(lambda key: jax.random.categorical(key, logits))(keys)
  shares = np.bincount(drawn, minlength=3) / 4000
  np.testing.assert_allclose(shares, [0.7, 0.2, 0.1], atol=0.03)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"temperature": 0.0}, "expected temperature"),
    ({"top_k": -1}, "expected top_k"),
    ({"top_p": 0.0}, r"expected top_p in \(0, 1\]"),
  ],
)
def test_values_out_of_range(options, message):
  with pytest.raises(ValueError, match=message):
    draw(**options)


def test_several_ends_and_early_exit():
  free = draw()
  end = int(free[0, 1])
  found = np.asarray(
    decoding.sample(
      NETWORK,
      tiny.params(NETWORK),
      INPUTS,
      jax.random.key(0),
      max_decode_length=4,
      inputs_mask=MASK,
      eos_id=(end, 31),
    )
  )
  stop = free[0].tolist().index(end)
  assert found[0, : stop + 1].tolist() == free[0, : stop + 1].tolist()
  assert not found[0, stop + 1 :].any()


def test_an_encoder_decoder_has_no_mask():
  network = tiny.t5()
  with pytest.raises(ValueError, match="expected no inputs_mask"):
    decoding.greedy(
      network,
      tiny.params(network),
      INPUTS,
      max_decode_length=2,
      inputs_mask=MASK,
    )


def test_unknown_formula():
  with pytest.raises(ValueError, match="formula to be 't5x' or"):
    decoding.beam_search(
      NETWORK,
      tiny.params(NETWORK),
      INPUTS,
      max_decode_length=2,
      formula="mine",
    )
