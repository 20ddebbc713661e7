"""Files like RAFT's, their texts made up."""

import csv
import itertools

from peft_jax.tasks.raft_spec import SPECS


def row(columns, n, **values):
  """Returns the texts of row n."""
  return {name: values.get(name, f"{name} of {n}") for name in columns}


def write_csv(path, rows):
  """Writes rows of one form."""
  path.parent.mkdir(parents=True, exist_ok=True)
  with path.open("w", newline="") as file:
    writer = csv.DictWriter(file, rows[0])
    writer.writeheader()
    writer.writerows(rows)


def make(folder, name, columns, *, train=None, test=None):
  """Writes a task of 50 rows, its labels by turns, and a test set of 3."""
  labels = itertools.cycle(SPECS[name].labels)
  rows = train or [
    row(columns, n) | {"Label": next(labels), "ID": n} for n in range(50)
  ]
  write_csv(folder / name / "train.csv", rows)
  rows = test or [row(columns, n) | {"ID": n} for n in range(50, 53)]
  write_csv(folder / name / "test_unlabeled.csv", rows)
  return folder
