"""From rows to text to token ids: the steps that the tasks are made of."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import seqio
import tensorflow as tf

from peft_jax.tasks.metrics import UNLABELED

# What examples with answer choices have besides `inputs` and `targets`. They
# are no output features of a task: SeqIO's converters know nothing of them.
# A mixture drops them unless it is told to pass them through.
CHOICES, LABEL = "choices", "label"

Preprocessor = Callable[..., tf.data.Dataset]


def t5_text(
  dataset: tf.data.Dataset,
  *,
  benchmark: str,
  text_fields: Sequence[str],
  labels: Sequence[str],
  idx: Sequence[str] = (),
  without_markup: bool = False,
) -> tf.data.Dataset:
  """Writes classification rows as T5 does: the task's name, then its fields.

  The format is that of T5's `glue` preprocessor, which T5 was trained on
  (arXiv:1910.10683, appendix D; t5/data/preprocessors.py). A row without a
  label (-1) gets the target `<unk>`. `idx` and `label` are kept, other features
  are not; `choices` are the labels.

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
    >>> row["choices"].tolist(), int(row["label"])
    ([b'False', b'True'], 1)

  Args:
    dataset: rows with the text fields, an integer `label` and an `idx`.
    benchmark: the task's name, the first word of every input.
    text_fields: the fields to write, in this order.
    labels: the text of each class.
    idx: see `example_idx`.
    without_markup: whether the HTML that MultiRC has is taken out.
  """

  def write(row: dict[str, Any]) -> dict[str, tf.Tensor]:
    parts = [benchmark]
    for name in text_fields:
      parts += [f"{name}:", row[name]]
    text = tf.strings.join(parts, separator=" ")
    if without_markup:
      text = tf.strings.regex_replace(text, "<br>", " ")
      text = tf.strings.regex_replace(text, "</?b>", "")
    return {
      "inputs": text,
      **labelled(row["label"], choices=tf.constant(list(labels))),
      "idx": example_idx(row, idx),
    }

  return dataset.map(write, num_parallel_calls=tf.data.AUTOTUNE)


def example_idx(row: Mapping[str, Any], names: Sequence[str]) -> tf.Tensor:
  """Returns [] or [N] what the official files call an example.

  Example:
    >>> nested = {"idx": {"passage": 3, "query": 14}}
    >>> example_idx(nested, ("passage", "query")).numpy().tolist()
    [3, 14]

  Args:
    row: with a number `idx`, an object `idx` of numbers (TFDS), or a number
      `idx/<name>` for each of the names (local files).
    names: of the N numbers, outermost first; none: one number.
  """
  # 32 bits in TFDS and 64 in local files: one type, so that both mix.
  if not names:
    return tf.cast(row["idx"], tf.int64)
  found = [
    row["idx"][name] if "idx" in row else row[f"idx/{name}"] for name in names
  ]
  return tf.stack([tf.cast(number, tf.int64) for number in found])


def label_targets(
  dataset: tf.data.Dataset, *, labels: Sequence[str]
) -> tf.data.Dataset:
  """Replaces the class number in `targets` by the text of the class.

  Example:
    >>> rows = tf.data.Dataset.from_tensors({"inputs": "Fine.", "targets": 1})
    >>> text = label_targets(rows, labels=("bad", "good"))
    >>> row = next(text.as_numpy_iterator())
    >>> row["targets"], int(row["label"])
    (b'good', 1)
  """

  def write(row: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    choices = tf.constant(list(labels))
    return {**row, **labelled(row["targets"], choices=choices)}

  return dataset.map(write, num_parallel_calls=tf.data.AUTOTUNE)


def find_label(
  dataset: tf.data.Dataset, *, choices: Sequence[str] | None = None
) -> tf.data.Dataset:
  """Adds `label`, where the target stands among the choices, -1 if nowhere.

  Example:
    >>> rows = tf.data.Dataset.from_tensors({"inputs": "?", "targets": "good"})
    >>> labelled = find_label(rows, choices=("bad", "good"))
    >>> int(next(labelled.as_numpy_iterator())["label"])
    1

  Args:
    dataset: rows with `targets`.
    choices: of all rows. Default: each row's own `choices`.
  """

  def write(row: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    found = row[CHOICES] if choices is None else tf.constant(list(choices))
    equal = tf.cast(found == row["targets"], tf.int32)
    label = tf.where(tf.reduce_any(equal > 0), tf.argmax(equal, 0), -1)
    return {**row, CHOICES: found, LABEL: tf.cast(label, tf.int32)}

  return dataset.map(write, num_parallel_calls=tf.data.AUTOTUNE)


def labelled(label: tf.Tensor, *, choices: tf.Tensor) -> dict[str, tf.Tensor]:
  """Returns what a row with answer choices has: `targets`, `choices`, `label`.

  Example:
    >>> row = labelled(tf.constant(-1), choices=tf.constant(["bad", "good"]))
    >>> row["targets"].numpy()  # T5's mark of no label
    b'<unk>'

  Args:
    label: [] index of the right choice, -1 if it is not known.
    choices: [C] text of each choice.
  """
  answers = tf.concat([[UNLABELED], choices], 0)
  return {
    "targets": answers[label + 1],
    CHOICES: choices,
    LABEL: tf.cast(label, tf.int32),
  }


def tokenize(
  dataset: tf.data.Dataset, output_features: Mapping[str, Any]
) -> tf.data.Dataset:
  """Tokenises `inputs` and `targets` as SeqIO does, and `choices` if they are.

  The choices of an example stand one after the other in one row of ids, each
  ended by EOS, so that examples may have different numbers of them.
  `choices_pretokenized` [C] keeps their texts.

  Example:
    >>> from peft_jax.tasks import vocabularies
    >>> features = vocabularies.text_features(vocabularies.load("bytes"))
    >>> rows = tf.data.Dataset.from_tensors(
    ...   {"inputs": "ok?", "targets": "no", "choices": ["y", "no"], "label": 1}
    ... )
    >>> row = next(tokenize(rows, features).as_numpy_iterator())
    >>> row["choices"].tolist()
    [124, 1, 113, 114, 1]

  Args:
    dataset: rows of text.
    output_features: of the task; the choices are tokenised as `targets` are.
  """
  dataset = seqio.preprocessors.tokenize(
    dataset, output_features=output_features
  )
  spec: Any = dataset.element_spec
  if CHOICES not in spec:
    return dataset
  vocabulary = output_features["targets"].vocabulary

  def one(choice: tf.Tensor) -> tf.Tensor:
    ids = tf.cast(vocabulary.encode_tf(choice), tf.int32)
    return tf.concat([ids, [vocabulary.eos_id]], 0)

  def write(row: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    ids: Any = tf.map_fn(
      one,
      row[CHOICES],
      fn_output_signature=tf.RaggedTensorSpec([None], tf.int32),
    )
    return {
      **row,
      f"{CHOICES}_pretokenized": row[CHOICES],
      CHOICES: ids.flat_values,
    }

  return dataset.map(write, num_parallel_calls=tf.data.AUTOTUNE)


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
    tokenize,
    *cache,
    seqio.preprocessors.append_eos_after_trim,
  )
