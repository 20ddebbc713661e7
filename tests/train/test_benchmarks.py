"""A run is evaluated on another task, and answers a test set to be sent in."""

import json

import pytest
from helpers import runs, superglue_files
from helpers.runs import SMALL

from peft_jax import cli
from peft_jax.train import config, loop

LINES = "".join(f"{n}\t1\t2\tSo {n}?\tIs {n}?\t{n % 2}\n" for n in range(4))
QQP = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n" + LINES
MRPC = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n" + "".join(
  f"{n % 2}\t1\t2\tSo {n}.\tIt is {n}.\n" for n in range(3)
)


@pytest.fixture(autouse=True)
def one_device():
  with runs.one_device():
    yield


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
  folder = tmp_path_factory.mktemp("data")
  for task, text in (("QQP", QQP), ("MRPC", MRPC)):
    (folder / task).mkdir()
    for file in ("train", "dev"):
      (folder / task / f"{file}.tsv").write_text(text)
  [first] = superglue_files.ROWS["CB"]
  superglue_files.write(folder, {"CB": [first]})
  rows = [{**first, "idx": n} for n in range(250)]
  superglue_files.write_test(folder, {"CB": rows})
  return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory, data_dir):
  """A run on QQP."""
  folder = tmp_path_factory.mktemp("runs") / "qqp"
  with runs.one_device():
    loop.train(
      config.resolve(
        ["runs/train.gin", "models/tiny.gin", "adapters/ia3.gin"],
        [
          *SMALL,
          "MIXTURE_OR_TASK_NAME = 'glue_qqp'",
          f"DATA_DIR = {str(data_dir)!r}",
          f"MODEL_DIR = {str(folder)!r}",
          "TASK_FEATURE_LENGTHS = {'inputs': 32, 'targets': 16}",
          "BATCH_SIZE = 4",
          "TRAIN_STEPS = 2",
          "EVAL_BATCH_SIZE = 64",
          "ANSWER_BY = 'ranking'",
        ],
      )
    )
  return folder


def test_eval_of_another_task(run, capsys, tmp_path):
  predictions = tmp_path / "predictions.jsonl"
  command = [
    "eval",
    str(run),
    "--gin.MIXTURE_OR_TASK_NAME='glue_mrpc_from_qqp'",
    "--output",
    str(predictions),
  ]
  assert cli.main(command) == 0
  found = json.loads(capsys.readouterr().out)
  assert list(found) == ["glue_mrpc_from_qqp"]
  assert found["glue_mrpc_from_qqp"].keys() == {"mean", "f1", "accuracy"}
  rows = [json.loads(line) for line in predictions.read_text().splitlines()]
  assert [row["target"] for row in rows] == [
    "not_duplicate",
    "duplicate",
    "not_duplicate",
  ]
  # Ranked among the words that the run was trained on.
  assert {row["prediction"] for row in rows} <= {"not_duplicate", "duplicate"}
  assert rows[0]["input"].startswith("mrpc sentence1: So 0.")


def test_submit_of_a_run_and_of_a_file(run, capsys, tmp_path):
  ask = ["--benchmark", "superglue", "--to", str(tmp_path / "to")]
  task = "--gin.MIXTURE_OR_TASK_NAME='superglue_cb'"
  assert cli.main(["submit", str(run), *ask, task]) == 0
  path = tmp_path / "to" / "CB.jsonl"
  assert capsys.readouterr().out == f"{path}\n"
  found = [json.loads(line) for line in path.read_text().splitlines()]
  assert [row["idx"] for row in found] == list(range(250))
  assert {row["label"] for row in found} <= {
    "entailment",
    "contradiction",
    "neutral",
  }
  answers = tmp_path / "answers.jsonl"
  answers.write_text(
    "".join(
      json.dumps({"task": "superglue_wsc", "idx": number, "prediction": "True"})
      + "\n"
      for number in range(146)
    )
  )
  assert cli.main(["submit", str(answers), *ask]) == 0
  assert (tmp_path / "to" / "WSC.jsonl").exists()


def test_what_cannot_be_sent_in(run, capsys, tmp_path):
  to = ["--to", str(tmp_path / "to")]
  assert cli.main(["submit", str(run), "--benchmark", "x", *to]) == 1
  assert (
    "expected one of the benchmarks raft, superglue" in capsys.readouterr().err
  )
  assert cli.main(["submit", str(run), "--benchmark", "superglue", *to]) == 1
  # GLUE's folder of this run has no test.tsv.
  assert "'glue_qqp' with a test split, found none" in capsys.readouterr().err
  assert not (tmp_path / "to").exists()
