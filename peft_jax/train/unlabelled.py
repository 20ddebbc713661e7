"""A run's answers to the unlabelled test split, to be sent in."""

from collections.abc import Mapping, Sequence
from typing import Any

import seqio

from peft_jax.tasks.sources import DataError
from peft_jax.train import data, opened
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
  task = data.get_task(found.config)
  parts = task.tasks if isinstance(task, seqio.Mixture) else [task]
  with_test = [part for part in parts if SPLIT in part.splits]
  if not with_test:
    raise DataError(
      f"expected a task of {task.name!r} with a test split, found none."
      " Put its test.jsonl beside the other files."
    )
  return {part.name: _answers(found, part, how) for part in with_test}


def _answers(
  found: Opened, task: seqio.Task, how: Answering | None
) -> list[dict[str, Any]]:
  dataset = task.get_dataset(None, SPLIT, shuffle=False)
  examples = list(dataset.as_numpy_iterator())
  if not examples or "idx" not in examples[0]:
    raise DataError(
      f"expected test examples of {task.name!r} with idx, found"
      f" {sorted(examples[0]) if examples else 'none'}. Only tasks with one can"
      " be sent in."
    )
  answered = opened.infer(found, _rows(examples), how=how)
  return [
    {
      "idx": example["idx"].tolist(),
      "prediction": task.postprocess_fn(
        row["prediction"], example=example, is_target=False
      ),
    }
    for example, row in zip(examples, answered, strict=True)
  ]


def _rows(examples: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
  """Returns the examples as `infer` takes them."""
  return [
    {
      "inputs": example["inputs_pretokenized"].decode(),
      "choices": [
        text.decode() for text in example.get("choices_pretokenized", ())
      ],
    }
    for example in examples
  ]
