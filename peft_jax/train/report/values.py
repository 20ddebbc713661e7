"""Numbers and names in the words of the page."""

import math
import re

from peft_jax.train import progress

_PERCENTS = frozenset(
  ["accuracy", "em", "exact_match", "f1", "macro_f1", "sequence_accuracy"]
)
# What no browser can show, and half surrogates, which UTF-8 cannot hold.
UNREADABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")


def is_percent(name: str) -> bool:
  """Whether a metric is a percentage."""
  return name.rsplit("/", 1)[-1] in _PERCENTS


def format_value(name: str, value: float | None) -> str:
  """Writes the value of a metric; a dash if it was not measured."""
  if value is None:
    return "\N{EN DASH}"
  if not math.isfinite(value):
    return str(value)
  return f"{value:.1f}%" if is_percent(name) else f"{value:.4g}"


def format_change(name: str, change: float) -> str:
  """Writes by how much a metric changed; nothing if it cannot be said."""
  if not math.isfinite(change):
    return ""
  # A difference of percentages is in points, which are not percent.
  return f"{change:+.1f}" if is_percent(name) else f"{change:+.4g}"


def format_tick(value: float) -> str:
  """Writes a number beside an axis."""
  if abs(value) >= 10_000:
    return progress.format_count(value).replace(".0", "")
  return f"{value:.6g}"


def format_title(name: str) -> str:
  """Writes ``rte/exact_match`` as "rte: exact match"."""
  task, slash, metric = name.rpartition("/")
  words = metric.replace("_", " ")
  return f"{task}: {words}" if slash else words[:1].upper() + words[1:]


def format_share(part: int, whole: int) -> str:
  """Writes a part in percent of the whole, if there is one."""
  if whole <= 0:
    return f"{part:,}"
  return f"{100 * part / whole:.2g}%"


def format_size(size_bytes: int) -> str:
  """Writes a number of bytes in the largest unit that fits."""
  for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
    if size_bytes >= size:
      return f"{size_bytes / size:.3g} {unit}"
  return f"{size_bytes} bytes"
