"""Finished runs in one table: what their seeds came to, per task and method."""

import dataclasses
import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from peft_jax.train.config import ConfigError
from peft_jax.train.finished_runs import SEED, Run, gather

# Beside the run's own, the seed of a few-shot task's sample: T-Few's protocol
# changes both from run to run.
SAMPLE_SEED = "FEW_SHOT_SEED"


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
  runs, note = gather(patterns, partial=partial)
  table = tabulate(runs, over=over, metrics=metrics)
  notes = [note] if note else []
  return dataclasses.replace(table, notes=[*notes, *table.notes])


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
      columns |= differing(identities)
  # Macros first: they are what a user sets.
  return sorted(columns, key=lambda name: (not name.isupper(), name))


def differing(found: Sequence[Mapping[str, str]]) -> set[str]:
  """Returns the names of the settings whose values are not all the same."""
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
      differ = sorted(differing([r.settings for r in same]))
      lines.append(
        f"Each seed of {method} on {task} differs in {', '.join(differ)} too"
        f" and stands alone; --over {differ[0]} takes them together."
      )
  return list(dict.fromkeys(lines))
