"""Vocabularies by name or by file, and the features that tasks make of them."""

import os
from collections.abc import Mapping

import seqio

from peft_jax.tasks import sources, tokenizer_files

# The vocabulary of T5, T5 1.1, T0 and Flan-T5, in a public bucket: read when a
# text is first tokenised and not before.
T5_MODEL = "gs://t5-data/vocabs/cc_all.32000.100extra/sentencepiece.model"

# mT5's; its 100 sentinels are pieces of the model.
MT5_MODEL = "gs://t5-data/vocabs/mc4.250000.100extra/sentencepiece.model"

# T5's sentinels, which are not in the model file but count in its vocabulary.
T5_EXTRA_IDS = 100

# What `load` takes besides a path.
NAMES = ("bytes", "t5", "mt5")
MODEL_PREFIX = "hf:"


class VocabularyError(ValueError):
  """A vocabulary that is neither known by name nor in a file."""


def load(
  name_or_path: str | os.PathLike[str], *, extra_ids: int | None = None
) -> seqio.Vocabulary:
  """Returns a vocabulary by its name or from its file.

  A file is read at once, so that a wrong path fails here and not when the
  training starts. `"t5"` and `"mt5"` open nothing until a text is tokenised.

  Example:
    >>> load("bytes").encode("hi")
    [107, 108]
    >>> load("t5").extra_ids
    100

  Args:
    name_or_path: `"bytes"` for ByT5's bytes, `"t5"` for T5's 32,000 pieces at
      `T5_MODEL`, `"mt5"` for mT5's at `MT5_MODEL`, `"hf:DIR"` for what lies
      beside a model of Hugging Face, or the path of a SentencePiece `.model`
      file or a `tokenizer.json`.
    extra_ids: number of sentinels at the end of the vocabulary. Default: 100
      for SentencePiece, as T5 has; 0 for bytes, as T5's own ByT5 tasks have,
      for `"mt5"` and for `tokenizer.json`.

  Raises:
    VocabularyError: if a path holds no vocabulary.
  """
  name = os.fspath(name_or_path)
  if name == "bytes":
    return seqio.ByteVocabulary(extra_ids=extra_ids or 0)
  if name == "mt5":
    return seqio.SentencePieceVocabulary(MT5_MODEL, extra_ids=extra_ids or 0)
  if name.startswith(MODEL_PREFIX):
    return _of_model(name.removeprefix(MODEL_PREFIX))
  if name.endswith(".json"):
    return _load_json(name, extra_ids=extra_ids or 0)
  extra_ids = T5_EXTRA_IDS if extra_ids is None else extra_ids
  if name == "t5":
    return seqio.SentencePieceVocabulary(T5_MODEL, extra_ids=extra_ids)
  return _load_file(name, extra_ids=extra_ids)


def resolve(
  vocabulary: str | os.PathLike[str] | seqio.Vocabulary,
) -> seqio.Vocabulary:
  """Returns a vocabulary as it is, or loads it by its name or path.

  Example:
    >>> resolve("bytes") == resolve(seqio.ByteVocabulary())
    True
  """
  if isinstance(vocabulary, seqio.Vocabulary):
    return vocabulary
  return load(vocabulary)


def text_features(
  vocabulary: seqio.Vocabulary,
) -> Mapping[str, seqio.utils.Feature]:
  """Returns the features of a text-to-text task, both ended by EOS as in T5.

  Example:
    >>> sorted(text_features(load("bytes")))
    ['inputs', 'targets']
  """
  feature = seqio.Feature(vocabulary=vocabulary, add_eos=True)
  return {"inputs": feature, "targets": feature}


def _of_model(directory: str) -> seqio.Vocabulary:
  found = tokenizer_files.of_model(directory)
  if found is None:
    raise VocabularyError(
      "expected spiece.model, tokenizer.model, tokenizer.json, or vocab.json"
      f" and merges.txt in {directory}, found none. Give the vocabulary's path."
    )
  return found


def _load_json(path: str, *, extra_ids: int) -> seqio.Vocabulary:
  _check_exists(path)
  try:
    return tokenizer_files.TokenizersVocabulary(path, extra_ids=extra_ids)
  except Exception as error:  # a bare Exception is what tokenizers raises
    raise VocabularyError(
      f"expected a tokenizer.json, found a file that does not read as one:"
      f" {path}: {error}."
    ) from error


def _check_exists(path: str) -> None:
  if not sources.exists(path):
    raise VocabularyError(
      f"expected {', '.join(map(repr, NAMES))}, hf:DIR, or the path of a"
      f" SentencePiece model or a tokenizer.json, found {path!r}, which is"
      " neither. Give the path of a `.model` file."
    )


def _load_file(path: str, *, extra_ids: int) -> seqio.Vocabulary:
  _check_exists(path)
  vocabulary = seqio.SentencePieceVocabulary(path, extra_ids=extra_ids)
  try:
    vocabulary.load_model()
  except Exception as error:
    # Protocol buffers and SentencePiece each have errors of their own.
    raise VocabularyError(
      f"expected a SentencePiece model, found a file that does not read as one:"
      f" {path}. Give the `.model` file (T5's is called sentencepiece.model or"
      " spiece.model), or a tokenizer.json."
    ) from error
  return vocabulary
