"""Metrics of the tasks: plain Python over whole lists, no batches, no padding.

They have the signature that SeqIO asks of a `metric_fn`, and count examples, so
the result cannot depend on how the examples were batched.
"""

import collections
import math
from collections.abc import Sequence
from typing import Any

# The target of a row without a label (a test split), as T5 writes it:
# https://github.com/google-research/text-to-text-transfer-transformer
# t5/data/preprocessors.py, `glue`.
UNLABELED = "<unk>"


class MetricError(ValueError):
  """Targets and predictions that cannot be compared."""


def accuracy(
  targets: Sequence[Any], predictions: Sequence[Any]
) -> dict[str, float]:
  """Returns the percentage of predictions that equal their target.

  Example:
    >>> accuracy(["True", "False"], ["True", "maybe"])
    {'accuracy': 50.0}

  Args:
    targets: the right answers, text or class numbers.
    predictions: the model's answers, in the same order.

  Raises:
    MetricError: if the two differ in length, are empty, or a target has no
      label.
  """
  check(targets, predictions, metric="accuracy")
  return {"accuracy": _percent_equal(targets, predictions)}


def exact_match(
  targets: Sequence[str], predictions: Sequence[str]
) -> dict[str, float]:
  """Returns the percentage of predicted texts that equal their target.

  White space around a text does not count; case, punctuation and the white
  space inside do.

  Example:
    >>> exact_match(["a cat", "a dog"], [" a cat", "A dog"])
    {'exact_match': 50.0}

  Args:
    targets: the right texts.
    predictions: the model's texts, in the same order.

  Raises:
    MetricError: if the two differ in length, are empty, or a target has no
      label.
  """
  check(targets, predictions, metric="exact_match")
  return {
    "exact_match": _percent_equal(
      [text.strip() for text in targets],
      [text.strip() for text in predictions],
    )
  }


def f1(
  targets: Sequence[str], predictions: Sequence[str], *, labels: Sequence[str]
) -> dict[str, float]:
  """Returns F1 of the positive class, accuracy, and the mean of both, in %.

  GLUE's score of MRPC and QQP. A prediction that is no label counts as the
  wrong one of the two, as in T5 (t5/evaluation/metrics.py).

  Example:
    >>> answers = ["yes", "no", "no", "no"]
    >>> f1(["yes", "yes", "yes", "no"], answers, labels=("no", "yes"))
    {'mean': 50.0, 'f1': 50.0, 'accuracy': 50.0}

  Args:
    targets: the right labels.
    predictions: the model's answers, in the same order.
    labels: the negative and the positive one.

  Raises:
    MetricError: see `accuracy`.
  """
  check(targets, predictions, metric="f1")
  return with_mean(
    f1=percent_f1(targets, predictions, labels=labels),
    accuracy=_percent_equal(targets, predictions),
  )


def macro_f1(
  targets: Sequence[str], predictions: Sequence[str], *, labels: Sequence[str]
) -> dict[str, float]:
  """Returns the mean F1 of all classes, accuracy, and the mean of both, in %.

  SuperGLUE's score of CB. A class that is neither asked for nor predicted has
  an F1 of 0; a prediction that is no label counts against its target's class.

  Example:
    >>> macro_f1(["a", "b"], ["a", "neither"], labels=("a", "b"))
    {'mean': 50.0, 'macro_f1': 50.0, 'accuracy': 50.0}

  Args:
    targets: the right labels.
    predictions: the model's answers, in the same order.
    labels: all classes.

  Raises:
    MetricError: see `accuracy`.
  """
  check(targets, predictions, metric="macro_f1")
  scores = [_f1_of(label, targets, predictions) for label in labels]
  return with_mean(
    macro_f1=100.0 * sum(scores) / len(scores),
    accuracy=_percent_equal(targets, predictions),
  )


def matthews(
  targets: Sequence[Any], predictions: Sequence[Any]
) -> dict[str, float]:
  """Returns Matthews' correlation of two classes and accuracy, in %.

  SuperGLUE's score of AX-b. It is 0 where one of the lists is all of a class. A
  prediction that is neither class counts as the one that its target is not.

  Example:
    >>> matthews(["a", "a", "b", "b"], ["a", "a", "b", "a"])
    {'matthews': 57.735026918962575, 'accuracy': 75.0}

  Args:
    targets: the right answers, of two classes.
    predictions: the model's answers, in the same order.

  Raises:
    MetricError: see `accuracy`.
  """
  check(targets, predictions, metric="matthews")
  first = targets[0]
  cells = collections.Counter(
    (target == first, target == prediction)
    for target, prediction in zip(targets, predictions, strict=True)
  )
  right, wrong = cells[True, True], cells[True, False]
  right_other, wrong_other = cells[False, True], cells[False, False]
  sides = (
    (right + wrong)
    * (right_other + wrong_other)
    * (right + wrong_other)
    * (right_other + wrong)
  )
  product = right * right_other - wrong * wrong_other
  return {
    "matthews": 100.0 * product / math.sqrt(sides) if sides else 0.0,
    "accuracy": _percent_equal(targets, predictions),
  }


def percent_f1(
  targets: Sequence[str], predictions: Sequence[str], *, labels: Sequence[str]
) -> float:
  """Returns F1 of the second label alone, see `f1`; nothing is checked.

  Example:
    >>> percent_f1(["no"], ["yes"], labels=("no", "yes"))
    0.0
  """
  negative, positive = labels
  other = {negative: positive, positive: negative}
  valid = [
    prediction if prediction in other else other[target]
    for target, prediction in zip(targets, predictions, strict=True)
  ]
  return 100.0 * _f1_of(positive, targets, valid)


def with_mean(**scores: float) -> dict[str, float]:
  """Returns the scores behind their mean, which is a benchmark's score.

  Example:
    >>> with_mean(f1=40.0, accuracy=60.0)
    {'mean': 50.0, 'f1': 40.0, 'accuracy': 60.0}
  """
  return {"mean": sum(scores.values()) / len(scores), **scores}


def bleu(
  targets: Sequence[str | Sequence[str]], predictions: Sequence[str]
) -> dict[str, float]:
  """Returns corpus BLEU as sacreBLEU computes it (arXiv 1804.08771), 0 to 100.

  Example:
    >>> text = "a cat sat on the mat"
    >>> round(bleu([[text, "a dog sat"]], [text])["bleu"], 1)
    100.0

  Args:
    targets: the right texts of every prediction, one or several.
    predictions: the model's texts, in the same order.

  Raises:
    MetricError: if the two differ in length, are empty, or a target has no
      label.
  """
  import sacrebleu  # takes a second, and most tasks do not need it

  check(targets, predictions, metric="bleu")
  texts = [[t] if isinstance(t, str) else list(t) for t in targets]
  # sacreBLEU wants the first texts of all, then the second ones, ...
  width = max(map(len, texts))
  columns = [
    [found[i] if i < len(found) else None for found in texts]
    for i in range(width)
  ]
  score = sacrebleu.corpus_bleu(list(predictions), columns)  # pyright: ignore
  return {"bleu": float(score.score)}


def _f1_of(
  label: str, targets: Sequence[str], predictions: Sequence[str]
) -> float:
  """Returns F1 of one class, 0 to 1; 0 if it is neither right nor predicted."""
  right = sum(
    target == prediction == label
    for target, prediction in zip(targets, predictions, strict=True)
  )
  asked, answered = list(targets).count(label), list(predictions).count(label)
  return 2 * right / (asked + answered) if asked + answered else 0.0


def _percent_equal(targets: Sequence[Any], predictions: Sequence[Any]) -> float:
  equal = sum(
    bool(target == prediction)
    for target, prediction in zip(targets, predictions, strict=True)
  )
  return 100.0 * equal / len(targets)


def check(
  targets: Sequence[Any], predictions: Sequence[Any], *, metric: str
) -> None:
  """Refuses what cannot be compared.

  Raises:
    MetricError: if the two differ in length, are empty, or a target has no
      label.
  """
  if len(targets) != len(predictions):
    raise MetricError(
      f"{metric}: expected one prediction for each of {len(targets)} targets,"
      f" found {len(predictions)} predictions. Keep every example of the split"
      " exactly once, without the rows that pad the last batch."
    )
  if len(targets) == 0:
    raise MetricError(
      f"{metric}: expected at least one example, found none. Evaluate a split"
      " that has examples."
    )
  unlabeled = sum(_is_unlabeled(target) for target in targets)
  if unlabeled:
    raise MetricError(
      f"{metric}: expected a label for every example, found {unlabeled} of"
      f" {len(targets)} without one. Evaluate a labelled split (validation);"
      " write predictions for this one."
    )


def _is_unlabeled(target: Any) -> bool:
  return isinstance(target, str) and target == UNLABELED
