"""The data sets of T-Few's few-shot protocol, and their rows.

Templates know the rows as Hugging Face's `datasets` gives them. Official files
name and type some fields otherwise; each data set here says how its rows become
that form. Rows that have it already, T-Few's own few-shot files among them, are
left as they are.
"""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from peft_jax.tasks import sources
from peft_jax.tasks.sources import DataError

Row = dict[str, Any]
# Returns a row in Hugging Face's form. KeyError, ValueError and TypeError: the
# row is of neither form.
Convert = Callable[[Mapping[str, Any]], Row]

PREFIX = "tfew_"
# The seeds of T-Few's published samples (r-three/t-few, bin/few-shot-3b.sh).
SEEDS = (42, 1024, 0, 1, 32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FewShotData:
  """One data set: where its rows are, how many, and what they look like.

  Attributes:
    name: ours; the task is `tfew_<name>`.
    published: T-Few's name, the folder of its few-shot files.
    templates: PromptSource's data set and subset.
    shots: T-Few's number of training examples (r-three/t-few, configs/).
    folders: names of the folder of its files, below `data_dir`.
    files: split of the task -> names that the file may have.
    convert: see `Convert`.
    sizes: rows of each split, as published.
    tfds: split -> TFDS's data set and split; empty: TFDS has no rows that can
      be used.
    random_templates: how many of the original-task templates T-Few draws from,
      the first in the order of names; 0: all.
  """

  name: str
  published: str
  templates: tuple[str, str]
  shots: int
  folders: tuple[str, ...]
  files: Mapping[str, tuple[str, ...]]
  convert: Convert
  sizes: Mapping[str, int]
  tfds: Mapping[str, tuple[str, str]] = dataclasses.field(default_factory=dict)
  random_templates: int = 0

  @property
  def task_name(self) -> str:
    """The name in SeqIO's registry."""
    return f"{PREFIX}{self.name}"

  def find(self, data_dir: str | os.PathLike[str]) -> dict[str, str]:
    """Returns the file of each split that is there, below `data_dir` or in it.

    Raises:
      DataError: if there is none, with the names that were looked for.
    """
    root = os.fspath(data_dir)
    found = {}
    for split, names in self.files.items():
      paths = [
        os.path.join(root, folder, name)
        for folder in ("", *self.folders)
        for name in names
      ]
      present = [path for path in paths if sources.exists(path)]
      if present:
        found[split] = present[0]
    if not found:
      names = sorted({name for names in self.files.values() for name in names})
      raise DataError(
        f"task {self.task_name!r}: expected one of {', '.join(names)} in {root}"
        f" or its folders {', '.join(self.folders)}, found none. Give the"
        " folder of the official files as --data_dir."
      )
    return found

  def read(self, path: str | os.PathLike[str]) -> list[Row]:
    """Returns the rows of a file in Hugging Face's form, `idx` and `label` too.

    `label` is -1 where the file has none; `idx` counts the rows of the file
    where it has none.

    Raises:
      DataError: for a file that is missing or has another row, with its line.
    """
    place = os.fspath(path)
    return [
      self.row(row, number=number - 1, place=f"{place}:{number}")
      for number, row in sources.iterate_objects(path)
    ]

  def row(self, row: Mapping[str, Any], *, number: int, place: str) -> Row:
    """Returns a row in Hugging Face's form.

    Args:
      row: official, TFDS's or Hugging Face's.
      number: its `idx` if it has none.
      place: where it is from, for the message.

    Raises:
      DataError: if it is none of these.
    """
    try:
      converted = {"idx": number, **row, **self.convert(row)}
      return {**converted, "idx": int(converted["idx"])}
    except (KeyError, ValueError, TypeError) as error:
      raise DataError(
        f"{place}: expected a row of {self.name}, official or of Hugging Face,"
        f" found the fields {', '.join(row)}: {type(error).__name__}: {error}."
        " Give the file of this data set."
      ) from None


def _label(value: Any, names: Sequence[str]) -> int:
  """Returns the number of a class, -1 if the row has none."""
  if value is None or value == "" or value == "-":
    return -1
  if isinstance(value, str) and not value.lstrip("-").isdigit():
    return names.index(value)
  number = int(value)
  if not -1 <= number < len(names):
    raise ValueError(f"label {value!r} of {len(names)} classes")
  return number


def _texts(row: Mapping[str, Any], *names: str) -> dict[str, str]:
  """Returns the fields of those names, which must be text."""
  for name in names:
    if not isinstance(row[name], str):
      raise TypeError(f"{name} is {row[name]!r}, which is no text")
  return {name: row[name] for name in names}


def _pair(names: Sequence[str]) -> Convert:
  """Rows of two sentences and a class."""

  def convert(row: Mapping[str, Any]) -> Row:
    if "premise" not in row:
      row = {**row, "premise": row["context"]}  # ANLI's official name for it
    return {
      **_texts(row, "premise", "hypothesis"),
      "label": _label(row.get("label"), names),
    }

  return convert


def _anli(row: Mapping[str, Any]) -> Row:
  short = {"e": "entailment", "n": "neutral", "c": "contradiction"}
  label = row.get("label")
  label = short.get(label, label) if isinstance(label, str) else label
  names = ("entailment", "neutral", "contradiction")
  return _pair(names)({**row, "label": label})


def _copa(row: Mapping[str, Any]) -> Row:
  texts = _texts(row, "premise", "choice1", "choice2", "question")
  if row["question"] not in ("cause", "effect"):
    raise ValueError(f"question {row['question']!r}")
  return {**texts, "label": _label(row.get("label"), ("0", "1"))}


def _wic(row: Mapping[str, Any]) -> Row:
  texts = _texts(row, "word", "sentence1", "sentence2")
  return {**texts, "label": _label(row.get("label"), ("False", "True"))}


def _wsc(row: Mapping[str, Any]) -> Row:
  """Lifts the spans out of `target`, and mends them as `wsc.fixed` does."""
  target = row.get("target", row)
  text = _texts(row, "text")["text"]
  spans = _texts(target, "span1_text", "span2_text")
  indices = {name: int(target[name]) for name in ("span1_index", "span2_index")}
  mended = {
    f"{span}_text": _mended(
      spans[f"{span}_text"], text=text, index=indices[f"{span}_index"]
    )
    for span in ("span1", "span2")
  }
  label = _label(row.get("label"), ("False", "True"))
  return {**indices, **mended, "label": label}


def _mended(span: str, *, text: str, index: int) -> str:
  """Returns a span of the Winograd schema as it stands in the text.

  Some official spans differ from their text in the case of the first letter, a
  full stop at the end or a line break. Templates replace the span in the text,
  so Hugging Face mends these.
  """
  words = text.split()
  if span in text or not 0 <= index < len(words):
    return span
  change = str.lower if words[index][:1].islower() else str.upper
  return (change(span[:1]) + span[1:]).rstrip(".").replace("\n", " ")


def _winogrande(row: Mapping[str, Any]) -> Row:
  texts = _texts(row, "sentence", "option1", "option2")
  if "answer" in row:
    # Its answers count from one.
    label = int(row["answer"] or 0) - 1
  else:
    label = int(row.get("label", -1))  # TFDS's, and rows of the test split
  answer = str(label + 1) if label >= 0 else ""
  return {**texts, "answer": answer, "label": _label(label, ("1", "2"))}


def _hellaswag(row: Mapping[str, Any]) -> Row:
  """Reads the official rows, TFDS's, and those that evaluation suites have.

  TFDS calls the context `context`. The suites have `query`, the activity's name
  and the context, `choices` and `gold`. Neither says where the context's two
  parts meet.
  """
  if "query" in row:
    activity, colon, context = row["query"].partition(": ")
    if not colon:
      raise ValueError("query without an activity")
    row = {
      "activity_label": activity,
      "context": context,
      "endings": row["choices"],
      "label": row["gold"],
    }
  if "context" in row:
    row = {**row, "ctx": row["context"], "ctx_a": row["context"], "ctx_b": ""}
  endings = list(row["endings"])
  return {
    **_texts(row, "ctx", "ctx_a", "ctx_b", "activity_label"),
    "endings": endings,
    "label": _label(row.get("label"), list(map(str, range(len(endings))))),
  }


def _story_cloze(row: Mapping[str, Any]) -> Row:
  texts = [f"input_sentence_{n}" for n in range(1, 5)]
  texts += ["sentence_quiz1", "sentence_quiz2"]
  answer = int(row.get("answer_right_ending") or 0)
  return {
    **_texts(row, *texts),
    "answer_right_ending": answer,
    "label": _label(answer - 1, ("1", "2")),
  }


_SUPERGLUE = {
  "train": ("train.jsonl",),
  "validation": ("val.jsonl", "validation.jsonl"),
  "test": ("test.jsonl",),
}


def _superglue(name: str) -> dict[str, tuple[str, str]]:
  dataset = f"super_glue/{name}:1.0.2"
  return {split: (dataset, split) for split in ("train", "validation", "test")}


def _anli_round(number: int, sizes: tuple[int, int, int]) -> FewShotData:
  # T-Few evaluates on the test split.
  dataset = f"anli/r{number}:0.1.0"
  return FewShotData(
    name=f"anli_r{number}",
    published=f"anli-r{number}",
    templates=("anli", ""),
    shots=50,
    folders=(f"R{number}", f"anli/R{number}", f"anli_r{number}"),
    files={
      "train": ("train.jsonl", f"train_r{number}.jsonl"),
      "validation": ("test.jsonl", f"test_r{number}.jsonl"),
      "dev": ("dev.jsonl", f"dev_r{number}.jsonl"),
    },
    convert=_anli,
    sizes=dict(zip(("train", "dev", "validation"), sizes, strict=True)),
    tfds={
      "train": (dataset, "train"),
      "dev": (dataset, "validation"),
      "validation": (dataset, "test"),
    },
  )


DATA: Mapping[str, FewShotData] = {
  data.name: data
  for data in (
    FewShotData(
      name="rte",
      published="rte",
      templates=("super_glue", "rte"),
      shots=32,
      folders=("RTE", "rte"),
      files=_SUPERGLUE,
      convert=_pair(("entailment", "not_entailment")),
      sizes={"train": 2_490, "validation": 277},
      tfds=_superglue("rte"),
    ),
    FewShotData(
      name="cb",
      published="cb",
      templates=("super_glue", "cb"),
      shots=32,
      folders=("CB", "cb"),
      files=_SUPERGLUE,
      convert=_pair(("entailment", "contradiction", "neutral")),
      sizes={"train": 250, "validation": 56},
      tfds=_superglue("cb"),
    ),
    FewShotData(
      name="copa",
      published="copa",
      templates=("super_glue", "copa"),
      shots=32,
      folders=("COPA", "copa"),
      files=_SUPERGLUE,
      convert=_copa,
      sizes={"train": 400, "validation": 100},
      tfds=_superglue("copa"),
      # The others are for causes or for effects only.
      random_templates=8,
    ),
    FewShotData(
      name="wic",
      published="wic",
      templates=("super_glue", "wic"),
      shots=32,
      folders=("WiC", "wic"),
      files=_SUPERGLUE,
      convert=_wic,
      sizes={"train": 5_428, "validation": 638},
      tfds=_superglue("wic"),
    ),
    FewShotData(
      name="wsc",
      published="wsc",
      templates=("super_glue", "wsc.fixed"),
      shots=32,
      folders=("WSC", "wsc", "wsc.fixed"),
      files=_SUPERGLUE,
      convert=_wsc,
      sizes={"train": 554, "validation": 104},
      tfds=_superglue("wsc.fixed"),
    ),
    _anli_round(1, (16_946, 1_000, 1_000)),
    _anli_round(2, (45_460, 1_000, 1_000)),
    _anli_round(3, (100_459, 1_200, 1_200)),
    FewShotData(
      name="winogrande",
      published="winogrande",
      templates=("winogrande", "winogrande_xl"),
      shots=50,
      folders=("winogrande", "winogrande_1.1", "winogrande_xl"),
      files={
        "train": ("train_xl.jsonl", "train.jsonl"),
        "validation": ("dev.jsonl", "validation.jsonl"),
        "test": ("test.jsonl",),
      },
      convert=_winogrande,
      sizes={"train": 40_398, "validation": 1_267},
      tfds={
        "train": ("winogrande:1.2.0", "train_xl"),
        "validation": ("winogrande:1.2.0", "validation"),
      },
    ),
    FewShotData(
      name="hellaswag",
      published="h-swag",
      templates=("hellaswag", ""),
      shots=20,
      folders=("hellaswag",),
      files={
        "train": ("hellaswag_train.jsonl", "train.jsonl"),
        "validation": (
          "hellaswag_val.jsonl",
          "validation.jsonl",
          "val.jsonl",
          "hellaswag_val_1000.jsonl",
        ),
      },
      convert=_hellaswag,
      sizes={"train": 39_905, "validation": 10_042},
      tfds={
        "train": ("hellaswag:1.1.0", "train"),
        "validation": ("hellaswag:1.1.0", "validation"),
      },
    ),
    FewShotData(
      # T-Few trains on the validation split of 2016: there is no other one.
      name="storycloze",
      published="storycloze",
      templates=("story_cloze", "2016"),
      shots=70,
      folders=("storycloze", "story_cloze", "2016"),
      files={
        "train": ("validation.jsonl", "val.jsonl"),
        "validation": ("test.jsonl",),
      },
      convert=_story_cloze,
      sizes={"train": 1_871, "validation": 1_871},
      tfds={},
    ),
  )
}
