"""Neighbours, clusters and planes, against numpy written out here."""

import numpy as np
import pytest

from peft_jax import interpret

RNG = np.random.default_rng(0)
ROWS = RNG.standard_normal((6, 5)).astype(np.float32)
TABLE = RNG.standard_normal((40, 5)).astype(np.float32)


@pytest.mark.parametrize("chunk", [7, 16384])
def test_neighbors_one_by_one(monkeypatch, chunk):
  monkeypatch.setattr(interpret, "_CHUNK", chunk)
  by_cosine = interpret.nearest(ROWS, TABLE, count=4, metric="cosine")
  by_l2 = interpret.nearest(ROWS, TABLE, count=4, metric="l2")
  for i, row in enumerate(ROWS.astype(np.float64)):
    cosines, distances = [], []
    for word in TABLE.astype(np.float64):
      lengths = np.sqrt((row**2).sum()) * np.sqrt((word**2).sum())
      cosines.append((row * word).sum() / lengths)
      distances.append(np.sqrt(((row - word) ** 2).sum()))
    order = sorted(range(40), key=lambda j: -cosines[j])[:4]
    assert by_cosine.ids[i].tolist() == order
    np.testing.assert_allclose(
      by_cosine.values[i], [cosines[j] for j in order], rtol=1e-12
    )
    order = sorted(range(40), key=lambda j: distances[j])[:4]
    assert by_l2.ids[i].tolist() == order
    np.testing.assert_allclose(
      by_l2.values[i], [distances[j] for j in order], rtol=1e-12
    )


def test_a_word_itself_is_at_distance_0():
  found = interpret.nearest(TABLE[[3, 8]], TABLE, count=1, metric="l2")
  assert found.ids.tolist() == [[3], [8]]
  assert (found.values == 0).all()


def test_equals_are_in_the_order_of_the_table():
  table = np.array([[0.0, 1.0], [2.0, 0.0], [1.0, 0.0]])
  found = interpret.nearest(
    np.array([[1.0, 0.0]]), table, count=3, metric="cosine"
  )
  assert found.ids.tolist() == [[1, 2, 0]]


def test_clusters_are_chains_of_links():
  linked = np.zeros((7, 7), bool)
  linked[0, 3] = linked[3, 5] = linked[2, 6] = True
  assert interpret.clusters(linked) == [[0, 3, 5], [2, 6]]
  assert interpret.clusters(np.eye(3, dtype=bool)) == []


def test_the_plane_has_the_most_variance():
  rows = RNG.standard_normal((30, 4)) * [1.0, 5.0, 0.1, 3.0] + 7
  found = interpret.plane(rows)
  covariance = np.cov(rows.T, bias=True)
  sizes, vectors = np.linalg.eigh(covariance)
  np.testing.assert_allclose(
    np.abs(found.axes @ vectors[:, [3, 2]]), np.eye(2), atol=1e-9
  )
  np.testing.assert_allclose(found.shares, sizes[[3, 2]] / sizes.sum())
  np.testing.assert_allclose(
    found.project(rows).var(axis=0), sizes[[3, 2]], rtol=1e-9
  )
  assert (np.abs(found.axes).max(axis=1) == found.axes.max(axis=1)).all()
  assert interpret.plane(rows[:1]).project(rows[:1]).tolist() == [[0, 0]]


@pytest.mark.parametrize(
  ("table", "options", "message"),
  [
    (TABLE[:, 1:], {}, r"expected embeddings \[V, 5\] for this prompt"),
    (TABLE, {"count": 41}, "expected 1 to 40 neighbours, found 41"),
    (TABLE, {"metric": "l1"}, "expected metric 'cosine' or 'l2'"),
  ],
)
def test_what_cannot_be_compared(table, options, message):
  options = {"count": 5, "metric": "l2"} | options
  with pytest.raises(ValueError, match=message):
    interpret.nearest(ROWS, table, **options)
