"""The metrics: their values, and what they refuse."""

import numpy as np
import pytest
import seqio

from peft_jax.tasks import metrics
from peft_jax.tasks.metrics import MetricError

BOTH = pytest.mark.parametrize(
  "metric", [metrics.accuracy, metrics.exact_match]
)


@pytest.mark.parametrize(
  ("targets", "predictions", "percent"),
  [
    (["a"], ["a"], 100.0),
    (["a"], ["b"], 0.0),
    (["a", "b", "c"], ["a", "x", "x"], 100 / 3),
    ([0, 1, 1, 0], [0, 1, 0, 1], 50.0),
  ],
)
def test_accuracy(targets, predictions, percent):
  assert metrics.accuracy(targets, predictions) == {"accuracy": percent}


def test_accuracy_of_arrays_is_a_plain_float():
  value = metrics.accuracy(np.array([1, 2]), np.array([1, 3]))["accuracy"]
  assert (type(value), value) == (float, 50.0)


def test_accuracy_counts_white_space_and_exact_match_does_not():
  assert metrics.accuracy(["a"], [" a"]) == {"accuracy": 0.0}
  assert metrics.exact_match(["a b", "a b"], [" a b\n", "a  b"]) == {
    "exact_match": 50.0
  }


@BOTH
def test_refuses_what_cannot_be_compared(metric):
  name = metric.__name__
  with pytest.raises(MetricError, match=f"{name}: .* 2 targets, found 1 pred"):
    metric(["a", "b"], ["a"])
  with pytest.raises(MetricError, match=f"{name}: .* one example, found none"):
    metric([], [])
  with pytest.raises(MetricError, match=f"{name}: .* found 1 of 2 without"):
    metric(["a", metrics.UNLABELED], ["a", "b"])


@BOTH
def test_seqio_takes_them_as_metric_functions(metric):
  task = seqio.Task(
    "metric_test", source=None, output_features={}, metric_fns=[metric]
  )
  assert task.predict_metric_fns == [metric]
