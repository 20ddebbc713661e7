"""Submissions to RAFT's leaderboard: the official form, whole or not at all."""

import csv
import doctest

import numpy as np
import pytest

from peft_jax.tasks import raft, raft_spec, raft_submission
from peft_jax.tasks.raft_spec import SPECS
from peft_jax.tasks.sources import DataError

NAME = "neurips_impact_statement_risks"
LABEL = "mentions a harmful application"


def predictions(name):
  labels = SPECS[name].labels
  return [
    {"idx": n, "prediction": labels[n % len(labels)]}
    for n in SPECS[name].test_ids
  ]


@pytest.mark.parametrize("name", SPECS)
def test_every_task_in_the_official_form(tmp_path, name):
  rows = predictions(name)
  path = raft_submission.write(f"raft_{name}", reversed(rows), tmp_path)
  assert str(path) == str(tmp_path / name / "predictions.csv")
  with open(path, newline="") as file:
    found = list(csv.reader(file))
  assert found[0] == ["ID", "Label"]
  assert found[1:] == [[str(r["idx"]), r["prediction"]] for r in rows]


def test_real_ids_and_labels(tmp_path, shared_data):
  """Against the files: what RAFT's own test sets and task.json have."""
  for name in SPECS:
    raft_submission.write(name, predictions(name), tmp_path)
    test = shared_data("raft") / name / "test_unlabeled.csv"
    with open(test, newline="", encoding="utf-8") as file:
      ids = [row["ID"] for row in csv.DictReader(file)]
    with open(tmp_path / name / "predictions.csv", newline="") as file:
      rows = list(csv.DictReader(file))
    assert [row["ID"] for row in rows] == ids
    task = (shared_data("raft") / name / "task.json").read_text()
    assert all(f'"{row["Label"]}"' in task for row in rows)


def test_the_bytes_are_those_of_the_official_files(tmp_path):
  rows = [{"ID": str(n), "prediction": LABEL} for n in range(50, 200)]
  path = raft_submission.write(NAME, rows, tmp_path / "data")
  content = path.read_bytes()
  assert content.startswith(
    b"ID,Label\r\n50,mentions a harmful application\r\n51,"
  )
  assert content.endswith(b"\r\n199,mentions a harmful application\r\n")


def test_clean_labels_become_the_official_ones(tmp_path):
  rows = [
    {"idx": np.int64(n), "prediction": "apple pay or google pay"}
    for n in SPECS["banking_77"].test_ids
  ]
  path = raft_submission.write("banking_77", rows, tmp_path)
  assert path.read_text().splitlines()[1] == "50,apple_pay_or_google_pay"


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda rows: rows[1:], r"from 50 to 199, found 1 missing \(50\)"),
    (lambda rows: rows[:-7], r"7 missing \(193, 194, 195, 196, 197, \.\.\.\)"),
    (lambda rows: [], r"150 missing"),
    (lambda rows: [*rows, rows[3]], r"1 there more than once \(53\)"),
    (
      lambda rows: [*rows, {"idx": 200, "prediction": LABEL}],
      r"1 not of the test set \(200\)",
    ),
    (
      lambda rows: [{"idx": 0, "prediction": LABEL}, *rows[1:]],
      r"1 missing \(50\); 1 not of the test set \(0\)",
    ),
    (
      lambda rows: [{**rows[0], "prediction": "harmful"}, *rows[1:]],
      "found 'harmful' at ID 50",
    ),
    (
      lambda rows: [{**rows[0], "prediction": 1}, *rows[1:]],
      "found 1 at ID 50",
    ),
    (lambda rows: [{"idx": 50}, *rows[1:]], "found None at ID 50"),
    (
      lambda rows: [*rows[1:], {"prediction": LABEL}],
      r"row 149 .*expected ID or idx, a whole number, found \['prediction'\]",
    ),
    (
      lambda rows: [*rows[1:], {"idx": -1, "prediction": LABEL}],
      r"expected ID or idx, a whole number, found \[-1\]",
    ),
    (
      lambda rows: [*rows[1:], {"idx": 50, "ID": 51, "prediction": LABEL}],
      r"expected ID or idx, a whole number, found \[51, 50\]",
    ),
  ],
)
def test_what_is_not_whole_is_not_written(tmp_path, change, message):
  with pytest.raises(DataError, match=message):
    raft_submission.write(NAME, change(predictions(NAME)), tmp_path / "to")
  assert not (tmp_path / "to").exists()


def test_unknown_tasks(tmp_path):
  with pytest.raises(DataError, match="expected one of RAFT's tasks"):
    raft_submission.write("superglue_rte", [], tmp_path)


@pytest.mark.parametrize("module", [raft, raft_spec, raft_submission])
def test_examples_of_the_docstrings(module):
  found = doctest.testmod(module)
  assert found.attempted > 0
  assert found.failed == 0
