"""Finds the task that a run names, and registers what it needs."""

import difflib
import os
from collections.abc import Mapping, Sequence
from typing import Any

import seqio

from peft_jax.tasks import (
  c4,
  jsonl,
  quickstart,
  raft,
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
  raft_settings: Mapping[str, Any] | None = None,
) -> seqio.Task | seqio.Mixture:
  """Returns the task or mixture of that name, over local files if asked.

  Example:
    >>> prepare("quickstart", vocabulary="bytes").name
    'quickstart'

  Args:
    name: a registered task or mixture, or any name for own files.
    vocabulary: see `vocabularies.load`.
    data_dir: for SuperGLUE, RAFT, C4 and E2E the folder of their files; for
      others a folder with `train.jsonl` and `validation.jsonl` of `{"inputs",
      "targets"}` rows. Empty: TFDS.
    answer_choices: the only targets that own files may have.
    raft_settings: for RAFT's tasks, see `raft.register`.

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
  elif name.startswith("superglue_"):
    _register_superglue(name, vocabulary=vocabulary, data_dir=data_dir)
  elif name == c4.PREFIX_LM:
    c4.register(data_dir=data_dir, vocabulary=vocabulary)
  elif name.startswith(raft.PREFIX):
    raft.register(
      name, data_dir=data_dir, vocabulary=vocabulary, **(raft_settings or {})
    )
  elif name == table2text.E2E:
    table2text.register(data_dir=data_dir, vocabulary=vocabulary)
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


def _register_superglue(name: str, *, vocabulary: str, data_dir: str) -> None:
  short = name.removeprefix("superglue_")
  tasks = [short] if short in superglue.SPECS else list(superglue.SPECS)
  superglue.register(
    data_dir=data_dir or None, vocabulary=vocabulary, tasks=tasks
  )
