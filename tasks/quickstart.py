"""The quickstart's data: a multi-task mixture and a task it does not contain.

All text is generated here, from small word lists, so that the quickstart needs
no download. A sentence has a topic (six) and a mood (two). The mixture asks for
them, and for simple string operations, in many wordings with many label words.
The held-out task asks for the mood in a wording and with label words that the
mixture never pairs with it.
"""

import dataclasses
import hashlib
import random
from collections.abc import Callable, Iterator

TOPICS: dict[str, tuple[str, ...]] = {
  "food": ("soup", "bread", "pasta", "cheese", "salad", "cake", "curry", "tea"),
  "travel": ("train", "hotel", "flight", "beach", "map", "bus", "tour", "road"),
  "sport": ("match", "team", "goal", "coach", "race", "tennis", "swim", "ball"),
  "music": (
    "song",
    "band",
    "piano",
    "drum",
    "choir",
    "tune",
    "violin",
    "opera",
  ),
  "tech": (
    "phone",
    "laptop",
    "screen",
    "robot",
    "app",
    "chip",
    "printer",
    "disk",
  ),
  "home": (
    "sofa",
    "kitchen",
    "garden",
    "lamp",
    "carpet",
    "window",
    "roof",
    "bed",
  ),
}

MOODS: dict[str, dict[str, tuple[str, ...]]] = {
  "positive": {
    "adjective": (
      "lovely", "great", "superb", "pleasant", "brilliant", "delightful",
      "wonderful", "charming", "splendid", "fantastic", "excellent", "perfect",
    ),
    "verb": ("loved", "enjoyed", "adored", "praised", "admired", "cherished"),
    "ending": (
      "we will come back", "everyone smiled", "it made my day",
      "what a treat", "I felt so lucky", "I want more",
    ),
  },
  "negative": {
    "adjective": (
      "awful", "terrible", "dreadful", "nasty", "horrible", "poor",
      "lousy", "boring", "broken", "ugly", "disgusting", "useless",
    ),
    "verb": ("hated", "disliked", "loathed", "cursed", "regretted", "dreaded"),
    "ending": (
      "never again", "everyone frowned", "it ruined my day",
      "what a waste", "I felt so cheated", "I want a refund",
    ),
  },
}  # fmt: skip

_FRAMES: tuple[str, ...] = (
  "the {noun} was {adjective}",
  "I {verb} the {noun}",
  "that {noun} is {adjective} and {adjective2}",
  "we {verb} this {adjective} {noun}",
  "my friend {verb} the {noun}, {ending}",
  "the {noun} and the {noun2} were {adjective}",
  "{ending}, the {noun} was {adjective}",
  "a {adjective} {noun}, {ending}",
)

# Wording -> label words, per property of the sentence.
_MOOD_PROMPTS: dict[str, tuple[str, str]] = {
  "sentiment: {s}": ("positive", "negative"),
  "review: {s}. Good or bad?": ("good", "bad"),
  "{s}. Did they like it?": ("yes", "no"),
  "How does the writer feel? {s}": ("happy", "sad"),
  "mood: {s}": ("up", "down"),
  "{s}. stars:": ("five", "one"),
  "Is this praise? {s}": ("true", "false"),
  "{s} -> thumbs": ("thumbs up", "thumbs down"),
  "attitude of: {s}": ("warm", "cold"),
  "score this: {s}": ("plus", "minus"),
  "verdict on: {s}": ("pass", "fail"),
  "{s}. The face:": ("smile", "frown"),
}
_TOPIC_PROMPTS: dict[str, tuple[str, ...]] = {
  "topic: {s}": ("food", "travel", "sport", "music", "tech", "home"),
  "{s}. What is it about?": (
    "eating", "moving", "playing", "hearing", "machines", "living",
  ),
  "desk for: {s}": ("cook", "guide", "coach", "artist", "engineer", "owner"),
}  # fmt: skip

# The held-out task: wording and label words are in no task of the mixture.
HELD_OUT_PROMPT = "Would you tell a friend to go? {s}"
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
  words = MOODS[mood]
  noun, noun2 = rng.sample(TOPICS[topic], 2)
  adjective, adjective2 = rng.sample(words["adjective"], 2)
  text = rng.choice(_FRAMES).format(
    noun=noun,
    noun2=noun2,
    adjective=adjective,
    adjective2=adjective2,
    verb=rng.choice(words["verb"]),
    ending=rng.choice(words["ending"]),
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


def _ask_about(rng: random.Random, sentence: Sentence) -> tuple[str, str]:
  topic = sentence.topic if rng.random() < 0.5 else rng.choice(list(TOPICS))
  answer = "yes" if topic == sentence.topic else "no"
  return f"Is this about {topic}? {sentence.text}", answer


def _repeat(rng: random.Random, sentence: Sentence) -> tuple[str, str]:
  words = sentence.text.replace(",", "").split()
  word = rng.choice([*words, *_ALL_LABELS])
  return f"repeat: {word}", word


def _last_word(rng: random.Random, sentence: Sentence) -> tuple[str, str]:
  return f"last word: {sentence.text}", sentence.text.split()[-1]


def _first_word(rng: random.Random, sentence: Sentence) -> tuple[str, str]:
  return f"first word: {sentence.text}", sentence.text.split()[0]


# Task -> its weight in the mixture.
_MIXTURE: dict[Callable[[random.Random, Sentence], tuple[str, str]], int] = {
  _ask_mood: 6,
  _ask_topic: 3,
  _ask_about: 1,
  _repeat: 1,
  _last_word: 1,
  _first_word: 1,
}

# Words that `repeat` teaches to spell; the held-out labels are among them.
_ALL_LABELS: tuple[str, ...] = (
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
