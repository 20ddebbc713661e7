"""Small rows of our own, in the form of SuperGLUE's official files."""

import json
from pathlib import Path

_PASSAGE = "Ann saw an owl.\n@highlight\nBo saw a pen\n@highlight\nOwls fly"
_WSC_TEXT = "The owl watched the mouse because it was small ."

ROWS = {
  "BoolQ": [
    {
      "question": "is it old",
      "passage": "It is new.",
      "idx": 0,
      "label": False,
    },
    {"question": "is it new", "passage": "It is new.", "idx": 1, "label": True},
    {"question": "is it", "passage": "It is.", "idx": 2, "label": True},
  ],
  "CB": [
    {
      "premise": "I doubt that Bo left.",
      "hypothesis": "Bo left",
      "label": "contradiction",
      "idx": 0,
    }
  ],
  "COPA": [
    {
      "premise": "It rained.",
      "choice1": "The street was wet.",
      "choice2": "The sun shone.",
      "question": "effect",
      "label": 0,
      "idx": 0,
    }
  ],
  "MultiRC": [
    {
      "idx": 3,
      "version": 1.1,
      "passage": {
        "text": "<b>Sent 1: </b>Ann ran.<br><b>Sent 2: </b>Bo sat.<br>",
        "questions": [
          {
            "question": "Who ran?",
            "idx": 7,
            "answers": [
              {"text": "Ann", "idx": 20, "label": 1},
              {"text": "Bo", "idx": 21, "label": 0},
            ],
          },
          {
            "question": "Who sat?",
            "idx": 8,
            "answers": [{"text": "Bo", "idx": 22, "label": 1}],
          },
        ],
      },
    }
  ],
  "ReCoRD": [
    {
      "idx": 5,
      "source": "own",
      "passage": {
        "text": _PASSAGE,
        "entities": [
          {"start": 27, "end": 28},
          {"start": 0, "end": 2},
          {"start": 0, "end": 2},
          {"start": 11, "end": 13},
        ],
      },
      "qas": [
        {
          "idx": 40,
          "query": "@placeholder saw something.",
          "answers": [
            {"start": 27, "end": 28, "text": "Bo"},
            {"start": 0, "end": 2, "text": "Ann"},
            {"start": 0, "end": 2, "text": "Ann"},
          ],
        },
        {
          "idx": 41,
          "query": "An @placeholder flew.",
          "answers": [{"start": 11, "end": 13, "text": "owl"}],
        },
      ],
    }
  ],
  "RTE": [
    {
      "premise": "Rain fell in Lund.",
      "hypothesis": "Lund was dry.",
      "label": "not_entailment",
      "idx": 40,
    },
    {
      "premise": "Ada wrote to Bo.",
      "hypothesis": "Bo got mail.",
      "label": "entailment",
      "idx": 41,
    },
  ],
  "WiC": [
    {
      "word": "bank",
      "sentence1": "The bank lends.",
      "sentence2": "A steep bank.",
      "idx": 0,
      "label": False,
      "start1": 4,
      "start2": 8,
      "end1": 8,
      "end2": 12,
      "version": 1.1,
    }
  ],
  "WSC": [
    {
      "text": _WSC_TEXT,
      "target": {
        "span1_index": 3,
        # As in the official files: in the text its letter is a small one.
        "span1_text": "The mouse",
        "span2_index": 6,
        "span2_text": "it",
      },
      "idx": 0,
      "label": True,
    },
    {
      "text": _WSC_TEXT,
      "target": {
        "span1_index": 0,
        "span1_text": "The owl",
        "span2_index": 6,
        "span2_text": "it",
      },
      "idx": 1,
      "label": False,
    },
    {
      # A mark behind the pronoun, and a space behind the text.
      "text": 'Ann thanked Bo. "I like him," she said. ',
      "target": {
        "span1_index": 2,
        "span1_text": "Bo",
        "span2_index": 5,
        "span2_text": "him",
      },
      "idx": 2,
      "label": True,
    },
    {
      # The index is that of the word in front of the pronoun.
      "text": "Ann had a pen and did not use it , really.",
      "target": {
        "span1_index": 3,
        "span1_text": "pen",
        "span2_index": 7,
        "span2_text": "it",
      },
      "idx": 3,
      "label": True,
    },
  ],
}


def write(folder: Path, rows=ROWS) -> Path:
  """Writes train and validation files of all tasks."""
  for task, some in rows.items():
    (folder / task).mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in some)
    for file in ("train", "val"):
      (folder / task / f"{file}.jsonl").write_text(text)
    # FewGLUE has this one too; it is not read.
    (folder / task / "dev32.jsonl").write_text("not JSON\n")
  return folder


def unlabelled(value):
  """Returns rows without what the test split lacks."""
  if isinstance(value, list):
    return [unlabelled(item) for item in value]
  if not isinstance(value, dict):
    return value
  answered = "query" in value
  return {
    name: unlabelled(item)
    for name, item in value.items()
    if name != "label" and not (answered and name == "answers")
  }


def write_test(folder: Path, rows=ROWS) -> Path:
  """Writes test files of all tasks."""
  for task, some in rows.items():
    (folder / task).mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in unlabelled(some))
    (folder / task / "test.jsonl").write_text(text)
  return folder
