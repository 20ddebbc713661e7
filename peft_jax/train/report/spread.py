"""The values of several seeds as dots, their median and quartiles as bars."""

import dataclasses
import math
import textwrap
import warnings
from collections.abc import Sequence
from typing import Any

from peft_jax.train.report.values import UNREADABLE, format_title, is_percent

# The report's colours: see style.py.
_ACCENT, _MUTED, _GRID = "#2457c5", "#5c636b", "#d8dce0"
# Characters of a name on one line.
_WIDTH = 34
_COLUMNS = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line:
  """The seeds of one method.

  Attributes:
    name: of the method.
    detail: the settings that tell it from others of its name, or nothing.
    values: one of each seed.
    median: of them.
    quartiles: the lower and the upper one.
    frozen: of the frozen model, if it was measured.
  """

  name: str
  detail: str
  values: Sequence[float]
  median: float
  quartiles: tuple[float, float]
  frozen: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Panel:
  """One metric of one task.

  Attributes:
    name: task/metric.
    lines: from top to bottom.
  """

  name: str
  lines: Sequence[Line]


def write_spread(path: Any, panels: Sequence[Panel]) -> None:
  """Writes the picture, or warns that matplotlib is not there to draw it.

  Args:
    path: the PNG file, a path of pathlib or epath.
    panels: one or more.
  """
  try:
    from matplotlib import figure
  except ImportError:
    warnings.warn(
      f"matplotlib is not installed, so {path.name} is not written: pip install"
      " matplotlib to have it",
      stacklevel=3,
    )
    return
  columns = min(len(panels), _COLUMNS)
  rows = math.ceil(len(panels) / columns)
  heights = [
    max(_height(panel) for panel in panels[i : i + columns])
    for i in range(0, len(panels), columns)
  ]
  picture = figure.Figure(
    figsize=(1.2 + 4.2 * columns, sum(heights) + 0.4), layout="constrained"
  )
  grid = picture.add_gridspec(rows, columns, height_ratios=heights)
  for i, panel in enumerate(panels):
    # A row of panels shares its names where all have the same.
    row = panels[i - i % columns : i + 1]
    shared = i % columns > 0 and _names(row[0]) == _names(panel)
    _draw(picture.add_subplot(grid[i // columns, i % columns]), panel, shared)
  picture.supxlabel(
    "dots: seeds; bar: median; band: quartiles"
    + ("; dashes: frozen model" if _has_frozen(panels) else ""),
    color=_MUTED,
    fontsize="small",
  )
  with path.open("wb") as file, warnings.catch_warnings():
    # Of a script that its font lacks, matplotlib draws boxes. So be it.
    warnings.filterwarnings("ignore", message="Glyph")
    picture.savefig(file, format="png", dpi=150)


def _height(panel: Panel) -> float:
  lines = [_names(panel)[i].count("\n") for i in range(len(panel.lines))]
  return 1.0 + sum(0.36 + 0.14 * extra for extra in lines)


def _names(panel: Panel) -> list[str]:
  """Returns what stands beside the lines, in short pieces."""
  return [
    "\n".join(
      [
        _plain(line.name),
        *textwrap.wrap(_plain(line.detail), _WIDTH, break_on_hyphens=False),
      ]
    )
    for line in panel.lines
  ]


def _has_frozen(panels: Sequence[Panel]) -> bool:
  return any(_frozen(panel) is not None for panel in panels)


def _frozen(panel: Panel) -> float | None:
  """Returns the frozen model's value, if all lines have the same."""
  found = {line.frozen for line in panel.lines}
  return found.pop() if len(found) == 1 else None


def _draw(axes: Any, panel: Panel, shared: bool) -> None:
  frozen = _frozen(panel)
  if frozen is not None:
    axes.axvline(frozen, color=_MUTED, ls="--", lw=1, zorder=1)
  for y, line in enumerate(panel.lines):
    axes.plot(
      line.quartiles,
      (y, y),
      color=_ACCENT,
      alpha=0.22,
      lw=9,
      zorder=2,
      solid_capstyle="butt",
    )
    axes.plot(
      line.values,
      [y] * len(line.values),
      "o",
      color=_ACCENT,
      ms=5,
      alpha=0.65,
      mew=0,
      zorder=3,
    )
    axes.plot(
      (line.median,) * 2,
      (y - 0.28, y + 0.28),
      color="#1c1f23",
      lw=2,
      zorder=4,
      solid_capstyle="butt",
    )
    axes.annotate(
      _number(panel, line.median),
      (line.median, y - 0.28),
      xytext=(0, 1),
      textcoords="offset points",
      ha="center",
      va="bottom",
      fontsize="small",
    )
  axes.set_ylim(len(panel.lines) - 0.5, -0.75)
  axes.set_yticks(
    range(len(panel.lines)), [] if shared else _names(panel), fontsize="small"
  )
  axes.margins(x=0.08)
  _whole(axes, panel, frozen)
  task, _, metric = panel.name.rpartition("/")
  unit = ", %" if is_percent(metric) else ""
  # Names of tasks are long, and the title's place ends with the panel.
  axes.set_title(_plain(task), loc="left", fontsize="medium")
  axes.set_xlabel(
    _plain(format_title(metric) + unit), color=_MUTED, fontsize="small"
  )
  axes.tick_params(axis="y", length=0)
  axes.tick_params(axis="x", color=_MUTED, labelcolor=_MUTED, labelsize="small")
  axes.grid(axis="x", color=_GRID, lw=0.8)
  axes.set_axisbelow(True)
  axes.spines[["top", "right", "left"]].set_visible(False)


def _number(panel: Panel, value: float) -> str:
  return f"{value:.1f}" if is_percent(panel.name) else f"{value:.4g}"


def _whole(axes: Any, panel: Panel, frozen: float | None) -> None:
  """Leaves room where all values are one: matplotlib would show 1e-14."""
  values = [value for line in panel.lines for value in line.values]
  values += [] if frozen is None else [frozen]
  if max(values) - min(values) < 1e-6 * max(1.0, abs(max(values))):
    axes.set_xlim(values[0] - 1, values[0] + 1)


def _plain(text: str) -> str:
  """Keeps matplotlib from reading formulas between dollar signs."""
  return UNREADABLE.sub("", text).replace("$", r"\$")
