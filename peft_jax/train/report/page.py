"""The sections of the page, from top to bottom."""

from collections.abc import Mapping, Sequence
from typing import Any

from peft_jax.train import progress
from peft_jax.train.report.charts import charts
from peft_jax.train.report.contents import Report
from peft_jax.train.report.curves import Curve, points_of
from peft_jax.train.report.html import (
  Html,
  document,
  element,
  escape,
  join,
  table,
)
from peft_jax.train.report.values import (
  format_change,
  format_share,
  format_size,
  format_title,
  format_value,
  is_percent,
)

_SHOWN_EXAMPLES = 50
_LONG_TEXT = 360
_EMPTY = element("span", "(nothing)", class_="empty")


def render(report: Report, curves: Sequence[Curve]) -> str:
  """Returns the page."""
  sections = [
    _headline(report),
    _section("Results", _results(report)),
    _section("Curves", charts(curves)),
    _section("Predictions", _examples(report.examples)),
    _section("What was trained", _trained(report)),
    _section("Settings", _named_values(report.settings)),
    _section("Environment", _named_values(report.environment)),
  ]
  return document(report.title, join(sections))


def _section(title: str, *content: str) -> Html:
  if not any(content):
    return Html()
  return element("section", element("h2", title), *content)


def _headline(report: Report) -> Html:
  tiles = [
    _result_tile(report),
    _tile(
      "Trained",
      format_share(report.trained_parameters, report.backbone_parameters),
      f"{report.trained_parameters:,} parameters beside"
      f" {progress.format_count(report.backbone_parameters)} frozen ones",
    ),
    _tile(
      "Adapter",
      format_size(report.adapter_bytes),
      f"and {format_size(report.optimizer_bytes)} of optimizer state",
    ),
    _tile("Time", progress.format_duration(report.seconds), _steps(report)),
  ]
  return element(
    "header",
    element("p", report.method, class_="method"),
    element("h1", report.title),
    element("dl", *tiles, class_="tiles"),
  )


def _tile(name: str, value: str, detail: str) -> Html:
  return element(
    "div",
    element("dt", name),
    element("dd", value, class_="value"),
    element("dd", detail) if detail else "",
  )


def _steps(report: Report) -> str:
  steps = [record["step"] for record in report.metrics]
  return f"{max(steps):,} steps" if steps else ""


def _result_tile(report: Report) -> Html:
  """The one number the run is about, or the loss if nothing was evaluated."""
  results = _result_rows(report)
  measured = [row for row in results if row[3] is not None]
  if measured:
    # The first task's accuracy, or what comes closest to it.
    task, name, frozen, adapted = min(
      measured,
      key=lambda row: (row[0] != measured[0][0], not is_percent(row[1])),
    )
    before = "" if frozen is None else f"; frozen {format_value(name, frozen)}"
    return _tile(
      format_title(name), format_value(name, adapted), f"{task}{before}"
    )
  losses = [value for _, value in points_of(report.metrics, "train", "loss")]
  if not losses:
    return Html()
  return _tile(
    "Training loss",
    format_value("loss", losses[-1]),
    f"{format_value('loss', losses[0])} when first logged",
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


def _results(report: Report) -> Html:
  rows = _result_rows(report)
  frozen = any(row[2] is not None for row in rows)
  adapted = any(row[3] is not None for row in rows)
  if adapted and len(rows) == 1:  # The headline has it.
    return Html()
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
    texts = [format_value(name, number) for number in numbers]
    if frozen and adapted:
      texts.append("" if change is None else format_change(name, change))
    cells.append([task, format_title(name), *texts])
  return table("Metrics of the frozen and the adapted model", columns, cells)


def _trained(report: Report) -> Html:
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
  return table("What each rule trains", columns, rows)


def _examples(examples: Sequence[Mapping[str, Any]]) -> Html:
  shown = examples[:_SHOWN_EXAMPLES]
  predictions = [
    (name, title)
    for name, title in (("frozen", "Frozen"), ("adapted", "Adapted"))
    if any(f"{name}_prediction" in example for example in shown)
  ]
  if not predictions:
    return Html()
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
  return join(
    [
      element("p", note, class_="note"),
      table("Example predictions", columns, rows),
    ]
  )


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


def _prediction(example: Mapping[str, Any], name: str) -> Html:
  if f"{name}_prediction" not in example:
    return Html()
  prediction = str(example[f"{name}_prediction"])
  mark = "right" if _is_right(example, name) else "wrong"
  # The word, not only the colour, says which it is.
  return element(
    "span",
    _own_direction(prediction) if prediction.strip() else _EMPTY,
    " ",
    element("span", mark, class_=f"mark {mark}"),
  )


def _long_text(text: Any) -> Html:
  text = str(text)
  if len(text) <= _LONG_TEXT:
    return _own_direction(text)
  return element(
    "details",
    element("summary", _own_direction(f"{text[:_LONG_TEXT]}…")),
    _own_direction(text),
  )


def _own_direction(text: Any) -> Html:
  """A text that may run from right to left on a page that does not."""
  return element("span", str(text), dir="auto", class_="text")


def _path(path: str) -> Html:
  """A path that breaks at its slashes, and copies without the breaks."""
  return Html("/<wbr>".join(escape(part) for part in path.split("/")))


def _named_values(values: Mapping[str, Any]) -> Html:
  rows = [
    [name, value if isinstance(value, str) else repr(value)]
    for name, value in values.items()
  ]
  if not rows:
    return Html()
  body = [
    element(
      "tr",
      element("th", name, scope="row"),
      element("td", value, class_="code"),
    )
    for name, value in rows
  ]
  return element("table", element("tbody", *body), class_="named")
