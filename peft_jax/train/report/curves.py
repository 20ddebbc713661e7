"""What is drawn: curves, thinned and smoothed, their ranges and ticks."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from peft_jax.train.report.contents import Report
from peft_jax.train.report.values import format_title, format_value, is_percent

SHOWN_POINTS = 240
SHOWN_CURVES = 12


@dataclasses.dataclass(frozen=True, kw_only=True)
class Curve:
  """One line to draw: finite (step, value) points, at least two."""

  name: str
  title: str
  points: Sequence[tuple[int, float]]
  baseline: float | None  # The frozen model's value.
  broken_steps: Sequence[int]  # Where the value was NaN or infinite.

  def steps(self) -> tuple[int, int]:
    """The steps to draw: from 0, unless the run began far from it."""
    first, last = self.points[0][0], self.points[-1][0]
    return (0 if first < 0.25 * last else first), last

  def warning(self) -> str:
    """Says that some values could not be drawn; empty if all were."""
    if not self.broken_steps:
      return ""
    count, first = len(self.broken_steps), self.broken_steps[0]
    times = "once, at" if count == 1 else f"{count} times, first at"
    return f"NaN or infinite {times} step {first:,}"

  def text(self) -> str:
    """What the picture says, for those who do not see it."""
    (first, start), (last, end) = self.points[0], self.points[-1]
    said = (
      f"{self.title}: {format_value(self.name, start)} at step {first:,},"
      f" {format_value(self.name, end)} at step {last:,}"
    )
    if self.baseline is not None:
      said += f"; frozen model {format_value(self.name, self.baseline)}"
    return said


def curves_of(report: Report) -> list[Curve]:
  """The training loss and every evaluation metric that has two points."""
  evaluated = dict.fromkeys(
    name
    for record in report.metrics
    if record["kind"] == "eval"
    for name in record
    if name not in ("step", "kind", "time_s")
  )
  baselines = {
    f"{task}/{name}": value
    for task, metrics in report.frozen_metrics.items()
    for name, value in metrics.items()
  }
  curves = []
  for kind, name in [
    ("train", "loss"),
    *(("eval", name) for name in evaluated),
  ]:
    points = points_of(report.metrics, kind, name)
    finite = [(step, value) for step, value in points if math.isfinite(value)]
    if not finite or finite[0][0] == finite[-1][0]:
      continue  # One point is no curve.
    baseline = baselines.get(name) if kind == "eval" else None
    if baseline is not None and not math.isfinite(baseline):
      baseline = None
    curves.append(
      Curve(
        name=name,
        title="Training loss" if kind == "train" else format_title(name),
        points=finite,
        baseline=baseline,
        broken_steps=[s for s, value in points if not math.isfinite(value)],
      )
    )
  return curves


def points_of(
  metrics: Sequence[Mapping[str, Any]], kind: str, name: str
) -> list[tuple[int, float]]:
  """Returns (step, value) of all records that have the value."""
  return [
    (record["step"], record[name])
    for record in metrics
    if record["kind"] == kind and isinstance(record.get(name), int | float)
  ]


def thinned(
  points: Sequence[tuple[int, float]],
) -> Sequence[tuple[float, float]]:
  """Averages neighbours until the points are as many as can be told apart."""
  size = math.ceil(len(points) / SHOWN_POINTS)
  groups = [points[i : i + size] for i in range(0, len(points), size)]
  return [
    (
      sum(step for step, _ in group) / len(group),
      sum(value for _, value in group) / len(group),
    )
    for group in groups
  ]


def smoothed(
  points: Sequence[tuple[float, float]],
) -> Sequence[tuple[float, float]] | None:
  """The trend of a noisy curve; None for one with too few points for noise."""
  if len(points) < 40:
    return None
  reach = max(len(points) // 40, 2)
  smooth = []
  for i, (step, _) in enumerate(points):
    # The same number on both sides, so that the ends do not bend.
    side = min(reach, i, len(points) - 1 - i)
    near = points[i - side : i + side + 1]
    smooth.append((step, sum(value for _, value in near) / len(near)))
  return smooth


def value_range(curve: Curve) -> tuple[float, float]:
  """Returns the lowest and the highest value of the axis."""
  values = [value for _, value in curve.points]
  if curve.baseline is not None:
    values.append(curve.baseline)
  low, high = min(values), max(values)
  if is_percent(curve.name) and low >= 0 and high <= 100:
    return 0.0, 100.0
  if low >= 0 and low < 0.5 * high:
    low = 0.0
  margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
  # The baseline's name stands above its line.
  above = 3 * margin if curve.baseline == high else margin
  return (low - margin if low else 0.0), high + above


def ticks(low: float, high: float, count: int) -> list[float]:
  """About `count` round numbers between low and high."""
  rough = (high - low) / count
  size = 10.0 ** math.floor(math.log10(rough))
  step = next(size * f for f in (1, 2, 2.5, 5, 10) if size * f >= rough * 0.999)
  first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
  return [i * step for i in range(first, last + 1)]
