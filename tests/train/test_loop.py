"""The trainer end to end on a tiny random model; every bad input stops it."""

import json
import os
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from helpers import runs
from helpers.runs import ROWS, SMALL, losses, write_rows

from peft_jax import cli
from peft_jax.train import checkpoints, config, loop, opened, run_dir, seeds
from peft_jax.train.config import ConfigError


@pytest.fixture(autouse=True)
def one_device():
  """One of the fake devices: compiling for eight takes most of the time."""
  with runs.one_device():
    yield


@pytest.fixture
def data_dir(tmp_path):
  return write_rows(tmp_path / "data")


def resolve(data_dir, model_dir, *bindings, adapter="lora"):
  return config.resolve(
    ["runs/train.gin", "models/tiny.gin", f"adapters/{adapter}.gin"],
    [
      *SMALL,
      f"DATA_DIR = {str(data_dir)!r}",
      f"MODEL_DIR = {str(model_dir)!r}",
      *bindings,
    ],
  )


def adapter_of(model_dir):
  _, leaves = checkpoints.read(model_dir)
  return flatten_dict(leaves, sep="/")


def assert_same(one, other):
  assert one.keys() == other.keys()
  for path, leaf in one.items():
    np.testing.assert_array_equal(leaf, other[path], err_msg=path)


def test_a_run_learns_and_leaves_everything_behind(data_dir, tmp_path):
  summary = loop.train(resolve(data_dir, tmp_path / "run"))
  found = losses(tmp_path / "run")
  assert found[6] < found[1]
  assert summary.trained_parameters == 3 * 2 * (16 * 8 + 8 * 16)
  names = {path.name for path in (tmp_path / "run").iterdir()}
  assert names >= {
    "checkpoints",
    "config.gin",
    "curves.png",
    "metrics.jsonl",
    "predictions",
    "report.html",
    "settings.json",
    "summary.json",
    "tensorboard",
  }


def test_resuming_equals_the_uninterrupted_run_bit_for_bit(data_dir, tmp_path):
  loop.train(resolve(data_dir, tmp_path / "whole"))
  # A run that stopped after step 4, as if it had been killed at step 5.
  resolved = resolve(data_dir, tmp_path / "cut")
  stop_at = 5

  class Stop(Exception):
    pass

  real = loop.data.to_devices

  def until(batch, sharding, counter=[0]):  # noqa: B006
    if batch.get("decoder_target_tokens") is not None:
      counter[0] += 1
      if counter[0] == stop_at:
        raise Stop
    return real(batch, sharding)

  loop.data.to_devices = until
  try:
    with pytest.raises(Stop):
      loop.train(resolved)
  finally:
    loop.data.to_devices = real
  loop.train(resolve(data_dir, tmp_path / "cut"))
  assert_same(adapter_of(tmp_path / "whole"), adapter_of(tmp_path / "cut"))
  assert losses(tmp_path / "whole") == losses(tmp_path / "cut")


def test_a_save_that_was_killed_is_passed_over(data_dir, tmp_path):
  run = tmp_path / "run"
  loop.train(resolve(data_dir, run))
  before = adapter_of(run)
  # What a killed save leaves: a folder without its final name.
  broken = run / "checkpoints" / "8.orbax-checkpoint-tmp-1"
  (broken / "adapter").mkdir(parents=True)
  assert checkpoints.steps_of(run)[-1] == 6
  loop.train(resolve(data_dir, run))
  assert_same(before, adapter_of(run))


def test_keeps_the_latest_checkpoints_and_the_best(data_dir, tmp_path):
  loop.train(resolve(data_dir, tmp_path / "run", "KEEP = 1", "EVAL_PERIOD = 2"))
  steps = checkpoints.steps_of(tmp_path / "run")
  assert steps[-1] == 6
  assert len(steps) <= 2


def test_micro_batches_do_not_change_the_loss(data_dir, tmp_path):
  loop.train(resolve(data_dir, tmp_path / "one"))
  loop.train(resolve(data_dir, tmp_path / "four", "MICRO_BATCHES = 4"))
  one, four = losses(tmp_path / "one"), losses(tmp_path / "four")
  np.testing.assert_allclose(list(one.values()), list(four.values()), rtol=1e-4)


def test_warm_start_takes_weights_and_begins_at_step_0(data_dir, tmp_path):
  loop.train(resolve(data_dir, tmp_path / "first"))
  warm = resolve(
    data_dir, tmp_path / "second", f"WARM_START = {str(tmp_path / 'first')!r}"
  )
  loop.train(warm)
  assert losses(tmp_path / "second")[1] < losses(tmp_path / "first")[1]


def test_eval_infer_export_and_merge_agree(data_dir, tmp_path, capsys):
  run = tmp_path / "run"
  loop.train(resolve(data_dir, run))
  assert cli.main(["export", str(run), "--to", str(tmp_path / "out")]) == 0
  assert cli.main(["eval", str(tmp_path / "out")]) == 0
  printed = capsys.readouterr().out
  metrics = json.loads(printed[printed.index("{") :])
  summary = json.loads((run / run_dir.SUMMARY).read_text())
  assert metrics == summary["adapted_metrics"]

  rows = tmp_path / "rows.jsonl"
  rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
  answers = tmp_path / "answers.jsonl"
  command = ["infer", str(tmp_path / "out"), "--input", str(rows)]
  assert cli.main([*command, "--output", str(answers)]) == 0
  written = [json.loads(line) for line in answers.read_text().splitlines()]
  predictions = (run / "predictions" / "words.jsonl").read_text().splitlines()
  assert [row["prediction"] for row in written] == [
    json.loads(line)["adapted_prediction"] for line in predictions
  ]

  assert cli.main(["merge", str(run), "--to", str(tmp_path / "merged")]) == 0
  merged = resolve(
    data_dir,
    tmp_path / "on_merged",
    f"BACKBONE = {str(tmp_path / 'merged')!r}",
    "TRAIN_STEPS = 1",
  )
  assert loop.train(merged).frozen_metrics == summary["adapted_metrics"]


def test_a_frozen_backbone_in_bfloat16(data_dir, tmp_path, monkeypatch):
  """Kept at half the size; what is trained, and what is merged, is float32."""
  kept = []
  prepare = loop.setup
  monkeypatch.setattr(
    loop, "setup", lambda *args: kept.append(prepare(*args)) or kept[-1]
  )
  for name in ("float32", "bfloat16"):
    bindings = ("networks.create.dtype = 'bfloat16'", "TRAIN_STEPS = 2")
    loop.train(
      resolve(
        data_dir,
        tmp_path / name,
        *bindings,
        f"BACKBONE_DTYPE = '{name}'",
        adapter="top_layers",
      )
    )
  dtypes = [
    {leaf.dtype.name for leaf in jax.tree.leaves(run.frozen)} for run in kept
  ]
  assert dtypes == [{"float32"}, {"bfloat16"}]
  for run in kept:
    adapter = jax.tree.leaves(run.state.adapter)
    assert {leaf.dtype.name for leaf in adapter} == {"float32"}
  # Kernels are rounded where they are used, so nothing else changes.
  runs = [losses(tmp_path / name) for name in ("float32", "bfloat16")]
  assert runs[0] == pytest.approx(runs[1], rel=2e-2)
  merged = tmp_path / "merged"
  command = ["merge", str(tmp_path / "bfloat16"), "--to", str(merged)]
  assert cli.main(command) == 0
  described = json.loads((merged / "backbone.json").read_text())
  assert {leaf["dtype"] for leaf in described["leaves"].values()} == {"float32"}


def test_the_adapter_of_another_backbone_is_refused(data_dir, tmp_path):
  loop.train(resolve(data_dir, tmp_path / "run"))
  with pytest.raises(ValueError, match="was trained on backbone 'random'"):
    opened.open_adapter(tmp_path / "run", bindings=["RANDOM_SEED = 5"])


def test_an_override_that_disagrees_is_refused(data_dir, tmp_path):
  loop.train(resolve(data_dir, tmp_path / "run"))
  with pytest.raises(ValueError, match="rank=4 given, the adapter has rank=8"):
    opened.open_adapter(tmp_path / "run", bindings=["lora/LoRA.rank = 4"])


@pytest.mark.parametrize(
  ("bindings", "message"),
  [
    (
      ["BATCH_SIZE = 3", "MICRO_BATCHES = 2"],
      "divisible by data axis x micro-batches",
    ),
    (["networks.create.vocab_size = 100"], "at least 259 embeddings"),
    (["BACKBONE = ''"], "expected a backbone for tiny, found none"),
    (["BACKBONE = '/nowhere'"], "expected a backbone directory"),
    (["EVAL_SPLIT = 'test'"], "EVAL_SPLIT"),
    (["lora/Rule.pattern = '.*attn/q'"], "matched 0 of .* modules"),
    (["ADAPTERS = []"], "nothing would be trained"),
    (
      ["TASK_FEATURE_LENGTHS = {'inputs': 12, 'targets': 3}"],
      r"expected targets of at most 3 tokens.*3 of 4 longer",
    ),
    (["ANSWER_CHOICES = ('up', 'down')"], r"train\.jsonl:3"),
  ],
)
def test_bad_settings_stop_before_anything_is_written(
  bindings, message, data_dir, tmp_path
):
  with pytest.raises(ValueError, match=message):
    loop.train(resolve(data_dir, tmp_path / "run", *bindings))
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ('{"inputs": "a", "targets": "b"}\n{"inputs": \n', r"train\.jsonl:2"),
    ("", "train.jsonl"),
  ],
)
def test_bad_files_stop_before_anything_is_written(
  text, message, data_dir, tmp_path
):
  (data_dir / "train.jsonl").write_text(text)
  with pytest.raises(ValueError, match=message):
    loop.train(resolve(data_dir, tmp_path / "run"))
  assert not (tmp_path / "run").exists()


def test_an_unknown_task_shows_the_nearest(tmp_path):
  resolved = config.resolve(
    ["runs/train.gin", "models/tiny.gin", "adapters/lora.gin"],
    [
      "MIXTURE_OR_TASK_NAME = 'quickstrat'",
      f"MODEL_DIR = {str(tmp_path / 'run')!r}",
    ],
  )
  with pytest.raises(ValueError, match="Nearest: quickstart"):
    loop.train(resolved)


def test_a_folder_with_another_run_is_refused(data_dir, tmp_path):
  loop.train(resolve(data_dir, tmp_path / "run", "TRAIN_STEPS = 1"))
  with pytest.raises(ValueError, match=r"first LEARNING_RATE: 0\.05 there"):
    loop.train(
      resolve(
        data_dir, tmp_path / "run", "TRAIN_STEPS = 1", "LEARNING_RATE = 0.1"
      )
    )


def test_a_folder_with_other_files_is_refused(data_dir, tmp_path):
  (tmp_path / "run").mkdir()
  (tmp_path / "run" / "thesis.tex").write_text("dear")
  with pytest.raises(ValueError, match=r"other files \(\['thesis\.tex'\]\)"):
    loop.train(resolve(data_dir, tmp_path / "run"))
  assert [p.name for p in (tmp_path / "run").iterdir()] == ["thesis.tex"]


def test_a_damaged_checkpoint_is_refused(data_dir, tmp_path):
  run = tmp_path / "run"
  loop.train(resolve(data_dir, run))
  files = [
    path
    for path in (run / "checkpoints" / "6" / "adapter").rglob("d/*")
    if path.is_file()
  ]
  largest = max(files, key=lambda path: path.stat().st_size)
  data = bytearray(largest.read_bytes())
  data[len(data) // 2] ^= 1
  largest.write_bytes(bytes(data))
  with pytest.raises(ValueError, match="Nothing was loaded"):
    checkpoints.read(run)


COMMAND = [
  sys.executable,
  "-m",
  "peft_jax.train",
  "--model=tiny",
  "--adapter=lora",
  "--task=words",
]


def run_command(data_dir, model_dir, *more, env=None, **kwargs):
  flags = [f"--gin.{binding.replace(' = ', '=', 1)}" for binding in SMALL]
  return subprocess.Popen(
    [
      *COMMAND,
      *flags,
      f"--data_dir={data_dir}",
      f"--model_dir={model_dir}",
      *more,
    ],
    env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""} | (env or {}),
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    **kwargs,
  )


@pytest.mark.slow
def test_sigterm_saves_and_the_same_command_goes_on(data_dir, tmp_path):
  steps = ["--gin.TRAIN_STEPS=100000", "--gin.CHECKPOINT_PERIOD=100000"]
  process = run_command(data_dir, tmp_path / "run", *steps)
  seen = []
  for line in process.stdout:
    seen.append(line)
    # Lines come every few seconds, not for every step.
    if "loss" in line:
      process.send_signal(signal.SIGTERM)
      break
  seen += process.stdout.readlines()
  process.stdout.close()
  assert process.wait(60) == 143, "".join(seen)
  assert any("Preempted: saved step" in line for line in seen)
  saved = checkpoints.steps_of(tmp_path / "run")
  assert len(saved) == 1

  again = run_command(data_dir, tmp_path / "run", *steps)
  for line in again.stdout:
    if line.startswith("resumed"):
      break
  again.kill()
  again.stdout.close()
  again.wait()
  assert f"at step {saved[0]}" in line


def test_patience_ends_a_run_that_gets_no_better(data_dir, tmp_path, capsys):
  """A rate of almost nothing: every evaluation is as the first."""
  patient = ["EVAL_PERIOD = 1", "PATIENCE = 2", "LEARNING_RATE = 1e-30"]
  once = loop.train(resolve(data_dir, tmp_path / "run", *patient))
  assert once.steps == 3
  assert "no better than 0.00 of step 1 in 2" in capsys.readouterr().err
  again = loop.train(resolve(data_dir, tmp_path / "run", *patient))
  assert again.steps == 3
  assert again.adapted_metrics == once.adapted_metrics
  # As a run of several seeds it has ended too, and is not begun again.
  for calls in (1, 2):
    seeds.train(
      str(tmp_path / "runs"),
      [0],
      lambda seed: resolve(data_dir, tmp_path / "runs/seed_0", *patient),
    )
    err = capsys.readouterr().err
    assert ("finished before" in err) == (calls == 2)


def test_patience_needs_evaluations(data_dir, tmp_path):
  with pytest.raises(
    ConfigError, match="EVAL_PERIOD >= 1 and an EVAL_SPLIT with PAT"
  ):
    resolve(data_dir, tmp_path / "run", "PATIENCE = 2")


def test_a_run_without_evaluation(data_dir, tmp_path):
  blind = ["EVAL_SPLIT = ''", "TRAIN_STEPS = 2"]
  (data_dir / "validation.jsonl").unlink()
  summary = loop.train(resolve(data_dir, tmp_path / "run", *blind))
  assert summary.adapted_metrics == {}
  assert (tmp_path / "run" / "report.html").exists()
