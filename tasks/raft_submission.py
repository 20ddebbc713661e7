"""Predictions of RAFT's test sets in the form that its leaderboard takes.

The form is that of https://github.com/oughtinc/raft-submission: a file
`<task>/predictions.csv` for each task, with the columns ID and Label.
"""

import csv
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from etils import epath

from peft_jax.tasks import raft, submission
from peft_jax.tasks.raft_spec import Spec
from peft_jax.tasks.sources import DataError

FILE_NAME = "predictions.csv"
HEADER = ("ID", "Label")


def write(
  task_name: str,
  rows: Iterable[Mapping[str, Any]],
  directory: str | os.PathLike[str],
) -> epath.Path:
  """Writes `<directory>/<task>/predictions.csv`; returns its path.

  The rows may stand in any order; the file has them by ID.

  Example:
    >>> import tempfile
    >>> rows = [{"idx": n, "prediction": "company"} for n in range(50, 499)]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...   path = write("raft_semiconductor_org_types", rows, folder)
    ...   path.read_text().split()[:3]
    ['ID,Label', '50,company', '51,company']

  Args:
    task_name: RAFT's name of the task, with or without `raft_`.
    rows: the test set's predictions: `ID` or `idx`, and `prediction`, a label
      as RAFT writes it or as `raft.register(clean_labels=True)` does.
    directory: the submission's folder `data`; made if it is not there. An
      earlier file of the task is replaced.

  Raises:
    DataError: for an unknown task, a row without ID or prediction, IDs that
      are missing, there twice or not the test set's, or another label. Nothing
      is written then.
  """
  spec = raft.find(task_name)
  found = checked(spec, list(rows))
  path = epath.Path(directory) / spec.name / FILE_NAME
  text = io.StringIO(newline="")
  writer = csv.writer(text)  # \r\n between the rows, as in the official files
  writer.writerow(HEADER)
  writer.writerows(sorted(found.items()))
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(text.getvalue().encode())
  return path


def checked(spec: Spec, rows: Sequence[Mapping[str, Any]]) -> dict[int, str]:
  """Returns ID -> official label of the rows of a whole test set.

  Raises:
    DataError: see `write`.
  """
  ids = [_id(row, number) for number, row in enumerate(rows)]
  submission.check_ids(f"raft_{spec.name}", ids, spec.test_ids, called="ID")
  return {n: _label(spec, row, n) for n, row in zip(ids, rows, strict=True)}


def _id(row: Mapping[str, Any], number: int) -> int:
  found = [row[name] for name in ("ID", "idx") if name in row]
  value = found[0] if found else None
  # Numbers come as text from a CSV file, and as numpy's from an example.
  if len(set(map(str, found))) != 1 or not str(value).isdecimal():
    raise DataError(
      f"row {number} of the predictions: expected ID or idx, a whole number,"
      f" found {found or sorted(row)}. Write the test set's ID."
    )
  return int(str(value))


def _label(spec: Spec, row: Mapping[str, Any], number: int) -> str:
  texts = dict(zip(spec.label_texts(clean=True), spec.labels, strict=True))
  texts |= {label: label for label in spec.labels}
  found = row.get("prediction")
  if not isinstance(found, str) or found not in texts:
    known = submission.some(spec.labels)
    raise DataError(
      f"raft_{spec.name}: expected one of the labels {known}, found {found!r}"
      f" at ID {number}. Choose among the task's labels (rank classification);"
      " free text is no label."
    )
  return texts[found]
