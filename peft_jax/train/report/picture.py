"""The curves as a PNG."""

import math
import warnings
from collections.abc import Sequence
from typing import Any

from etils import epath

from peft_jax.train.report.contents import REPORT_NAME
from peft_jax.train.report.curves import (
  SHOWN_CURVES,
  SHOWN_POINTS,
  Curve,
  smoothed,
  thinned,
  value_range,
)
from peft_jax.train.report.values import UNREADABLE, format_value


def write_picture(
  path: epath.Path, title: str, curves: Sequence[Curve]
) -> None:
  """Writes the picture, or warns that matplotlib is not there to draw it."""
  try:
    from matplotlib import figure
  except ImportError:
    warnings.warn(
      f"matplotlib is not installed, so {path.name} is not written"
      f" ({REPORT_NAME} has the curves): pip install matplotlib to have it",
      stacklevel=3,
    )
    return
  curves = curves[:SHOWN_CURVES]
  columns = min(len(curves), 2)
  rows = math.ceil(len(curves) / columns)
  # A Figure of its own leaves pyplot, and the caller's backend, alone.
  picture = figure.Figure(
    figsize=(5.2 * columns, 0.5 + 3.2 * rows), layout="constrained"
  )
  picture.suptitle(plain(title), x=0.01, ha="left", fontweight="bold")
  for i, curve in enumerate(curves):
    _draw_curve(picture.add_subplot(rows, columns, i + 1), curve)
  with path.open("wb") as file, warnings.catch_warnings():
    # Of a script that its font lacks, matplotlib draws boxes. So be it.
    warnings.filterwarnings("ignore", message="Glyph")
    picture.savefig(file, format="png", dpi=150)


def _draw_curve(axes: Any, curve: Curve) -> None:
  points = thinned(curve.points)
  smooth = smoothed(points)
  if smooth:
    axes.plot(*zip(*points, strict=True), color="#2457c5", alpha=0.25, lw=1)
  axes.plot(*zip(*(smooth or points), strict=True), color="#2457c5", lw=2)
  if curve.baseline is not None:
    axes.axhline(curve.baseline, color="#5c636b", ls="--", lw=1)
    axes.annotate(
      "frozen",
      (1, curve.baseline),
      xycoords=("axes fraction", "data"),
      xytext=(-2, 3),
      textcoords="offset points",
      ha="right",
      color="#5c636b",
    )
  start, end = curve.steps()
  for step in curve.broken_steps[:SHOWN_POINTS]:
    if start <= step <= end:
      axes.axvline(step, color="#b3261e", lw=1)
  axes.set_xlim(start, end)
  axes.set_ylim(*value_range(curve))
  axes.set_title(plain(curve.title), loc="left", fontsize="medium")
  axes.set_title(
    plain(format_value(curve.name, curve.points[-1][1])),
    loc="right",
    fontsize="medium",
  )
  axes.xaxis.get_major_locator().set_params(integer=True)
  axes.set_xlabel("step")
  if curve.broken_steps:
    axes.set_xlabel(curve.warning(), color="#b3261e")
  axes.grid(axis="y", color="#d8dce0", lw=0.8)
  axes.spines[["top", "right", "left"]].set_visible(False)


def plain(text: str) -> str:
  """Keeps matplotlib from reading formulas between dollar signs."""
  return UNREADABLE.sub("", text).replace("$", r"\$")
