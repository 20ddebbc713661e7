"""From tokens to what a network is called with."""

import numpy as np
import optax
import pytest
import seqio
import tensorflow as tf
from helpers import tiny

from peft_jax import IA3, Rule
from peft_jax.tasks import vocabularies
from peft_jax.train import features
from peft_jax.train.config import Config, ConfigError

LENGTHS = {"inputs": 4, "targets": 3}
END, BEGIN = 1, 2
ROWS = [
  {"inputs": [5, 6, END], "targets": [7, END]},
  # 0 is a token like any; too long inputs are cut behind.
  {"inputs": [5, 0, 6, 8, 9, END], "targets": [0, 8, END]},
]


def dataset():
  return tf.data.Dataset.from_generator(
    lambda: ({k: np.array(v, np.int32) for k, v in r.items()} for r in ROWS),
    output_signature={
      name: tf.TensorSpec([None], tf.int32) for name in ("inputs", "targets")
    },
  )


def rows(**options):
  text = features.Text(begin=BEGIN, end=END, **options)
  return list(text.train(dataset(), LENGTHS).as_numpy_iterator())


def test_text_asks_for_the_answer():
  first, second = rows()
  assert first["decoder_input_tokens"].tolist() == [2, 5, 6, 7, 0, 0, 0]
  assert first["decoder_target_tokens"].tolist() == [5, 6, 7, 1, 0, 0, 0]
  assert first["decoder_loss_weights"].tolist() == [0, 0, 1, 1, 0, 0, 0]
  assert second["decoder_input_tokens"].tolist() == [2, 5, 0, 6, 8, 0, 8]
  assert second["decoder_target_tokens"].tolist() == [5, 0, 6, 8, 0, 8, 1]
  assert second["decoder_loss_weights"].tolist() == [0, 0, 0, 0, 1, 1, 1]
  assert "decoder_segment_ids" not in first


def test_text_asks_for_all():
  first, second = rows(loss_on="all")
  assert first["decoder_loss_weights"].tolist() == [1, 1, 1, 1, 0, 0, 0]
  assert second["decoder_loss_weights"].tolist() == [1] * 7


def test_prefix_lm_sees_the_inputs_in_both_directions():
  first, second = rows(prefix_lm=True)
  assert first["decoder_causal_attention"].tolist() == [1, 1, 1, 0, 0, 0, 0]
  assert second["decoder_causal_attention"].tolist() == [1, 1, 1, 1, 1, 0, 0]


def test_packed_texts_are_segments():
  text = features.Text(begin=BEGIN, end=END, pack=True, prefix_lm=True)
  [row] = text.train(dataset(), {"inputs": 8, "targets": 6}).as_numpy_iterator()
  assert row["decoder_input_tokens"].tolist() == [
    *(2, 5, 6, 7),
    *(2, 5, 0, 6, 8, 9, 0, 8),
    *(0, 0),
  ]
  assert row["decoder_segment_ids"].tolist() == [1] * 4 + [2] * 8 + [0] * 2
  assert row["decoder_positions"].tolist() == [*range(4), *range(8), 0, 0]
  assert row["decoder_loss_weights"].tolist() == [
    *(0, 0, 1, 1),
    *(0, 0, 0, 0, 0, 1, 1, 1),
    *(0, 0),
  ]
  assert row["decoder_causal_attention"].tolist() == [
    *(1, 1, 1, 0),
    *(1, 1, 1, 1, 1, 1, 0, 0),
    *(0, 0),
  ]


def test_inputs_of_generation():
  text = features.Text(begin=BEGIN, end=END)
  found = text.inputs(ROWS, LENGTHS)
  assert found["inputs"].tolist() == [[2, 5, 6, 0, 0], [2, 5, 0, 6, 8]]
  assert found["inputs_mask"].tolist() == [[1, 1, 1, 0, 0], [1] * 5]
  plain = features.EncoderDecoder().inputs(ROWS, LENGTHS)
  assert plain["inputs"].tolist() == [[5, 6, 1, 0], [5, 0, 6, 8]]


def test_begin_of_a_vocabulary(shared_data):
  assert features.begin_id(seqio.ByteVocabulary()) == 1  # it has an end only
  llama = vocabularies.load(
    shared_data("tokenizers/mistral_v1_32000.model"), extra_ids=0
  )
  assert features.begin_id(llama) == 1
  assert llama.eos_id == 2


def config(network, **options):
  return Config(
    network=network,
    adapters=[Rule("kv", IA3())],
    optimizer=optax.identity(),
    task="x",
    model_dir="x",
    **options,
  )


def test_settings_go_to_the_network_that_has_them():
  vocabulary = seqio.ByteVocabulary()
  found = features.for_network(
    config(tiny.decoder_only(), loss_on="all", prefix_lm=True, pack=True),
    vocabulary,
  )
  assert found == features.Text(
    begin=1, end=1, loss_on="all", prefix_lm=True, pack=True
  )
  assert features.for_network(
    config(tiny.t5(), pack=True), vocabulary
  ) == features.EncoderDecoder(pack=True)
  with pytest.raises(ConfigError, match="with an encoder-decoder, found 'all'"):
    features.for_network(config(tiny.t5(), loss_on="all"), vocabulary)
