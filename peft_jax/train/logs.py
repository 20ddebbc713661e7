"""Writes a run's metrics: JSON lines for programs, event files for TensorBoard.

``<directory>/metrics.jsonl`` has one object a line::

  {"step": 50, "kind": "train", "time_s": 41.2, "loss": 2.31}
  {"step": 500, "kind": "eval", "time_s": 400.7, "rte/accuracy": 71.5}

``time_s`` counts the seconds the run has been going, over all its resumed
parts. JSON has no NaN and no infinity, so they are the strings ``"NaN"``,
``"Infinity"`` and ``"-Infinity"``, which ``read_metrics`` turns back to floats.

``<directory>/tensorboard`` has the same numbers under ``train/loss``,
``eval/rte/accuracy``. They are written by TensorBoard's own small classes:
TensorFlow is never imported.
"""

from __future__ import annotations

import itertools
import json
import math
import numbers
import operator
import os
import socket
import struct
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Any

from etils import epath

METRICS_NAME = "metrics.jsonl"
TENSORBOARD_NAME = "tensorboard"
KINDS = ("train", "eval")

_RESERVED = ("step", "kind", "time_s")
_NON_FINITE = {
  "NaN": math.nan,
  "Infinity": math.inf,
  "-Infinity": -math.inf,
}
_REMOTE_SECONDS = 30.0
_event_file_numbers = itertools.count()


def read_metrics(directory: os.PathLike[str] | str) -> list[dict[str, Any]]:
  """Reads the records of a run, in the order they were written.

  Example::

    records = read_metrics("runs/rte")
    losses = [r["loss"] for r in records if r["kind"] == "train"]

  Args:
    directory: the run's folder, the one given to ``RunLog``.

  Returns:
    One dictionary per record; NaN and infinities are floats again. A last line
    that is only half there, since a run is writing it or was killed while it
    did, is left out.

  Raises:
    FileNotFoundError: if the folder has no ``metrics.jsonl``.
    ValueError: if a line is not a record.
  """
  path = epath.Path(directory) / METRICS_NAME
  if not path.exists():
    raise FileNotFoundError(
      f"expected the metrics of a run at {path}, found no such file: give the"
      " folder that the run printed as its output"
    )
  return [record for _, record in _parse(path.read_bytes(), path)]


class RunLog:
  """Appends a run's metrics to its folder.

  A folder that already has metrics is continued. Call ``truncate_after`` when
  a run resumes from a checkpoint: what an earlier, killed run wrote past that
  checkpoint is cut away, so no step is there twice.

  Example::

    with RunLog(directory="runs/rte") as log:
      log.truncate_after(resumed_step)
      log.write(step=50, kind="train", metrics={"loss": 2.31})
      log.write(step=500, kind="eval", metrics={"rte": {"accuracy": 71.5}})

  On a local disk each record is on its way to the file when ``write`` returns.
  An object store (``gs://``) cannot append: there the files, which stay small,
  are written anew at most every 30 seconds and when the log is closed.
  """

  def __init__(
    self,
    *,
    directory: os.PathLike[str] | str,
    enabled: bool = True,
    clock: Callable[[], float] = time.monotonic,
  ) -> None:
    """Opens the log, and repairs a last line that a killed run left half.

    Args:
      directory: the run's folder; it is made if it is not there.
      enabled: False writes nothing at all, for every process but the first.
      clock: gives the time in seconds; only differences matter.

    Raises:
      ValueError: if the folder's ``metrics.jsonl`` is not one.
    """
    self._directory = epath.Path(directory)
    self._path = self._directory / METRICS_NAME
    self._enabled = enabled
    self._clock = clock
    self._started = clock()
    self._last_steps: dict[str, int] = {}
    self._metrics_file: _GrowingFile | None = None
    self._events: _EventFile | None = None
    self._restart_step: int | None = None
    if enabled:
      self._directory.mkdir(parents=True, exist_ok=True)
      self._keep_records(lambda step: True)

  def write(self, *, step: int, kind: str, metrics: Mapping[str, Any]) -> None:
    """Writes one record.

    Args:
      step: the step the numbers belong to.
      kind: ``"train"`` or ``"eval"``.
      metrics: name -> Python or numpy number; name -> {name -> number} is
        written as ``"task/metric"``.

    Raises:
      ValueError: if the kind is unknown, a name is taken (``step``, ``kind``,
        ``time_s``), or the step lies before one already written.
      TypeError: if a value is not a number, for example a device array.
    """
    if not self._enabled:
      return
    if kind not in KINDS:
      raise ValueError(
        f"expected kind to be one of {', '.join(KINDS)}, found {kind!r}"
      )
    step = operator.index(step)  # JSON knows no numpy integers.
    values = dict(_flatten(metrics))
    last_step = self._last_steps.get(kind, step)
    if step < last_step:
      raise ValueError(
        f"expected a {kind} step of {last_step} or later, found {step}:"
        f" {self._path} already goes further. When resuming, call"
        " truncate_after(step) with the step resumed from; for a new run, give"
        " a new folder"
      )
    self._last_steps[kind] = step
    time_s = round(self._clock() - self._started, 3)
    record = {"step": step, "kind": kind, "time_s": time_s}
    record |= {name: _to_json(value) for name, value in values.items()}
    self._opened().write(_encode(record))
    if self._events:
      tags = {f"{kind}/{name}": value for name, value in values.items()}
      self._events.write(step, tags)

  def truncate_after(self, step: int) -> None:
    """Cuts away every record of a later step, here and for TensorBoard.

    Args:
      step: the last step to keep; -1 empties the log.
    """
    if not self._enabled:
      return
    self.close()
    self._keep_records(lambda recorded: recorded <= step)
    for path in (self._directory / TENSORBOARD_NAME).glob("*tfevents*"):
      _truncate_events(path, step)
    # A TensorBoard that is open now has read the events already cut.
    self._restart_step = step + 1

  def flush(self) -> None:
    """Makes sure that everything written so far is in the files."""
    if self._metrics_file:
      self._metrics_file.flush()
    if self._events:
      self._events.flush()

  def close(self) -> None:
    """Closes the files; writing again opens them again."""
    if self._metrics_file:
      self._metrics_file.close()
    if self._events:
      self._events.close()
    self._metrics_file = self._events = None

  def __enter__(self) -> RunLog:
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    traceback: TracebackType | None,
  ) -> None:
    self.close()

  def _opened(self) -> _GrowingFile:
    """The metrics file; both files are opened by the first record."""
    if self._metrics_file is None:
      self._metrics_file = _GrowingFile(self._path, self._clock)
      self._events = _open_events(
        self._directory / TENSORBOARD_NAME, self._restart_step, self._clock
      )
    return self._metrics_file

  def _keep_records(self, keep: Callable[[int], bool]) -> None:
    """Leaves only the whole records whose step is kept; counts on from them."""
    content = self._path.read_bytes() if self._path.exists() else b""
    kept = [
      (line, record)
      for line, record in _parse(content, self._path)
      if keep(record["step"])
    ]
    new_content = b"".join(line for line, _ in kept)
    if new_content != content:
      _replace(self._path, new_content)
    records = [record for _, record in kept]
    self._last_steps = {record["kind"]: record["step"] for record in records}
    past_s = records[-1]["time_s"] if records else 0.0
    self._started = self._clock() - past_s


def _flatten(metrics: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
  for name, value in metrics.items():
    if isinstance(value, Mapping):
      for inner, number in _flatten(value):
        yield f"{name}/{inner}", number
    elif name in _RESERVED:
      raise ValueError(
        f"expected a metric's name, found {name!r}, which every record uses"
        " for itself: give the metric another name"
      )
    elif isinstance(value, numbers.Integral):
      yield name, int(value)
    elif isinstance(value, numbers.Real):
      yield name, float(value)
    else:
      raise TypeError(
        f"expected metric {name!r} to be a Python or numpy number, found"
        f" {type(value).__name__}: convert it with float() where the loop is"
        " ready to wait for the device"
      )


def _to_json(value: float) -> float | str:
  if math.isfinite(value):
    return value
  if math.isnan(value):
    return "NaN"
  return "Infinity" if value > 0 else "-Infinity"


def _from_json(value: Any) -> Any:
  return _NON_FINITE.get(value, value) if isinstance(value, str) else value


def _encode(record: Mapping[str, Any]) -> bytes:
  text = json.dumps(record, allow_nan=False, ensure_ascii=False)
  return text.encode() + b"\n"


def _parse(
  content: bytes, path: epath.Path
) -> Iterator[tuple[bytes, dict[str, Any]]]:
  """Yields each whole line with its record."""
  for number, line in enumerate(content.splitlines(keepends=True), start=1):
    if not line.endswith(b"\n"):
      return  # The half line of a run that was killed or is writing.
    try:
      record = json.loads(line)
      step, kind, time_s = (record[name] for name in _RESERVED)
      valid = isinstance(step, int) and kind in KINDS and time_s >= 0
    except (ValueError, TypeError, KeyError):
      valid = False
    if not valid:
      raise ValueError(
        f'expected {{"step": .., "kind": "train" or "eval", "time_s": ..}} at'
        f" {path}:{number}, found {line[:80]!r}: delete the line, or move the"
        " file away if it is not a run's"
      )
    yield line, {name: _from_json(value) for name, value in record.items()}


def _is_remote(path: epath.Path) -> bool:
  return "://" in os.fspath(path)


def _replace(path: epath.Path, content: bytes) -> None:
  """Writes a file so that a crash leaves the old one or the new one."""
  if _is_remote(path):  # Object stores do that by themselves.
    path.write_bytes(content)
    return
  # Not named after the file: TensorBoard reads all that says "tfevents".
  draft = path.with_name("rewriting.tmp")
  draft.write_bytes(content)
  draft.replace(path)


class _GrowingFile:
  """A file to append to, also where the storage knows only whole files."""

  def __init__(self, path: epath.Path, clock: Callable[[], float]) -> None:
    self._path = path
    self._clock = clock
    self._whole: bytearray | None = None
    if _is_remote(path):
      self._whole = bytearray(path.read_bytes() if path.exists() else b"")
      self._written_bytes = len(self._whole)
      self._written_at = clock()
    else:
      self._file = path.open("ab")

  def write(self, content: bytes) -> None:
    if self._whole is None:
      self._file.write(content)
      self._file.flush()
      return
    self._whole += content
    if self._clock() - self._written_at >= _REMOTE_SECONDS:
      self.flush()

  def flush(self) -> None:
    if self._whole is None:
      self._file.flush()
    elif len(self._whole) > self._written_bytes:
      self._path.write_bytes(bytes(self._whole))
      self._written_bytes = len(self._whole)
      self._written_at = self._clock()

  def close(self) -> None:
    self.flush()
    if self._whole is None:
      self._file.close()


class _EventFile:
  """One of TensorBoard's event files."""

  def __init__(
    self, path: epath.Path, restart_step: int | None, clock: Callable[[], float]
  ) -> None:
    from tensorboard.summary.writer import record_writer

    self._messages = _event_messages()
    path.parent.mkdir(parents=True, exist_ok=True)
    self._file = _GrowingFile(path, clock)
    self._records = record_writer.RecordWriter(self._file)
    self._add(self._event(file_version="brain.Event:2"))
    if restart_step is not None:
      restart = self._event(step=restart_step)
      restart.session_log.status = self._messages.SessionLog.START
      self._add(restart)

  def write(self, step: int, scalars: Mapping[str, float]) -> None:
    event = self._event(step=step)
    for tag, value in scalars.items():
      event.summary.value.add(tag=tag, simple_value=value)
    self._add(event)

  def flush(self) -> None:
    self._file.flush()

  def close(self) -> None:
    self._file.close()

  def _event(self, **fields: Any) -> Any:
    return self._messages.Event(wall_time=time.time(), **fields)

  def _add(self, event: Any) -> None:
    self._records.write(event.SerializeToString())


def _event_messages() -> Any:
  """TensorBoard's messages: generated code that type checkers cannot read."""
  from tensorboard.compat.proto import event_pb2

  return event_pb2


def _open_events(
  directory: epath.Path, restart_step: int | None, clock: Callable[[], float]
) -> _EventFile | None:
  # TensorBoard reads the files of a folder in the order of their names.
  name = (
    f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}"
    f".{os.getpid()}.{next(_event_file_numbers):04d}"
  )
  try:
    return _EventFile(directory / name, restart_step, clock)
  except ImportError as error:
    # A viewer that is not installed is no reason to lose a run.
    warnings.warn(
      f"TensorBoard cannot be imported ({error}), so this run's metrics go to"
      f" {METRICS_NAME} only: pip install tensorboard to have event files too",
      stacklevel=4,
    )
    return None


def _truncate_events(path: epath.Path, last_step: int) -> None:
  """Drops the events of later steps; a file left without any is deleted."""
  try:
    messages = _event_messages()
  except ImportError:  # _open_events warns about it.
    return
  content = path.read_bytes()
  kept, has_metrics = [], False
  for record, data in _event_records(content):
    event = messages.Event.FromString(data)
    if event.step <= last_step or event.HasField("file_version"):
      kept.append(record)
      has_metrics |= event.HasField("summary")
  if not has_metrics:
    path.unlink()
  elif (new_content := b"".join(kept)) != content:
    _replace(path, new_content)


def _event_records(content: bytes) -> Iterator[tuple[bytes, bytes]]:
  """Yields each whole record of an event file, and the event in it.

  A record is the event's length (8 bytes), that length's checksum (4), the
  event, and its checksum (4). The last one may be cut short by a killed run.
  """
  start = 0
  while start + 12 <= len(content):
    (length,) = struct.unpack_from("<Q", content, start)
    end = start + 16 + length
    if end > len(content):
      return
    yield content[start:end], content[start + 12 : end - 4]
    start = end
