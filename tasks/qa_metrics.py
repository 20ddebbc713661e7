"""Metrics of questions with several right answers, or several questions' worth.

As SQuAD's own script has them (arXiv 1606.05250), and SuperGLUE (1905.00537).
"""

import collections
import re
import string
from collections.abc import Mapping, Sequence
from typing import Any

from peft_jax.tasks import metrics
from peft_jax.tasks.metrics import UNLABELED

_PUNCTUATION = str.maketrans("", "", string.punctuation)


def squad(
  targets: Sequence[Sequence[str]], predictions: Sequence[str]
) -> dict[str, float]:
  """Returns SQuAD's F1 over words and exact match, in percent.

  Of the right answers of a question the best one counts. Case, punctuation,
  articles and white space do not.

  Example:
    >>> squad([["the Old Town", "Lund"], ["1666"]], ["old town.", "in 1666"])
    {'f1': 83.33333333333333, 'exact_match': 50.0}

  Args:
    targets: the right answers of every question.
    predictions: the model's answers, in the same order.

  Raises:
    MetricError: if the two differ in length, are empty, or a question has no
      answers.
  """
  labelled = [list(answers) or UNLABELED for answers in targets]
  metrics.check(labelled, predictions, metric="squad")
  pairs = [
    ([normalized(answer) for answer in answers], normalized(prediction))
    for answers, prediction in zip(targets, predictions, strict=True)
  ]
  best = [max(_word_f1(one, text) for one in some) for some, text in pairs]
  equal = [text in some for some, text in pairs]
  return {
    "f1": 100.0 * sum(best) / len(pairs),
    "exact_match": 100.0 * sum(equal) / len(pairs),
  }


def record(
  targets: Sequence[Mapping[str, Any]], predictions: Sequence[str]
) -> dict[str, float]:
  """Returns ReCoRD's F1 and exact match as `squad`, and their mean.

  A query has one example for each of its answers; the first one counts.

  Example:
    >>> target = {"answers": ["Lund"], "query": (0, 3)}
    >>> record([target, target], ["Lund", "Malmö"])
    {'mean': 100.0, 'f1': 100.0, 'exact_match': 100.0}

  Args:
    targets: `answers`, the right ones, and `query`, which query it is.
    predictions: the model's answers, in the same order.

  Raises:
    MetricError: see `squad`.
  """
  labelled = [target["answers"] or UNLABELED for target in targets]
  metrics.check(labelled, predictions, metric="record")
  first: dict[tuple[int, ...], tuple[Sequence[str], str]] = {}
  for target, prediction in zip(targets, predictions, strict=True):
    first.setdefault(tuple(target["query"]), (target["answers"], prediction))
  answers, texts = zip(*first.values(), strict=True)
  return metrics.with_mean(**squad(answers, texts))


def multirc(
  targets: Sequence[Mapping[str, Any]], predictions: Sequence[str]
) -> dict[str, float]:
  """Returns MultiRC's F1 over all answers and exact match, and their mean.

  F1a is that of the answers that are right. A question matches if each of its
  answers is judged rightly. A prediction that is neither "True" nor "False"
  counts as the wrong one.

  Example:
    >>> first, second = (0, 0), (0, 1)
    >>> targets = [
    ...   {"label": "True", "question": first},
    ...   {"label": "True", "question": second},
    ...   {"label": "False", "question": second},
    ... ]
    >>> multirc(targets, ["True", "True", "True"])
    {'mean': 65.0, 'f1a': 80.0, 'exact_match': 50.0}

  Args:
    targets: `label`, "True" or "False", and `question`, which question it is.
    predictions: the model's answers, in the same order.

  Raises:
    MetricError: if the two differ in length, are empty, or a target has no
      label.
  """
  labels = [target["label"] for target in targets]
  metrics.check(labels, predictions, metric="multirc")
  matched: dict[tuple[int, ...], bool] = collections.defaultdict(lambda: True)
  for target, prediction in zip(targets, predictions, strict=True):
    matched[tuple(target["question"])] &= target["label"] == prediction
  return metrics.with_mean(
    f1a=metrics.percent_f1(labels, predictions, labels=("False", "True")),
    exact_match=100.0 * sum(matched.values()) / len(matched),
  )


def normalized(text: str) -> str:
  """Returns a text without what SQuAD's script does not compare.

  Example:
    >>> normalized("The  U.S., an ally")
    'us ally'
  """
  text = text.lower().translate(_PUNCTUATION)
  return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def _word_f1(target: str, prediction: str) -> float:
  asked, answered = target.split(), prediction.split()
  common = collections.Counter(asked) & collections.Counter(answered)
  right = sum(common.values())
  return 2 * right / (len(asked) + len(answered)) if right else 0.0
