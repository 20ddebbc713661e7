"""A real language model: stories260K says what Hugging Face has it say."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from peft_jax import decoding, losses
from peft_jax.formats import hugging_face
from peft_jax.tasks import vocabularies


@pytest.fixture(scope="module")
def folder(shared_data):
  return shared_data("lm/stories260K")


@pytest.fixture(scope="module")
def golden(folder):
  return json.loads((folder / "golden.json").read_text())


@pytest.fixture(scope="module")
def model(folder):
  network = hugging_face.network(folder, scan_layers=True)
  return network, hugging_face.load(folder, network)


def test_greedy_text(folder, golden, model):
  network, params = model
  bos = jnp.full((1, 1), 1, jnp.int32)
  count = len(golden["greedy_ids_from_bos"]) - 1
  ids = jax.jit(
    lambda params: decoding.greedy(
      network, params, bos, max_decode_length=count, eos_id=2
    )
  )(params)[0].tolist()
  assert [1, *ids] == golden["greedy_ids_from_bos"]
  vocabulary = vocabularies.load(f"hf:{folder}")
  assert vocabulary.decode(ids) == golden["text"]


def test_tokens_and_likelihood(folder, golden, model):
  network, params = model
  vocabulary = vocabularies.load(f"hf:{folder}")
  ids = [1, *vocabulary.encode(golden["expected_text"])]
  known = golden["greedy_ids_from_bos"]
  assert ids[: len(known)] == known
  tokens = jnp.asarray([ids], jnp.int32)
  logits = jax.jit(lambda params: network.apply({"params": params}, tokens))(
    params
  )
  np.testing.assert_allclose(
    logits[0, 31, :8], golden["logits_position_31_first8"], atol=1e-4
  )
  weights = jnp.ones((1, len(ids) - 1))
  total, _ = losses.language_model(logits[:, :-1], tokens[:, 1:], weights)
  mean = float(total) / (len(ids) - 1)
  assert mean == pytest.approx(golden["mean_nll_of_expected_text"], abs=1e-4)
