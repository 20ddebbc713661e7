"""RAFT through the trainer: settings by gin, and a test set without labels."""

import json

from helpers import runs
from helpers.raft_files import make

from peft_jax import cli
from peft_jax.train import config, data


def bindings(folder, *more):
  return [
    "BACKBONE = 'random'",
    "MIXTURE_OR_TASK_NAME = 'raft_overruling'",
    "MODEL_DIR = 'unused'",
    "LEARNING_RATE = 0.1",
    f"DATA_DIR = {str(folder)!r}",
    *more,
  ]


def test_settings_reach_the_task(tmp_path):
  make(tmp_path, "overruling", ("Sentence",))
  files = ["runs/train.gin", "models/tiny.gin", "adapters/ia3.gin"]
  resolved = config.resolve(
    files,
    bindings(
      tmp_path,
      "config.Raft.validation_start = 30",
      "config.Raft.labels = 'numbered'",
    ),
  )
  assert resolved.config.raft.validation_start == 30
  assert resolved.settings["config.Raft.validation_start"] == "30"
  task = data.get_task(resolved.config)
  rows = list(task.get_dataset(None, "validation", shuffle=False))
  assert [int(r["idx"]) for r in rows] == list(range(30, 40))
  assert (
    b"\n1. not overruling\n2. over" in rows[0]["inputs_pretokenized"].numpy()
  )
  # Without a binding: T-Few's defaults.
  assert config.resolve(files, bindings(tmp_path)).config.raft == config.Raft()


def test_a_run_answers_a_test_set_without_labels(tmp_path, capsys):
  make(tmp_path, "overruling", ("Sentence",))
  arguments = [
    "train",
    "--model=tiny",
    "--adapter=ia3",
    "--task=raft_overruling",
    "--backbone=random",
    f"--data_dir={tmp_path}",
    f"--model_dir={tmp_path / 'run'}",
    *(f"--gin.{binding.replace(' = ', '=')}" for binding in runs.NETWORK),
    "--gin.config.Raft.validation_start=None",
    "--gin.EVAL_SPLIT='test'",
    "--gin.EVAL_FROZEN=False",
    "--gin.TASK_FEATURE_LENGTHS={'inputs': 230, 'targets': 16}",
    "--gin.TRAIN_STEPS=2",
    "--gin.WARMUP_STEPS=0",
    "--gin.BATCH_SIZE=2",
    "--gin.EVAL_BATCH_SIZE=4",
    "--gin.LEARNING_RATE=0.01",
  ]
  with runs.one_device():
    status = cli.main(arguments)
  assert status == 0, capsys.readouterr().err
  summary = json.loads((tmp_path / "run" / "summary.json").read_text())
  assert summary["adapted_metrics"] == {"raft_overruling": {}}
  assert summary["examples"] == {"raft_overruling": 3}
  path = tmp_path / "run" / "predictions" / "raft_overruling.jsonl"
  rows = [json.loads(line) for line in path.read_text().splitlines()]
  assert [r["target"] for r in rows] == ["<unk>"] * 3
  # A table has nothing to say of it.
  assert cli.main(["report", str(tmp_path / "run")]) == 1
  assert "its examples have no labels" in capsys.readouterr().err
