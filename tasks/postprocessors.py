"""From a target or a prediction to what a metric compares.

They have the signature that SeqIO asks of a `postprocess_fn`: the text, the
example that it belongs to, and whether it is the target. Tasks whose metric
compares texts have none.
"""

from collections.abc import Mapping
from typing import Any

from peft_jax.tasks.metrics import UNLABELED
from peft_jax.tasks.superglue_text import ANSWERS, CORRECT

# Words that a referent may have or lack, as in T5's `wsc_simple`.
_DETERMINERS = frozenset((
  "a", "an", "few", "her", "his", "each", "every", "many", "much", "my", "our",
  "some", "that", "the", "their", "these", "this", "those", "which", "whose",
  "your",
))  # fmt: skip
_TRUTH = {-1: UNLABELED, 0: "False", 1: "True"}

Example = Mapping[str, Any]


def multirc(
  text: str, example: Example | None = None, is_target: bool = False
) -> str | dict[str, Any]:
  """Returns the answer; of a target also which question it belongs to."""
  if not is_target or example is None:
    return text
  paragraph, question, _ = example["idx"]
  return {"label": text, "question": [int(paragraph), int(question)]}


def record(
  text: str, example: Example | None = None, is_target: bool = False
) -> str | dict[str, Any]:
  """Returns the answer; of a target all right ones and which query it is."""
  if not is_target or example is None:
    return text
  return {
    "answers": _texts(example),
    "query": [int(number) for number in example["idx"]],
  }


def answers(
  text: str, example: Example | None = None, is_target: bool = False
) -> str | list[str]:
  """Returns the answer, or all right ones in the place of a target."""
  return _texts(example) if is_target and example is not None else text


def wsc(
  text: str, example: Example | None = None, is_target: bool = False
) -> str:
  """Returns whether the noun that a row asks about was, or should be, named.

  "True" or "False"; of an empty answer "", which is neither.

  Example:
    >>> row = {"targets_pretokenized": b"the old bunny", "correct": 1}
    >>> wsc("Bunny", row), wsc("Bunny's hat", row), wsc("", row)
    ('True', 'False', '')
    >>> wsc("the old bunny", row, is_target=True)
    'True'
  """
  if example is None:
    return text
  if is_target:
    return _TRUTH[int(example[CORRECT])]
  return names_referent(text, example["targets_pretokenized"].decode())


def names_referent(text: str, referent: str) -> str:
  """Returns "True" if the text names the referent, as T5 judges it.

  Case and determiners do not count, and one may have more words than the other;
  but one with an apostrophe is not the same as one without.

  Example:
    >>> names_referent("a bunny", "the fuzzy bunny")
    'True'
  """
  said, meant = _words(text), _words(referent)
  if not said:
    return ""
  if ("'" in " ".join(said)) != ("'" in " ".join(meant)):
    return "False"
  return str(said <= meant or meant <= said)


def _words(text: str) -> frozenset[str]:
  words = text.strip().lower().split(" ")
  return frozenset(words) - _DETERMINERS - {""}


def _texts(example: Example) -> list[str]:
  return [answer.decode() for answer in example[ANSWERS].tolist()]
