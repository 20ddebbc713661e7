"""A run's folder: whose it is, and what is in it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from peft_jax.orbax_io import locate
from peft_jax.train import checkpoints
from peft_jax.train.config import ConfigError, Resolved

SETTINGS = "settings.json"
GIN = "config.gin"
SUMMARY = "summary.json"
PREDICTIONS = "predictions"


def check(resolved: Resolved) -> bool:
  """Returns whether the folder holds this very run, to be resumed.

  Raises:
    ConfigError: if it holds another run, or other files.
  """
  folder = locate(resolved.config.model_dir)
  if not folder.exists() or not any(folder.iterdir()):
    return False
  path = folder / SETTINGS
  if not path.is_file():
    raise ConfigError(
      f"expected a new folder or a run of ours at {folder}, found other files"
      f" ({sorted(p.name for p in folder.iterdir())[:3]}). Choose another"
      " --model_dir."
    )
  found = json.loads(path.read_text())
  wanted = resolved.fixed_settings
  differ = sorted(
    name
    for name in found.keys() | wanted.keys()
    if found.get(name) != wanted.get(name)
  )
  if differ:
    name = differ[0]
    raise ConfigError(
      f"expected the settings of the run in {folder}, found {len(differ)} that"
      f" differ (first {name}: {found.get(name)} there, {wanted.get(name)}"
      " here). Choose another --model_dir; --warm_start takes weights over."
    )
  return bool(checkpoints.steps_of(folder))


def create(resolved: Resolved) -> None:
  """Makes the folder and writes what the run was told."""
  folder = locate(resolved.config.model_dir)
  folder.mkdir(parents=True, exist_ok=True)
  write_json(folder / SETTINGS, resolved.fixed_settings)
  (folder / GIN).write_text(resolved.gin_text)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
  """Writes a JSON file whole or not at all."""
  partial = path.with_suffix(".partial")
  partial.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")
  partial.replace(path)


def write_predictions(
  model_dir: str | Path, task: str, rows: Sequence[Mapping[str, Any]]
) -> None:
  """Writes one JSON line per evaluated example."""
  folder = locate(model_dir) / PREDICTIONS
  folder.mkdir(parents=True, exist_ok=True)
  lines = [json.dumps(row, default=str, ensure_ascii=False) for row in rows]
  (folder / f"{task}.jsonl").write_text("\n".join(lines) + "\n")
