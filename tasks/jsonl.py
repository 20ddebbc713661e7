"""Tasks over a user's own JSON-lines files of inputs and targets."""

import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any

import seqio

from peft_jax.tasks import metrics, preprocessors, sources, vocabularies


def register(
  *,
  name: str,
  files: Mapping[str, str | os.PathLike[str]],
  vocabulary: str | os.PathLike[str] | seqio.Vocabulary,
  answer_choices: Sequence[str] | None = None,
) -> seqio.Task:
  r"""Registers and returns a task over files of `{"inputs", "targets"}` rows.

  Answer choices are those given here, the same for all rows, or each row's own:
  a list `choices` of texts that has the target, in every row of every file. The
  metric is accuracy with answer choices and exact match without. Each
  example carries `idx`, the position of its row in the file. A row of the split
  `test` may lack its targets. Registering a name again replaces the task; a
  mixture made of the earlier one keeps the earlier one.

  Example:
    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...   path = pathlib.Path(folder, "train.jsonl")
    ...   _ = path.write_text('{"inputs": "Great!", "targets": "good"}\n')
    ...   task = register(
    ...     name="my_reviews",
    ...     files={"train": path},
    ...     vocabulary="bytes",
    ...     answer_choices=("bad", "good"),
    ...   )
    >>> row = next(task.get_dataset(None, "train").as_numpy_iterator())
    >>> row["targets_pretokenized"], row["targets"].tolist(), int(row["idx"])
    (b'good', [106, 114, 114, 103, 1], 0)
    >>> seqio.TaskRegistry.remove("my_reviews")

  Args:
    name: the task's name, as `get_mixture_or_task` will know it.
    files: the file of each split; each row a JSON object with the texts
      `inputs` and `targets`, and perhaps `choices`; other fields are ignored.
    vocabulary: a vocabulary, its name or its file; see `vocabularies.load`.
    answer_choices: the only targets allowed. Default: the choices of each row,
      or any text.

  Raises:
    DataError: if there is no file, a file is missing or has a bad row, targets
      are outside the answer choices, or a mixture has the name.
    VocabularyError: if the vocabulary is not there.
  """
  choices = None if answer_choices is None else _checked(answer_choices)
  _check_name(name)
  if not files:
    raise sources.DataError(
      f"task {name!r}: expected the file of at least one split, found none."
      ' Give files={"train": <path>}.'
    )
  own = choices is None and _has_own_choices(next(iter(files.values())))
  free = choices is None and not own
  task = seqio.Task(
    name,
    source=_source(files, choices=choices, own=own),
    output_features=vocabularies.text_features(
      vocabularies.resolve(vocabulary)
    ),
    preprocessors=(
      *_choice_text(choices),
      *((preprocessors.find_label,) if own else ()),
      *preprocessors.to_tokens(cacheable=False),
    ),
    metric_fns=[metrics.exact_match if free else metrics.accuracy],
  )
  seqio.TaskRegistry.remove(name)
  seqio.TaskRegistry.add_provider(name, task)
  return task


def _has_own_choices(path: str | os.PathLike[str]) -> bool:
  """Whether the first row of a file has choices: then all must."""
  rows = sources.read_rows(path=path, fields={"choices": list}, defaults=_NONE)
  return rows[0]["choices"] is not None


_NONE = {"choices": None}


def _source(
  files: Mapping[str, str | os.PathLike[str]],
  *,
  choices: tuple[str, ...] | None,
  own: bool,
) -> sources.JsonLinesSource:
  fields: dict[str, sources.FieldType] = {
    "inputs": str,
    "targets": str if choices is None else sources.Label(values=choices),
  }
  return sources.JsonLinesSource(
    split_to_path=files,
    fields={**fields, "choices": list} if own else fields,
    defaults={
      "test": {
        "targets": metrics.UNLABELED if choices is None else sources.NO_LABEL
      }
    },
    row_number="idx",
    check=_check_choices if own else None,
  )


def _check_choices(row: Mapping[str, Any]) -> str | None:
  """Returns what is wrong with a row's own choices, if anything."""
  choices, target = row["choices"], row["targets"]
  if len(set(choices)) != len(choices) or len(choices) < 2:
    return (
      "expected choices that are two or more different texts, found"
      f" {choices!r}. Correct the row."
    )
  if target not in [*choices, metrics.UNLABELED]:
    return (
      f"expected a target that is one of the choices {choices!r}, found"
      f" {target!r}. Correct the row."
    )
  return None


def _choice_text(
  choices: tuple[str, ...] | None,
) -> tuple[preprocessors.Preprocessor, ...]:
  if choices is None:
    return ()
  return (functools.partial(preprocessors.label_targets, labels=choices),)


def _checked(answer_choices: Sequence[str]) -> tuple[str, ...]:
  choices = tuple(answer_choices)
  if (
    # A text is a sequence of texts too: its letters.
    isinstance(answer_choices, str)
    or not all(isinstance(choice, str) and choice for choice in choices)
    or len(set(choices)) != len(choices)
    or len(choices) < 2
  ):
    raise sources.DataError(
      "expected answer choices that are two or more different texts, found"
      f" {answer_choices!r}. Give a list of texts, or none for free text."
    )
  return choices


def _check_name(name: str) -> None:
  if name in seqio.MixtureRegistry.names():
    raise sources.DataError(
      f"task {name!r}: expected a name of its own, found a mixture of that"
      " name, which SeqIO would choose. Choose another name."
    )
