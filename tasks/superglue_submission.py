"""Predictions of SuperGLUE's test sets in the form that its site takes.

A file of JSON lines for each task, with `idx` and `label`; MultiRC's is nested
as its data is. The labels are written as SuperGLUE's own toolkit, jiant, does:
COPA's and MultiRC's are numbers, BoolQ's and WiC's "true" and "false", WSC's
"True" and "False".
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from etils import epath

from peft_jax.tasks import submission
from peft_jax.tasks.sources import DataError
from peft_jax.tasks.superglue_specs import SPECS, Spec

# Our text of a class -> the site's, where they differ.
_LABELS: Mapping[str, Mapping[str, str | int]] = {
  "boolq": {"False": "false", "True": "true"},
  "copa": {"choice1": 0, "choice2": 1},
  "multirc": {"False": 0, "True": 1},
  "wic": {"False": "false", "True": "true"},
  "wsc": {"False": "False", "True": "True"},
}

# Numbers of `idx`, outermost first; the last one counts all of a test set.
Idx = tuple[int, ...]


def write(
  task_name: str,
  rows: Iterable[Mapping[str, Any]],
  directory: str | os.PathLike[str],
) -> epath.Path:
  """Writes `<directory>/<task>.jsonl`; returns its path.

  The rows may stand in any order; the file has them by their numbers.

  Example:
    >>> import tempfile
    >>> rows = [{"idx": n, "prediction": "neutral"} for n in range(250)]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...   path = write("superglue_cb", rows, folder)
    ...   path.name, path.read_text().splitlines()[0]
    ('CB.jsonl', '{"idx": 0, "label": "neutral"}')

  Args:
    task_name: the task, with or without `superglue_`; both forms of WSC write
      the same file.
    rows: the test set's predictions: `idx` as the task's examples have it, a
      number or for MultiRC [paragraph, question, answer] and for ReCoRD
      [passage, query]; and `prediction`, the answer as the task writes it.
    directory: of the submission; made if it is not there. An earlier file of
      the task is replaced.

  Raises:
    DataError: for an unknown task, a row without `idx` or `prediction`,
      examples that are missing, there twice or not of the test set, or an
      answer that is no label. Nothing is written then.
  """
  name = task_name.removeprefix("superglue_")
  if name not in SPECS:
    raise DataError(
      f"expected one of the SuperGLUE tasks {', '.join(SPECS)}, found"
      f" {task_name!r}. Name one of them."
    )
  spec = SPECS[name]
  labels = _checked(spec, list(rows))
  lines = _nested(labels) if name == "multirc" else _flat(labels)
  text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in lines)
  path = epath.Path(directory) / f"{spec.folder}.jsonl"
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(text)
  return path


def _flat(labels: Mapping[Idx, str | int]) -> list[dict[str, Any]]:
  return [{"idx": idx[-1], "label": label} for idx, label in labels.items()]


def _nested(labels: Mapping[Idx, str | int]) -> list[dict[str, Any]]:
  """Returns MultiRC's passages, with their questions, with their answers."""
  passages: dict[int, dict[int, list[dict[str, Any]]]] = {}
  for (passage, question, answer), label in labels.items():
    answers = passages.setdefault(passage, {}).setdefault(question, [])
    answers.append({"idx": answer, "label": label})
  return [
    {
      "idx": passage,
      "passage": {
        "questions": [
          {"idx": question, "answers": answers}
          for question, answers in questions.items()
        ]
      },
    }
    for passage, questions in passages.items()
  ]


def _checked(
  spec: Spec, rows: Sequence[Mapping[str, Any]]
) -> dict[Idx, str | int]:
  """Returns the official label of every example, in order."""
  found = [_idx(spec, row) for row in rows]
  last = [idx[-1] for idx in found]
  submission.check_ids(spec.task_name, last, range(spec.num_test), called="idx")
  return dict(
    sorted(
      (idx, _label(spec, row, idx))
      for idx, row in zip(found, rows, strict=True)
    )
  )


def _idx(spec: Spec, row: Mapping[str, Any]) -> Idx:
  value: Any = row.get("idx")
  numbers = value if isinstance(value, list | tuple) else [value]
  wanted = max(1, len(spec.idx))
  if len(numbers) != wanted or not all(type(n) is int for n in numbers):
    form = f"[{', '.join(spec.idx)}]" if spec.idx else "a whole number"
    raise DataError(
      f"{spec.task_name}: expected idx, {form}, in every row, found {value!r}."
      " Write it as the task's test examples have it."
    )
  return tuple(numbers)


def _label(spec: Spec, row: Mapping[str, Any], idx: Idx) -> str | int:
  found = row.get("prediction")
  name = spec.name.removesuffix(".fixed")
  labels = _LABELS.get(name) or {label: label for label in spec.labels}
  if isinstance(found, str) and (found in labels or (not labels and found)):
    return labels.get(found, found)
  form = f"one of {', '.join(labels)}" if labels else "a text"
  raise DataError(
    f"{spec.task_name}: expected {form} as prediction, found {found!r} at idx"
    f" {idx[-1]}. Choose among the task's labels (--answer_by ranking), or"
    " correct the row."
  )
