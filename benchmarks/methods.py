"""Trains every method on the quickstart's held-out task; prints one table.

    python benchmarks/methods.py [--steps 200] [--methods ia3 lora ...]

Each method runs as its file in `gin_configs/adapters` says, on the tiny
backbone that ships with the package, 32 examples and 1,000 unseen ones.
Columns: accuracy on the unseen examples; trained parameters; time of a training
step and temporary memory of its compiled program, both relative to full
fine-tuning. Steps of all methods take turns, so that what slows the machine
slows all of them.
"""

import argparse
import functools
import json
import pathlib
import shutil
import statistics
import tempfile
import time
from typing import Any

import jax

from peft_jax import sharding
from peft_jax.train import config as configs
from peft_jax.train import data, features, fisher, loop, used
from peft_jax.train.setup import setup
from peft_jax.train.step import make_train_step

FULL = "full"


def resolve(method: str, model_dir: str, steps: int) -> Any:
  """Returns the quickstart's configuration with another method."""
  path = configs.gin_directory() / "adapters" / f"{method}.gin"
  # The recipe sets the learning rate of (IA)3; the method's own shall hold.
  text = path.read_text()
  rate = next(x for x in text.splitlines() if x.startswith("LEARNING_RATE"))
  return configs.resolve(
    ["recipes/quickstart.gin", str(path)],
    [
      f"MODEL_DIR = {model_dir!r}",
      f"TRAIN_STEPS = {steps}",
      f"CHECKPOINT_PERIOD = {steps}",
      "EVAL_FROZEN = False",
      rate,
    ],
  )


def compiled_step(method: str, directory: str) -> tuple[Any, list, int]:
  """Returns the compiled step, its arguments, and its temporary bytes."""
  config = resolve(method, f"{directory}/{method}", 100).config
  mesh = sharding.make_mesh()
  with sharding.use(mesh):
    task = data.get_task(config)
    stream = functools.partial(
      data.train_batches,
      task,
      lengths=config.task_feature_lengths,
      seed=0,
      use=used.of(config, task),
      features=features.of(config, task),
    )
    run = fisher.masked(setup(config, mesh), config, stream(batch_size=1))
    batch = next(stream(batch_size=config.batch_size))
    step = jax.jit(make_train_step(run.model, run.tx))
    arguments = [run.state, run.frozen, jax.device_put(dict(batch))]
    program = step.lower(*arguments).compile()
  memory = program.memory_analysis()
  assert memory is not None
  return program, arguments, memory.temp_size_in_bytes


def time_steps(methods: list[str], rounds: int) -> dict[str, dict[str, float]]:
  """Returns method -> median seconds and temporary bytes, taking turns."""
  with tempfile.TemporaryDirectory() as directory:
    steps = {name: compiled_step(name, directory) for name in methods}
  times: dict[str, list[float]] = {name: [] for name in methods}
  for _ in range(rounds):
    for name, (program, arguments, _) in steps.items():
      start = time.perf_counter()
      jax.block_until_ready(program(*arguments))
      times[name].append(time.perf_counter() - start)
  return {
    name: {
      "step_s": statistics.median(times[name][1:]),
      "temp_bytes": steps[name][2],
    }
    for name in methods
  }


def train(method: str, steps: int) -> dict[str, float]:
  """Trains one method; returns its accuracy and parameters."""
  directory = tempfile.mkdtemp()
  try:
    summary = loop.train(resolve(method, f"{directory}/run", steps))
  finally:
    shutil.rmtree(directory)
  [metrics] = summary.adapted_metrics.values()
  return {
    "accuracy": metrics["accuracy"],
    "trained_parameters": summary.trained_parameters,
    "adapter_bytes": summary.adapter_bytes,
  }


def format_table(rows: dict[str, dict[str, float]]) -> str:
  """Returns the table as Markdown."""
  full = rows[FULL]
  lines = [
    "| method | accuracy | trained parameters | step | memory |",
    "| --- | ---: | ---: | ---: | ---: |",
  ]
  for name, row in rows.items():
    lines.append(
      f"| {name} | {row['accuracy']:.1f} % | {row['trained_parameters']:,} |"
      f" {row['step_s'] / full['step_s']:.2f} |"
      f" {row['temp_bytes'] / full['temp_bytes']:.2f} |"
    )
  return "\n".join(lines)


def main() -> None:
  """Trains, times and prints."""
  parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
  every = configs.names_of("adapters")
  parser.add_argument("--methods", nargs="+", default=every, choices=every)
  parser.add_argument("--steps", type=int, default=200)
  parser.add_argument("--rounds", type=int, default=12)
  parser.add_argument(
    "--json",
    type=pathlib.Path,
    help="where results go; methods that it holds are not trained again",
  )
  args = parser.parse_args()
  methods = list(dict.fromkeys([*args.methods, FULL]))
  rows = {}
  if args.json and args.json.exists():
    rows = json.loads(args.json.read_text())
  for name in methods:
    if "accuracy" in rows.get(name, {}):
      continue  # an earlier call with this file was stopped behind it
    rows[name] = train(name, args.steps)
    print(f"{name}: {rows[name]}", flush=True)
    if args.json:
      args.json.write_text(json.dumps(rows, indent=2) + "\n")
  for name, times in time_steps(methods, args.rounds).items():
    rows[name] |= times
  if args.json:
    args.json.write_text(json.dumps(rows, indent=2) + "\n")
  print(format_table(rows))


if __name__ == "__main__":
  main()
