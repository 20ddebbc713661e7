"""ReCoRD, WSC and the diagnostics as T5 writes them.

For other tasks see `preprocessors.t5_text`.

Formats: google-research/text-to-text-transfer-transformer,
t5/data/preprocessors.py.
"""

from typing import Any

import seqio
import tensorflow as tf

from peft_jax.tasks import preprocessors
from peft_jax.tasks.metrics import UNLABELED

# Example features that postprocessors read.
ANSWERS, CORRECT = "answers", "correct"


def one_per_answer(dataset: tf.data.Dataset) -> tf.data.Dataset:
  """Makes of a ReCoRD row of TFDS one row for each of its `answers`.

  Adds `answer`; a row without answers (the test split) stays one row, with
  `<unk>`. `superglue_rows.record` does the same to the official files.
  """

  def split(row: dict[str, Any]) -> tf.data.Dataset:
    answers = row["answers"]
    found = tf.cond(
      tf.size(answers) > 0, lambda: answers, lambda: tf.constant([UNLABELED])
    )
    rows: Any = tf.data.Dataset.from_tensor_slices(found)
    return rows.map(lambda answer: {**row, "answer": answer})

  return dataset.flat_map(split)


def record(dataset: tf.data.Dataset) -> tf.data.Dataset:
  r"""Writes ReCoRD rows as T5 does; `choices` are the entities.

  Highlights of the passage become sentences of it.

  Example:
    >>> rows = tf.data.Dataset.from_tensors(
    ...   {
    ...     "query": "A @placeholder flies.",
    ...     "entities": ["owl", "pen"],
    ...     "passage": "On birds\n@highlight\nOwls fly",
    ...     "answers": ["owl"],
    ...     "answer": "owl",
    ...     "idx": {"passage": 0, "query": 4},
    ...   }
    ... )
    >>> row = next(record(rows).as_numpy_iterator())
    >>> print(row["inputs"].decode())
    record query: A @placeholder flies. entities: owl, pen passage: On birds. Owls fly
    >>> row["targets"], int(row["label"]), row["idx"].tolist()
    (b'owl', 0, [0, 4])
  """  # noqa: E501

  def write(row: dict[str, Any]) -> dict[str, tf.Tensor]:
    passage = tf.strings.regex_replace(
      row["passage"], r"""([.?!"'])\n@highlight\n""", r"\1 "
    )
    passage = tf.strings.regex_replace(passage, r"\n@highlight\n", ". ")
    entities = tf.strings.reduce_join(row["entities"], separator=", ")
    parts = ["record query:", row["query"], "entities:", entities]
    return {
      "inputs": tf.strings.join([*parts, "passage:", passage], separator=" "),
      "targets": row["answer"],
      preprocessors.CHOICES: row["entities"],
      ANSWERS: row["answers"],
      "idx": preprocessors.example_idx(row, ("passage", "query")),
    }

  return preprocessors.find_label(
    dataset.map(write, num_parallel_calls=tf.data.AUTOTUNE)
  )


def as_rte(dataset: tf.data.Dataset) -> tf.data.Dataset:
  """Writes rows of AX-g as T5 writes RTE's.

  Example:
    >>> row = {"premise": "It rains.", "hypothesis": "It is wet.", "idx": 0}
    >>> rows = tf.data.Dataset.from_tensors({**row, "label": 0})
    >>> row = next(as_rte(rows).as_numpy_iterator())
    >>> row["inputs"], row["targets"]
    (b'rte hypothesis: It is wet. premise: It rains.', b'entailment')
  """
  return preprocessors.t5_text(
    dataset,
    benchmark="rte",
    text_fields=("hypothesis", "premise"),
    labels=("entailment", "not_entailment"),
  )


def axb(dataset: tf.data.Dataset) -> tf.data.Dataset:
  """Writes rows of AX-b as T5 writes RTE's; the first sentence is the premise.

  Example:
    >>> row = {"sentence1": "It rains.", "sentence2": "It is wet.", "idx": 0}
    >>> rows = tf.data.Dataset.from_tensors({**row, "label": 1})
    >>> next(axb(rows).as_numpy_iterator())["inputs"]
    b'rte hypothesis: It is wet. premise: It rains.'
  """
  return as_rte(
    dataset.map(
      lambda row: {
        "premise": row["sentence1"],
        "hypothesis": row["sentence2"],
        "label": row["label"],
        "idx": row["idx"],
      }
    )
  )


def wsc(dataset: tf.data.Dataset) -> tf.data.Dataset:
  """Writes WSC rows as free text: the pronoun is marked, the answer a noun.

  The target is the noun that the row asks about, right or wrong; `correct` says
  which: 1, 0, or -1 in the test split. T5 trains on right ones alone.

  Example:
    >>> row = {"text": "Ann met Bo when she ran .", "idx": 3, "label": 1}
    >>> row |= {"span1_text": "Ann", "span2_text": "she", "span2_index": 4}
    >>> rows = tf.data.Dataset.from_tensors(row)
    >>> row = next(wsc(rows).as_numpy_iterator())
    >>> row["inputs"], row["targets"], int(row["correct"])
    (b'wsc: Ann met Bo when *she* ran .', b'Ann', 1)
  """

  def write(row: dict[str, Any]) -> dict[str, tf.Tensor]:
    text = _with_pronoun_marked(
      row["text"], row["span2_text"], tf.cast(row["span2_index"], tf.int32)
    )
    return {
      "inputs": tf.strings.join(["wsc:", text], separator=" "),
      "targets": row["span1_text"],
      CORRECT: tf.cast(row["label"], tf.int32),
      "idx": preprocessors.example_idx(row, ()),
    }

  return dataset.map(write, num_parallel_calls=tf.data.AUTOTUNE)


def _with_pronoun_marked(
  text: tf.Tensor, pronoun: tf.Tensor, index: tf.Tensor
) -> tf.Tensor:
  """Returns the text with `*` around the pronoun.

  The official index of two rows is not that of the pronoun. T5 writes these two
  out; the rule is: the pronoun with a mark behind it, or else the nearest word
  that is the pronoun.
  """
  words: Any = tf.strings.split(text, " ")
  length = tf.strings.length(pronoun)
  begins = tf.strings.substr(words, 0, length) == pronoun
  equal = words == pronoun
  here = tf.minimum(index, tf.size(words) - 1)
  away = tf.abs(tf.range(tf.size(words)) - here)
  away += tf.where(equal, 0, tf.size(words))
  at = tf.where(begins[here], here, tf.argmin(away, output_type=tf.int32))
  rest = tf.strings.substr(words[at], length, 1_000_000)
  marked = tf.strings.join(["*", pronoun, "*"])
  # The mark that stands behind the pronoun becomes a word, as T5 has it.
  rest_word: Any = tf.boolean_mask([rest], [rest != ""])
  parts: Any = [words[:at], [marked], rest_word, words[at + 1 :]]
  joined = tf.strings.reduce_join(tf.concat(parts, 0), separator=" ")
  return tf.where(rest == "", joined, tf.strings.strip(joined))


def wsc_fixed(dataset: tf.data.Dataset) -> tf.data.Dataset:
  """Writes WSC rows as a question of yes or no, both spans marked.

  Example:
    >>> row = {"text": "Ann met Bo when she ran .", "idx": 3, "label": 1}
    >>> row |= {"span1_text": "Ann", "span1_index": 0}
    >>> row |= {"span2_text": "she", "span2_index": 4}
    >>> rows = tf.data.Dataset.from_tensors(row)
    >>> row = next(wsc_fixed(rows).as_numpy_iterator())
    >>> row["inputs"], row["targets"], row["choices"].tolist()
    (b'wsc text: * Ann * met Bo when # she # ran .', b'True', [b'False', b'True'])
  """  # noqa: E501

  def write(row: dict[str, Any]) -> dict[str, tf.Tensor]:
    first = tf.cast(row["span1_index"], tf.int32)
    second = tf.cast(row["span2_index"], tf.int32)
    text = _mark_span(row["text"], row["span1_text"], first, "*")
    # The marks of the first span are words now.
    second += 2 * tf.cast(first < second, tf.int32)
    text = _mark_span(text, row["span2_text"], second, "#")
    return {
      "inputs": tf.strings.join(["wsc text:", text], separator=" "),
      **preprocessors.labelled(
        row["label"], choices=tf.constant(["False", "True"])
      ),
      "idx": preprocessors.example_idx(row, ()),
    }

  return dataset.map(write, num_parallel_calls=tf.data.AUTOTUNE)


def _mark_span(
  text: tf.Tensor, span: tf.Tensor, index: tf.Tensor, mark: str
) -> tf.Tensor:
  """Returns the text with marks around a span, if it is where it should be."""
  span = tf.strings.regex_replace(span, r"([.^$*+?()\[\]{}|\\])", r"\\\1")
  pattern = tf.strings.join(
    [r"^((?:\S+\s){", tf.strings.as_string(index), "})(", span, ")"]
  )
  return tf.strings.regex_replace(text, pattern, rf"\1{mark} \2 {mark}")


class RightNouns(seqio.TfdsDataSource):
  """TFDS's WSC, the train split without the rows whose noun is wrong."""

  def get_dataset(self, *args: Any, **kwargs: Any) -> tf.data.Dataset:
    """Returns the rows of a split, see `seqio.TfdsDataSource`."""
    dataset = super().get_dataset(*args, **kwargs)
    split = args[0] if args else kwargs.get("split", "train")
    if split != "train":
      return dataset
    return dataset.filter(lambda row: row["label"] == 1)

  def num_input_examples(self, split: str) -> int | None:
    """Returns the number of rows; of the train split TFDS does not know it."""
    return None if split == "train" else super().num_input_examples(split)
