"""A run's answers to the unlabelled test split, to be sent in."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from peft_jax.tasks.sources import DataError
from peft_jax.train import data, opened
from peft_jax.train.data import EvalSet
from peft_jax.train.opened import Opened
from peft_jax.train.predict import Answering

SPLIT = "test"


def predict(
  found: Opened, *, how: Answering | None = None
) -> dict[str, list[dict[str, Any]]]:
  """Returns task -> a row with `idx` and `prediction` for each test example.

  Args:
    found: the adapter.
    how: answers are found; default: as the run's evaluations did.

  Raises:
    DataError: if no task of the run has a test split, or its examples have no
      `idx`.
  """
  config = dataclasses.replace(
    found.config, eval_split=SPLIT, max_eval_examples=0
  )
  task = data.get_task(config)
  if not any(SPLIT in part.splits for part in data.tasks_of(task)):
    raise DataError(
      f"expected a task of {task.name!r} with a test split, found none."
      " Put its test.jsonl beside the other files."
    )
  sets = data.configured_sets(config, task)
  for eval_set in sets:
    if "idx" not in eval_set.examples[0]:
      raise DataError(
        f"expected test examples of {eval_set.task.name!r} with idx, found"
        f" {sorted(eval_set.examples[0])}. Only tasks with one can be sent in."
      )
  answers = opened.answers(found, sets, how or config.answer_by)
  return {
    eval_set.task.name: _rows(eval_set, texts)
    for eval_set, (texts, _) in zip(sets, answers, strict=True)
  }


def _rows(eval_set: EvalSet, texts: Sequence[str]) -> list[dict[str, Any]]:
  """Returns the answers as the task writes them, with their examples' idx."""
  return [
    {
      "idx": example["idx"].tolist(),
      "prediction": eval_set.task.postprocess_fn(
        text, example=example, is_target=False
      ),
    }
    for example, text in zip(eval_set.examples, texts, strict=True)
  ]
