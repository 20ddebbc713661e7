"""Vocabularies by name and by file."""

import pickle

import pytest
import seqio
import tensorflow as tf

from peft_jax.tasks import vocabularies
from peft_jax.tasks.vocabularies import VocabularyError

T5_FILE = "tokenizers/t5_cc_all.32000.sentencepiece.model"


def test_bytes_are_those_of_byt5():
  vocabulary = vocabularies.load("bytes")
  assert vocabulary == seqio.ByteVocabulary()
  assert vocabulary.vocab_size == 259
  assert vocabularies.load("bytes", extra_ids=125).vocab_size == 384


def test_t5_opens_nothing(monkeypatch):
  def refuse(*args, **kwargs):
    raise AssertionError(f"opened {args}")

  monkeypatch.setattr(tf.io.gfile, "GFile", refuse)
  vocabulary = vocabularies.load("t5")
  assert vocabulary.sentencepiece_model_file == vocabularies.T5_MODEL
  assert vocabulary.extra_ids == 100
  assert vocabulary == vocabularies.load("t5")
  assert vocabularies.text_features(vocabulary)["inputs"].add_eos


def test_t5_pieces_from_the_real_file(shared_data):
  vocabulary = vocabularies.load(shared_data(T5_FILE))
  text = "translate English to German: The house is wonderful."
  ids = [13959, 1566, 12, 2968, 10, 37, 629, 19, 1627, 5]
  assert vocabulary.encode(text) == ids
  assert vocabulary.encode_tf(text).numpy().tolist() == ids
  assert vocabulary.decode(ids) == text
  assert (vocabulary.vocab_size, vocabulary.eos_id) == (32_100, 1)
  assert vocabulary.encode("<extra_id_0>") == [32_099]
  assert pickle.loads(pickle.dumps(vocabulary)).encode(text) == ids


def test_mt5s_sentinels_are_pieces_of_its_model():
  assert vocabularies.load("mt5").extra_ids == 0
  assert vocabularies.load("t5").extra_ids == 100


def test_number_of_sentinels(shared_data):
  path = shared_data("tokenizers/seqio_26.model")
  assert vocabularies.load(path, extra_ids=0).vocab_size == 26
  assert vocabularies.load(path).vocab_size == 126


@pytest.mark.parametrize("name", ["T5", "byte", "/nowhere/spiece.model"])
def test_neither_a_name_nor_a_file(name):
  with pytest.raises(
    VocabularyError, match=f"'bytes', 't5', 'mt5', .*'{name}'"
  ):
    vocabularies.load(name)


def test_a_folder_is_not_a_vocabulary(tmp_path):
  with pytest.raises(VocabularyError, match="which is neither"):
    vocabularies.load(tmp_path)


@pytest.mark.parametrize("content", ['{"model": "unigram"}', ""])
def test_a_file_that_is_not_a_model(tmp_path, content):
  path = tmp_path / "tokenizer.json"
  path.write_text(content)
  with pytest.raises(VocabularyError, match=r"does not read as one: .*json: "):
    vocabularies.load(path)


def test_resolve_keeps_a_vocabulary():
  vocabulary = seqio.ByteVocabulary()
  assert vocabularies.resolve(vocabulary) is vocabulary
