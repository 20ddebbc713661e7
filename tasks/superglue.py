"""SuperGLUE tasks, from TFDS or from the official files.

Importing this module registers the tasks over TFDS and opens nothing; TFDS
downloads the data when one of them is first used. With the official files at
hand (https://super.gluebenchmark.com/tasks), register them instead:

    peft_jax.tasks.superglue.register(data_dir="/data/superglue")

Both forms have the same names, texts, labels and metrics.
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import seqio

from peft_jax.tasks import metrics, preprocessors, sources, vocabularies

# Tasks drawn in proportion to their numbers of training rows.
MIXTURE = "superglue_rte_boolq"
_MIXED = ("rte", "boolq")

# SeqIO's name of a split -> the official file. The other files of a folder
# (FewGLUE's dev32.jsonl) are not read.
_FILES = {
  "train": "train.jsonl",
  "validation": "val.jsonl",
  "test": "test.jsonl",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spec:
  """What one SuperGLUE task with a row for each example is made of.

  Attributes:
    name: the name TFDS and T5 give it; the task is `superglue_<name>`.
    folder: its folder in the official data.
    text_fields: the fields of the input, in the order of T5's text.
    labels: text of each class -> its value in the official files, in TFDS's
      order of classes.
    num_train: rows of the full training set, the rate of the task in a mixture
      over TFDS (t5/data/glue_utils.py).
    metric_fns: SuperGLUE's metrics for it.
  """

  name: str
  folder: str
  text_fields: tuple[str, ...]
  labels: Mapping[str, str | int | bool]
  num_train: int
  metric_fns: tuple[Callable[..., Mapping[str, float]], ...] = (
    metrics.accuracy,
  )

  @property
  def task_name(self) -> str:
    """The name in SeqIO's registry."""
    return f"superglue_{self.name}"


SPECS: Mapping[str, Spec] = {
  spec.name: spec
  for spec in (
    Spec(
      name="rte",
      folder="RTE",
      text_fields=("hypothesis", "premise"),
      labels={
        "entailment": "entailment",
        "not_entailment": "not_entailment",
      },
      num_train=2_490,
    ),
    Spec(
      name="boolq",
      folder="BoolQ",
      text_fields=("passage", "question"),
      labels={"False": False, "True": True},
      num_train=9_427,
    ),
  )
}


def register(
  *,
  data_dir: str | os.PathLike[str] | None = None,
  vocabulary: str | os.PathLike[str] | seqio.Vocabulary = "t5",
  tasks: Sequence[str] = tuple(SPECS),
) -> None:
  """Registers the tasks and their mixture, in the place of earlier ones.

  Nothing is registered unless all files are good. The mixture is there only
  after a call that registers all of its tasks: its tasks must share a
  vocabulary.

  Example:
    >>> register(vocabulary="bytes")
    >>> task = seqio.get_mixture_or_task("superglue_rte")
    >>> task.output_features["inputs"].vocabulary.vocab_size
    259
    >>> register()

  Args:
    data_dir: folder with the official `RTE/train.jsonl`, `RTE/val.jsonl`,
      `BoolQ/train.jsonl` and so on; `test.jsonl` may be absent. Default: TFDS
      1.0.2, as T5's `super_glue_*_v102` tasks.
    vocabulary: a vocabulary, its name or its file; see `vocabularies.load`.
      Default: T5's.
    tasks: which of `SPECS` to register. Default: all.

  Raises:
    DataError: if a task is unknown, or a file is missing or has a bad row.
    VocabularyError: if the vocabulary is not there.
  """
  specs = [_spec(name) for name in tasks]
  features = vocabularies.text_features(vocabularies.resolve(vocabulary))
  built = {
    spec.name: _task(
      spec,
      source=_tfds_source(spec)
      if data_dir is None
      else _local_source(spec, folder=os.path.join(data_dir, spec.folder)),
      features=features,
    )
    for spec in specs
  }
  # A mixture keeps the tasks that it was made of, so it goes with them.
  seqio.MixtureRegistry.remove(MIXTURE)
  for task in built.values():
    seqio.TaskRegistry.remove(task.name)
    seqio.TaskRegistry.add_provider(task.name, task)
  if set(_MIXED) <= set(built):
    seqio.MixtureRegistry.add(
      MIXTURE,
      [(built[n], _num_train(SPECS[n], task=built[n])) for n in _MIXED],
    )


def _spec(name: str) -> Spec:
  if name not in SPECS:
    raise sources.DataError(
      f"expected one of the SuperGLUE tasks {', '.join(SPECS)}, found {name!r}."
      " Name one of them."
    )
  return SPECS[name]


def _tfds_source(spec: Spec) -> seqio.TfdsDataSource:
  # The splits are named so that SeqIO need not ask TFDS for them.
  return seqio.TfdsDataSource(
    tfds_name=f"super_glue/{spec.name}:1.0.2", splits=tuple(_FILES)
  )


def _local_source(spec: Spec, *, folder: str) -> sources.JsonLinesSource:
  paths = {split: os.path.join(folder, name) for split, name in _FILES.items()}
  if not sources.exists(paths["test"]):
    del paths["test"]
  return sources.JsonLinesSource(
    split_to_path=paths,
    fields={
      **dict.fromkeys(spec.text_fields, str),
      "label": sources.Label(values=tuple(spec.labels.values())),
      "idx": int,
    },
    defaults={"test": {"label": sources.NO_LABEL}},
  )


def _task(
  spec: Spec,
  *,
  source: seqio.DataSource,
  features: Mapping[str, seqio.utils.Feature],
) -> seqio.Task:
  local = isinstance(source, sources.JsonLinesSource)
  return seqio.Task(
    spec.task_name,
    source=source,
    output_features=features,
    preprocessors=(
      functools.partial(
        preprocessors.t5_text,
        benchmark=spec.name,
        text_fields=spec.text_fields,
        labels=tuple(spec.labels),
      ),
      *preprocessors.to_tokens(cacheable=not local),
    ),
    metric_fns=spec.metric_fns,
  )


def _num_train(spec: Spec, *, task: seqio.Task) -> float:
  source: Any = task.source
  if isinstance(source, sources.JsonLinesSource):
    return float(source.num_input_examples("train"))
  return float(spec.num_train)


register()
