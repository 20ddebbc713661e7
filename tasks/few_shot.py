"""T-Few's few-shot tasks `tfew_*` (arXiv 2205.05638, section 3).

A few training rows, drawn as T-Few draws them or read from its files; every row
in the words of a prompt template; answers chosen from the template's choices.
"""

import functools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from peft_jax.tasks import (
  few_shot_sampling,
  metrics,
  preprocessors,
  prompting,
  promptsource,
  vocabularies,
)
from peft_jax.tasks.few_shot_data import DATA, PREFIX, FewShotData, Row
from peft_jax.tasks.sources import DataError
from peft_jax.tasks.templates import Template

NAMES = tuple(data.task_name for data in DATA.values())

Reader = Callable[[], Sequence[Row]]


def register(
  name: str,
  *,
  vocabulary: str | os.PathLike[str] | seqio.Vocabulary,
  data_dir: str = "",
  shots: int | None = None,
  seed: int = 42,
  files: str = "",
  templates: str = "",
  train_template: str | int = prompting.ALL,
  eval_template: str | int = prompting.RANDOM,
) -> seqio.Task:
  """Registers and returns a few-shot task; again replaces it.

  Each example has `inputs`, `targets`, `choices`, `label`, `idx` and the name
  of its `template`. The metric is accuracy. The split `validation` is the one
  that T-Few evaluates on: for ANLI and StoryCloze the official test split.

  T-Few draws a template anew whenever it meets a training row. `all`, which has
  every row once for each template, gives the same distribution and does not
  depend on when a row is met.

  Example:
    >>> task = register("tfew_rte", vocabulary="bytes")  # TFDS is not opened
    >>> sorted(task.splits)
    ['test', 'train', 'validation']
    >>> seqio.TaskRegistry.remove("tfew_rte")

  Args:
    name: one of `NAMES`.
    vocabulary: a vocabulary, its name or its file; see `vocabularies.load`.
    data_dir: folder with the official JSON-lines files, or Hugging Face's.
      Empty: TFDS, if it has the data set.
    shots: training rows; 0: all. Default: T-Few's number.
    seed: of the sample and of the random templates. T-Few's are 42, 1024, 0, 1
      and 32.
    files: T-Few's folder `data/few_shot`, whose samples are then the training
      rows. Empty: they are drawn from the training split.
    templates: folder in PromptSource's form. Empty: the package's own.
    train_template: see `prompting.prompts`.
    eval_template: the same, for the other splits.

  Raises:
    DataError: if the task is unknown, or files are missing or wrong.
    TemplateError: if a template is missing or does not fit.
    VocabularyError: if the vocabulary is not there.
  """
  data = _data(name)
  dataset, subset = data.templates
  found = promptsource.read(
    dataset, subset=subset, folder=templates or promptsource.OWN
  )
  readers = _readers(data, data_dir=data_dir)
  count = data.shots if shots is None else shots
  if files:
    readers["train"] = functools.partial(
      few_shot_sampling.read_published,
      data,
      folder=files,
      shots=count,
      seed=seed,
    )
  elif count and "train" in readers:
    readers["train"] = _sampled(readers["train"], shots=count, seed=seed)
  prompts = {
    split: _prompts(
      reader,
      templates=found,
      choice=train_template if split == "train" else eval_template,
      seed=seed,
      first=data.random_templates,
    )
    for split, reader in readers.items()
  }
  if data_dir:
    # Bad rows stop a run before a model is built.
    for read in prompts.values():
      read()
  elif files:
    prompts["train"]()
  task = _task(data.task_name, prompts=prompts, vocabulary=vocabulary)
  seqio.TaskRegistry.remove(task.name)
  seqio.TaskRegistry.add_provider(task.name, task)
  return task


def _data(name: str) -> FewShotData:
  data = DATA.get(name.removeprefix(PREFIX))
  if data is None or name != data.task_name:
    raise DataError(
      f"expected one of the tasks {', '.join(NAMES)}, found {name!r}."
    )
  return data


def _readers(data: FewShotData, *, data_dir: str) -> dict[str, Reader]:
  if data_dir:
    paths = data.find(data_dir)
    return {s: functools.partial(data.read, p) for s, p in paths.items()}
  if not data.tfds:
    raise DataError(
      f"task {data.task_name!r}: expected --data_dir with the files"
      f" {', '.join(n for names in data.files.values() for n in names)}, found"
      " none: TFDS has no rows of it that can be used."
    )
  return {
    split: functools.partial(_read_tfds, data, name, part)
    for split, (name, part) in data.tfds.items()
  }


def _read_tfds(data: FewShotData, name: str, split: str) -> list[Row]:
  """Returns TFDS's rows, in the official order if they tell it."""
  import tensorflow_datasets as tfds

  dataset: Any = tfds.load(name, split=split)
  rows = [
    data.row(
      {key: plain(value) for key, value in row.items()},
      number=number,
      place=f"{name} {split}, row {number}",
    )
    for number, row in enumerate(dataset.as_numpy_iterator())
  ]
  # TFDS shuffles what it stores.
  return sorted(rows, key=lambda row: row["idx"])


def plain(value: Any) -> Any:
  """Returns TFDS's text, numbers and arrays of them as JSON has them.

  Example:
    >>> plain(np.array([b"one", b"two"], object))
    ['one', 'two']
  """
  if isinstance(value, np.ndarray):
    return [plain(item) for item in value.tolist()]
  if isinstance(value, bytes):
    return value.decode("utf-8")
  return value.item() if isinstance(value, np.generic) else value


def _sampled(reader: Reader, *, shots: int, seed: int) -> Reader:
  return lambda: few_shot_sampling.sample(reader(), shots=shots, seed=seed)


def _prompts(
  reader: Reader,
  *,
  templates: Sequence[Template],
  choice: str | int,
  seed: int,
  first: int,
) -> Reader:
  @functools.cache
  def read() -> list[Row]:
    return list(
      prompting.prompts(
        reader(), templates=templates, choice=choice, seed=seed, first=first
      )
    )

  return read


def _task(
  name: str,
  *,
  prompts: Mapping[str, Reader],
  vocabulary: str | os.PathLike[str] | seqio.Vocabulary,
) -> seqio.Task:
  def dataset(
    split: str, shuffle_files: bool, seed: int | None = None
  ) -> tf.data.Dataset:
    rows = prompts[split]()
    # Any: TensorFlow's own stubs do not know that it takes nested tensors.
    tensors: Any = columns(rows)
    found = tf.data.Dataset.from_tensor_slices(tensors)
    return found.shuffle(len(rows), seed=seed) if shuffle_files else found

  return seqio.Task(
    name,
    source=seqio.FunctionDataSource(dataset, splits=tuple(prompts)),
    output_features=vocabularies.text_features(
      vocabularies.resolve(vocabulary)
    ),
    preprocessors=preprocessors.to_tokens(cacheable=False),
    metric_fns=[metrics.accuracy],
  )


def columns(rows: Iterable[Row]) -> dict[str, Any]:
  """Returns prompts as tensors; rows may differ in their number of choices."""
  found = list(rows)
  texts = {
    name: tf.constant([row[name] for row in found])
    for name in ("inputs", "targets", "template")
  }
  return {
    **texts,
    "choices": tf.ragged.constant([row["choices"] for row in found]),
    "label": tf.constant([row["label"] for row in found], tf.int32),
    "idx": tf.constant([row["idx"] for row in found], tf.int64),
  }
