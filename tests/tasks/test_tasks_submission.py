"""The files that SuperGLUE's site takes, and what is refused."""

import json

import pytest

from peft_jax.tasks import submission, superglue, superglue_submission
from peft_jax.tasks.sources import DataError


def idx_of(name, number):
  """Returns a test example's idx; two answers to a question, two to a text."""
  if name == "multirc":
    return [number // 4, number // 2, number]
  return [number // 2, number] if name == "record" else number


def rows_of(name, prediction):
  count = superglue.SPECS[name].num_test
  return [
    {"idx": idx_of(name, number), "prediction": prediction}
    for number in range(count)
  ]


# The sizes of the official test sets: what TFDS's catalogue says of 1.0.2.
@pytest.mark.parametrize(
  ("name", "prediction", "file", "lines", "first"),
  [
    ("boolq", "True", "BoolQ", 3245, {"idx": 0, "label": "true"}),
    ("cb", "neutral", "CB", 250, {"idx": 0, "label": "neutral"}),
    ("copa", "choice2", "COPA", 500, {"idx": 0, "label": 1}),
    ("record", "Malmö", "ReCoRD", 10000, {"idx": 0, "label": "Malmö"}),
    ("rte", "entailment", "RTE", 3000, {"idx": 0, "label": "entailment"}),
    ("axb", "entailment", "AX-b", 1104, {"idx": 0, "label": "entailment"}),
    ("axg", "entailment", "AX-g", 356, {"idx": 0, "label": "entailment"}),
    ("wic", "False", "WiC", 1400, {"idx": 0, "label": "false"}),
    ("wsc", "False", "WSC", 146, {"idx": 0, "label": "False"}),
    ("wsc.fixed", "True", "WSC", 146, {"idx": 0, "label": "True"}),
    (
      "multirc",
      "True",
      "MultiRC",
      # Of 9693 answers, four to a passage.
      2424,
      {
        "idx": 0,
        "passage": {
          "questions": [
            {
              "idx": 0,
              "answers": [{"idx": 0, "label": 1}, {"idx": 1, "label": 1}],
            },
            {
              "idx": 1,
              "answers": [{"idx": 2, "label": 1}, {"idx": 3, "label": 1}],
            },
          ]
        },
      },
    ),
  ],
)
def test_files_of_the_site(tmp_path, name, prediction, file, lines, first):
  rows = rows_of(name, prediction)[::-1]
  path = superglue_submission.write(f"superglue_{name}", rows, tmp_path / "to")
  assert path.name == f"{file}.jsonl"
  found = [json.loads(line) for line in path.read_text().splitlines()]
  assert len(found) == lines
  assert found[0] == first
  assert [row["idx"] for row in found] == list(range(lines))


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda rows: rows[1:], r"idx from 0 to 249, found 1 missing \(0\)"),
    (
      lambda rows: rows[:-10],
      r"10 missing \(240, 241, 242, 243, 244, \.\.\.\)",
    ),
    (lambda rows: [*rows, rows[7]], r"1 there more than once \(7\)"),
    (
      lambda rows: [*rows, {**rows[0], "idx": 250}],
      r"1 not of the test set \(250\)",
    ),
    (
      lambda rows: [{**rows[0], "prediction": "maybe"}, *rows[1:]],
      "one of entailment, contradiction, neutral as prediction, found 'maybe'"
      " at idx 0",
    ),
    (
      lambda rows: [{"idx": 0}, *rows[1:]],
      "neutral as prediction, found None at idx 0",
    ),
    (
      lambda rows: [{"prediction": "neutral"}, *rows[1:]],
      "expected idx, a whole number, in every row, found None",
    ),
    (
      lambda rows: [{**rows[0], "idx": True}, *rows[1:]],
      "expected idx, a whole number, in every row, found True",
    ),
  ],
)
def test_what_is_refused(tmp_path, change, message):
  rows = change(rows_of("cb", "neutral"))
  with pytest.raises(DataError, match=f"^superglue_cb: .*{message}"):
    superglue_submission.write("superglue_cb", rows, tmp_path / "to")
  assert not (tmp_path / "to").exists()


def test_other_forms_of_idx_and_tasks(tmp_path):
  rows = [{"idx": 3, "prediction": "True"}]
  with pytest.raises(DataError, match=r"\[paragraph, question, answer\].*3"):
    superglue_submission.write("multirc", rows, tmp_path)
  with pytest.raises(DataError, match="expected one of the SuperGLUE tasks"):
    superglue_submission.write("superglue_wnli", rows, tmp_path)
  empty = rows_of("record", "")
  with pytest.raises(
    DataError, match="expected a text as prediction, found ''"
  ):
    superglue_submission.write("record", empty, tmp_path)


def test_all_files_or_none(tmp_path):
  good = {"superglue_cb": rows_of("cb", "neutral")}
  bad = {"superglue_wsc": rows_of("wsc", "")}
  with pytest.raises(DataError, match="superglue_wsc"):
    submission.write("superglue", {**good, **bad}, tmp_path / "to")
  assert not (tmp_path / "to").exists()
  [path] = submission.write("superglue", good, tmp_path / "to")
  assert path.name == "CB.jsonl"
  with pytest.raises(DataError, match="expected every task's predictions once"):
    submission.merged([good, good])
  with pytest.raises(DataError, match="one of the benchmarks raft, superglue"):
    submission.write("glue", good, tmp_path)


def test_a_file_of_predictions(tmp_path):
  path = tmp_path / "answers.jsonl"
  row = {"task": "superglue_cb", "idx": 0, "prediction": "neutral"}
  path.write_text(json.dumps(row) + '\n{"idx": 1}\n')
  with pytest.raises(
    DataError, match=f"^{path}:2: expected a JSON object with"
  ):
    submission.read(path)
  path.write_text("")
  with pytest.raises(DataError, match="found an empty file"):
    submission.read(path)
