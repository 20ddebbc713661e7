"""What is sent to a benchmark's site: predictions in, its files out.

A benchmark is a module with `write(task_name, rows, directory)`, which checks
the predictions of a test set, writes its file and returns the path.
"""

import collections
import importlib
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from peft_jax.tasks.sources import DataError

BENCHMARKS: Mapping[str, str] = {
  "raft": "peft_jax.tasks.raft_submission",
  "superglue": "peft_jax.tasks.superglue_submission",
}
# Task -> its rows, each with `idx` and `prediction`.
Predictions = Mapping[str, Sequence[Mapping[str, Any]]]


def find(benchmark: str) -> Any:
  """Returns the module of a benchmark.

  Raises:
    DataError: if there is none of that name.
  """
  if benchmark not in BENCHMARKS:
    raise DataError(
      f"expected one of the benchmarks {', '.join(BENCHMARKS)}, found"
      f" {benchmark!r}. Name one of them."
    )
  return importlib.import_module(BENCHMARKS[benchmark])


def check_ids(
  task_name: str, ids: Sequence[int], wanted: range, *, called: str
) -> None:
  """Raises unless every example of a test set is answered once.

  Example:
    >>> check_ids("raft_overruling", [50, 51], range(50, 52), called="ID")

  Args:
    task_name: of the task.
    ids: of the predictions, in any order.
    wanted: the test set's.
    called: what the benchmark calls an id.

  Raises:
    DataError: with the ids that are missing, there twice or unknown.
  """
  counts = collections.Counter(ids)
  wrong = {
    "missing": [n for n in wanted if n not in counts],
    "there more than once": [n for n, count in counts.items() if count > 1],
    "not of the test set": [n for n in counts if n not in wanted],
  }
  bad = [
    f"{len(found)} {what} ({some(found)})"
    for what, found in wrong.items()
    if found
  ]
  if bad:
    raise DataError(
      f"{task_name}: expected one prediction for each {called} from {wanted[0]}"
      f" to {wanted[-1]}, found {'; '.join(bad)}. Predict the whole test set,"
      " and nothing else."
    )


def some(values: Sequence[Any]) -> str:
  """Returns the first values as text, enough to find what is wrong.

  Example:
    >>> some(range(9))
    '0, 1, 2, 3, 4, ...'
  """
  more = ", ..." if len(values) > 5 else ""
  return ", ".join(map(repr, values[:5])) + more


def read(path: str | os.PathLike[str]) -> dict[str, list[dict[str, Any]]]:
  r"""Returns task -> rows of a file of predictions.

  Example:
    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...   path = pathlib.Path(folder, "answers.jsonl")
    ...   row = '{"task": "superglue_cb", "idx": 0, "prediction": "neutral"}'
    ...   _ = path.write_text(row)
    ...   list(read(path))
    ['superglue_cb']

  Args:
    path: JSON lines with `task`, `idx` and `prediction`.

  Raises:
    DataError: naming the line that is not such a row, or for an empty file.
  """
  found: dict[str, list[dict[str, Any]]] = {}
  for number, line in enumerate(
    epath.Path(path).read_text().splitlines(), start=1
  ):
    try:
      row = json.loads(line)
    except ValueError:
      row = None
    if not isinstance(row, dict) or not {"task", "idx", "prediction"} <= set(
      row
    ):
      raise DataError(
        f"{os.fspath(path)}:{number}: expected a JSON object with task, idx and"
        f" prediction, found {line[:60]!r}. Write one on each line."
      )
    found.setdefault(str(row["task"]), []).append(row)
  if not found:
    raise DataError(
      f"expected predictions in {os.fspath(path)}, found an empty file."
      " Give another file."
    )
  return found


def merged(parts: Sequence[Predictions]) -> dict[str, Any]:
  """Returns all tasks' predictions together.

  Raises:
    DataError: if two parts have the same task.
  """
  found: dict[str, Any] = {}
  for part in parts:
    twice = sorted(found.keys() & part.keys())
    if twice:
      raise DataError(
        f"expected every task's predictions once, found {', '.join(twice)}"
        " again. Leave one of them out."
      )
    found.update(part)
  return found


def write(
  benchmark: str,
  predictions: Predictions,
  directory: str | os.PathLike[str],
) -> list[epath.Path]:
  """Writes the files of all tasks, or none; returns their paths.

  Args:
    benchmark: one of `BENCHMARKS`.
    predictions: task -> rows, see `write` of the benchmark's module.
    directory: where the files go.

  Raises:
    DataError: if a task's predictions cannot be sent in, or the benchmark is
      unknown.
  """
  module = find(benchmark)
  with tempfile.TemporaryDirectory() as trial:
    for task_name, rows in predictions.items():
      module.write(task_name, rows, trial)
  return [
    module.write(task_name, rows, directory)
    for task_name, rows in predictions.items()
  ]
