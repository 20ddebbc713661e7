"""The metrics: their values, and what they refuse."""

import numpy as np
import pytest
import seqio

from peft_jax.tasks import metrics, qa_metrics
from peft_jax.tasks.metrics import MetricError

EACH = pytest.mark.parametrize(
  "metric", [metrics.accuracy, metrics.exact_match, metrics.matthews]
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


@EACH
def test_refuses_what_cannot_be_compared(metric):
  name = metric.__name__
  with pytest.raises(MetricError, match=f"{name}: .* 2 targets, found 1 pred"):
    metric(["a", "b"], ["a"])
  with pytest.raises(MetricError, match=f"{name}: .* one example, found none"):
    metric([], [])
  with pytest.raises(MetricError, match=f"{name}: .* found 1 of 2 without"):
    metric(["a", metrics.UNLABELED], ["a", "b"])


@EACH
def test_seqio_takes_them_as_metric_functions(metric):
  task = seqio.Task(
    "metric_test", source=None, output_features={}, metric_fns=[metric]
  )
  assert task.predict_metric_fns == [metric]


LABELS = ("entailment", "contradiction", "neutral")


def test_macro_f1_of_cb_by_hand():
  targets = [LABELS[i] for i in (0, 0, 0, 1, 1, 2)]
  answers = [LABELS[i] for i in (0, 0, 1, 1, 0, 0)]
  found = metrics.macro_f1(targets, answers, labels=LABELS)
  # 2 * right / (asked + answered), class by class.
  f1 = 100 * (2 * 2 / (3 + 4) + 2 * 1 / (2 + 2) + 0) / 3
  assert found == pytest.approx(
    {"macro_f1": f1, "accuracy": 50.0, "mean": (f1 + 50) / 2}
  )
  answers[-1] = "maybe"  # of no class
  found = metrics.macro_f1(targets, answers, labels=LABELS)
  f1 = 100 * (2 * 2 / (3 + 3) + 2 * 1 / (2 + 2) + 0) / 3
  assert found["macro_f1"] == pytest.approx(f1)


def test_the_commonest_class_of_cb_has_the_papers_f1():
  # SuperGLUE's table: 48.4 % of the test set, F1 21.7.
  targets = [LABELS[1]] * 121 + [LABELS[0]] * 113 + [LABELS[2]] * 16
  found = metrics.macro_f1(targets, [LABELS[1]] * 250, labels=LABELS)
  assert round(found["accuracy"], 1) == 48.4
  assert round(found["macro_f1"], 1) == 21.7


def test_f1_counts_what_is_no_label_as_the_wrong_one():
  labels = ("not_duplicate", "duplicate")
  no, yes = labels
  # right 1, asked 2, answered 1
  found = metrics.f1([yes, yes, no], [yes, no, no], labels=labels)
  assert found == pytest.approx(
    {"f1": 200 / 3, "accuracy": 200 / 3, "mean": 200 / 3}
  )
  # "?" stands for yes where no is right: right 1, asked 2, answered 2
  found = metrics.f1([yes, yes, no], [yes, "?", "?"], labels=labels)
  assert found["f1"] == pytest.approx(50.0)
  assert metrics.f1([no], [no], labels=labels)["f1"] == 0.0


def test_squad_by_hand():
  targets = [["the Old Town", "Lund"], ["1666"], ["Ann, Bo"], ["the"]]
  answers = ["An old  town!", "in 1666", "Cy", "a"]
  # F1: 1, 2/3, 0, and 0 for two texts of which nothing is left, which match.
  assert qa_metrics.squad(targets, answers) == pytest.approx(
    {"f1": 100 * (1 + 2 / 3) / 4, "exact_match": 50.0}
  )
  # A word counts as often as both have it: 2 * 1 / (2 + 3)
  found = qa_metrics.squad([["up up"]], ["up down left"])
  assert found["f1"] == pytest.approx(40.0)


def test_multirc_by_hand():
  def target(label, question):
    return {"label": label, "question": question}

  targets = [
    target("True", (0, 0)),
    target("False", (0, 0)),
    target("True", (0, 1)),
    target("False", (1, 1)),
  ]
  # (0, 0) and (1, 1) match; right 1, asked 2, answered 1.
  answers = ["True", "False", "False", "False"]
  assert qa_metrics.multirc(targets, answers) == pytest.approx(
    {
      "f1a": 200 / 3,
      "exact_match": 200 / 3,
      "mean": 200 / 3,
    }
  )
  # Text that is no label is wrong: yes to (1, 1); answered 2.
  answers[-1] = "perhaps"
  assert qa_metrics.multirc(targets, answers) == pytest.approx(
    {"f1a": 50.0, "exact_match": 100 / 3, "mean": (50 + 100 / 3) / 2}
  )


def test_record_takes_a_query_once():
  first = {"answers": ["Ann", "Bo"], "query": [0, 1]}
  second = {"answers": ["an owl"], "query": [0, 2]}
  found = qa_metrics.record([first, first, second], ["Bo", "Cy", "grey owl"])
  assert found == pytest.approx(
    {"f1": 100 * (1 + 2 / 3) / 2, "exact_match": 50.0, "mean": 200 / 3}
  )


@pytest.mark.parametrize(
  ("metric", "target"),
  [
    (qa_metrics.squad, []),
    (qa_metrics.record, {"answers": [], "query": (0, 0)}),
    (qa_metrics.multirc, {"label": metrics.UNLABELED, "question": (0, 0)}),
  ],
)
def test_metrics_of_questions_refuse_what_has_no_answer(metric, target):
  name = metric.__name__
  with pytest.raises(MetricError, match=f"{name}: .* found 1 of 1 without"):
    metric([target], ["a"])
  with pytest.raises(MetricError, match=f"{name}: .* 1 targets, found 0 pred"):
    metric([target], [])


@pytest.mark.parametrize("seed", range(5))
def test_matthews_is_the_correlation_of_two_classes(seed):
  rng = np.random.default_rng(seed)
  targets, answers = rng.integers(0, 2, (2, 40))
  expected = 100 * np.corrcoef(targets, answers)[0, 1]
  words = np.array(["no", "yes"])
  found = metrics.matthews(list(words[targets]), list(words[answers]))
  assert found["matthews"] == pytest.approx(expected)
  assert found["accuracy"] == pytest.approx(100 * np.mean(targets == answers))


def test_matthews_of_one_class_is_nothing():
  assert metrics.matthews(["a", "a"], ["a", "b"])["matthews"] == 0.0
  # What is no class counts as wrong.
  wrong = metrics.matthews(["a", "b"], ["so", "so"])["matthews"]
  assert wrong == -100.0


@pytest.mark.parametrize("seed", range(5))
def test_scores_equal_scikit_learns(seed):
  sklearn = pytest.importorskip("sklearn.metrics")
  rng = np.random.default_rng(seed)
  targets = list(rng.choice(LABELS, 40))
  answers = list(rng.choice([*LABELS, "maybe"], 40))
  kept = {"labels": LABELS, "average": "macro", "zero_division": 0}
  expected = 100 * sklearn.f1_score(targets, answers, **kept)
  found = metrics.macro_f1(targets, answers, labels=LABELS)
  assert found["macro_f1"] == pytest.approx(expected)
  expected = 100 * sklearn.accuracy_score(targets, answers)
  assert found["accuracy"] == pytest.approx(expected)

  targets = list(rng.choice(["False", "True"], 40))
  answers = list(rng.choice(["False", "True"], 40))
  expected = 100 * sklearn.f1_score(targets, answers, pos_label="True")
  found = metrics.f1(targets, answers, labels=("False", "True"))
  assert found["f1"] == pytest.approx(expected)
  questions = [(0, int(n)) for n in rng.integers(0, 15, 40)]
  rows = [
    {"label": label, "question": question}
    for label, question in zip(targets, questions, strict=True)
  ]
  found = qa_metrics.multirc(rows, answers)
  assert found["f1a"] == pytest.approx(expected)
  whole = [
    sklearn.accuracy_score(
      *zip(
        *[
          pair
          for pair, q in zip(
            zip(targets, answers, strict=True), questions, strict=True
          )
          if q == question
        ],
        strict=True,
      )
    )
    == 1.0
    for question in set(questions)
  ]
  assert found["exact_match"] == pytest.approx(100 * np.mean(whole))
