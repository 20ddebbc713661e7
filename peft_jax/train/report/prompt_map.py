"""A prompt's rows as points on a plane, named after their nearest words."""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from peft_jax.interpret import Plane
from peft_jax.train.report.picture import plain

# Distinct for the colour-blind too; clusters behind the last are grey.
_COLORS = ("#2457c5", "#d1661b", "#17713f", "#8c3fb5", "#b3261e", "#0e7c86")
_GREY = "#7a828b"
_INK = "#1c1f23"


def write_map(
  path: epath.Path,
  title: str,
  plane: Plane,
  rows: np.ndarray,
  names: Sequence[str],
  clusters: Sequence[Sequence[int]],
  start: np.ndarray | None = None,
) -> None:
  """Writes the picture, in the format that the path's ending names.

  Names that would lie on one another are left out, those of clusters last.

  Args:
    path: `.png` or `.svg`.
    title: stands above it.
    plane: what the rows are projected on.
    rows: [P, D] the prompt.
    names: [P] their nearest words.
    clusters: groups of rows, the largest first; each has a colour.
    start: [P, D] where the rows began.

  Raises:
    ValueError: for another ending, or without matplotlib.
  """
  kind = path.suffix.removeprefix(".")
  if kind not in ("png", "svg"):
    raise ValueError(
      f"expected a picture called .png or .svg, found {path.name!r}. Name it"
      " so."
    )
  try:
    from matplotlib import figure
  except ImportError as error:
    raise ValueError(
      "expected matplotlib to draw a picture, found none. Run pip install"
      " matplotlib."
    ) from error
  picture = figure.Figure(figsize=(9, 7), layout="constrained")
  axes = picture.add_subplot()
  axes.set_title(plain(title), loc="left", fontweight="bold")
  # The mark of a word's beginning looks like an underscore far below it.
  names = [name.replace("\u2581", "") or name for name in names]
  points = plane.project(rows)
  colors = [_GREY] * len(rows)
  for group, color in zip(clusters, _COLORS, strict=False):
    for row in group:
      colors[row] = color
  axes.scatter(*points.T, s=26, c=colors, zorder=3, lw=0)
  for group, color in zip(clusters, _COLORS, strict=False):
    shown = plain(f"{len(group)} rows near {names[group[0]]!r}")
    axes.scatter([], [], s=26, c=color, lw=0, label=shown)
  if start is not None:
    _draw_start(axes, points, plane.project(start))
  for i, share in enumerate(plane.shares):
    name = ("first", "second")[i]
    (axes.set_xlabel, axes.set_ylabel)[i](
      f"{name} principal component, {100 * share:.0f} % of the variance"
    )
  axes.margins(0.08)
  axes.grid(color="#e6e9ec", lw=0.8)
  axes.set_axisbelow(True)
  axes.tick_params(color=_GREY, labelcolor=_GREY)
  axes.spines[["top", "right", "left", "bottom"]].set_visible(False)
  if axes.get_legend_handles_labels()[0]:
    picture.legend(loc="outside lower left", ncols=4, frameon=False, fontsize=9)
  _name(picture, axes, points, names, clusters)
  with path.open("wb") as file, warnings.catch_warnings():
    # Of a script that its font lacks, matplotlib draws boxes. So be it.
    warnings.filterwarnings("ignore", message="Glyph")
    picture.savefig(file, format=kind, dpi=150)


def _draw_start(axes: Any, points: np.ndarray, start: np.ndarray) -> None:
  for before, now in zip(start, points, strict=True):
    axes.plot(*zip(before, now, strict=True), color="#c3c9d0", lw=0.7, zorder=1)
  axes.scatter(
    *start.T,
    s=12,
    facecolors="white",
    edgecolors="#9ba4ae",
    lw=0.8,
    zorder=2,
    label="where a row started",
  )


def _name(
  picture: Any,
  axes: Any,
  points: np.ndarray,
  names: Sequence[str],
  clusters: Sequence[Sequence[int]],
) -> None:
  """Writes names beside their points, where there is room."""
  in_clusters = {row for group in clusters for row in group}
  # From the outside in: names there have room, and say most.
  reach = np.linalg.norm(points - points.mean(axis=0), axis=1)
  order = sorted(
    range(len(points)), key=lambda row: (row not in in_clusters, -reach[row])
  )
  picture.draw_without_rendering()
  taken: list[Any] = []
  dots = axes.transData.transform(points)
  for row in order:
    for offset, ha, va in (
      ((5, 3), "left", "bottom"),
      ((-5, 3), "right", "bottom"),
      ((5, -3), "left", "top"),
      ((-5, -3), "right", "top"),
    ):
      label = axes.annotate(
        plain(names[row]),
        points[row],
        xytext=offset,
        textcoords="offset points",
        ha=ha,
        va=va,
        fontsize=8,
        color=_INK,
        zorder=4,
      )
      box = label.get_window_extent()
      covers = ((dots > (box.x0, box.y0)) & (dots < (box.x1, box.y1))).all(
        axis=1
      )
      if not covers.any() and not any(box.overlaps(other) for other in taken):
        taken.append(box)
        break
      label.remove()
