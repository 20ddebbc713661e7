"""From rows to text to token ids: the steps that the tasks are made of."""

from collections.abc import Callable, Sequence

import seqio
import tensorflow as tf

from peft_jax.tasks.metrics import UNLABELED

Preprocessor = Callable[..., tf.data.Dataset]


def t5_text(
  dataset: tf.data.Dataset,
  *,
  benchmark: str,
  text_fields: Sequence[str],
  labels: Sequence[str],
) -> tf.data.Dataset:
  """Writes classification rows as T5 does: the task's name, then its fields.

  The format is that of T5's `glue` preprocessor, which T5 was trained on
  (arXiv:1910.10683, appendix D; t5/data/preprocessors.py). A row without a
  label (-1) gets the target `<unk>`. `idx` is kept, other features are not.

  Example:
    >>> rows = tf.data.Dataset.from_tensors(
    ...   {"question": "is it", "passage": "It is.", "label": 1, "idx": 7}
    ... )
    >>> text = t5_text(
    ...   rows,
    ...   benchmark="boolq",
    ...   text_fields=("passage", "question"),
    ...   labels=("False", "True"),
    ... )
    >>> row = next(text.as_numpy_iterator())
    >>> row["inputs"], row["targets"], int(row["idx"])
    (b'boolq passage: It is. question: is it', b'True', 7)

  Args:
    dataset: rows with the text fields, an integer `label` and an `idx`.
    benchmark: the task's name, the first word of every input.
    text_fields: the fields to write, in this order.
    labels: the text of each class.
  """

  def write(row: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    parts = [benchmark]
    for name in text_fields:
      parts += [f"{name}:", row[name]]
    return {
      "inputs": tf.strings.join(parts, separator=" "),
      "targets": label_text(row["label"], labels=labels),
      # 32 bits in TFDS and 64 in local files: one type, so that both mix.
      "idx": tf.cast(row["idx"], tf.int64),
    }

  return dataset.map(write, num_parallel_calls=tf.data.AUTOTUNE)


def label_targets(
  dataset: tf.data.Dataset, *, labels: Sequence[str]
) -> tf.data.Dataset:
  """Replaces the class number in `targets` by the text of the class.

  Example:
    >>> rows = tf.data.Dataset.from_tensors({"inputs": "Fine.", "targets": 1})
    >>> text = label_targets(rows, labels=("bad", "good"))
    >>> next(text.as_numpy_iterator())["targets"]
    b'good'
  """

  def write(row: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    return {**row, "targets": label_text(row["targets"], labels=labels)}

  return dataset.map(write, num_parallel_calls=tf.data.AUTOTUNE)


def label_text(label: tf.Tensor, *, labels: Sequence[str]) -> tf.Tensor:
  """Returns the text of a class, `<unk>` for -1, T5's mark of no label.

  Example:
    >>> label_text(tf.constant(-1), labels=("bad", "good")).numpy()
    b'<unk>'
  """
  return tf.gather(tf.constant([UNLABELED, *labels]), label + 1)


def to_tokens(*, cacheable: bool) -> tuple[Preprocessor, ...]:
  """Returns the last steps of every task: tokenise, trim and end with EOS.

  Example:
    >>> len(to_tokens(cacheable=False))
    2

  Args:
    cacheable: whether `seqio_cache_tasks` may store the tokens. SeqIO finds a
      cache by the task's name, so a task over local files must say no: it would
      be given the tokens of another file.
  """
  cache = (seqio.CacheDatasetPlaceholder(),) if cacheable else ()
  return (
    seqio.preprocessors.tokenize,
    *cache,
    seqio.preprocessors.append_eos_after_trim,
  )
