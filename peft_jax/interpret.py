"""What learned prompts are near to (arXiv 2104.08691, section 7); numpy alone.

Axis letters: P rows of a prompt, D model, V vocabulary, K neighbours of a row.
"""

from typing import Literal, NamedTuple

import numpy as np

Metric = Literal["cosine", "l2"]
# Rows of the table that are compared at once, to bound memory.
_CHUNK = 16384
_TINY = 1e-30


class Nearest(NamedTuple):
  """The rows of a table that are nearest to each row of a prompt.

  Attributes:
    ids: [P, K] numbers of the table's rows, nearest first.
    values: [P, K] cosine similarities, or Euclidean distances.
  """

  ids: np.ndarray
  values: np.ndarray


class Plane(NamedTuple):
  """The plane in which rows differ most.

  Attributes:
    center: [D] mean of the rows.
    axes: [2, D] orthonormal, the one with more variance first.
    shares: [2] of the whole variance, from 0 to 1.
  """

  center: np.ndarray
  axes: np.ndarray
  shares: np.ndarray

  def project(self, rows: np.ndarray) -> np.ndarray:
    """rows: [..., D] -> [..., 2]."""
    return (np.asarray(rows, np.float64) - self.center) @ self.axes.T


def nearest(
  rows: np.ndarray, table: np.ndarray, *, count: int = 5, metric: Metric
) -> Nearest:
  """Returns the rows of a table that are nearest; of equals the first.

  Example:
    >>> table = np.array([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0]])
    >>> nearest(np.array([[0.0, 1.0]]), table, count=2, metric="cosine").ids
    array([[1, 2]])

  Args:
    rows: [P, D].
    table: [V, D].
    count: K, at most V.
    metric: 'cosine' similarity or Euclidean distance, 'l2'.

  Raises:
    ValueError: for another width or metric, or a count out of range.
  """
  if rows.ndim != 2 or table.ndim != 2 or rows.shape[1] != table.shape[1]:
    raise ValueError(
      f"expected embeddings [V, {rows.shape[-1]}] for this prompt, found"
      f" {list(table.shape)}. Take those of the model it was trained on."
    )
  if not 0 < count <= len(table):
    raise ValueError(
      f"expected 1 to {len(table)} neighbours, found {count}. Ask for fewer."
    )
  if metric not in ("cosine", "l2"):
    raise ValueError(f"expected metric 'cosine' or 'l2', found {metric!r}.")
  rows = np.asarray(rows, np.float64)
  parts = []
  for first in range(0, len(table), _CHUNK):
    part = np.asarray(table[first : first + _CHUNK], np.float64)
    if metric == "cosine":
      parts.append(-(_unit(rows) @ _unit(part).T))
    else:
      squares = np.sum(rows**2, 1)[:, None] + np.sum(part**2, 1)[None]
      parts.append(np.maximum(squares - 2 * rows @ part.T, 0))
  costs = np.concatenate(parts, axis=1)
  ids = np.argsort(costs, axis=1, kind="stable")[:, :count]
  values = np.take_along_axis(costs, ids, axis=1)
  if metric == "cosine":
    return Nearest(ids, -values)
  # Of near ones the expanded square has few digits left.
  away = rows[:, None] - np.asarray(table[ids], np.float64)
  return Nearest(ids, np.linalg.norm(away, axis=-1))


def cosine(one: np.ndarray, other: np.ndarray) -> np.ndarray:
  """Returns the cosine similarity of each pair of rows [P, D] -> [P]."""
  one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
  return np.sum(_unit(one) * _unit(other), axis=-1)


def _unit(rows: np.ndarray) -> np.ndarray:
  return rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), _TINY)


def overlap(ids: np.ndarray) -> np.ndarray:
  """Returns how many neighbours each pair of rows shares, [P, P].

  Example:
    >>> overlap(np.array([[1, 2], [2, 3], [4, 5]])).tolist()
    [[2, 1, 0], [1, 2, 0], [0, 0, 2]]

  Args:
    ids: [P, K] the neighbours of each row, see `nearest`.
  """
  same = ids[:, None, :, None] == ids[None, :, None, :]  # [P, P, K, K]
  return same.astype(np.int64).sum(axis=(2, 3))


def clusters(linked: np.ndarray) -> list[list[int]]:
  """Returns groups of rows that links connect, the largest first.

  Rows without a link are in no group.

  Example:
    >>> linked = np.array([[0, 0, 1], [0, 0, 0], [1, 0, 0]], bool)
    >>> clusters(linked)
    [[0, 2]]

  Args:
    linked: [P, P] bool; either direction connects.
  """
  linked = np.logical_or(linked, linked.T)
  left, found = set(range(len(linked))), []
  while left:
    group, ahead = set(), [min(left)]
    while ahead:
      row = ahead.pop()
      if row not in group:
        group.add(row)
        ahead.extend(np.flatnonzero(linked[row]).tolist())
    left -= group
    if len(group) > 1:
      found.append(sorted(group))
  return sorted(found, key=lambda group: (-len(group), group))


def plane(rows: np.ndarray) -> Plane:
  """Returns the plane of the first two principal components.

  An axis points to where its largest entry is positive, so that the same rows
  always give the same picture.

  Example:
    >>> found = plane(np.array([[0.0, 0.0, 1.0], [2.0, 0.0, 1.0]]))
    >>> found.axes[0].tolist(), found.shares.tolist()
    ([1.0, 0.0, 0.0], [1.0, 0.0])

  Args:
    rows: [P, D], D >= 2.
  """
  rows = np.asarray(rows, np.float64)
  center = rows.mean(axis=0)
  # Two rows of zeros: one row alone has a plane too.
  padded = np.concatenate([rows - center, np.zeros((2, rows.shape[1]))])
  _, sizes, axes = np.linalg.svd(padded, full_matrices=False)
  axes = axes[:2]
  largest = np.argmax(np.abs(axes), axis=1)
  signs = np.sign(axes[np.arange(2), largest])
  axes = axes * np.where(signs == 0, 1, signs)[:, None]
  variances = sizes**2
  return Plane(center, axes, variances[:2] / max(variances.sum(), _TINY))
