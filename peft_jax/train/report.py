"""Writes what a run did as one page a person can read, keep and send.

``report.html`` needs nothing but itself: no scripts, no fonts, no links, and a
content policy that forbids the browser to fetch any. ``curves.png`` has the
same curves for a slide or a chat. Whatever a run did not measure is left out.
"""

from __future__ import annotations

import dataclasses
import html
import math
import os
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from etils import epath

from peft_jax.partition import RuleRow
from peft_jax.train import progress

REPORT_NAME = "report.html"
CURVES_NAME = "curves.png"

# These are percentages (0 to 100), the convention of the T5 task metrics.
_PERCENTS = frozenset(
  ["accuracy", "em", "exact_match", "f1", "sequence_accuracy"]
)
_SHOWN_POINTS = 240
_SHOWN_CURVES = 12
_SHOWN_EXAMPLES = 50
_LONG_TEXT = 360
_UNREADABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
  """Everything the report shows. Empty parts are left out of the page.

  Attributes:
    title: the run in a few words.
    method: the adaptation method, for example ``"(IA)3"``.
    rules: the rule table.
    trained_parameters: how many numbers were trained.
    backbone_parameters: how many numbers the frozen backbone has.
    adapter_bytes: the size of the saved adapter.
    optimizer_bytes: the size of the optimizer's state.
    seconds: how long the run took, in seconds.
    settings: name -> value of what the run was told.
    environment: name -> value of versions, devices and the like.
    metrics: the records of ``logs.read_metrics``.
    frozen_metrics: task -> {metric -> value} of the backbone alone.
    adapted_metrics: the same with the trained adapter. Accuracies are
      percentages from 0 to 100.
    examples: dictionaries with ``input``, ``target``, ``adapted_prediction``
      and perhaps ``frozen_prediction``. A prediction counts as right if it is
      the target, spaces around it aside, unless ``adapted_correct`` or
      ``frozen_correct`` says otherwise.
  """

  title: str
  method: str
  rules: Sequence[RuleRow]
  trained_parameters: int
  backbone_parameters: int
  adapter_bytes: int
  optimizer_bytes: int
  seconds: float
  settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  environment: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  metrics: Sequence[Mapping[str, Any]] = ()
  frozen_metrics: Mapping[str, Mapping[str, float]] = dataclasses.field(
    default_factory=dict
  )
  adapted_metrics: Mapping[str, Mapping[str, float]] = dataclasses.field(
    default_factory=dict
  )
  examples: Sequence[Mapping[str, Any]] = ()


def write_report(
  directory: os.PathLike[str] | str, report: Report
) -> epath.Path:
  """Writes ``report.html`` and ``curves.png`` into a run's folder.

  Example::

    page = write_report("runs/rte", Report(title="RTE, T5-large", ...))
    print(f"report: {page}")

  Args:
    directory: the folder; it is made if it is not there.
    report: what to show.

  Returns:
    The path of the page. The picture is only written if at least one curve has
    two points, and if matplotlib is installed (a warning says so otherwise).
  """
  folder = epath.Path(directory)
  folder.mkdir(parents=True, exist_ok=True)
  curves = _curves(report)
  picture = folder / CURVES_NAME
  picture.unlink(missing_ok=True)  # An older run's would be taken for ours.
  if curves:
    _write_picture(picture, report.title, curves)
  page = folder / REPORT_NAME
  page.write_bytes(_page(report, curves).encode())
  return page


# The page.


class _Html(str):
  """Text that is HTML already; every other text is escaped on its way in."""

  __slots__ = ()


def _element(tag: str, *children: str, **attributes: Any) -> _Html:
  """``_element("td", text, class_="n")`` is ``<td class="n">text</td>``."""
  written = "".join(
    f' {name.rstrip("_").replace("_", "-")}="{_escape(value)}"'
    for name, value in attributes.items()
    if value is not None
  )
  return _Html(f"<{tag}{written}>{_join(children)}</{tag}>")


def _join(parts: Iterable[str]) -> _Html:
  return _Html(
    "".join(
      part if isinstance(part, _Html) else _escape(part) for part in parts
    )
  )


def _escape(value: Any) -> str:
  # What no browser can show, and half surrogates, which UTF-8 cannot hold.
  return html.escape(_UNREADABLE.sub("\N{REPLACEMENT CHARACTER}", str(value)))


def _page(report: Report, curves: Sequence[_Curve]) -> str:
  sections = [
    _headline(report),
    _section("Results", _results(report)),
    _section("Curves", _charts(curves)),
    _section("Predictions", _examples(report.examples)),
    _section("What was trained", _trained(report)),
    _section("Settings", _named_values(report.settings)),
    _section("Environment", _named_values(report.environment)),
  ]
  return _PAGE.format(
    title=_escape(report.title), style=_STYLE, body=_join(sections)
  )


def _section(title: str, *content: str) -> _Html:
  if not any(content):
    return _Html()
  return _element("section", _element("h2", title), *content)


def _headline(report: Report) -> _Html:
  tiles = [
    _result_tile(report),
    _tile(
      "Trained",
      _share(report.trained_parameters, report.backbone_parameters),
      f"{report.trained_parameters:,} parameters beside"
      f" {progress.format_count(report.backbone_parameters)} frozen ones",
    ),
    _tile(
      "Adapter",
      _size(report.adapter_bytes),
      f"and {_size(report.optimizer_bytes)} of optimizer state",
    ),
    _tile("Time", progress.format_duration(report.seconds), _steps(report)),
  ]
  return _element(
    "header",
    _element("p", report.method, class_="method"),
    _element("h1", report.title),
    _element("dl", *tiles, class_="tiles"),
  )


def _tile(name: str, value: str, detail: str) -> _Html:
  return _element(
    "div",
    _element("dt", name),
    _element("dd", value, class_="value"),
    _element("dd", detail) if detail else "",
  )


def _result_tile(report: Report) -> _Html:
  """The one number the run is about, or the loss if nothing was evaluated."""
  results = _result_rows(report)
  measured = [row for row in results if row[3] is not None]
  if measured:
    # The first task's accuracy, or what comes closest to it.
    task, name, frozen, adapted = min(
      measured, key=lambda row: (row[0] != measured[0][0], not _percent(row[1]))
    )
    before = "" if frozen is None else f"; frozen {_value(name, frozen)}"
    return _tile(_title(name), _value(name, adapted), f"{task}{before}")
  losses = [value for _, value in _points(report.metrics, "train", "loss")]
  if not losses:
    return _Html()
  return _tile(
    "Training loss",
    _value("loss", losses[-1]),
    f"{_value('loss', losses[0])} when first logged",
  )


_ResultRow = tuple[str, str, float | None, float | None]


def _result_rows(report: Report) -> list[_ResultRow]:
  """(task, metric, frozen, adapted) of all that was measured."""
  frozen, adapted = report.frozen_metrics, report.adapted_metrics
  return [
    (
      task,
      name,
      frozen.get(task, {}).get(name),
      adapted.get(task, {}).get(name),
    )
    for task in dict.fromkeys([*adapted, *frozen])
    for name in dict.fromkeys([*adapted.get(task, {}), *frozen.get(task, {})])
  ]


def _results(report: Report) -> _Html:
  rows = _result_rows(report)
  frozen = any(row[2] is not None for row in rows)
  adapted = any(row[3] is not None for row in rows)
  if adapted and len(rows) == 1:  # The headline has it.
    return _Html()
  columns = [
    ("Task", ""),
    ("Metric", ""),
    *([("Frozen", "number")] if frozen else []),
    *([("Adapted", "number")] if adapted else []),
    *([("Change", "number")] if frozen and adapted else []),
  ]
  cells = []
  for task, name, before, after in rows:
    change = None if before is None or after is None else after - before
    numbers = [before] * frozen + [after] * adapted
    texts = [_value(name, number) for number in numbers]
    if frozen and adapted:
      texts.append("" if change is None else _signed(name, change))
    cells.append([task, _title(name), *texts])
  return _table("Metrics of the frozen and the adapted model", columns, cells)


def _trained(report: Report) -> _Html:
  columns = [
    ("Pattern", "code"),
    ("Adapter", ""),
    ("Sites", "number"),
    ("Example", "code"),
    ("Parameters", "number"),
  ]
  rows = [
    [
      _path(rule.pattern),
      rule.adapter,
      f"{rule.sites:,}",
      _path(rule.example_path),
      f"{rule.parameters:,}",
    ]
    for rule in report.rules
  ]
  return _table("What each rule trains", columns, rows)


def _examples(examples: Sequence[Mapping[str, Any]]) -> _Html:
  shown = examples[:_SHOWN_EXAMPLES]
  predictions = [
    (name, title)
    for name, title in (("frozen", "Frozen"), ("adapted", "Adapted"))
    if any(f"{name}_prediction" in example for example in shown)
  ]
  if not predictions:
    return _Html()
  columns = [("Input", "long"), ("Target", "")]
  columns += [(title, "") for _, title in predictions]
  rows = [
    [
      _long_text(example.get("input", "")),
      _own_direction(example.get("target", "")),
      *(_prediction(example, name) for name, _ in predictions),
    ]
    for example in shown
  ]
  tallies = ", ".join(
    f"{name} {right} of {count}"
    for name, _ in predictions
    for right, count in [_tally(shown, name)]
  )
  note = f"Right in these examples: {tallies}."
  if len(examples) > len(shown):
    note += f" The first {len(shown)} of {len(examples):,} examples."
  table = _table("Example predictions", columns, rows)
  return _join([_element("p", note, class_="note"), table])


def _tally(examples: Sequence[Mapping[str, Any]], name: str) -> tuple[int, int]:
  marks = [
    _is_right(example, name)
    for example in examples
    if f"{name}_prediction" in example
  ]
  return sum(marks), len(marks)


def _is_right(example: Mapping[str, Any], name: str) -> bool:
  prediction = str(example[f"{name}_prediction"]).strip()
  is_target = prediction == str(example.get("target", "")).strip()
  return bool(example.get(f"{name}_correct", is_target))


def _prediction(example: Mapping[str, Any], name: str) -> _Html:
  if f"{name}_prediction" not in example:
    return _Html()
  prediction = str(example[f"{name}_prediction"])
  mark = "right" if _is_right(example, name) else "wrong"
  # The word, not only the colour, says which it is.
  return _element(
    "span",
    _own_direction(prediction) if prediction.strip() else _EMPTY,
    " ",
    _element("span", mark, class_=f"mark {mark}"),
  )


def _long_text(text: Any) -> _Html:
  text = str(text)
  if len(text) <= _LONG_TEXT:
    return _own_direction(text)
  return _element(
    "details",
    _element("summary", _own_direction(f"{text[:_LONG_TEXT]}…")),
    _own_direction(text),
  )


def _own_direction(text: Any) -> _Html:
  """A text that may run from right to left on a page that does not."""
  return _element("span", str(text), dir="auto", class_="text")


def _path(path: str) -> _Html:
  """A path that breaks at its slashes, and copies without the breaks."""
  return _Html("/<wbr>".join(_escape(part) for part in path.split("/")))


def _named_values(values: Mapping[str, Any]) -> _Html:
  rows = [
    [name, value if isinstance(value, str) else repr(value)]
    for name, value in values.items()
  ]
  if not rows:
    return _Html()
  body = [
    _element(
      "tr",
      _element("th", name, scope="row"),
      _element("td", value, class_="code"),
    )
    for name, value in rows
  ]
  return _element("table", _element("tbody", *body), class_="named")


def _table(
  caption: str,
  columns: Sequence[tuple[str, str]],
  rows: Sequence[Sequence[str]],
) -> _Html:
  """A table that a phone shows as one card a row.

  The cards need `display: block`, which takes a table's meaning away from
  screen readers: the roles give it back.
  """
  if not rows:
    return _Html()
  head = [
    _element("th", name, scope="col", role="columnheader", class_=kind or None)
    for name, kind in columns
  ]
  body = [
    _element(
      "tr",
      *(
        _element("td", cell, role="cell", class_=kind or None, data_label=name)
        for (name, kind), cell in zip(columns, row, strict=True)
      ),
      role="row",
    )
    for row in rows
  ]
  return _element(
    "table",
    _element("caption", caption),
    _element("thead", _element("tr", *head, role="row"), role="rowgroup"),
    _element("tbody", *body, role="rowgroup"),
    role="table",
    class_="cards",
  )


# The curves.


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Curve:
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
      f"{self.title}: {_value(self.name, start)} at step {first:,},"
      f" {_value(self.name, end)} at step {last:,}"
    )
    if self.baseline is not None:
      said += f"; frozen model {_value(self.name, self.baseline)}"
    return said


def _curves(report: Report) -> list[_Curve]:
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
    points = _points(report.metrics, kind, name)
    finite = [(step, value) for step, value in points if math.isfinite(value)]
    if not finite or finite[0][0] == finite[-1][0]:
      continue  # One point is no curve.
    baseline = baselines.get(name) if kind == "eval" else None
    if baseline is not None and not math.isfinite(baseline):
      baseline = None
    curves.append(
      _Curve(
        name=name,
        title="Training loss" if kind == "train" else _title(name),
        points=finite,
        baseline=baseline,
        broken_steps=[s for s, value in points if not math.isfinite(value)],
      )
    )
  return curves


def _points(
  metrics: Sequence[Mapping[str, Any]], kind: str, name: str
) -> list[tuple[int, float]]:
  return [
    (record["step"], record[name])
    for record in metrics
    if record["kind"] == kind and isinstance(record.get(name), int | float)
  ]


def _thinned(
  points: Sequence[tuple[int, float]],
) -> Sequence[tuple[float, float]]:
  """Averages neighbours until the points are as many as can be told apart."""
  size = math.ceil(len(points) / _SHOWN_POINTS)
  groups = [points[i : i + size] for i in range(0, len(points), size)]
  return [
    (
      sum(step for step, _ in group) / len(group),
      sum(value for _, value in group) / len(group),
    )
    for group in groups
  ]


def _smoothed(
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


def _value_range(curve: _Curve) -> tuple[float, float]:
  values = [value for _, value in curve.points]
  if curve.baseline is not None:
    values.append(curve.baseline)
  low, high = min(values), max(values)
  if _percent(curve.name) and low >= 0 and high <= 100:
    return 0.0, 100.0
  if low >= 0 and low < 0.5 * high:
    low = 0.0
  margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
  # The baseline's name stands above its line.
  above = 3 * margin if curve.baseline == high else margin
  return (low - margin if low else 0.0), high + above


def _ticks(low: float, high: float, count: int) -> list[float]:
  """About `count` round numbers between low and high."""
  rough = (high - low) / count
  size = 10.0 ** math.floor(math.log10(rough))
  step = next(size * f for f in (1, 2, 2.5, 5, 10) if size * f >= rough * 0.999)
  first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
  return [i * step for i in range(first, last + 1)]


def _charts(curves: Sequence[_Curve]) -> _Html:
  shown = [_chart(curve) for curve in curves[:_SHOWN_CURVES]]
  if not shown:
    return _Html()
  left_out = len(curves) - len(shown)
  more = f"{left_out} more metrics are in metrics.jsonl." if left_out else ""
  return _join(
    [
      _element("div", *shown, class_="charts"),
      _element("p", more, class_="note") if more else "",
    ]
  )


def _chart(curve: _Curve) -> _Html:
  # Small user units: at a phone's width the text is still 10 pixels high.
  width, height, left, right, top, bottom = 360, 210, 40, 10, 10, 24
  low, high = _value_range(curve)
  points = _thinned(curve.points)
  start, end = curve.steps()

  def x(step: float) -> str:
    return (
      f"{left + (step - start) / (end - start) * (width - left - right):.1f}"
    )

  def y(value: float) -> str:
    across = (value - low) / (high - low)
    return f"{height - bottom - across * (height - top - bottom):.1f}"

  parts = []
  for tick in _ticks(low, high, 4):
    parts.append(_line(left, y(tick), width - right, y(tick), "grid"))
    parts.append(_label(left - 6, y(tick), _tick(tick), "end", dy="0.32em"))
  whole = [tick for tick in _ticks(start, end, 4) if tick.is_integer()]
  for i, tick in enumerate(whole):
    name = f"{tick:,.0f}" if i else f"step {tick:,.0f}"
    at_end = float(x(tick)) > width - 24  # Centred, it would be cut off.
    at, anchor = (width, "end") if at_end else (x(tick), "middle")
    parts.append(_label(at, height - 8, name, anchor))
  if curve.baseline is not None:
    at = y(curve.baseline)
    parts.append(_line(left, at, width - right, at, "baseline"))
    parts.append(_label(width - right, at, "frozen", "end", dy="-0.4em"))
  smooth = _smoothed(points)
  if smooth:
    parts.append(_polyline(points, x, y, "raw"))
  parts.append(_polyline(smooth or points, x, y, "curve"))
  last = (smooth or points)[-1]
  parts.append(
    _element("circle", class_="end", cx=x(last[0]), cy=y(last[1]), r="3")
  )
  for step in curve.broken_steps[:_SHOWN_POINTS]:
    if start <= step <= end:
      parts.append(_line(x(step), top, x(step), height - bottom, "broken"))
  picture = _element(
    "svg",
    *parts,
    viewBox=f"0 0 {width} {height}",
    role="img",
    aria_label=curve.text(),
  )
  caption = [
    _element("span", curve.title),
    _element("span", _value(curve.name, curve.points[-1][1]), class_="last"),
  ]
  figure = [_element("figcaption", *caption), picture]
  if curve.broken_steps:
    figure.append(_element("p", f"{curve.warning()}.", class_="warning"))
  return _element("figure", *figure)


def _line(x1: Any, y1: Any, x2: Any, y2: Any, class_: str) -> _Html:
  return _element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def _label(x: Any, y: Any, text: str, anchor: str, dy: str = "0") -> _Html:
  return _element("text", text, x=x, y=y, dy=dy, text_anchor=anchor)


def _polyline(
  points: Sequence[tuple[float, float]],
  x: Callable[[float], str],
  y: Callable[[float], str],
  class_: str,
) -> _Html:
  path = " ".join(f"{x(step)},{y(value)}" for step, value in points)
  return _element("polyline", points=path, class_=class_)


def _write_picture(
  path: epath.Path, title: str, curves: Sequence[_Curve]
) -> None:
  try:
    from matplotlib import figure
  except ImportError:
    warnings.warn(
      f"matplotlib is not installed, so {path.name} is not written"
      f" ({REPORT_NAME} has the curves): pip install matplotlib to have it",
      stacklevel=3,
    )
    return
  curves = curves[:_SHOWN_CURVES]
  columns = min(len(curves), 2)
  rows = math.ceil(len(curves) / columns)
  # A Figure of its own leaves pyplot, and the caller's backend, alone.
  picture = figure.Figure(
    figsize=(5.2 * columns, 0.5 + 3.2 * rows), layout="constrained"
  )
  picture.suptitle(_plain(title), x=0.01, ha="left", fontweight="bold")
  for i, curve in enumerate(curves):
    _draw_curve(picture.add_subplot(rows, columns, i + 1), curve)
  with path.open("wb") as file, warnings.catch_warnings():
    # Of a script that its font lacks, matplotlib draws boxes. So be it.
    warnings.filterwarnings("ignore", message="Glyph")
    picture.savefig(file, format="png", dpi=150)


def _draw_curve(axes: Any, curve: _Curve) -> None:
  points = _thinned(curve.points)
  smooth = _smoothed(points)
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
  for step in curve.broken_steps[:_SHOWN_POINTS]:
    if start <= step <= end:
      axes.axvline(step, color="#b3261e", lw=1)
  axes.set_xlim(start, end)
  axes.set_ylim(*_value_range(curve))
  axes.set_title(_plain(curve.title), loc="left", fontsize="medium")
  axes.set_title(
    _plain(_value(curve.name, curve.points[-1][1])),
    loc="right",
    fontsize="medium",
  )
  axes.xaxis.get_major_locator().set_params(integer=True)
  axes.set_xlabel("step")
  if curve.broken_steps:
    axes.set_xlabel(curve.warning(), color="#b3261e")
  axes.grid(axis="y", color="#d8dce0", lw=0.8)
  axes.spines[["top", "right", "left"]].set_visible(False)


# Numbers and words.


def _percent(name: str) -> bool:
  return name.rsplit("/", 1)[-1] in _PERCENTS


def _value(name: str, value: float | None) -> str:
  if value is None:
    return "\N{EN DASH}"
  if not math.isfinite(value):
    return str(value)
  return f"{value:.1f}%" if _percent(name) else f"{value:.4g}"


def _signed(name: str, change: float) -> str:
  if not math.isfinite(change):
    return ""
  # A difference of percentages is in points, which are not percent.
  return f"{change:+.1f}" if _percent(name) else f"{change:+.4g}"


def _tick(value: float) -> str:
  if abs(value) >= 10_000:
    return progress.format_count(value).replace(".0", "")
  return f"{value:.6g}"


def _title(name: str) -> str:
  """Writes ``rte/exact_match`` as "rte: exact match"."""
  task, slash, metric = name.rpartition("/")
  words = metric.replace("_", " ")
  return f"{task}: {words}" if slash else words[:1].upper() + words[1:]


def _share(part: int, whole: int) -> str:
  if whole <= 0:
    return f"{part:,}"
  return f"{100 * part / whole:.2g}%"


def _size(size_bytes: int) -> str:
  for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
    if size_bytes >= size:
      return f"{size_bytes / size:.3g} {unit}"
  return f"{size_bytes} bytes"


def _steps(report: Report) -> str:
  steps = [record["step"] for record in report.metrics]
  return f"{max(steps):,} steps" if steps else ""


def _plain(text: str) -> str:
  """Keeps matplotlib from reading formulas between dollar signs."""
  return _UNREADABLE.sub("", text).replace("$", r"\$")


_EMPTY = _element("span", "(nothing)", class_="empty")

_PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""

_STYLE = """\
:root {
  color-scheme: light dark;
  --words: system-ui, -apple-system, "Segoe UI", Roboto, sans-serif;
  --page: #ffffff; --panel: #f5f6f8; --text: #1c1f23; --muted: #5a626b;
  --line: #dfe3e7; --accent: #2457c5; --right: #17713f; --wrong: #b3261e;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #14171a; --panel: #1d2125; --text: #e6e9ec; --muted: #9ba4ae;
    --line: #30363c; --accent: #82abff; --right: #67d29a; --wrong: #ff8f85;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--text);
  font: 16px/1.5 var(--words);
}
main { max-width: 960px; margin: 0 auto; padding: 40px 20px 64px; }
h1 { margin: 0; font-size: 1.9rem; line-height: 1.2; overflow-wrap: anywhere; }
h2 { margin: 48px 0 12px; font-size: 1.15rem; }
.method { margin: 0 0 4px; color: var(--accent); font-weight: 600; }
.note { margin: 0 0 12px; color: var(--muted); }
.tiles {
  display: grid; gap: 12px; margin: 28px 0 0;
  grid-template-columns: repeat(auto-fit, minmax(200px, 1fr));
}
.tiles div {
  padding: 14px 16px; border-radius: 10px; background: var(--panel);
}
.tiles dt { color: var(--muted); font-size: 0.9rem; }
.tiles dd { margin: 0; color: var(--muted); font-size: 0.85rem; }
.tiles .value {
  color: var(--text); font-size: 1.7rem; font-weight: 600; white-space: nowrap;
}
.charts {
  display: grid; gap: 28px 32px;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 380px), 1fr));
}
figure { margin: 0; min-width: 0; }
figcaption { display: flex; justify-content: space-between; gap: 12px; }
figcaption span { overflow-wrap: anywhere; }
.last { color: var(--accent); font-weight: 600; white-space: nowrap; }
svg { display: block; width: 100%; height: auto; margin-top: 6px; }
svg text { fill: var(--muted); font-size: 11px; }
.grid { stroke: var(--line); }
.baseline { stroke: var(--muted); stroke-dasharray: 4 4; }
.curve, .raw { fill: none; stroke: var(--accent); stroke-linejoin: round; }
.curve { stroke-width: 2; }
.raw { opacity: 0.3; }
.end { fill: var(--accent); }
.broken { stroke: var(--wrong); }
.warning { margin: 4px 0 0; color: var(--wrong); font-size: 0.9rem; }
table { width: 100%; border-collapse: collapse; font-size: 0.92rem; }
caption {
  position: absolute; width: 1px; height: 1px; overflow: hidden;
  clip-path: inset(50%); white-space: nowrap;
}
th, td {
  padding: 8px 16px 8px 0; border-bottom: 1px solid var(--line);
  text-align: left; vertical-align: top; overflow-wrap: break-word;
}
th:last-child, td:last-child { padding-right: 0; }
th { color: var(--muted); font-weight: 500; }
.number {
  text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums;
}
.code, .long { overflow-wrap: anywhere; }
td.code { font: 0.86rem/1.6 ui-monospace, Menlo, Consolas, monospace; }
.named { table-layout: fixed; }
.named th, .named td { padding-top: 5px; padding-bottom: 5px; }
.named th { width: 34%; }
.named td { white-space: pre-wrap; }
.text { white-space: pre-wrap; }
.long { width: 50%; }
summary { cursor: pointer; }
details[open] summary .text { display: none; }
details[open] summary::after { content: "Show less"; color: var(--muted); }
.empty { color: var(--muted); font-style: italic; }
.mark { display: block; font-size: 0.78rem; font-weight: 600; }
.mark.right { color: var(--right); }
.mark.wrong { color: var(--wrong); }
@media (max-width: 640px) {
  main { padding-top: 24px; }
  .tiles { grid-template-columns: 1fr 1fr; }
  .tiles .value { font-size: 1.2rem; }
  .named th { width: 42%; }
  .cards thead { position: absolute; clip-path: inset(50%); }
  .cards, .cards tbody, .cards tr, .cards td { display: block; width: auto; }
  .cards tr {
    margin-bottom: 12px; padding: 8px 14px;
    border: 1px solid var(--line); border-radius: 10px;
  }
  .cards td {
    display: grid; grid-template-columns: 6rem minmax(0, 1fr);
    padding: 4px 0; border: 0;
  }
  .cards td::before {
    content: attr(data-label); color: var(--muted);
    font: 0.92rem/1.5 var(--words);
  }
  .cards .number { text-align: left; }
}
@media print {
  main { max-width: none; padding: 0; }
  figure, tr, .tiles div { break-inside: avoid; }
}
"""
