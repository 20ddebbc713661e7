"""Questions on a text: SQuAD, and MRQA's six sets of other domains.

MRQA 2019 (arXiv 1910.09753) asks how a model that was trained elsewhere answers
on textbooks, biology, exams, relations, films and reasoning. `squad_to_mrqa`
trains on SQuAD and evaluates on SQuAD and on all six, zero-shot.

Importing this module registers the tasks over TFDS and opens nothing. Over
MRQA's files: `register(data_dir=...)`.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import seqio
import tensorflow as tf

from peft_jax.tasks import (
  postprocessors,
  preprocessors,
  qa_metrics,
  sources,
  vocabularies,
)
from peft_jax.tasks.superglue_text import ANSWERS

SQUAD = "squad"
MIXTURE = "squad_to_mrqa"
# Name in TFDS -> MRQA's file of it. The tasks are `mrqa_<name>`; they have a
# validation split alone (TFDS calls it test).
OUT_OF_DOMAIN = {
  "textbook_qa": "TextbookQA",
  "bio_asq": "BioASQ",
  "race": "RACE",
  "relation_extraction": "RelationExtraction",
  "duo_rc": "DuoRC.ParaphraseRC",
  "drop": "DROP",
}
TASKS = (SQUAD, *(f"mrqa_{name}" for name in OUT_OF_DOMAIN))


def register(
  *,
  data_dir: str | os.PathLike[str] | None = None,
  vocabulary: str | os.PathLike[str] | seqio.Vocabulary = "t5",
  names: Sequence[str] = (*TASKS, MIXTURE),
) -> None:
  """Registers tasks and the mixture, in the place of earlier ones.

  Nothing is registered unless all files are good.

  Example:
    >>> register(vocabulary="bytes")
    >>> seqio.get_mixture_or_task("mrqa_race").splits
    ('validation',)
    >>> register()

  Args:
    data_dir: folder with MRQA's files as its site has them:
      `train/SQuAD.jsonl.gz`, `dev/SQuAD.jsonl.gz`, `dev/RACE.jsonl.gz` and so
      on. Default: TFDS, `squad/v1.1:3.0.0` and `mrqa/race:1.0.0`.
    vocabulary: a vocabulary, its name or its file; see `vocabularies.load`.
      Default: T5's.
    names: of `TASKS` and the mixture. Default: all.

  Raises:
    DataError: if a name is unknown, or a file is missing or has a bad row.
    VocabularyError: if the vocabulary is not there.
  """
  unknown = [name for name in names if name not in (*TASKS, MIXTURE)]
  if unknown:
    raise sources.DataError(
      f"expected names of {', '.join((*TASKS, MIXTURE))}, found"
      f" {', '.join(unknown)}. Name one of them."
    )
  features = vocabularies.text_features(vocabularies.resolve(vocabulary))
  built = {
    name: _task(name, data_dir=data_dir, features=features)
    for name in TASKS
    if name in names or MIXTURE in names
  }
  # A mixture keeps the tasks that it was made of, so it goes with them.
  seqio.MixtureRegistry.remove(MIXTURE)
  for name, task in built.items():
    seqio.TaskRegistry.remove(name)
    seqio.TaskRegistry.add_provider(name, task)
  if MIXTURE in names:
    # Only SQuAD has a training split, so the rates say nothing.
    tasks = [(task, 1.0) for task in built.values()]
    seqio.MixtureRegistry.add(MIXTURE, tasks)


def _task(
  name: str,
  *,
  data_dir: str | os.PathLike[str] | None,
  features: Mapping[str, seqio.utils.Feature],
) -> seqio.Task:
  return seqio.Task(
    name,
    source=_tfds_source(name)
    if data_dir is None
    else _local_source(name, os.fspath(data_dir)),
    output_features=features,
    preprocessors=(
      squad_text,
      *preprocessors.to_tokens(cacheable=data_dir is None),
    ),
    postprocess_fn=postprocessors.answers,
    metric_fns=(qa_metrics.squad,),
  )


def _tfds_source(name: str) -> seqio.TfdsDataSource:
  if name == SQUAD:
    return seqio.TfdsDataSource(
      tfds_name="squad/v1.1:3.0.0", splits=("train", "validation")
    )
  return seqio.TfdsDataSource(
    tfds_name=f"mrqa/{name.removeprefix('mrqa_')}:1.0.0",
    splits={"validation": "test"},
  )


def _local_source(name: str, data_dir: str) -> sources.JsonLinesSource:
  file = OUT_OF_DOMAIN.get(name.removeprefix("mrqa_"), "SQuAD")
  folders = {"train": "train"} if name == SQUAD else {}
  return sources.JsonLinesSource(
    split_to_path={
      split: os.path.join(data_dir, folder, f"{file}.jsonl.gz")
      for split, folder in {**folders, "validation": "dev"}.items()
    },
    fields={"question": str, "context": str, "answers": list, "qid": str},
    check=_check,
    expand=questions,
  )


def questions(row: Mapping[str, Any], split: str) -> Iterator[dict[str, Any]]:
  """Yields MRQA's questions on one text; its first line, a header, has none.

  Example:
    >>> asked = {"qid": "7", "question": "Who? ", "answers": ["Ann"]}
    >>> [found] = questions({"context": "Ann ran.", "qas": [asked]}, "train")
    >>> found["question"], found["answers"]
    ('Who?', ['Ann'])
  """
  del split
  if "header" in row:
    return
  context = sources.part(row, "context", str).strip()
  for asked in sources.part(row, "qas", list):
    question = sources.part(asked, "question", str).strip()
    yield {**asked, "question": question, "context": context}


def _check(row: Mapping[str, Any]) -> str | None:
  if row["answers"]:
    return None
  return 'field "answers": expected one or more, found none. Correct the row.'


def squad_text(dataset: tf.data.Dataset) -> tf.data.Dataset:
  """Writes questions as T5 does: spaces around every punctuation mark.

  The target is the first answer; `answers` has all of them, written alike.
  (t5/data/preprocessors.py, `squad`.)

  Example:
    >>> row = {"question": "Who ran?", "context": "Ann ran.", "qid": "7"}
    >>> row["answers"] = ["Ann", "A. B."]
    >>> rows = tf.data.Dataset.from_tensors(row)
    >>> row = next(squad_text(rows).as_numpy_iterator())
    >>> row["inputs"]
    b'question: Who ran ? context: Ann ran . '
    >>> row["targets"], row["answers"].tolist()
    (b'Ann', [b'Ann', b'A . B . '])
  """

  def write(row: dict[str, Any]) -> dict[str, tf.Tensor]:
    answers = row["answers"]
    # SQuAD's in TFDS have their places beside them.
    texts = answers["text"] if isinstance(answers, dict) else answers
    padded = _padded(texts)
    parts = ["question:", _padded(row["question"])]
    parts += ["context:", _padded(row["context"])]
    joined = tf.strings.join(parts, separator=" ")
    return {
      "inputs": tf.strings.regex_replace(joined, r"\s+", " "),
      "targets": padded[0],
      ANSWERS: padded,
      "id": row["qid"] if "qid" in row else row["id"],
    }

  return dataset.map(write, num_parallel_calls=tf.data.AUTOTUNE)


def _padded(text: tf.Tensor) -> tf.Tensor:
  spaced = tf.strings.regex_replace(text, r"([[:punct:]])", r" \1 ")
  return tf.strings.regex_replace(spaced, r"\s+", " ")


register()
