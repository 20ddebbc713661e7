"""Finished runs: which there are in some folders, and what they wrote."""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from peft_jax.orbax_io import locate
from peft_jax.train import run_dir
from peft_jax.train.config import ConfigError

SEED = "RANDOM_SEED"
# Settings that no result depends on; of two a result depends with PATIENCE.
_IDLE = (
  "MODEL_DIR",
  "METHOD",
  "EVAL_BATCH_SIZE",
  "EVAL_FROZEN",
  "CHECKPOINT_PERIOD",
  "KEEP",
  "LOG_PERIOD",
  "MODEL_PARALLEL",
)
_IDLE_WITHOUT_PATIENCE = ("EVAL_PERIOD", "BEST_METRIC")
# Not a setting, but results over other examples are other results.
_EXAMPLES = "evaluated examples"
# Levels below a given folder on which runs are looked for.
_DEPTH = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
  """What is known of a finished run.

  Attributes:
    folder: where it is.
    method: name of the adapter or recipe, see `config.Config.method`.
    settings: setting -> value, as text.
    metrics: task -> metric -> value.
    frozen: the same of the frozen model; empty if not measured.
    examples: task -> number of examples that were evaluated.
  """

  folder: str
  method: str
  settings: Mapping[str, str]
  metrics: Mapping[str, Mapping[str, float]]
  frozen: Mapping[str, Mapping[str, float]]
  examples: Mapping[str, int]

  def identity(self, task: str, over: Sequence[str]) -> dict[str, str]:
    """Returns all that must agree for two runs to be seeds of one another."""
    found = {k: v for k, v in self.settings.items() if k not in over}
    return {**found, _EXAMPLES: str(self.examples.get(task, ""))}


def gather(
  patterns: Sequence[str], *, partial: bool = False
) -> tuple[list[Run], str]:
  """Returns the finished runs, and a note of those that are left out.

  Args:
    patterns: see `summary_table.collect`.
    partial: whether runs that are not finished are left out.

  Raises:
    ConfigError: for a pattern without runs, or a run that is not finished.
  """
  found = [folder for pattern in patterns for folder in find(pattern)]
  folders = list(dict.fromkeys(found))
  reasons = {folder: unfinished(folder) for folder in folders}
  waiting = {folder: why for folder, why in reasons.items() if why}
  if waiting and not partial:
    raise ConfigError(
      f"expected finished runs, found {len(waiting)} of {len(folders)} that"
      f" are not: {_listed(waiting)}. Finish them by the command that began"
      " them, or leave them out with --partial."
    )
  finished = [folder for folder in folders if folder not in waiting]
  if not finished:
    raise ConfigError(
      f"expected finished runs, found none: {_listed(waiting)}. Finish one."
    )
  note = f"Left out, not finished: {_listed(waiting)}." if waiting else ""
  return [read(folder) for folder in finished], note


def _listed(reasons: Mapping[str, str]) -> str:
  return "; ".join(f"{folder} ({why})" for folder, why in reasons.items())


def find(pattern: str) -> list[str]:
  """Returns the folders of the runs that a pattern names, in order.

  Raises:
    ConfigError: if it names none.
  """
  parts = pattern.split("/")
  fixed = [bool(set(part) & set("*?[")) for part in parts]
  if any(fixed):
    first = fixed.index(True)
    root = locate(
      "/".join(parts[:first]) or ("/" if pattern[0] == "/" else ".")
    )
    places = sorted(root.glob("/".join(parts[first:])))
  else:
    places = [locate(pattern)]
  found = [str(run) for place in places for run in _runs_in(place, _DEPTH)]
  if not found:
    raise ConfigError(
      f"expected a run, or a folder with runs, at {pattern}, found none. Give"
      " the folder that --model_dir named."
    )
  return found


def _runs_in(folder: Any, depth: int) -> Iterator[Any]:
  names = (run_dir.SETTINGS, run_dir.SUMMARY)
  if any((folder / name).is_file() for name in names):
    yield folder
  elif depth and folder.is_dir():
    for below in sorted(folder.iterdir()):
      yield from _runs_in(below, depth - 1)


def unfinished(folder: str) -> str:
  """Returns why a run is not finished; empty if it is."""
  if not (locate(folder) / run_dir.SUMMARY).is_file():
    return f"no {run_dir.SUMMARY}"
  summary = _json(folder, run_dir.SUMMARY)
  steps, settings = summary["steps"], summary.get("settings", {})
  wanted = int(settings.get("TRAIN_STEPS", steps))
  stops = _is_patient(settings)
  return f"{steps} of {wanted} steps" if steps < wanted and not stops else ""


def _is_patient(settings: Mapping[str, str]) -> bool:
  """Whether a run may end before its last step."""
  return settings.get("PATIENCE", "0") != "0"


def read(folder: str) -> Run:
  """Returns what a finished run wrote.

  Raises:
    ConfigError: if it wrote no metric, or an earlier version wrote it.
  """
  summary = _json(folder, run_dir.SUMMARY)
  wanted = ("method", "random_seed", "examples", "settings")
  missing = [name for name in wanted if name not in summary]
  if missing:
    raise ConfigError(
      f"{folder}/{run_dir.SUMMARY}: expected {', '.join(missing)}, found none:"
      " an earlier version wrote it. Give the run's command once more; it only"
      " evaluates and writes anew."
    )
  if not any(summary["adapted_metrics"].values()):
    raise ConfigError(
      f"{folder}: expected at least one metric, found none: its examples have"
      " no labels. Leave this run out."
    )
  settings = summary["settings"]
  return Run(
    folder=folder,
    method=summary["method"],
    settings={**_that_matter(settings), SEED: str(summary["random_seed"])},
    metrics=summary["adapted_metrics"],
    frozen=summary["frozen_metrics"],
    examples=summary["examples"],
  )


def _that_matter(settings: Mapping[str, str]) -> dict[str, str]:
  idle = _IDLE if _is_patient(settings) else (*_IDLE, *_IDLE_WITHOUT_PATIENCE)
  return {name: v for name, v in settings.items() if name not in idle}


def _json(folder: str, name: str) -> dict[str, Any]:
  path = locate(folder) / name
  try:
    found = json.loads(path.read_text())
  except (OSError, ValueError) as error:
    raise ConfigError(
      f"expected the JSON file {path} of a run, found {type(error).__name__}:"
      f" {error}. Give the run's command once more, or leave it out."
    ) from error
  return found
