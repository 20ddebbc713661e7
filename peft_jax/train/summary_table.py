"""Finished runs in one table: what their seeds came to, per task and method."""

import csv
import dataclasses
import difflib
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from peft_jax.orbax_io import locate
from peft_jax.train import run_dir
from peft_jax.train.config import ConfigError
from peft_jax.train.report import spread

MARKDOWN_NAME = "summary.md"
TABLE_NAME = "summary.csv"
RUNS_NAME = "runs.csv"
PICTURE_NAME = "summary.png"

# The settings whose values are the seeds: of the run, and of the sample of a
# few-shot task, which the runs of T-Few's protocol change together.
SEED, SAMPLE_SEED = "RANDOM_SEED", "FEW_SHOT_SEED"
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spread:
  """The values of several seeds.

  Attributes:
    median: the middle value.
    q1: the lower quartile; numpy's linear percentile 25, as T-Few's table has
      (scipy.stats.iqr).
    q3: the upper quartile.
    low: the smallest value.
    high: the largest value.
    count: number of values.
  """

  median: float
  q1: float
  q3: float
  low: float
  high: float
  count: int

  @property
  def iqr(self) -> float:
    """The inter-quartile range."""
    return self.q3 - self.q1


def spread_of(values: Sequence[float]) -> Spread:
  """Returns median, quartiles and range.

  Example:
    >>> found = spread_of([60.0, 70.0, 62.0, 61.0])
    >>> found.median, found.q1, found.q3, found.iqr
    (61.5, 60.75, 64.0, 3.25)

  Args:
    values: at least one.
  """
  q1, median, q3 = np.percentile(values, [25, 50, 75]).tolist()
  return Spread(
    median=median,
    q1=q1,
    q3=q3,
    low=float(min(values)),
    high=float(max(values)),
    count=len(values),
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
  """One metric of one method on one task, over the seeds.

  Attributes:
    task: name of the task.
    metric: name of the metric.
    method: name of the method.
    settings: value of each of the table's columns.
    values: seed -> value.
    folders: seed -> folder of the run.
    frozen: of the frozen model; None if the runs did not measure it, or
      differ.
  """

  task: str
  metric: str
  method: str
  settings: Mapping[str, str]
  values: Mapping[str, float]
  folders: Mapping[str, str]
  frozen: float | None

  @property
  def spread(self) -> Spread:
    """Median, quartiles and range."""
    return spread_of(list(self.values.values()))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
  """What is shown of several runs.

  Attributes:
    rows: by task, metric, method and settings.
    columns: settings in which runs of one method on one task differ.
    over: the settings whose values are the seeds.
    runs: number of runs.
    notes: what a reader should know besides.
  """

  rows: Sequence[Row]
  columns: Sequence[str]
  over: Sequence[str]
  runs: int
  notes: Sequence[str]


def collect(
  patterns: Sequence[str],
  *,
  metrics: Sequence[str] = (),
  over: Sequence[str] = (),
  partial: bool = False,
) -> Table:
  """Returns the table of all runs in the given folders.

  Args:
    patterns: runs, folders that hold some (not deeper than three levels, as
      the `seed_0`, `seed_1` of `--seeds`), or patterns with `*` of these.
    metrics: only these, `accuracy` or `rte/accuracy`. Default: all.
    over: settings besides the seed whose values are taken together, such as
      RAFT's `config.Raft.validation_start`. Default: none.
    partial: whether runs that are not finished are left out, and named.

  Raises:
    ConfigError: for a pattern without runs, a run that is not finished, two
      runs of one seed that agree in everything, or an unknown metric or
      setting.
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
  notes = [f"Left out, not finished: {_listed(waiting)}."] if waiting else []
  table = tabulate(
    [read(folder) for folder in finished], over=over, metrics=metrics
  )
  return dataclasses.replace(table, notes=[*notes, *table.notes])


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


def tabulate(
  runs: Sequence[Run],
  *,
  over: Sequence[str] = (),
  metrics: Sequence[str] = (),
) -> Table:
  """Returns the table of some runs, which are told apart by every setting.

  Args:
    runs: at least one.
    over: see `collect`.
    metrics: see `collect`.

  Raises:
    ConfigError: see `collect`.
  """
  samples = {run.settings.get(SAMPLE_SEED) for run in runs}
  varied = [SAMPLE_SEED] if len(samples) > 1 else []
  seeds = tuple(dict.fromkeys([SEED, *varied, *over]))
  _check_settings(seeds, runs)
  pairs = _chosen(runs, metrics)
  columns = _columns(runs, seeds)
  rows = [
    row
    for task, metric in pairs
    for row in _rows(task, metric, runs, seeds, columns)
  ]
  return Table(
    rows=sorted(rows, key=_order),
    columns=columns,
    over=seeds,
    runs=len(runs),
    notes=[*_methods_differ(runs, seeds), *_lone_runs(rows)],
  )


def _order(row: Row) -> tuple:
  """Sorts by name, and by settings: rank 4 comes before rank 16."""
  values = []
  for value in row.settings.values():
    try:
      values.append((0, float(value), ""))
    except ValueError:
      values.append((1, 0.0, value))
  return (row.task, row.metric, row.method, *values)


def _check_settings(names: Sequence[str], runs: Sequence[Run]) -> None:
  known = sorted({name for run in runs for name in run.settings})
  for name in names:
    if name not in known:
      nearest = difflib.get_close_matches(name, known, n=3, cutoff=0.3)
      raise ConfigError(
        f"expected --over with a setting of the runs, found {name!r}. Nearest:"
        f" {', '.join(nearest) or 'none'}."
      )


def _chosen(
  runs: Sequence[Run], metrics: Sequence[str]
) -> list[tuple[str, str]]:
  """Returns (task, metric) of all that is shown."""
  pairs = sorted(
    {
      (task, name)
      for run in runs
      for task, found in run.metrics.items()
      for name in found
    }
  )
  for wanted in metrics:
    if not any(wanted in (name, f"{task}/{name}") for task, name in pairs):
      raise ConfigError(
        "expected --metric to be one of"
        f" {sorted({name for _, name in pairs})}, alone or behind task/, found"
        f" {wanted!r}."
      )
  return [
    (task, name)
    for task, name in pairs
    if not metrics or {name, f"{task}/{name}"} & set(metrics)
  ]


def _tasks(runs: Iterable[Run]) -> list[str]:
  return sorted({task for run in runs for task in run.metrics})


def _groups(
  task: str, runs: Sequence[Run], over: Sequence[str]
) -> list[tuple[str, dict[str, str], list[Run]]]:
  """Returns (method, identity, runs) of runs that differ in `over` alone."""
  found: dict[tuple, tuple[str, dict[str, str], list[Run]]] = {}
  for run in runs:
    if task in run.metrics:
      identity = run.identity(task, over)
      key = (run.method, *sorted(identity.items()))
      found.setdefault(key, (run.method, identity, []))[2].append(run)
  return list(found.values())


def _columns(runs: Sequence[Run], over: Sequence[str]) -> list[str]:
  """Returns the settings in which runs of one method on one task differ."""
  columns: set[str] = set()
  for task in _tasks(runs):
    groups = _groups(task, runs, over)
    for method in {method for method, _, _ in groups}:
      identities = [i for m, i, _ in groups if m == method]
      columns |= _differing(identities)
  # Macros first: they are what a user sets.
  return sorted(columns, key=lambda name: (not name.isupper(), name))


def _differing(found: Sequence[Mapping[str, str]]) -> set[str]:
  names = {name for settings in found for name in settings}
  return {n for n in names if len({settings.get(n) for settings in found}) > 1}


def _rows(
  task: str,
  metric: str,
  runs: Sequence[Run],
  over: Sequence[str],
  columns: Sequence[str],
) -> Iterator[Row]:
  for method, identity, group in _groups(task, runs, over):
    folders: dict[str, str] = {}
    for run in group:
      seed = ", ".join(run.settings.get(name, "") for name in over)
      if seed in folders:
        raise ConfigError(
          f"expected one run of {method} on {task} with {', '.join(over)}"
          f" {seed}, found two that agree in every setting: {folders[seed]} and"
          f" {run.folder}. Leave one of them out."
        )
      folders[seed] = run.folder
    measured = {
      seed: run
      for seed, run in zip(folders, group, strict=True)
      if metric in run.metrics[task]
    }
    if not measured:
      continue
    frozen = {run.frozen.get(task, {}).get(metric) for run in group}
    yield Row(
      task=task,
      metric=metric,
      method=method,
      settings={name: identity.get(name, "") for name in columns},
      values={s: run.metrics[task][metric] for s, run in measured.items()},
      folders={seed: folders[seed] for seed in measured},
      frozen=frozen.pop() if len(frozen) == 1 else None,
    )


def _methods_differ(runs: Sequence[Run], over: Sequence[str]) -> list[str]:
  """Says in which settings the methods differ, beside their adapters."""
  found: dict[str, dict[str, set[str]]] = {}
  for run in runs:
    of_method = found.setdefault(run.method, {})
    for name, value in run.identity("", over).items():
      if name.isupper() and name not in ("ADAPTERS", "MIXTURE_OR_TASK_NAME"):
        of_method.setdefault(name, set()).add(value)
  names = sorted({name for settings in found.values() for name in settings})
  lines = []
  for name in names:
    values = {m: tuple(sorted(s.get(name, ()))) for m, s in found.items()}
    if len(set(values.values())) > 1:
      each = ", ".join(
        f"{m} {' and '.join(v) or 'none'}" for m, v in sorted(values.items())
      )
      lines.append(f"Methods differ in {name}: {each}.")
  return lines


def _lone_runs(rows: Sequence[Row]) -> list[str]:
  """Says where seeds were kept apart by a setting that goes with them."""
  lines = []
  for task, metric, method in sorted(
    {(r.task, r.metric, r.method) for r in rows}
  ):
    same = [
      r for r in rows if (r.task, r.metric, r.method) == (task, metric, method)
    ]
    seeds = {seed for r in same for seed in r.values}
    if len(same) > 1 and len(seeds) == len(same) == sum(
      len(r.values) for r in same
    ):
      differ = sorted(_differing([r.settings for r in same]))
      lines.append(
        f"Each seed of {method} on {task} differs in {', '.join(differ)} too"
        f" and stands alone; --over {differ[0]} takes them together."
      )
  return list(dict.fromkeys(lines))


def header_of(columns: Sequence[str]) -> list[str]:
  """Returns short names of settings, unless two would be the same.

  Example:
    >>> header_of(["LEARNING_RATE", "lora/adapters.LoRA.rank"])
    ['LEARNING_RATE', 'LoRA.rank']
  """
  short = [
    ".".join(name.rsplit("/", 1)[-1].split(".")[-2:]) for name in columns
  ]
  return [
    name if short.count(brief) > 1 else brief
    for name, brief in zip(columns, short, strict=True)
  ]


def to_markdown(table: Table) -> str:
  """Returns the table for reading; values have two decimals."""
  frozen = any(row.frozen is not None for row in table.rows)
  header = [
    "task",
    "metric",
    "method",
    *header_of(table.columns),
    *(["frozen"] if frozen else []),
    "median",
    "IQR",
    "quartiles",
    "range",
    "n",
  ]
  lines = []
  for row in table.rows:
    found = row.spread
    before = "" if row.frozen is None else f"{row.frozen:.2f}"
    lines.append(
      [
        row.task,
        row.metric,
        row.method,
        *row.settings.values(),
        *([before] if frozen else []),
        f"{found.median:.2f}",
        f"{found.iqr:.2f}",
        f"{found.q1:.2f} to {found.q3:.2f}",
        f"{found.low:.2f} to {found.high:.2f}",
        str(found.count),
      ]
    )
  text = [
    f"Median and inter-quartile range of {table.runs} runs, over"
    f" {', '.join(table.over)}.",
    "",
    *_markdown_table(header, lines, numbers=5 + frozen),
  ]
  if table.notes:
    text += ["", *(f"* {note}" for note in table.notes)]
  return "\n".join(text) + "\n"


def _markdown_table(
  header: Sequence[str], lines: Sequence[Sequence[str]], *, numbers: int
) -> list[str]:
  """Returns the lines of a table whose last columns are numbers."""
  cells = [
    [cell.replace("|", r"\|") for cell in line] for line in (header, *lines)
  ]
  widths = [max(3, *map(len, column)) for column in zip(*cells, strict=True)]
  words = len(header) - numbers
  rule = [
    "-" * width if i < words else "-" * (width - 1) + ":"
    for i, width in enumerate(widths)
  ]
  rows = [
    [
      cell.ljust(width) if i < words else cell.rjust(width)
      for i, (cell, width) in enumerate(zip(line, widths, strict=True))
    ]
    for line in cells
  ]
  return [f"| {' | '.join(line)} |" for line in (rows[0], rule, *rows[1:])]


def to_csv(table: Table) -> str:
  """Returns the table for programs, a line for each row, all digits."""
  lines = [
    [
      row.task,
      row.metric,
      row.method,
      *row.settings.values(),
      "" if row.frozen is None else repr(row.frozen),
      *(
        repr(value)
        for value in (
          found.median,
          found.iqr,
          found.q1,
          found.q3,
          found.low,
          found.high,
          found.count,
        )
      ),
    ]
    for row in table.rows
    for found in [row.spread]
  ]
  header = [
    *("task", "metric", "method", *table.columns, "frozen"),
    *("median", "iqr", "q1", "q3", "min", "max", "n"),
  ]
  return _csv([header, *lines])


def runs_to_csv(table: Table) -> str:
  """Returns a line for each run and metric, from which all else follows."""
  header = ["task", "metric", "method", *table.columns, "seed", "value", "run"]
  return _csv(
    [
      header,
      *(
        [
          row.task,
          row.metric,
          row.method,
          *row.settings.values(),
          seed,
          repr(value),
          row.folders[seed],
        ]
        for row in table.rows
        for seed, value in row.values.items()
      ),
    ]
  )


def _csv(lines: Iterable[Sequence[str]]) -> str:
  text = io.StringIO(newline="")
  csv.writer(text, lineterminator="\n").writerows(lines)
  return text.getvalue()


def write(table: Table, directory: str | os.PathLike[str]) -> list[str]:
  """Writes Markdown, two CSV files and a picture; returns their paths.

  Files of these names that are there are replaced.

  Args:
    table: from `collect`.
    directory: made if it is not there.
  """
  folder = locate(directory)
  folder.mkdir(parents=True, exist_ok=True)
  texts = {
    MARKDOWN_NAME: to_markdown(table),
    TABLE_NAME: to_csv(table),
    RUNS_NAME: runs_to_csv(table),
  }
  for name, text in texts.items():
    (folder / name).write_text(text)
  picture = folder / PICTURE_NAME
  picture.unlink(missing_ok=True)  # An older one would be taken for ours.
  spread.write_spread(picture, panels_of(table))
  return [
    str(folder / n) for n in (*texts, PICTURE_NAME) if (folder / n).exists()
  ]


def panels_of(table: Table) -> list[spread.Panel]:
  """Returns what the picture shows: a panel for each task and metric."""
  header = header_of(table.columns)
  panels: dict[tuple[str, str], list[Row]] = {}
  for row in table.rows:
    panels.setdefault((row.task, row.metric), []).append(row)
  return [
    spread.Panel(
      name=f"{task}/{metric}",
      lines=[_line(row, header, rows) for row in rows],
    )
    for (task, metric), rows in panels.items()
  ]


def _line(row: Row, header: Sequence[str], rows: Sequence[Row]) -> spread.Line:
  """Returns a row as drawn, named after what tells it apart in its panel."""
  same = [r.settings for r in rows if r.method == row.method]
  differ = _differing(same)
  parts = [
    f"{brief} {value}"
    for brief, (name, value) in zip(header, row.settings.items(), strict=True)
    if name in differ
  ]
  found = row.spread
  return spread.Line(
    name=row.method,
    detail=", ".join(parts),
    values=list(row.values.values()),
    median=found.median,
    quartiles=(found.q1, found.q3),
    frozen=row.frozen,
  )
