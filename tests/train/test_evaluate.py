"""How answers are found: beams and draws do not depend on the batch."""

import jax
import numpy as np
import pytest
from helpers import tiny

from peft_jax import decoding, sharding
from peft_jax.train.evaluate import predict_tokens
from peft_jax.train.predict import Decoding, make_predict


def answers(how, batch_size, rows=11):
  network = tiny.t5()
  mesh = sharding.make_mesh()
  predict = make_predict(
    network, mesh=mesh, max_decode_length=4, eos_id=1, how=how
  )
  params = tiny.params(network)
  inputs = np.asarray(tiny.batch(rows=rows)["encoder_input_tokens"])
  with sharding.use(mesh):
    return predict_tokens(
      lambda batch: predict(params, {}, batch),
      {"inputs": inputs},
      batch_size=batch_size,
      mesh=mesh,
    )


def test_draws_belong_to_rows():
  how = Decoding(temperature=2.0, top_k=20)
  small, large = answers(how, 8), answers(how, 16)
  np.testing.assert_array_equal(small, large)
  assert not np.array_equal(small, answers(Decoding(), 8))
  # Rows of the second batch do not draw what those of the first drew.
  same = np.tile(np.array([[5, 6, 7]], np.int32), (16, 1))
  drawn = decoding.sample(
    tiny.t5(),
    tiny.params(tiny.t5()),
    same,
    jax.random.key(0),
    max_decode_length=4,
    temperature=2.0,
  )
  assert len(np.unique(np.asarray(drawn), axis=0)) > 8


def test_beams():
  found = answers(Decoding(num_beams=3, length_penalty=1.0), 8)
  network = tiny.t5()
  expected, _ = decoding.beam_search(
    network,
    tiny.params(network),
    tiny.batch(rows=11)["encoder_input_tokens"],
    max_decode_length=4,
    num_beams=3,
    length_penalty=1.0,
  )
  np.testing.assert_array_equal(found, expected[:, 0])


@pytest.mark.parametrize(
  "settings, message",
  [
    ({"num_beams": 0}, "expected num_beams >= 1 and temperature >= 0"),
    ({"num_beams": 2, "temperature": 1.0}, "found 2 beams and temperature"),
    ({"top_k": 5}, "expected a temperature with top_k 5"),
  ],
)
def test_settings_that_disagree(settings, message):
  with pytest.raises(ValueError, match=message):
    Decoding(**settings)
