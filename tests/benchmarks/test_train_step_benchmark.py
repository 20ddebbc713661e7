"""The training-step benchmark: its rows, its FLOPs, and what it needs."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "benchmarks" / "train_step.py"
TINY = {
  "d_model": 16,
  "d_ff": 32,
  "num_heads": 2,
  "head_dim": 4,
  "num_layers": 2,
  "vocab": 48,
  "batch": 2,
  "inputs": 12,
  "targets": 6,
  "rank": 3,
}
COLUMNS = [
  "system",
  "method",
  "dtype",
  "median_step_s",
  "tokens_per_s",
  "ratio_to_peer",
  "floor_ratio",
]

# Runs the script where only what a GPU machine has can be imported.
BARE = """
import runpy, sys
for name in ("tensorflow", "seqio", "gin", "orbax", "torch", "t5x"):
  sys.modules[name] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def benchmark():
  """The script as a module."""
  spec = importlib.util.spec_from_file_location("train_step_benchmark", SCRIPT)
  module = importlib.util.module_from_spec(spec)
  sys.modules[spec.name] = module
  spec.loader.exec_module(module)
  yield module
  del sys.modules[spec.name]


def run_script(*flags):
  """Runs the script at tiny sizes, as the command line would."""
  sizes = [f"--{name}={value}" for name, value in TINY.items()]
  sizes += [
    "--num_layers=1",
    "--limit_sizes=64",
    "--steps=2",
    "--warmup=1",
    "--pause=0",
  ]
  return subprocess.run(
    [sys.executable, "-c", BARE, str(SCRIPT), *sizes, *flags],
    cwd=ROOT,
    env={**os.environ, "PYTHONPATH": ".", "JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
    check=False,
  )


@pytest.mark.slow
def test_rows_without_peer(tmp_path):
  out = tmp_path / "rows.json"
  done = run_script(f"--json={out}")
  assert done.returncode == 0, done.stderr
  rows = json.loads(out.read_text())
  assert [(row["system"], row["method"]) for row in rows] == [
    (system, method)
    for method in ("ia3", "lora", "full")
    for system in ("peft_jax", "floor")
  ]
  tokens = TINY["batch"] * (TINY["inputs"] + TINY["targets"])
  for row in rows:
    assert list(row) == COLUMNS
    assert row["dtype"] == "float32"
    assert row["ratio_to_peer"] is None
    assert row["median_step_s"] * row["tokens_per_s"] == pytest.approx(tokens)
  for ours, floor in zip(rows[::2], rows[1::2], strict=True):
    assert floor["floor_ratio"] == 1.0
    assert ours["floor_ratio"] == pytest.approx(
      ours["median_step_s"] / floor["median_step_s"]
    )
  assert done.stdout.count("| peft_jax |") == 3


def test_a_missing_peer_is_named():
  done = run_script("--peer=hf", "--methods=ia3")
  assert done.returncode != 0
  assert "Does --peer_python have torch" in done.stderr


def test_peer_ratio_is_ours_over_theirs(benchmark):
  times = benchmark.Times(ours=[1.0, 2.0, 3.0], peer=[8.0, 6.0, 1.0])
  ours, peer, floor = benchmark.make_rows(
    benchmark.Shapes(), "ia3", "float32", times, 0.5
  )
  assert [ours["system"], peer["system"], floor["system"]] == [
    "peft_jax",
    "hf",
    "floor",
  ]
  assert ours["ratio_to_peer"] == 3.0
  assert peer["ratio_to_peer"] is None
  assert (ours["floor_ratio"], peer["floor_ratio"]) == (4.0, 12.0)
  assert floor["median_step_s"] == 0.5
