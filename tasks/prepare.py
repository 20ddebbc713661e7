"""Finds the task that a run names, and registers what it needs."""

import difflib
import os
import re
from collections.abc import Callable, Mapping, Sequence

import seqio

from peft_jax.tasks import (
  glue,
  jsonl,
  mrqa,
  quickstart,
  sources,
  superglue,
  table2text,
)

_SPLITS = ("train", "validation", "test")


def prepare(
  name: str,
  *,
  vocabulary: str,
  data_dir: str = "",
  answer_choices: Sequence[str] = (),
) -> seqio.Task | seqio.Mixture:
  """Returns the task or mixture of that name, over local files if asked.

  Example:
    >>> prepare("quickstart", vocabulary="bytes").name
    'quickstart'

  Args:
    name: a registered task or mixture, or any name for own files.
    vocabulary: see `vocabularies.load`.
    data_dir: for the public tasks the folder of the official files (see
      docs/tasks.md); for others a folder with `train.jsonl` and
      `validation.jsonl` of `{"inputs", "targets"}` rows. Empty: TFDS.
    answer_choices: the only targets that own files may have.

  Raises:
    DataError: for an unknown task, with the nearest names, or bad files.
    VocabularyError: if the vocabulary is not there.
  """
  if name in (quickstart.TASK, quickstart.MIXTURE):
    if vocabulary != "bytes" or data_dir:
      raise sources.DataError(
        f"task {name!r} is generated and made of bytes, found vocabulary"
        f" {vocabulary!r} and data_dir {data_dir!r}. Use --model tiny, and no"
        " data_dir."
      )
  elif family := next((p for p in _FAMILIES if re.fullmatch(p, name)), None):
    _FAMILIES[family](name, vocabulary, data_dir)
  elif data_dir:
    files = {
      split: os.path.join(data_dir, f"{split}.jsonl") for split in _SPLITS
    }
    present = {s: path for s, path in files.items() if sources.exists(path)}
    jsonl.register(
      name=name,
      files=present or {"train": files["train"]},
      vocabulary=vocabulary,
      answer_choices=answer_choices or None,
    )
  names = {*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()}
  if name not in names:
    nearest = difflib.get_close_matches(name, sorted(names), n=3, cutoff=0.3)
    raise sources.DataError(
      f"expected a registered task, found {name!r}. Nearest:"
      f" {', '.join(nearest) or 'none'}. For files of your own pass --data_dir"
      " with train.jsonl and validation.jsonl."
    )
  return seqio.get_mixture_or_task(name)


def _superglue(name: str, vocabulary: str, data_dir: str) -> None:
  short = name.removeprefix("superglue_")
  tasks = superglue.MIXED if name == superglue.MIXTURE else (short,)
  if set(tasks) <= superglue.SPECS.keys():
    superglue.register(
      data_dir=data_dir or None, vocabulary=vocabulary, tasks=tasks
    )


def _glue(name: str, vocabulary: str, data_dir: str) -> None:
  if name in (*glue.TASKS, *glue.MIXTURES):
    glue.register(
      data_dir=data_dir or None, vocabulary=vocabulary, names=(name,)
    )


def _mrqa(name: str, vocabulary: str, data_dir: str) -> None:
  if name in (*mrqa.TASKS, mrqa.MIXTURE):
    mrqa.register(
      data_dir=data_dir or None, vocabulary=vocabulary, names=(name,)
    )


def _e2e(name: str, vocabulary: str, data_dir: str) -> None:
  del name
  table2text.register(data_dir=data_dir, vocabulary=vocabulary)


# Names of tasks, as a pattern -> what registers them: (name, vocabulary,
# data_dir). It registers nothing for a name that it does not know.
_FAMILIES: Mapping[str, Callable[[str, str, str], None]] = {
  r"superglue_.*": _superglue,
  r"glue_.*": _glue,
  r"squad|squad_to_.*|mrqa_.*": _mrqa,
  table2text.E2E: _e2e,
}
