"""Finds the task that a run names, and registers what it needs."""

import difflib
import os
from collections.abc import Mapping, Sequence
from typing import Any

import seqio

from peft_jax.tasks import (
  c4,
  few_shot,
  jsonl,
  quickstart,
  sources,
  superglue,
  t0_mixture,
  table2text,
)

_SPLITS = ("train", "validation", "test")


def prepare(
  name: str,
  *,
  vocabulary: str,
  data_dir: str = "",
  answer_choices: Sequence[str] = (),
  few_shot_settings: Mapping[str, Any] | None = None,
) -> seqio.Task | seqio.Mixture:
  """Returns the task or mixture of that name, over local files if asked.

  Example:
    >>> prepare("quickstart", vocabulary="bytes").name
    'quickstart'

  Args:
    name: a registered task or mixture, or any name for own files.
    vocabulary: see `vocabularies.load`.
    data_dir: for SuperGLUE, C4 and E2E the folder of their files; for others
      a folder with `train.jsonl` and `validation.jsonl` of `{"inputs",
      "targets"}` rows. Empty: TFDS.
    answer_choices: the only targets that own files may have.
    few_shot_settings: arguments of `few_shot.register`, for its tasks;
      `t0_mixture` takes the templates from them. Default: T-Few's.

  Raises:
    DataError: for an unknown task, with the nearest names, or bad files.
    TemplateError: if a template is missing or does not fit.
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
  elif name in few_shot.NAMES:
    few_shot.register(
      name,
      vocabulary=vocabulary,
      data_dir=data_dir,
      **(few_shot_settings or {}),
    )
  elif name in t0_mixture.NAMES:
    t0_mixture.register(
      name,
      vocabulary=vocabulary,
      data_dir=data_dir,
      templates=(few_shot_settings or {}).get("templates", ""),
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
  if name not in {*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()}:
    nearest = difflib.get_close_matches(name, names(), n=3, cutoff=0.3)
    raise sources.DataError(
      f"expected a registered task, found {name!r}. Nearest:"
      f" {', '.join(nearest) or 'none'}. For files of your own pass --data_dir"
      " with train.jsonl and validation.jsonl."
    )
  return seqio.get_mixture_or_task(name)


def names() -> list[str]:
  """Returns the tasks and mixtures that are registered or made when named.

  Example:
    >>> {"quickstart", "tfew_rte", "t0_mixture"} <= set(names())
    True
  """
  return sorted(
    {
      *seqio.TaskRegistry.names(),
      *seqio.MixtureRegistry.names(),
      *few_shot.NAMES,
      *t0_mixture.NAMES,
    }
  )


def _register_superglue(name: str, *, vocabulary: str, data_dir: str) -> None:
  short = name.removeprefix("superglue_")
  tasks = [short] if short in superglue.SPECS else list(superglue.SPECS)
  superglue.register(
    data_dir=data_dir or None, vocabulary=vocabulary, tasks=tasks
  )
