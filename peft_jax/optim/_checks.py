"""Refuses options out of range, in the words of the one who gave them.

A number that is a JAX array (such as `optax.inject_hyperparams` passes, maybe
traced) is let through: its value is not known here.
"""

import math
from typing import Any

import jax
import optax


def at_least(name: str, value: Any, least: float, *, hint: str = "") -> None:
  """Raises ValueError unless `value` is finite and `least` or more."""
  if not _fine(value, lambda number: number >= least):
    _refuse(name, f"a number of {least} or more", value, hint)


def above(name: str, value: Any, bound: float, *, hint: str = "") -> None:
  """Raises ValueError unless `value` is finite and more than `bound`."""
  if not _fine(value, lambda number: number > bound):
    _refuse(name, f"a number above {bound}", value, hint)


def fraction(name: str, value: Any) -> None:
  """Raises ValueError unless 0 <= value < 1."""
  if not _fine(value, lambda number: 0.0 <= number < 1.0):
    _refuse(name, "a number from 0 up to, but not including, 1", value, "")


def whole(name: str, value: Any, least: int, *, hint: str = "") -> None:
  """Raises ValueError unless `value` is a whole number, `least` or more."""
  if not _fine(value, lambda n: n >= least and n == int(n)):
    _refuse(name, f"a whole number of {least} or more", value, hint)


def learning_rate(value: optax.ScalarOrSchedule) -> None:
  """Raises ValueError unless `value` is a schedule or a number from 0 up."""
  if not callable(value):
    at_least(
      "learning_rate", value, 0.0, hint="A function of the step will do too."
    )


def _fine(value: Any, test: Any) -> bool:
  if isinstance(value, jax.Array):
    return True
  try:
    return math.isfinite(value) and bool(test(value))
  except TypeError:
    return False


def _refuse(name: str, expected: str, found: Any, hint: str) -> None:
  text = f"{name}: expected {expected}, found {found!r}. "
  raise ValueError(text + (hint or f"Change {name}."))
