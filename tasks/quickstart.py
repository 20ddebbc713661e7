"""The quickstart's data: a multi-task mixture and a task it does not contain.

All text is generated here, from small word lists, so that the quickstart needs
no download. A sentence has a topic (four) and a mood (two). The mixture asks
for them, and for words to be repeated, in many wordings with many label words.
The held-out task asks for the mood in a wording and with label words that the
mixture never pairs with it.
"""

import dataclasses
import functools
import hashlib
import itertools
import random
from collections.abc import Callable, Iterator
from typing import Any

import seqio
import tensorflow as tf

from peft_jax.tasks import metrics, preprocessors, vocabularies

TOPICS: dict[str, tuple[str, ...]] = {
  "food": ("soup", "bread", "pasta", "cake"),
  "travel": ("train", "hotel", "flight", "beach"),
  "music": ("song", "piano", "choir", "drum"),
  "home": ("sofa", "garden", "lamp", "window"),
}

MOODS: dict[str, tuple[str, ...]] = {
  "positive": ("lovely", "great", "superb", "perfect"),
  "negative": ("awful", "nasty", "dreadful", "horrible"),
}

_NAMES: tuple[str, ...] = (
  "Ann", "Ben", "Eva", "Ian", "Kim", "Leo", "Mia", "Ned", "Pia", "Tom",
)  # fmt: skip
_DAYS: tuple[str, ...] = ("Monday", "Tuesday", "Friday", "Sunday")

_FRAMES: tuple[str, ...] = (
  "the {noun} was {adjective}",
  "{name} had a {adjective} {noun}",
  "on {day} the {noun} was {adjective}",
  "{name} said: {adjective} {noun}",
  "a {adjective} {noun} for {name}",
  "{day}, {name}, {noun}: {adjective}",
)

# Wording -> label words, per property of the sentence.
_MOOD_PROMPTS: dict[str, tuple[str, str]] = {
  "mood: {s}": ("positive", "negative"),
  "rate: {s}": ("good", "bad"),
  "{s}. liked?": ("yes", "no"),
  "feels {s}": ("happy", "sad"),
  "up? {s}": ("up", "down"),
  "{s}. stars": ("five", "one"),
  "praise? {s}": ("true", "false"),
  "{s}. verdict": ("pass", "fail"),
}
_TOPIC_PROMPTS: dict[str, tuple[str, ...]] = {
  "topic: {s}": ("food", "travel", "music", "home"),
  "{s}. about": ("eating", "moving", "hearing", "living"),
}

# The held-out task: wording and label words are in no task of the mixture.
HELD_OUT_PROMPT = "go there? {s}"
HELD_OUT_LABELS = ("recommend", "avoid")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sentence:
  """A generated sentence and what the tasks ask about it."""

  text: str
  topic: str
  mood: str


def make_sentence(rng: random.Random) -> Sentence:
  """Draws a sentence.

  Example:
    >>> make_sentence(random.Random(0)).mood in MOODS
    True
  """
  topic, mood = rng.choice(list(TOPICS)), rng.choice(list(MOODS))
  text = rng.choice(_FRAMES).format(
    noun=rng.choice(TOPICS[topic]),
    adjective=rng.choice(MOODS[mood]),
    name=rng.choice(_NAMES),
    day=rng.choice(_DAYS),
  )
  return Sentence(text=text, topic=topic, mood=mood)


def is_reserved(text: str) -> bool:
  """Whether a sentence is kept for the held-out task: half of them, by hash."""
  return hashlib.sha256(text.encode()).digest()[0] % 2 == 0


def _ask_mood(rng: random.Random, sentence: Sentence) -> tuple[str, str]:
  prompt, labels = rng.choice(list(_MOOD_PROMPTS.items()))
  label = labels[list(MOODS).index(sentence.mood)]
  return prompt.format(s=sentence.text), label


def _ask_topic(rng: random.Random, sentence: Sentence) -> tuple[str, str]:
  prompt, labels = rng.choice(list(_TOPIC_PROMPTS.items()))
  label = labels[list(TOPICS).index(sentence.topic)]
  return prompt.format(s=sentence.text), label


def _repeat(rng: random.Random, sentence: Sentence) -> tuple[str, str]:
  del sentence
  word = rng.choice(_SPELLED)
  return f"repeat: {word}", word


# Task -> its weight in the mixture.
_MIXTURE: dict[Callable[[random.Random, Sentence], tuple[str, str]], int] = {
  _ask_mood: 6,
  _ask_topic: 2,
  _repeat: 1,
}

# Words that `repeat` teaches to spell; the held-out labels are among them.
_SPELLED: tuple[str, ...] = (
  *HELD_OUT_LABELS,
  "approve", "reject", "accept", "decline", "return", "arrive", "remember",
  "awake", "record", "avenue", "receive", "average",
)  # fmt: skip


def mixture_examples(seed: int) -> Iterator[dict[str, str]]:
  """Yields the mixture's examples without end, none of them reserved.

  Example:
    >>> sorted(next(mixture_examples(0)))
    ['inputs', 'targets']
  """
  rng = random.Random(seed)
  tasks, weights = list(_MIXTURE), list(_MIXTURE.values())
  while True:
    sentence = make_sentence(rng)
    if not is_reserved(sentence.text):
      [task] = rng.choices(tasks, weights)
      inputs, targets = task(rng, sentence)
      yield {"inputs": inputs, "targets": targets}


def held_out_examples(seed: int, number: int) -> list[dict[str, str]]:
  """Returns distinct examples of the held-out task, its labels in turn.

  Example:
    >>> [row["targets"] for row in held_out_examples(0, 2)]
    ['recommend', 'avoid']
  """
  rng = random.Random(seed)
  rows: dict[str, dict[str, str]] = {}
  while len(rows) < number:
    sentence = make_sentence(rng)
    wanted = list(MOODS)[len(rows) % 2]
    if sentence.mood == wanted and is_reserved(sentence.text):
      label = HELD_OUT_LABELS[len(rows) % 2]
      rows.setdefault(
        sentence.text,
        {"inputs": HELD_OUT_PROMPT.format(s=sentence.text), "targets": label},
      )
  return list(rows.values())


TASK = "quickstart"
MIXTURE = "quickstart_mixture"

# Rows of the held-out task; training uses the first 32 of `train`.
_NUM_TRAIN, _NUM_VALIDATION = 128, 1000


def _rows(split: str) -> list[dict[str, str]]:
  """Returns the held-out task's rows; no text is in both splits."""
  rows = held_out_examples(seed=1, number=_NUM_TRAIN + _NUM_VALIDATION)
  return rows[:_NUM_TRAIN] if split == "train" else rows[_NUM_TRAIN:]


def _mixture_rows(split: str) -> list[dict[str, str]]:
  seed = 0 if split == "train" else 1
  return list(itertools.islice(mixture_examples(seed), 2000))


def register() -> None:
  """Registers the held-out task and a sample of the mixture with SeqIO."""
  choose = functools.partial(preprocessors.find_label, choices=HELD_OUT_LABELS)
  _add(TASK, _rows, choose)
  _add(MIXTURE, _mixture_rows)


def _add(
  name: str,
  rows: Callable[[str], list[dict[str, str]]],
  *steps: preprocessors.Preprocessor,
) -> None:
  source: Any = seqio.FunctionDataSource(
    functools.partial(_dataset, rows=rows), splits=("train", "validation")
  )
  seqio.TaskRegistry.remove(name)
  seqio.TaskRegistry.add(
    name,
    source=source,
    preprocessors=[*steps, *preprocessors.to_tokens(cacheable=False)],
    output_features=vocabularies.text_features(vocabularies.load("bytes")),
    metric_fns=[metrics.accuracy],
  )


def _dataset(
  split: str,
  shuffle_files: bool = False,
  seed: int | None = None,
  *,
  rows: Callable[[str], list[dict[str, str]]],
) -> tf.data.Dataset:
  del shuffle_files, seed
  found = rows(split)
  columns: Any = {key: [row[key] for row in found] for key in found[0]}
  return tf.data.Dataset.from_tensor_slices(columns)


register()
