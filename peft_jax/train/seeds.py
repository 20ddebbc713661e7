"""One configuration trained with several seeds, one run after the other."""

import contextlib
import dataclasses
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
from jax.experimental.compilation_cache import compilation_cache

from peft_jax.orbax_io import locate
from peft_jax.train import finished_runs, loop, run_dir
from peft_jax.train.config import ConfigError, Resolved
from peft_jax.train.hosts import ALONE, Hosts
from peft_jax.train.loop import Summary
from peft_jax.train.summary_table import spread_of


def parse(text: str) -> tuple[int, ...]:
  """Returns the seeds of a list such as '0,1,2'.

  Example:
    >>> parse("0,1,2")
    (0, 1, 2)

  Raises:
    ConfigError: for what is no list of different whole numbers from 0 on.
  """
  parts = [part.strip() for part in text.split(",")]
  if not all(part.isdecimal() for part in parts):
    raise ConfigError(
      f"expected seeds as whole numbers from 0 on, with commas between, found"
      f" {text!r}. Write --seeds 0,1,2."
    )
  seeds = tuple(map(int, parts))
  twice = sorted({seed for seed in seeds if seeds.count(seed) > 1})
  if twice:
    raise ConfigError(
      f"expected different seeds, found {twice} more than once: their runs"
      " would be the same. Name each once."
    )
  return seeds


def folder_of(model_dir: str, seed: int) -> str:
  """Returns the folder of one seed's run.

  Example:
    >>> folder_of("runs/rte", 3)
    'runs/rte/seed_3'
  """
  return f"{model_dir.rstrip('/')}/seed_{seed}"


def bindings_of(model_dir: str, seed: int) -> list[str]:
  """Returns the gin bindings that make a configuration that of one seed.

  Example:
    >>> bindings_of("runs/rte", 3)
    ['RANDOM_SEED = 3', "MODEL_DIR = 'runs/rte/seed_3'"]
  """
  return [
    f"RANDOM_SEED = {seed}",
    f"MODEL_DIR = {folder_of(model_dir, seed)!r}",
  ]


def train(
  model_dir: str,
  seeds: Sequence[int],
  resolve: Callable[[int], Resolved],
  processes: Hosts = ALONE,
) -> dict[int, Summary]:
  """Trains one run per seed; the same call again goes on where it stopped.

  A run that is finished is not touched again.

  Args:
    model_dir: the folder that holds the runs, `seed_0` and so on.
    seeds: see `parse`.
    resolve: seed -> its configuration.
    processes: of these runs, from `hosts.join`.

  Returns:
    seed -> what its run came to.

  Raises:
    ConfigError: if a folder is another run's, before any run starts.
    SystemExit: as `loop.train`.
  """
  if (locate(model_dir) / run_dir.SETTINGS).is_file():
    raise ConfigError(
      f"expected a folder for the runs of several seeds, found a run in"
      f" {model_dir}. Choose another --model_dir."
    )
  runs = {seed: resolve(seed) for seed in seeds}
  begun = {seed: run_dir.check(run) for seed, run in runs.items()}
  done: dict[int, Summary] = {}
  with _shared_programs():
    for seed, run in runs.items():
      finished = _finished(run) if begun[seed] else None
      if finished is not None:
        loop.note(f"seed {seed}: finished before, in {run.config.model_dir}")
      else:
        loop.note(f"seed {seed}: {run.config.model_dir}")
      done[seed] = finished or loop.train(run, processes)
  return done


def _finished(run: Resolved) -> Summary | None:
  """Returns what a run came to that has ended; None of one that goes on."""
  folder = run.config.model_dir
  if finished_runs.unfinished(folder):
    return None
  values = json.loads((locate(folder) / run_dir.SUMMARY).read_text())
  names = [field.name for field in dataclasses.fields(Summary)]
  return Summary(**{name: values[name] for name in names})


@contextlib.contextmanager
def _shared_programs() -> Iterator[None]:
  """Lets each run take over what those before it have compiled."""
  name = "jax_compilation_cache_dir"
  if getattr(jax.config, name):
    yield
    return
  with tempfile.TemporaryDirectory() as folder:
    # JAX looks for the folder once.
    compilation_cache.reset_cache()
    jax.config.update(name, folder)
    try:
      yield
    finally:
      jax.config.update(name, None)
      compilation_cache.reset_cache()


def format_spread(summaries: Mapping[int, Summary]) -> str:
  """Returns a line per metric: median, quartiles and the value of each seed.

  Example:
    >>> of = lambda value: Summary(steps=1, frozen_metrics={},
    ...   adapted_metrics={"rte": {"accuracy": value}}, trained_parameters=1,
    ...   backbone_parameters=1, adapter_bytes=4, seconds=1.0)
    >>> print(format_spread({0: of(60.0), 1: of(70.0), 4: of(62.0)}))
    rte accuracy: median 62.00, quartiles 61.00 to 66.00 (seed 0 60.00, seed 1 \
70.00, seed 4 62.00)
  """
  values: dict[str, dict[int, float]] = {}
  for seed, summary in summaries.items():
    for task, metrics in summary.adapted_metrics.items():
      for name, value in metrics.items():
        values.setdefault(f"{task} {name}", {})[seed] = value
  lines = []
  for name, found in values.items():
    each = ", ".join(
      f"seed {seed} {value:.2f}" for seed, value in found.items()
    )
    spread = spread_of(list(found.values()))
    lines.append(
      f"{name}: median {spread.median:.2f}, quartiles {spread.q1:.2f} to"
      f" {spread.q3:.2f} ({each})"
    )
  return "\n".join(lines)
