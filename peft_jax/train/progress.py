"""Shows how far a run is: a live line on a terminal, plain lines elsewhere.

The training loop hands over plain Python numbers, so nothing here waits for a
device, and a terminal that goes away never stops a run.
"""

from __future__ import annotations

import collections
import contextlib
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import TextIO

_REFRESH_SECONDS = 0.2
_PLAIN_SECONDS = 5.0
_RATE_WINDOW_SECONDS = 30.0
_BAR_CELLS = 20


def format_duration(seconds: float) -> str:
  """Writes a length of time the way a person says it.

  Args:
    seconds: the length of time in seconds.

  Returns:
    Two units at most: ``"0.4 s"``, ``"42 s"``, ``"3 min 12 s"``,
    ``"2 h 05 min"`` or ``"3 d 4 h"``.
  """
  if seconds < 9.95:
    return f"{max(seconds, 0.0):.1f} s"
  minutes, second = divmod(round(seconds), 60)
  hours, minute = divmod(minutes, 60)
  days, hour = divmod(hours, 24)
  if days:
    return f"{days} d {hour} h"
  if hours:
    return f"{hours} h {minute:02d} min"
  if minutes:
    return f"{minutes} min {second:02d} s"
  return f"{second} s"


def format_count(count: float) -> str:
  """Writes a large number in three digits or so: ``"18.3k"``, ``"77.1M"``.

  Args:
    count: any number; below 1000 it is written whole.
  """
  for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
    # 999.95k would round to "1000.0k": it belongs to the next unit.
    if abs(count) >= size * 0.99995:
      return f"{count / size:.1f}{unit}"
  return f"{count:.0f}"


class Progress:
  """The display of one training run.

  On a terminal it keeps one line up to date (step, loss, tokens per second,
  time left), at most five times a second. Written to a file or a pipe it
  prints whole lines without control characters: at steps that ``every``
  divides, at most one in five seconds, and always the last step.

  Example::

    with Progress(total_steps=2000) as progress:
      for step in range(1, 2001):
        loss = train_step()
        progress.update(step=step, loss=float(loss), tokens=8192)
        if step % 500 == 0:
          with progress.paused("evaluating rte"):
            accuracy = evaluate()
          progress.note(f"step {step}: accuracy {accuracy:.1f}")

  The speed is that of the last 30 seconds and leaves out what ran inside
  ``paused``. The time left includes it, since the remaining steps will pause
  as often as the past ones. Both start counting at the first update, so the
  compilation before it distorts neither.
  """

  def __init__(
    self,
    *,
    total_steps: int,
    start_step: int = 0,
    stream: TextIO | None = None,
    every: int = 50,
    enabled: bool = True,
    clock: Callable[[], float] = time.monotonic,
  ) -> None:
    """Starts the display.

    Args:
      total_steps: the step at which the run ends.
      start_step: the step it starts or resumes from.
      stream: where to write; standard error by default.
      every: off a terminal, only steps divisible by this are printed.
      enabled: False prints nothing at all, for every process but the first.
      clock: gives the time in seconds; only differences matter.

    Raises:
      ValueError: if the steps do not fit together or ``every`` is below 1.
    """
    if not 0 <= start_step <= total_steps:
      raise ValueError(
        "expected 0 <= start_step <= total_steps, found"
        f" start_step={start_step} and total_steps={total_steps}: give the"
        " step at which the run ends, not the number of steps still to do"
      )
    if every < 1:
      raise ValueError(
        f"expected every to be at least 1, found {every}: to print nothing,"
        " pass enabled=False"
      )
    self._stream = sys.stderr if stream is None else stream
    self._enabled = enabled
    self._live = enabled and _is_terminal(self._stream)
    self._total_steps = total_steps
    self._every = every
    self._clock = clock

    self._step = start_step
    self._loss: float | None = None
    self._tokens = 0.0
    self._first: tuple[float, int] | None = None  # (time, step)
    self._recent: collections.deque[tuple[float, float]] = collections.deque()
    self._paused_seconds = 0.0

    self._drawn = ""  # The live line as it stands on the terminal.
    self._drawn_at = float("-inf")
    self._printed_step: int | None = None
    if start_step < total_steps:
      self._show("compiling the first step")

  def update(self, *, step: int, loss: float, tokens: float) -> None:
    """Records that the run has reached a step.

    Args:
      step: the step that was just finished.
      loss: its loss, as a Python float (a device array would make the loop
        wait for the device here).
      tokens: the tokens processed since the previous update, over all hosts.
    """
    if not self._enabled:
      return
    now = self._clock()
    self._step, self._loss = step, loss
    self._tokens += tokens
    self._first = self._first or (now, step)
    active = now - self._paused_seconds
    self._recent.append((active, self._tokens))
    while (
      len(self._recent) > 2
      and self._recent[1][0] < active - _RATE_WINDOW_SECONDS
    ):
      self._recent.popleft()

    last = step >= self._total_steps
    if self._live:
      if last or now - self._drawn_at >= _REFRESH_SECONDS:
        self._draw(self._live_line(self._numbers()))
        self._drawn_at = now
    elif last or (
      step % self._every == 0 and now - self._drawn_at >= _PLAIN_SECONDS
    ):
      self._print_plain()
      self._drawn_at = now

  def note(self, text: str) -> None:
    """Prints a line of its own and puts the live line back under it."""
    if not self._enabled:
      return
    line, self._drawn = self._drawn, ""
    if line:
      self._write("\r" + " " * len(line) + "\r")
    self._write(text + "\n")
    if line:
      self._draw(line)

  @contextlib.contextmanager
  def paused(self, activity: str) -> Iterator[None]:
    """Shows what the run does while no steps are taken.

    Args:
      activity: what to show in place of the numbers: ``"evaluating rte"``.
    """
    started = self._clock()
    self._show(activity)
    try:
      yield
    finally:
      self._paused_seconds += self._clock() - started
      if self._live and self._enabled:
        self._draw(self._live_line(self._numbers()))

  def close(self) -> None:
    """Leaves the last numbers standing; calling it again does nothing."""
    if not self._enabled:
      return
    if self._live:
      if self._first:  # Else there are no numbers yet, only an activity.
        self._draw(self._live_line(self._numbers()))
      if self._drawn:
        self._write("\n")
    elif self._first and self._printed_step != self._step:
      self._print_plain()
    self._enabled = False

  def __enter__(self) -> Progress:
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    traceback: TracebackType | None,
  ) -> None:
    self.close()

  def _show(self, activity: str) -> None:
    if not self._enabled:
      return
    if self._live:
      self._draw(self._live_line([activity]))
    else:
      self._write(f"step {self._step}/{self._total_steps}  {activity}\n")

  def _print_plain(self) -> None:
    head = f"step {self._step}/{self._total_steps} ({self._percent()}%)"
    self._write("  ".join([head, *self._numbers()]) + "\n")
    self._printed_step = self._step

  def _numbers(self) -> list[str]:
    """The loss, the speed and the time left, as far as they are known."""
    parts = [] if self._loss is None else [f"loss {self._loss:.4f}"]
    rate = self._tokens_per_s()
    if rate:
      parts.append(f"{format_count(rate)} tokens/s")
    left = self._seconds_left()
    if left is not None:
      parts.append(f"{format_duration(left)} left")
    return parts

  def _tokens_per_s(self) -> float | None:
    if len(self._recent) < 2:
      return None
    (start, tokens_before), (end, tokens) = self._recent[0], self._recent[-1]
    return (tokens - tokens_before) / (end - start) if end > start else None

  def _seconds_left(self) -> float | None:
    if self._first is None or self._step >= self._total_steps:
      return None
    started, first_step = self._first
    elapsed, done = self._clock() - started, self._step - first_step
    if elapsed <= 0 or done <= 0:
      return None
    return elapsed / done * (self._total_steps - self._step)

  def _percent(self) -> int:
    return 100 * self._step // max(self._total_steps, 1)

  def _live_line(self, parts: list[str]) -> str:
    """The line for a terminal, cut so that it never wraps."""
    width = _columns(self._stream) - 1  # A full line would move the cursor on.
    count = f"{self._step}/{self._total_steps}"
    text = "  ".join([f"{self._percent():3d}%", count, *parts])
    filled = _BAR_CELLS * self._step // max(self._total_steps, 1)
    full, empty = _bar_characters(self._stream)
    bar = full * filled + empty * (_BAR_CELLS - filled)
    if len(text) + len(bar) + 2 <= width:
      text = f"{text[:4]}  {bar}{text[4:]}"
    return text[:width]

  def _draw(self, line: str) -> None:
    # Spaces erase the rest of a longer line: every terminal understands them.
    self._write("\r" + line + " " * (len(self._drawn) - len(line)))
    self._drawn = line

  def _write(self, text: str) -> None:
    encoding = getattr(self._stream, "encoding", None) or "utf-8"
    try:
      self._stream.write(text.encode(encoding, "replace").decode(encoding))
      self._stream.flush()
    except (OSError, ValueError):
      # The terminal or pipe has gone; hours of training must not go with it.
      self._enabled = False


def _is_terminal(stream: TextIO) -> bool:
  try:
    return stream.isatty() and os.environ.get("TERM") != "dumb"
  except ValueError:  # The stream is closed.
    return False


def _columns(stream: TextIO) -> int:
  try:
    columns = os.get_terminal_size(stream.fileno()).columns
  except (OSError, ValueError, AttributeError):
    columns = shutil.get_terminal_size().columns
  return columns or 80  # Some pseudo-terminals say 0.


def _bar_characters(stream: TextIO) -> tuple[str, str]:
  encoding = (getattr(stream, "encoding", None) or "").lower()
  return ("━", "─") if encoding.replace("-", "") == "utf8" else ("#", "-")
