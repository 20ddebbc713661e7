"""The curves as SVG on the page."""

from collections.abc import Callable, Sequence
from typing import Any

from peft_jax.train.report.curves import (
  SHOWN_CURVES,
  SHOWN_POINTS,
  Curve,
  smoothed,
  thinned,
  ticks,
  value_range,
)
from peft_jax.train.report.html import Html, element, join
from peft_jax.train.report.values import format_tick, format_value


def charts(curves: Sequence[Curve]) -> Html:
  """Returns a chart per curve, and how many were left out."""
  shown = [_chart(curve) for curve in curves[:SHOWN_CURVES]]
  if not shown:
    return Html()
  left_out = len(curves) - len(shown)
  more = f"{left_out} more metrics are in metrics.jsonl." if left_out else ""
  return join(
    [
      element("div", *shown, class_="charts"),
      element("p", more, class_="note") if more else "",
    ]
  )


def _chart(curve: Curve) -> Html:
  # Small user units: at a phone's width the text is still 10 pixels high.
  width, height, left, right, top, bottom = 360, 210, 40, 10, 10, 24
  low, high = value_range(curve)
  points = thinned(curve.points)
  start, end = curve.steps()

  def x(step: float) -> str:
    return (
      f"{left + (step - start) / (end - start) * (width - left - right):.1f}"
    )

  def y(value: float) -> str:
    across = (value - low) / (high - low)
    return f"{height - bottom - across * (height - top - bottom):.1f}"

  parts = []
  for tick in ticks(low, high, 4):
    parts.append(_line(left, y(tick), width - right, y(tick), "grid"))
    parts.append(
      _label(left - 6, y(tick), format_tick(tick), "end", dy="0.32em")
    )
  whole = [tick for tick in ticks(start, end, 4) if tick.is_integer()]
  for i, tick in enumerate(whole):
    name = f"{tick:,.0f}" if i else f"step {tick:,.0f}"
    at_end = float(x(tick)) > width - 24  # Centred, it would be cut off.
    at, anchor = (width, "end") if at_end else (x(tick), "middle")
    parts.append(_label(at, height - 8, name, anchor))
  if curve.baseline is not None:
    at = y(curve.baseline)
    parts.append(_line(left, at, width - right, at, "baseline"))
    parts.append(_label(width - right, at, "frozen", "end", dy="-0.4em"))
  smooth = smoothed(points)
  if smooth:
    parts.append(_polyline(points, x, y, "raw"))
  parts.append(_polyline(smooth or points, x, y, "curve"))
  last = (smooth or points)[-1]
  parts.append(
    element("circle", class_="end", cx=x(last[0]), cy=y(last[1]), r="3")
  )
  for step in curve.broken_steps[:SHOWN_POINTS]:
    if start <= step <= end:
      parts.append(_line(x(step), top, x(step), height - bottom, "broken"))
  picture = element(
    "svg",
    *parts,
    viewBox=f"0 0 {width} {height}",
    role="img",
    aria_label=curve.text(),
  )
  caption = [
    element("span", curve.title),
    element(
      "span", format_value(curve.name, curve.points[-1][1]), class_="last"
    ),
  ]
  figure = [element("figcaption", *caption), picture]
  if curve.broken_steps:
    figure.append(element("p", f"{curve.warning()}.", class_="warning"))
  return element("figure", *figure)


def _line(x1: Any, y1: Any, x2: Any, y2: Any, class_: str) -> Html:
  return element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def _label(x: Any, y: Any, text: str, anchor: str, dy: str = "0") -> Html:
  return element("text", text, x=x, y=y, dy=dy, text_anchor=anchor)


def _polyline(
  points: Sequence[tuple[float, float]],
  x: Callable[[float], str],
  y: Callable[[float], str],
  class_: str,
) -> Html:
  path = " ".join(f"{x(step)},{y(value)}" for step, value in points)
  return element("polyline", points=path, class_=class_)
