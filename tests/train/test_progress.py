"""The display of a run, on a terminal and off it."""

import io

import pytest

from peft_jax.train import progress


class Clock:
  """A clock that only moves when it is told to."""

  def __init__(self):
    self.now = 100.0

  def __call__(self):
    return self.now


class Terminal(io.StringIO):
  """A stream that says it is a terminal."""

  encoding = "utf-8"

  def isatty(self):
    return True

  def screen(self):
    """The lines as a person sees them: each return overwrites from the left."""
    lines = []
    for written in self.getvalue().split("\n"):
      line = ""
      for part in written.split("\r"):
        line = part + line[len(part) :]
      lines.append(line.rstrip())
    return lines


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch):
  monkeypatch.setenv("TERM", "xterm")
  monkeypatch.setenv("COLUMNS", "100")


def run(display, clock, steps, seconds_per_step=1.0, tokens=1000):
  for step in steps:
    clock.now += seconds_per_step
    display.update(step=step, loss=1.0 / step, tokens=tokens)


def test_plain_lines_have_no_control_characters():
  stream, clock = io.StringIO(), Clock()
  with progress.Progress(
    total_steps=100, stream=stream, every=10, clock=clock
  ) as display:
    run(display, clock, range(1, 101))
    display.note("accuracy 80.0")
  text = stream.getvalue()
  assert all(c == "\n" or c.isprintable() for c in text)
  lines = text.splitlines()
  assert lines[0] == "step 0/100  compiling the first step"
  assert lines[1].startswith("step 10/100 (10%)  loss 0.1000  1.0k tokens/s")
  assert lines[1].endswith("1 min 30 s left")
  assert lines[-2] == "step 100/100 (100%)  loss 0.0100  1.0k tokens/s"
  assert lines[-1] == "accuracy 80.0"
  assert len(lines) == 12


def test_plain_lines_keep_five_seconds_apart_but_show_the_last_step():
  stream, clock = io.StringIO(), Clock()
  with progress.Progress(
    total_steps=95, stream=stream, every=1, clock=clock
  ) as display:
    run(display, clock, range(1, 91), seconds_per_step=0.125)
  lines = stream.getvalue().splitlines()
  assert [line.split()[1] for line in lines] == [
    "0/95",
    "1/95",
    "41/95",
    "81/95",
    "90/95",
  ]


def test_terminal_has_one_line_refreshed_at_most_five_times_a_second():
  stream, clock = Terminal(), Clock()
  with progress.Progress(
    total_steps=1000, stream=stream, clock=clock
  ) as display:
    run(display, clock, range(1, 1001), seconds_per_step=0.01)
  # 10 seconds of training, the first notice, the last step and the closing.
  assert 45 <= stream.getvalue().count("\r") <= 54
  assert stream.getvalue().count("\n") == 1
  (line, rest) = stream.screen()
  assert line == f"100%  {'━' * 20}  1000/1000  loss 0.0010  100.0k tokens/s"
  assert rest == ""


def test_note_leaves_the_live_line_whole():
  stream, clock = Terminal(), Clock()
  display = progress.Progress(total_steps=10, stream=stream, clock=clock)
  run(display, clock, range(1, 6))
  display.note("saved step 5")
  assert stream.screen() == [
    "saved step 5",
    f" 50%  {'━' * 10}{'─' * 10}  5/10  loss 0.2000  1.0k tokens/s  5.0 s left",
  ]


def test_live_line_never_wraps(monkeypatch):
  monkeypatch.setenv("COLUMNS", "30")
  stream, clock = Terminal(), Clock()
  display = progress.Progress(total_steps=10, stream=stream, clock=clock)
  run(display, clock, range(1, 6))
  assert stream.screen() == [" 50%  5/10  loss 0.2000  1.0k"]


def test_pauses_leave_the_speed_alone_and_count_for_the_time_left():
  stream, clock = io.StringIO(), Clock()
  display = progress.Progress(
    total_steps=30, stream=stream, every=10, clock=clock
  )
  run(display, clock, range(1, 11))
  with display.paused("evaluating rte"):
    clock.now += 11.0
  run(display, clock, range(11, 21))
  lines = stream.getvalue().splitlines()
  assert "step 10/30  evaluating rte" in lines
  # 19 steps took 19 s and a pause of 11 s.
  assert lines[-1].endswith("1.0k tokens/s  16 s left")


def test_a_pause_is_shown_only_while_it_lasts():
  stream, clock = Terminal(), Clock()
  display = progress.Progress(total_steps=10, stream=stream, clock=clock)
  run(display, clock, range(1, 6))
  before = stream.screen()
  with display.paused("evaluating rte"):
    assert stream.screen()[0].endswith("5/10  evaluating rte")
  assert stream.screen() == before


def test_compilation_before_the_first_update_does_not_count():
  stream, clock = io.StringIO(), Clock()
  display = progress.Progress(
    total_steps=100, start_step=40, stream=stream, every=1, clock=clock
  )
  clock.now += 300.0
  run(display, clock, range(41, 51))
  lines = stream.getvalue().splitlines()
  assert lines[1] == "step 41/100 (41%)  loss 0.0244"
  assert lines[-1].endswith("1.0k tokens/s  54 s left")


def test_disabled_prints_nothing():
  for stream in (io.StringIO(), Terminal()):
    with progress.Progress(
      total_steps=3, stream=stream, every=1, enabled=False
    ) as display:
      with display.paused("evaluating"):
        display.update(step=3, loss=1.0, tokens=1)
      display.note("done")
    assert stream.getvalue() == ""


def test_closing_twice_or_without_an_update():
  stream = Terminal()
  display = progress.Progress(total_steps=3, stream=stream)
  display.close()
  display.close()
  assert stream.getvalue().count("\n") == 1
  assert stream.screen()[0].endswith("0/3  compiling the first step")


def test_dumb_terminal_gets_plain_lines(monkeypatch):
  monkeypatch.setenv("TERM", "dumb")
  stream = Terminal()
  with progress.Progress(total_steps=1, stream=stream) as display:
    display.update(step=1, loss=float("nan"), tokens=1)
  assert "\r" not in stream.getvalue()
  assert "loss nan" in stream.getvalue()


def test_ascii_terminal_gets_ascii():
  stream = Terminal()
  stream.encoding = "ascii"
  with progress.Progress(total_steps=2, stream=stream) as display:
    display.update(step=1, loss=1.0, tokens=1)
    display.note("naïve")
  assert stream.getvalue().isascii()
  assert f"{'#' * 10}{'-' * 10}" in stream.getvalue()
  assert "na?ve" in stream.getvalue()


def test_lost_terminal_does_not_stop_the_run():
  class Gone(Terminal):
    def write(self, text):
      raise OSError("Input/output error")

  with progress.Progress(total_steps=2, stream=Gone()) as display:
    display.update(step=1, loss=1.0, tokens=1)
    display.note("still here")

  closed = io.StringIO()
  closed.close()
  progress.Progress(total_steps=2, stream=closed).close()


def test_wrong_arguments():
  with pytest.raises(ValueError, match="start_step=5 and total_steps=4"):
    progress.Progress(total_steps=4, start_step=5)
  with pytest.raises(ValueError, match="enabled=False"):
    progress.Progress(total_steps=4, every=0)


@pytest.mark.parametrize(
  ("seconds", "text"),
  [
    (-1, "0.0 s"),
    (0.42, "0.4 s"),
    (9.96, "10 s"),
    (59.7, "1 min 00 s"),
    (192, "3 min 12 s"),
    (3599.9, "1 h 00 min"),
    (7500, "2 h 05 min"),
    (277200, "3 d 5 h"),
  ],
)
def test_format_duration(seconds, text):
  assert progress.format_duration(seconds) == text


@pytest.mark.parametrize(
  ("count", "text"),
  [
    (0, "0"),
    (999, "999"),
    (18340, "18.3k"),
    (999_960, "1.0M"),
    (77_100_000, "77.1M"),
    (11e9, "11.0B"),
  ],
)
def test_format_count(count, text):
  assert progress.format_count(count) == text
