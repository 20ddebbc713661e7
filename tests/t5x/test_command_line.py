"""`python -m t5x.train` itself; each start imports TensorFlow and T5X."""

import contextlib
import os
import pathlib
import re
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


def start(folder, count, adapter, *options, own=None, program=None):
  """Runs a job in some processes; returns their statuses and what they say.

  Args:
    folder: for the job and for what each process says.
    count: number of processes; gloo stands for a slice's links.
    adapter: name of its gin file.
    *options: of all processes.
    own: process -> options of it alone.
    program: process -> what it runs in the place of `-m t5x.train`.
  """
  folder.mkdir(exist_ok=True)
  with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]
  join = [f"--coordinator_address=localhost:{port}", f"--process_count={count}"]
  line = command(folder / "run", adapter, *options)
  # To files: a process whose pipe is full would keep the others waiting.
  logs = [folder / f"{index}.log" for index in range(count)]
  with contextlib.ExitStack() as stack:
    jobs = [
      subprocess.Popen(
        line[:1]
        + [*(program or {}).get(index, line[1:3]), *line[3:]]
        + [*join, f"--process_index={index}"] * (count > 1)
        + (own or {}).get(index, []),
        cwd=REPOSITORY,
        env=environment(),
        stderr=stack.enter_context(log.open("w")),
      )
      for index, log in enumerate(logs)
    ]
    try:
      codes = [job.wait(timeout=400) for job in jobs]
    finally:
      for job in jobs:
        job.kill()
  return codes, [log.read_text() for log in logs]


# t5x.train of a process that is killed before its fifth step.
KILLED = """
import os, runpy, signal
from peft_jax.train import preemption
def reached(self, step):
  if step == 5:
    os.kill(os.getpid(), signal.SIGKILL)
preemption.Preemption.reached = reached
runpy.run_module("t5x.train", run_name="__main__", alter_sys=True)
"""
SHORT = (
  "--gin.TRAIN_STEPS=6",
  "--gin.CHECKPOINT_PERIOD=3",
  "--gin.LOG_PERIOD=1",
)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
  """A job of one process."""
  folder = tmp_path_factory.mktemp("one")
  codes, texts = start(folder, 1, "ia3", *SHORT)
  assert codes == [0], texts
  return folder


def losses(text):
  """Returns the losses that T5X's log has, by step."""
  found = re.findall(r"\[(\d+)\] collection=train .*[, ]loss=([\d.]+)", text)
  return {int(step): float(loss) for step, loss in found}


@pytest.mark.parametrize("count", [2, 4])
def test_several_processes_take_the_steps_of_one(tmp_path, alone, count):
  codes, texts = start(tmp_path, count, "ia3", *SHORT)
  assert codes == [0] * count, "".join(text[-2000:] for text in texts)
  expected = losses((alone / "0.log").read_text())
  assert len(expected) == 6
  np.testing.assert_allclose(
    list(losses(texts[0]).values()), list(expected.values()), rtol=1e-6
  )
  found, expected = (
    checkpoints.read(folder / "run")[1] for folder in (tmp_path, alone)
  )
  jax.tree.map(
    lambda one, other: np.testing.assert_allclose(one, other, atol=1e-5),
    found,
    expected,
  )


def test_a_killed_process_stops_the_others_and_the_job_goes_on(tmp_path):
  whole, cut = tmp_path / "whole", tmp_path / "cut"
  codes, texts = start(whole, 2, "ia3", *SHORT)
  assert codes == [0, 0], texts
  codes, texts = start(cut, 2, "ia3", *SHORT, program={1: ("-c", KILLED)})
  assert codes == [143, -9], texts
  name = socket.gethostname()
  assert f"Process 1 ({name}) is gone: killed, or its machine" in texts[0]
  assert checkpoints.steps_of(cut / "run") == [0, 3]
  codes, texts = start(cut, 2, "ia3", *SHORT)
  assert codes == [0, 0], texts
  found, expected = (
    checkpoints.read(folder / "run")[1] for folder in (cut, whole)
  )
  jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_another_setting_on_one_process_stops_all(tmp_path):
  own = {1: ["--gin.LEARNING_RATE=0.01"]}
  codes, texts = start(tmp_path, 2, "ia3", *SHORT, own=own)
  assert codes == [1, 1], texts
  name = socket.gethostname()
  for text in texts:
    assert re.search(
      rf"LEARNING_RATE: \S+ on process 0 \({name}\), 0.01 on process 1", text
    ), text[-2000:]
  assert not (tmp_path / "run").exists()
