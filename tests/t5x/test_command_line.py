"""`python -m t5x.train` itself; each start imports TensorFlow and T5X."""

import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from peft_jax import cli
from peft_jax.train import checkpoints

pytestmark = [pytest.mark.t5x, pytest.mark.slow]

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
SETTINGS = [
  "--gin.networks.create.num_encoder_layers=1",
  "--gin.networks.create.num_decoder_layers=1",
  "--gin.networks.create.emb_dim=16",
  "--gin.networks.create.num_heads=2",
  "--gin.networks.create.head_dim=8",
  "--gin.networks.create.mlp_dim=32",
  "--gin.INITIAL_CHECKPOINT_PATH='random'",
  "--gin.MIXTURE_OR_TASK_NAME='quickstart'",
  "--gin.TASK_FEATURE_LENGTHS={'inputs': 32, 'targets': 12}",
  *("--gin.BATCH_SIZE=4", "--gin.WARMUP_STEPS=0", "--gin.EVAL_PERIOD=0"),
]


def command(model_dir, adapter, *options):
  """Returns the command of the documentation, its files in some order."""
  return [
    *(sys.executable, "-m", "t5x.train"),
    "--gin_file=gin_configs/runs/t5x_finetune.gin",
    f"--gin_file=gin_configs/adapters/{adapter}.gin",
    "--gin_file=gin_configs/models/t5x_tiny.gin",
    *SETTINGS,
    f"--gin.MODEL_DIR='{model_dir}'",
    *options,
  ]


def environment():
  return os.environ | {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "--xla_backend_optimization_level=0",
  }


@pytest.mark.parametrize(
  ("adapter", "options"),
  [
    (
      "prefix",
      (
        "--gin.prefix/Prefix.length=2",
        "--gin.EVAL_PERIOD=2",
        "--gin.MAX_EVAL_EXAMPLES=4",
        "--gin.EVAL_STEPS=1",
      ),
    ),
    ("ia3", ("--gin.OPTIMIZER=@optimizer.adafactor()", "--gin.PACK=True")),
  ],
)
def test_another_adapter_is_another_file(tmp_path, adapter, options, capsys):
  """The same command, whatever the adapter."""
  line = command(tmp_path / "run", adapter, *options)
  short = ["--gin.TRAIN_STEPS=2", "--gin.CHECKPOINT_PERIOD=2"]
  done = subprocess.run(
    [*line, *short, "--gin.LOG_PERIOD=1"],
    cwd=REPOSITORY,
    env=environment(),
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr[-3000:]
  assert "trained " in done.stderr
  assert checkpoints.steps_of(tmp_path / "run") == [0, 2]
  assert cli.main(["export", str(tmp_path / "run"), f"--to={tmp_path}/a"]) == 0
  assert "leaves" in capsys.readouterr().out


def test_a_job_that_is_told_to_go_saves_and_exits_with_143(tmp_path):
  line = command(tmp_path / "run", "lora", "--gin.TRAIN_STEPS=100000")
  with subprocess.Popen(
    [*line, "--gin.CHECKPOINT_PERIOD=100000", "--gin.LOG_PERIOD=5"],
    cwd=REPOSITORY,
    env=environment(),
    stderr=subprocess.PIPE,
    text=True,
  ) as job:
    seen = []
    for text in job.stderr:
      seen.append(text)
      if "collection=train" in text and "loss=" in text:
        job.send_signal(signal.SIGTERM)
        break
    seen += job.stderr
    code = job.wait(timeout=60)
  assert code == 143, "".join(seen)[-3000:]
  [first, last] = checkpoints.steps_of(tmp_path / "run")
  assert (first, last > 0) == (0, True)


def test_two_processes_take_the_steps_of_one(tmp_path):
  """Rows of one batch on two processes; gloo stands for a slice's links."""
  short = ["--gin.TRAIN_STEPS=4", "--gin.CHECKPOINT_PERIOD=4"]
  with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]
  line = command(tmp_path / "two", "ia3", *short)
  join = ["--multiprocess_gpu", f"--coordinator_address=localhost:{port}"]
  lines = [
    [*line, *join, "--process_count=2", f"--process_index={index}"]
    for index in range(2)
  ]
  lines.append(command(tmp_path / "one", "ia3", *short))
  # To files: a process whose pipe is full would keep the other waiting.
  logs = [tmp_path / f"{index}.log" for index in range(3)]
  with contextlib.ExitStack() as stack:
    jobs = [
      subprocess.Popen(
        line,
        cwd=REPOSITORY,
        env=environment(),
        stderr=stack.enter_context(log.open("w")),
      )
      for line, log in zip(lines, logs, strict=True)
    ]
    try:
      codes = [job.wait(timeout=300) for job in jobs]
    finally:
      for job in jobs:
        job.kill()
  assert codes == [0, 0, 0], "".join(log.read_text()[-2000:] for log in logs)
  found, expected = (
    checkpoints.read(tmp_path / name)[1] for name in ("two", "one")
  )
  jax.tree.map(
    lambda one, other: np.testing.assert_allclose(one, other, atol=1e-5),
    found,
    expected,
  )
