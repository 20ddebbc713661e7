"""Vocabularies of Hugging Face's `tokenizers` as SeqIO vocabularies."""

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import seqio
import tensorflow as tf


class TokenizersVocabulary(seqio.Vocabulary):
  """A `tokenizer.json`, or GPT-2's `vocab.json` and `merges.txt`.

  Special tokens are not added by themselves: SeqIO's features say where an end
  stands, so that a prompt has none.

  Attributes:
    path: of the file, or of GPT-2's vocabulary.
  """

  def __init__(
    self,
    path: str | os.PathLike[str],
    *,
    merges: str | os.PathLike[str] | None = None,
    eos_id: int | None = None,
    bos_id: int | None = None,
    pad_id: int = 0,
    extra_ids: int = 0,
  ) -> None:
    """Reads the file at once.

    Args:
      path: of `tokenizer.json`, or of GPT-2's `vocab.json`.
      merges: GPT-2's `merges.txt`; None: `path` is a `tokenizer.json`.
      eos_id: end of a text; default: the id of a common name, such as </s>.
      bos_id: begin of a text; default: as `eos_id`.
      pad_id: SeqIO pads with 0 whatever this says.
      extra_ids: sentinels at the end.
    """
    super().__init__(extra_ids=extra_ids)
    self.path, self._merges = os.fspath(path), merges
    self._tokenizer = _read(self.path, merges)
    self._eos_id = self._first(_ENDS) if eos_id is None else eos_id
    self._bos_id = self._first(_BEGINS) if bos_id is None else bos_id
    self._pad_id = pad_id

  def _first(self, names: Iterable[str]) -> int | None:
    found = (self._tokenizer.token_to_id(name) for name in names)
    return next((token for token in found if token is not None), None)

  @property
  def bos_id(self) -> int | None:
    return self._bos_id

  @property
  def eos_id(self) -> int | None:
    return self._eos_id

  @property
  def pad_id(self) -> int:
    return self._pad_id

  @property
  def unk_id(self) -> int | None:
    return self._first(("<unk>", "[UNK]"))

  @property
  def _base_vocab_size(self) -> int:
    return self._tokenizer.get_vocab_size(with_added_tokens=True)

  def _encode(self, s: str) -> Sequence[int]:
    return self._tokenizer.encode(s, add_special_tokens=False).ids

  def _decode(self, ids: Sequence[int]) -> str:
    return self._tokenizer.decode([int(token) for token in ids])

  def _encode_tf(self, s: tf.Tensor) -> tf.Tensor:
    def encode(text: tf.Tensor) -> tf.Tensor:
      found: Any = text.numpy()
      ids = self._encode(found.decode("utf-8"))
      return tf.constant(ids, tf.int32, shape=(len(ids),))

    ids = tf.py_function(encode, [s], tf.int32)
    ids.set_shape([None])
    return ids

  def _decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
    def decode(tokens: tf.Tensor) -> tf.Tensor:
      return tf.constant(self._decode(tokens.numpy().tolist()))

    text = tf.py_function(decode, [ids], tf.string)
    text.set_shape([])
    return text

  def __eq__(self, other: object) -> bool:
    return (
      isinstance(other, TokenizersVocabulary)
      and self._tokenizer.to_str() == other._tokenizer.to_str()
      and (self.eos_id, self.bos_id, self.extra_ids)
      == (other.eos_id, other.bos_id, other.extra_ids)
    )

  def __str__(self) -> str:
    return f"TokenizersVocabulary(file={self.path}, eos_id={self.eos_id})"


_ENDS = ("</s>", "<|endoftext|>", "<|end_of_text|>", "<|im_end|>", "<eos>")
_BEGINS = ("<s>", "<|endoftext|>", "<|begin_of_text|>", "<bos>")


def _read(path: str, merges: str | os.PathLike[str] | None):
  import tokenizers

  if merges is None:
    return tokenizers.Tokenizer.from_file(path)
  from tokenizers import decoders, models, pre_tokenizers

  result = tokenizers.Tokenizer(models.BPE.from_file(path, os.fspath(merges)))
  result.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  result.decoder = decoders.ByteLevel()
  return result


def of_model(directory: str | os.PathLike[str]) -> seqio.Vocabulary | None:
  """Returns the vocabulary in a Hugging Face model's folder; None: none.

  SentencePiece comes first: it is what the `tokenizer.json` of T5 and LLaMA was
  made from. What ends a text is what `config.json` says.

  Args:
    directory: the folder.
  """
  folder = Path(directory)
  config = folder / "config.json"
  found = json.loads(config.read_text("utf-8")) if config.is_file() else {}
  end, begin = found.get("eos_token_id"), found.get("bos_token_id")
  end = end[0] if isinstance(end, list) else end
  for name in ("spiece.model", "sentencepiece.model", "tokenizer.model"):
    if (folder / name).is_file():
      extra = 100 if "t5" in found.get("model_type", "") else 0
      return seqio.SentencePieceVocabulary(str(folder / name), extra)
  if (folder / "tokenizer.json").is_file():
    return TokenizersVocabulary(
      folder / "tokenizer.json", eos_id=end, bos_id=begin
    )
  for vocab, merges in (
    ("vocab.json", "merges.txt"),
    ("encoder.json", "vocab.bpe"),
  ):
    if (folder / vocab).is_file() and (folder / merges).is_file():
      return TokenizersVocabulary(
        folder / vocab, merges=folder / merges, eos_id=end, bos_id=begin
      )
  return None
