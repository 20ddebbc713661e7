"""Vocabularies of the `tokenizers` library."""

import json
import shutil

import pytest
import tensorflow as tf
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from peft_jax.tasks import tokenizer_files, vocabularies
from peft_jax.tasks.vocabularies import VocabularyError

WORDS = ["!", "</s>", "<s>", "<unk>", "h", "i", "hi"]


@pytest.fixture
def path(tmp_path):
  made = tokenizers.Tokenizer(
    models.BPE(
      {word: i for i, word in enumerate(WORDS)},
      [("h", "i")],
      unk_token="<unk>",
    )
  )
  made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  made.decoder = decoders.ByteLevel()
  made.save(str(tmp_path / "tokenizer.json"))
  return tmp_path / "tokenizer.json"


def test_tokenizer_json(path):
  vocabulary = vocabularies.load(path)
  assert vocabulary.encode("hi!") == [6, 0]
  assert vocabulary.encode_tf("hi!").numpy().tolist() == [6, 0]
  assert vocabulary.decode([6, 0]) == "hi!"
  assert vocabulary.decode_tf(tf.constant([6, 0])).numpy() == b"hi!"
  assert vocabulary.encode_tf("").shape == (0,)
  assert (vocabulary.eos_id, vocabulary.bos_id, vocabulary.unk_id) == (1, 2, 3)
  assert vocabulary.vocab_size == len(WORDS)
  assert vocabulary == vocabularies.load(str(path))
  assert vocabulary != vocabularies.load(path, extra_ids=2)
  assert "tokenizer.json" in str(vocabulary)


def test_of_a_model(path):
  folder = path.parent
  config = {"model_type": "llama", "eos_token_id": [2, 1], "bos_token_id": 1}
  (folder / "config.json").write_text(json.dumps(config))
  vocabulary = vocabularies.load(f"hf:{folder}")
  assert (vocabulary.eos_id, vocabulary.bos_id) == (2, 1)
  assert vocabulary.encode("hi") == [6]


def test_gpt2s_own_files(shared_data, tmp_path):
  source = shared_data("tokenizers/gpt2")
  for name in ("encoder.json", "vocab.bpe"):
    shutil.copyfile(source / name, tmp_path / name)
  vocabulary = vocabularies.load(f"hf:{tmp_path}")
  # The ids that GPT-2's own encoder.py gives.
  assert vocabulary.encode("Hello world!") == [15496, 995, 0]
  assert vocabulary.decode([15496, 995, 0]) == "Hello world!"
  assert vocabulary.eos_id == 50256
  assert vocabulary.vocab_size == 50257


def test_sentencepiece_comes_first(shared_data, path):
  source = shared_data("tokenizers/seqio_26.model")
  shutil.copyfile(source, path.parent / "spiece.model")
  (path.parent / "config.json").write_text('{"model_type": "mt5"}')
  assert vocabularies.load(f"hf:{path.parent}").vocab_size == 126


def test_none(tmp_path):
  assert tokenizer_files.of_model(tmp_path) is None
  with pytest.raises(
    VocabularyError, match=r"found none\. Give the vocabulary"
  ):
    vocabularies.load(f"hf:{tmp_path}")
