"""GLUE's MRPC and QQP, and the transfer from one to the other.

Both ask whether two texts say the same, with other words for yes and no. The
tasks `glue_mrpc_from_qqp` and `glue_qqp_from_mrpc` are for a model trained on
the other one: the rows of the first, answered in the words of the second.

Importing this module registers the tasks over TFDS and opens nothing. Over
GLUE's files: `register(data_dir=...)`.
"""

import dataclasses
import functools
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import seqio

from peft_jax.tasks import metrics, preprocessors, sources, vocabularies

# SeqIO's name of a split -> the file, without its ending, that GLUE has or that
# goes by the split's name.
_TSV = {"train": "train", "validation": "dev", "test": "test"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spec:
  """What one of the two tasks is made of.

  Attributes:
    name: the name TFDS and T5 give it; the task is `glue_<name>`.
    folder: its folder in GLUE's data.
    columns: fields of the input, in the order of T5's text -> their names in
      the .tsv files.
    label_column: the name of the label there.
    labels: text of the negative and of the positive class.
    num_train: examples of the full training set (t5/data/glue_utils.py).
  """

  name: str
  folder: str
  columns: Mapping[str, str]
  label_column: str
  labels: tuple[str, str]
  num_train: int


SPECS: Mapping[str, Spec] = {
  spec.name: spec
  for spec in (
    Spec(
      name="mrpc",
      folder="MRPC",
      columns={"sentence1": "#1 String", "sentence2": "#2 String"},
      label_column="Quality",
      labels=("not_equivalent", "equivalent"),
      num_train=3_668,
    ),
    Spec(
      name="qqp",
      folder="QQP",
      columns={"question1": "question1", "question2": "question2"},
      label_column="is_duplicate",
      labels=("not_duplicate", "duplicate"),
      num_train=363_849,
    ),
  )
}

# Task -> (whose rows, whose words).
TASKS: Mapping[str, tuple[str, str]] = {
  "glue_mrpc": ("mrpc", "mrpc"),
  "glue_qqp": ("qqp", "qqp"),
  "glue_mrpc_from_qqp": ("mrpc", "qqp"),
  "glue_qqp_from_mrpc": ("qqp", "mrpc"),
}
# Trains on the first task and evaluates on both.
MIXTURES: Mapping[str, tuple[str, str]] = {
  "glue_qqp_to_mrpc": ("glue_qqp", "glue_mrpc_from_qqp"),
  "glue_mrpc_to_qqp": ("glue_mrpc", "glue_qqp_from_mrpc"),
}


def register(
  *,
  data_dir: str | os.PathLike[str] | None = None,
  vocabulary: str | os.PathLike[str] | seqio.Vocabulary = "t5",
  names: Sequence[str] = (*TASKS, *MIXTURES),
) -> None:
  """Registers tasks and mixtures, in the place of earlier ones.

  Nothing is registered unless all files are good.

  Example:
    >>> register(vocabulary="bytes")
    >>> seqio.get_mixture_or_task("glue_mrpc_from_qqp").splits
    ('validation',)
    >>> register()

  Args:
    data_dir: folder with `MRPC/train.tsv`, `MRPC/dev.tsv`, perhaps `test.tsv`,
      and `QQP` alike, or with `train.jsonl`, `validation.jsonl` of rows with
      the fields of TFDS. Default: TFDS, `glue/mrpc:1.0.0` as T5.
    vocabulary: a vocabulary, its name or its file; see `vocabularies.load`.
      Default: T5's.
    names: of `TASKS` and `MIXTURES`. Default: all.

  Raises:
    DataError: if a name is unknown, or a file is missing or has a bad row.
    VocabularyError: if the vocabulary is not there.
  """
  unknown = [name for name in names if name not in {*TASKS, *MIXTURES}]
  if unknown:
    raise sources.DataError(
      f"expected names of {', '.join((*TASKS, *MIXTURES))}, found"
      f" {', '.join(unknown)}. Name one of them."
    )
  wanted = {part for name in names for part in MIXTURES.get(name, (name,))}
  features = vocabularies.text_features(vocabularies.resolve(vocabulary))
  built = {
    name: _task(name, data_dir=data_dir, features=features)
    for name in TASKS
    if name in wanted
  }
  # A mixture keeps the tasks that it was made of, so it goes with them.
  for name, parts in MIXTURES.items():
    if built.keys() & set(parts):
      seqio.MixtureRegistry.remove(name)
  for name, task in built.items():
    seqio.TaskRegistry.remove(name)
    seqio.TaskRegistry.add_provider(name, task)
  for name in set(names) & MIXTURES.keys():
    tasks = [(built[part], 1.0) for part in MIXTURES[name]]
    seqio.MixtureRegistry.add(name, tasks)


def _task(
  name: str,
  *,
  data_dir: str | os.PathLike[str] | None,
  features: Mapping[str, seqio.utils.Feature],
) -> seqio.Task:
  rows, words = (SPECS[part] for part in TASKS[name])
  # Of the other task's rows nothing is trained on, and no answers are sent in.
  splits = tuple(_TSV) if rows is words else ("validation",)
  return seqio.Task(
    name,
    source=seqio.TfdsDataSource(
      tfds_name=f"glue/{rows.name}:1.0.0", splits=splits
    )
    if data_dir is None
    else _local_source(rows, os.path.join(data_dir, rows.folder), splits),
    output_features=features,
    preprocessors=(
      functools.partial(
        preprocessors.t5_text,
        benchmark=rows.name,
        text_fields=tuple(rows.columns),
        labels=words.labels,
      ),
      *preprocessors.to_tokens(cacheable=data_dir is None),
    ),
    metric_fns=(functools.partial(metrics.f1, labels=words.labels),),
  )


def _local_source(
  spec: Spec, folder: str, splits: Sequence[str]
) -> sources.JsonLinesSource:
  paths = {
    split: os.path.join(folder, f"{_TSV[split]}.tsv") for split in splits
  }
  expand = functools.partial(_tsv_row, spec)
  lines = {split: os.path.join(folder, f"{split}.jsonl") for split in splits}
  if not sources.exists(paths["validation"]) and sources.exists(
    lines["validation"]
  ):
    paths, expand = lines, None
  if "test" in paths and not sources.exists(paths["test"]):
    del paths["test"]
  return sources.JsonLinesSource(
    split_to_path=paths,
    fields={
      **dict.fromkeys(spec.columns, str),
      "label": sources.Label(values=(0, 1)),
    },
    defaults={"test": {"label": sources.NO_LABEL}},
    row_number="idx",
    expand=expand,
  )


def _tsv_row(
  spec: Spec, row: Mapping[str, Any], split: str
) -> Iterator[dict[str, Any]]:
  """Yields a row of a .tsv as TFDS has it, or nothing if it ends too early.

  GLUE's QQP has such rows; TFDS leaves them out too.
  """
  found = {field: row.get(name) for field, name in spec.columns.items()}
  label = row.get(spec.label_column)
  if None in found.values() or (label is None and split != "test"):
    return
  found["label"] = {"0": 0, "1": 1}.get(label or "", label)
  yield found


register()
