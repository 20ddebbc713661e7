"""RAFT (arXiv 2109.14076) from its files, as T-Few asks it.

An input is the instruction, the possible labels, the row's fields and "Label:";
the answer is one of the labels. Every task has 50 labelled rows and a test set
without labels, in `<data_dir>/<task>/train.csv` and `test_unlabeled.csv`.
"""

import collections
import csv
import functools
import io
import itertools
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import numpy as np
import seqio
import tensorflow as tf

from peft_jax.tasks import (
  metrics,
  preprocessors,
  raft_spec,
  sources,
  vocabularies,
)
from peft_jax.tasks.raft_spec import (
  NUM_HELD_OUT,
  NUM_TRAIN,
  FieldOrder,
  LabelList,
  Spec,
)
from peft_jax.tasks.sources import DataError

PREFIX = "raft_"
TRAIN_FILE = "train.csv"
TEST_FILE = "test_unlabeled.csv"
TASK_FILE = "task.json"

# Columns that every file has beside the fields; the test set has no labels.
_ID, _LABEL = "ID", "Label"


def register(
  name: str,
  *,
  data_dir: str | os.PathLike[str],
  vocabulary: str | os.PathLike[str] | seqio.Vocabulary = "t5",
  labels: LabelList = "comma",
  clean_labels: bool = False,
  field_order: FieldOrder = "settings",
  instructions: str | os.PathLike[str] = "",
  validation_start: int | None = 0,
) -> seqio.Task:
  """Registers and returns `raft_<name>`; again replaces it.

  With a fold, `train` has 40 rows and `validation` the other 10; without, all
  50 are in `train`. `test` has no labels, and no metric. `idx` is RAFT's ID.

  An input longer than allowed loses tokens of its longest field, from the end;
  see `raft_spec.kept_tokens`. Instruction, labels and "Label:" are never cut.

  Args:
    name: one of RAFT's 11 tasks.
    data_dir: folder with `<name>/train.csv`, perhaps `test_unlabeled.csv` and
      `task.json`.
    vocabulary: a vocabulary, its name or its file; see `vocabularies.load`.
    labels: how the input lists the labels. Default: T-Few's.
    clean_labels: Banking77's labels with blanks for underscores.
    field_order: of T-Few's settings, or of the file's columns, which is what
      T-Few's code comes to.
    instructions: T-Few's `raft_prompt_construction_settings.jsonl`. Default:
      `description` of `task.json` if there is one, else ours.
    validation_start: first row of the 10 that are held out: 0, 10, 20, 30 or
      40; None: no row. Default: T-Few's.

  Raises:
    DataError: for an unknown task or setting, a file that is missing, or rows
      that are not RAFT's.
    VocabularyError: if the vocabulary is not there.
  """
  spec = find(name)
  _check_settings(
    spec, labels, clean_labels, field_order, validation_start, data_dir
  )
  folder = os.path.join(os.fspath(data_dir), spec.name)
  instruction = read_instruction(spec, folder, os.fspath(instructions))
  answers = spec.label_texts(clean=clean_labels)
  order = spec.fields if field_order == "settings" else None
  rows = split_rows(read(folder, spec), validation_start)
  task = seqio.Task(
    spec.task_name,
    source=_source({s: _texts(part, spec, order) for s, part in rows.items()}),
    output_features=vocabularies.text_features(
      vocabularies.resolve(vocabulary)
    ),
    preprocessors=_preprocessors(
      raft_spec.heading(instruction, labels=answers, listed=labels), answers
    ),
    metric_fns=[macro_f1],
  )
  seqio.TaskRegistry.remove(task.name)
  seqio.TaskRegistry.add_provider(task.name, task)
  return task


def find(name: str) -> Spec:
  """Returns the task of that name, with or without `raft_`.

  Example:
    >>> find("raft_overruling").num_test
    2350

  Raises:
    DataError: if RAFT has no such task.
  """
  short = name.removeprefix(PREFIX)
  if short not in raft_spec.SPECS:
    raise DataError(
      f"expected one of RAFT's tasks {', '.join(raft_spec.SPECS)}, found"
      f" {short!r}. Name one of them."
    )
  return raft_spec.SPECS[short]


def macro_f1(
  targets: Sequence[str], predictions: Sequence[str]
) -> dict[str, float]:
  """Returns RAFT's metric, the mean F1 of the classes, and accuracy.

  Both in percent. The classes are those that are asked for or answered, as
  scikit-learn's `f1_score(average="macro")` counts: a fold of 10 rows does not
  have all of Banking77's. Without any label, as in a test set, nothing is
  measured.

  Example:
    >>> macro_f1(["a", "a", "b"], ["a", "b", "b"])
    {'macro_f1': 66.66666666666666, 'accuracy': 66.66666666666667}
    >>> macro_f1(["<unk>", "<unk>"], ["a", "b"])
    {}

  Args:
    targets: the right labels.
    predictions: the model's, in the same order.

  Raises:
    MetricError: if the two differ in length, are empty, or only some targets
      have no label.
  """
  if targets and all(target == metrics.UNLABELED for target in targets):
    return {}
  accuracy = metrics.accuracy(targets, predictions)
  asked, answered = (
    collections.Counter(targets),
    collections.Counter(predictions),
  )
  right = collections.Counter(
    target
    for target, prediction in zip(targets, predictions, strict=True)
    if target == prediction
  )
  classes = asked.keys() | answered.keys()
  scores = [2 * right[c] / (asked[c] + answered[c]) for c in sorted(classes)]
  return {"macro_f1": 100.0 * sum(scores) / len(scores), **accuracy}


def _check_settings(
  spec: Spec,
  labels: str,
  clean_labels: bool,
  field_order: str,
  start: int | None,
  data_dir: str | os.PathLike[str],
) -> None:
  for name, found, allowed in (
    ("labels", labels, get_args(LabelList)),
    ("field_order", field_order, get_args(FieldOrder)),
    ("validation_start", start, (*range(0, NUM_TRAIN, NUM_HELD_OUT), None)),
  ):
    if found not in allowed:
      raise DataError(
        f"RAFT: expected {name} to be one of {allowed}, found {found!r}."
        f" Set config.Raft.{name} to one of them."
      )
  if clean_labels and spec.name != "banking_77":
    raise DataError(
      f"RAFT: expected clean_labels with banking_77 alone, found it with"
      f" {spec.name}, whose labels are words. Leave config.Raft.clean_labels"
      " out."
    )
  if not os.fspath(data_dir):
    raise DataError(
      f"RAFT: expected a folder with {spec.name}/{TRAIN_FILE}, found none."
      " Pass --data_dir; docs/raft.md says where the files are."
    )


def read(folder: str, spec: Spec) -> dict[str, list[dict[str, str]]]:
  """Returns the rows of `train`, and of `test` if its file is there.

  Args:
    folder: the task's.
    spec: what its files must have.

  Raises:
    DataError: if a file is missing or its rows are not RAFT's.
  """
  rows = {
    "train": _read_csv(
      os.path.join(folder, TRAIN_FILE), [*spec.fields, _LABEL, _ID]
    )
  }
  path = os.path.join(folder, TRAIN_FILE)
  if len(rows["train"]) != NUM_TRAIN:
    raise DataError(
      f"{path}: expected {NUM_TRAIN} rows, found {len(rows['train'])}. Take"
      " RAFT's own file."
    )
  for row in rows["train"]:
    if row[_LABEL] not in spec.labels:
      raise DataError(
        f"{path}: expected one of the labels {list(spec.labels)[:5]}, found"
        f" {row[_LABEL]!r} at ID {row[_ID]}. Take RAFT's own file."
      )
  path = os.path.join(folder, TEST_FILE)
  if sources.exists(path):
    rows["test"] = _read_csv(path, [*spec.fields, _ID])
  return rows


def _read_csv(path: str, columns: Sequence[str]) -> list[dict[str, str]]:
  """Returns the rows of a CSV file that has these columns, each ID once."""
  if not sources.exists(path):
    raise DataError(
      f"expected the file {path}, found none there. Give the folder of RAFT's"
      " tasks as --data_dir."
    )
  with tf.io.gfile.GFile(path, "rb") as file:
    content = file.read()
  try:
    text = content.decode("utf-8-sig")
  except UnicodeDecodeError as error:
    raise DataError(
      f"{path}: expected UTF-8 text, found the byte"
      f" {content[error.start]:#04x} at {error.start}. Save it as UTF-8."
    ) from None
  reader = csv.DictReader(io.StringIO(text, newline=""))
  header = reader.fieldnames or ()
  missing = [name for name in columns if name not in header]
  if missing:
    raise DataError(
      f"{path}: expected the columns {', '.join(columns)}, found"
      f" {', '.join(header) or 'none'}: {', '.join(missing)} missing. Take"
      " RAFT's own file."
    )
  rows, ids = [], set()
  for row in reader:
    where = f"{path}:{reader.line_num}"
    if None in row or None in row.values():
      raise DataError(
        f"{where}: expected {len(header)} values, found more or fewer."
        " Correct the row."
      )
    if not row[_ID].isdecimal() or int(row[_ID]) in ids:
      raise DataError(
        f"{where}: expected a whole number of its own as ID, found"
        f" {row[_ID]!r}. Correct the row."
      )
    ids.add(int(row[_ID]))
    rows.append(row)
  return rows


def split_rows(
  rows: Mapping[str, list[dict[str, str]]], start: int | None
) -> dict[str, list[dict[str, str]]]:
  """Returns the rows with 10 of `train` held out as `validation`.

  Example:
    >>> rows = {"train": [{"ID": str(n)} for n in range(50)]}
    >>> parts = split_rows(rows, 10)
    >>> len(parts["train"]), [row["ID"] for row in parts["validation"]][:2]
    (40, ['10', '11'])

  Args:
    rows: of `train`, perhaps of `test`.
    start: the first that is held out; None: none is.
  """
  if start is None:
    return dict(rows)
  train, end = rows["train"], start + NUM_HELD_OUT
  held_out = {"validation": train[start:end]}
  return {**rows, "train": train[:start] + train[end:], **held_out}


def read_instruction(spec: Spec, folder: str, settings: str) -> str:
  """Returns what is asked of a task; see `register`.

  Args:
    spec: the task.
    folder: its folder, perhaps with `task.json`.
    settings: T-Few's file of settings, or empty.

  Raises:
    DataError: if a file is not what it should be.
  """
  path = settings or os.path.join(folder, TASK_FILE)
  if not sources.exists(path):
    if settings:
      raise DataError(
        f"RAFT: expected the file {path} with instructions, found none there."
        " Correct config.Raft.instructions, or leave it out."
      )
    return spec.instruction
  with tf.io.gfile.GFile(path, "r") as file:
    lines = file.read().splitlines()
  try:
    if settings:
      return json.loads(lines[1])[spec.name]
    return json.loads("\n".join(lines)).get("description") or spec.instruction
  except (ValueError, IndexError, KeyError, AttributeError) as error:
    form = (
      "two lines, task -> fields and task -> instruction"
      if settings
      else "one JSON object"
    )
    raise DataError(
      f"{path}: expected {form}, found {type(error).__name__}: {error}. Take"
      " the original file, or remove it for instructions of ours."
    ) from None


def _texts(
  rows: Sequence[Mapping[str, str]], spec: Spec, order: Sequence[str] | None
) -> dict[str, list[Any]]:
  """Returns columns: the fields' texts, the label's index, the ID."""
  if order is None:
    order = [name for name in rows[0] if name in spec.fields]
  index = {label: n for n, label in enumerate(spec.labels)}
  return {
    "fields": [raft_spec.field_texts(row, order) for row in rows],
    "label": [index.get(row.get(_LABEL, ""), sources.NO_LABEL) for row in rows],
    "idx": [int(row[_ID]) for row in rows],
  }


def _source(
  columns: Mapping[str, Mapping[str, list[Any]]],
) -> seqio.FunctionDataSource:
  def read_split(
    split: str, shuffle_files: bool, seed: int | None = None
  ) -> tf.data.Dataset:
    part = columns[split]
    tensors: Any = {
      "fields": tf.ragged.constant(part["fields"], tf.string, ragged_rank=1),
      "label": tf.constant(part["label"], tf.int32),
      "idx": tf.constant(part["idx"], tf.int64),
    }
    rows = tf.data.Dataset.from_tensor_slices(tensors)
    return rows.shuffle(len(part["idx"]), seed=seed) if shuffle_files else rows

  return seqio.FunctionDataSource(
    read_split,
    splits=tuple(columns),
    num_input_examples={s: len(part["idx"]) for s, part in columns.items()},
  )


def _preprocessors(head: str, answers: Sequence[str]) -> tuple[Any, ...]:
  *tokenize, finish = preprocessors.to_tokens(cacheable=False)
  return (
    functools.partial(_write, head=head, answers=answers),
    *tokenize,
    functools.partial(_fit, head=head),
    finish,
  )


def _write(
  dataset: tf.data.Dataset, *, head: str, answers: Sequence[str]
) -> tf.data.Dataset:
  """Joins the whole input, and adds the answers."""

  def write(row: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    fields = tf.strings.reduce_join(row["fields"])
    return {
      **row,
      "inputs": tf.strings.join([head, fields, raft_spec.ENDING]),
      **preprocessors.labelled(
        row["label"], choices=tf.constant(list(answers))
      ),
    }

  return dataset.map(write, num_parallel_calls=tf.data.AUTOTUNE)


def _fit(
  dataset: tf.data.Dataset,
  sequence_length: Mapping[str, int] | None,
  output_features: Mapping[str, Any],
  *,
  head: str,
) -> tf.data.Dataset:
  """Puts the input together of pieces, of which only fields may be cut."""
  feature = output_features["inputs"]
  length = None
  if sequence_length is not None:
    length = sequence_length["inputs"] - int(feature.add_eos)
  joined = _joiner(feature.vocabulary, head, length)

  def write(row: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    row = dict(row)
    fields = row.pop("fields")
    ids = tf.numpy_function(joined, [fields], tf.int32, stateful=False)
    return {**row, "inputs": tf.ensure_shape(ids, [None])}

  return dataset.map(write, num_parallel_calls=tf.data.AUTOTUNE)


def _joiner(vocabulary: seqio.Vocabulary, head: str, length: int | None) -> Any:
  """Returns fields -> ids, at most `length` of them.

  Each piece is tokenised by itself, as in T-Few, so that an input that is cut
  begins and ends with the very tokens of one that is not.
  """
  first = list(vocabulary.encode(head))
  last = list(vocabulary.encode(raft_spec.ENDING))
  room = None if length is None else length - len(first) - len(last)
  if length is not None and room is not None and room < 0:
    raise DataError(
      f"RAFT: expected inputs of at least {length - room + 1} tokens for the"
      f" instruction, the labels and the ending alone, found {length + 1}."
      " Raise TASK_FEATURE_LENGTHS['inputs'], or shorten them with"
      " config.Raft.labels = 'none' (of banking_77 also"
      " config.Raft.clean_labels = True)."
    )

  def joined(fields: np.ndarray) -> np.ndarray:
    parts = [vocabulary.encode(text.decode("utf-8")) for text in fields]
    lengths = [len(part) for part in parts]
    kept = lengths if room is None else raft_spec.kept_tokens(lengths, room)
    cut = [ids[:n] for ids, n in zip(parts, kept, strict=True)]
    return np.array([*first, *itertools.chain(*cut), *last], np.int32)

  return joined
