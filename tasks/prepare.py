"""Finds the task that a run names, and registers what it needs."""

import difflib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import seqio

from peft_jax.tasks import (
  c4,
  few_shot,
  glue,
  jsonl,
  mrqa,
  quickstart,
  raft,
  sources,
  superglue,
  t0_mixture,
  table2text,
)

_SPLITS = ("train", "validation", "test")


class _Asked(NamedTuple):
  """What `prepare` was told."""

  name: str
  vocabulary: str
  data_dir: str
  few_shot: Mapping[str, Any]
  raft: Mapping[str, Any]


def prepare(
  name: str,
  *,
  vocabulary: str,
  data_dir: str = "",
  answer_choices: Sequence[str] = (),
  few_shot_settings: Mapping[str, Any] | None = None,
  raft_settings: Mapping[str, Any] | None = None,
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
    few_shot_settings: arguments of `few_shot.register`, for its tasks;
      `t0_mixture` takes the templates from them. Default: T-Few's.
    raft_settings: for RAFT's tasks, see `raft.register`.

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
  elif family := next((p for p in _FAMILIES if re.fullmatch(p, name)), None):
    asked = _Asked(
      name, vocabulary, data_dir, few_shot_settings or {}, raft_settings or {}
    )
    _FAMILIES[family](asked)
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


def _superglue(asked: _Asked) -> None:
  short = asked.name.removeprefix("superglue_")
  tasks = superglue.MIXED if asked.name == superglue.MIXTURE else (short,)
  if set(tasks) <= superglue.SPECS.keys():
    superglue.register(
      data_dir=asked.data_dir or None, vocabulary=asked.vocabulary, tasks=tasks
    )


def _glue(asked: _Asked) -> None:
  if asked.name in (*glue.TASKS, *glue.MIXTURES):
    glue.register(
      data_dir=asked.data_dir or None,
      vocabulary=asked.vocabulary,
      names=(asked.name,),
    )


def _mrqa(asked: _Asked) -> None:
  if asked.name in (*mrqa.TASKS, mrqa.MIXTURE):
    mrqa.register(
      data_dir=asked.data_dir or None,
      vocabulary=asked.vocabulary,
      names=(asked.name,),
    )


def _raft(asked: _Asked) -> None:
  raft.register(
    asked.name,
    data_dir=asked.data_dir,
    vocabulary=asked.vocabulary,
    **asked.raft,
  )


def _few_shot(asked: _Asked) -> None:
  if asked.name in few_shot.NAMES:
    few_shot.register(
      asked.name,
      vocabulary=asked.vocabulary,
      data_dir=asked.data_dir,
      **asked.few_shot,
    )


def _t0(asked: _Asked) -> None:
  if asked.name in t0_mixture.NAMES:
    t0_mixture.register(
      asked.name,
      vocabulary=asked.vocabulary,
      data_dir=asked.data_dir,
      templates=asked.few_shot.get("templates", ""),
    )


def _c4(asked: _Asked) -> None:
  c4.register(data_dir=asked.data_dir, vocabulary=asked.vocabulary)


def _e2e(asked: _Asked) -> None:
  table2text.register(data_dir=asked.data_dir, vocabulary=asked.vocabulary)


# Names of tasks, as a pattern -> what registers them. It registers nothing for
# a name that it does not know.
_FAMILIES: Mapping[str, Callable[[_Asked], None]] = {
  r"superglue_.*": _superglue,
  r"glue_.*": _glue,
  r"squad|squad_to_.*|mrqa_.*": _mrqa,
  rf"{raft.PREFIX}.*": _raft,
  r"tfew_.*": _few_shot,
  r"t0_.*": _t0,
  c4.PREFIX_LM: _c4,
  table2text.E2E: _e2e,
}
