"""Metrics of the tasks: plain Python over whole lists, no batches, no padding.

They have the signature that SeqIO asks of a `metric_fn`, and count examples, so
the result cannot depend on how the examples were batched.
"""

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
  _check(targets, predictions, metric="accuracy")
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
  _check(targets, predictions, metric="exact_match")
  return {
    "exact_match": _percent_equal(
      [text.strip() for text in targets],
      [text.strip() for text in predictions],
    )
  }


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

  _check(targets, predictions, metric="bleu")
  texts = [[t] if isinstance(t, str) else list(t) for t in targets]
  # sacreBLEU wants the first texts of all, then the second ones, ...
  width = max(map(len, texts))
  columns = [
    [found[i] if i < len(found) else None for found in texts]
    for i in range(width)
  ]
  score = sacrebleu.corpus_bleu(list(predictions), columns)  # pyright: ignore
  return {"bleu": float(score.score)}


def _percent_equal(targets: Sequence[Any], predictions: Sequence[Any]) -> float:
  equal = sum(
    bool(target == prediction)
    for target, prediction in zip(targets, predictions, strict=True)
  )
  return 100.0 * equal / len(targets)


def _check(
  targets: Sequence[Any], predictions: Sequence[Any], *, metric: str
) -> None:
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
