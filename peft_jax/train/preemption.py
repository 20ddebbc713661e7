"""SIGTERM: the scheduler wants the machine back; save and leave."""

import signal
import threading
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils

# What a process that SIGTERM ended reports; schedulers start it again.
EXIT_CODE = 128 + signal.SIGTERM


class Preemption:
  """Notices SIGTERM between steps, on all processes at the same step."""

  def __init__(self) -> None:
    self._noticed = False
    self._previous: Any = None

  def __enter__(self) -> "Preemption":
    # JAX has a handler of its own where there are several processes: ours in
    # its place, and it would never hear. Python's threads: only the main one.
    if jax.process_count() > 1:
      return self
    if threading.current_thread() is threading.main_thread():
      self._previous = signal.signal(signal.SIGTERM, self._notice)
    return self

  def __exit__(self, *_: Any) -> None:
    if self._previous is not None:
      signal.signal(signal.SIGTERM, self._previous)

  def _notice(self, number: int, frame: FrameType | None) -> None:
    del number, frame
    self._noticed = True

  def reached(self, step: int) -> bool:
    """Whether to save and stop before `step`; the same on every process."""
    if jax.process_count() > 1:
      return multihost_utils.reached_preemption_sync_point(step) or False
    return self._noticed
