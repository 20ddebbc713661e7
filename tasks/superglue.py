"""SuperGLUE tasks, from TFDS or from the official files.

Importing this module registers the tasks over TFDS and opens nothing; TFDS
downloads the data when one of them is first used. With the official files at
hand (https://super.gluebenchmark.com/tasks), register them instead:

    peft_jax.tasks.superglue.register(data_dir="/data/superglue")

Both forms have the same names, texts, labels and metrics.
"""

import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any

import seqio

from peft_jax.tasks import preprocessors, sources, vocabularies
from peft_jax.tasks.superglue_specs import DIAGNOSTICS as DIAGNOSTICS
from peft_jax.tasks.superglue_specs import SPECS as SPECS
from peft_jax.tasks.superglue_specs import Spec as Spec

# All eight tasks, drawn in proportion to their numbers of training examples.
MIXTURE = "superglue_mixture"
MIXED = ("boolq", "cb", "copa", "multirc", "record", "rte", "wic", "wsc")

# What has a training set, without the diagnostics.
TASKS = tuple(name for name in SPECS if name not in DIAGNOSTICS)


def register(
  *,
  data_dir: str | os.PathLike[str] | None = None,
  vocabulary: str | os.PathLike[str] | seqio.Vocabulary = "t5",
  tasks: Sequence[str] = TASKS,
) -> None:
  """Registers the tasks and their mixture, in the place of earlier ones.

  Nothing is registered unless all files are good. The mixture, of the eight
  tasks without `wsc.fixed`, is there only after a call that registers all of
  its tasks: its tasks must share a vocabulary.

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
    tasks: which of `SPECS` to register. Default: `TASKS`.

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
  if set(MIXED) & set(built):
    seqio.MixtureRegistry.remove(MIXTURE)
  for task in built.values():
    seqio.TaskRegistry.remove(task.name)
    seqio.TaskRegistry.add_provider(task.name, task)
  if set(MIXED) <= set(built):
    seqio.MixtureRegistry.add(
      MIXTURE,
      [(built[n], _num_train(SPECS[n], task=built[n])) for n in MIXED],
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
  return spec.tfds_source(
    tfds_name=f"super_glue/{spec.tfds_name or spec.name}:1.0.2",
    splits=tuple(spec.files),
  )


def _local_source(spec: Spec, *, folder: str) -> sources.JsonLinesSource:
  paths = {s: os.path.join(folder, name) for s, name in spec.files.items()}
  if len(paths) > 1 and not sources.exists(paths["test"]):
    del paths["test"]
  fields = {**dict.fromkeys(spec.text_fields, str), **spec.fields}
  if spec.labels:
    fields["label"] = sources.Label(values=tuple(spec.labels.values()))
  return sources.JsonLinesSource(
    split_to_path=paths,
    fields=fields,
    defaults={"test": {"label": sources.NO_LABEL}},
    expand=spec.expand,
  )


def _task(
  spec: Spec,
  *,
  source: seqio.DataSource,
  features: Mapping[str, seqio.utils.Feature],
) -> seqio.Task:
  local = isinstance(source, sources.JsonLinesSource)
  write = spec.write or functools.partial(
    preprocessors.t5_text,
    benchmark=spec.name,
    text_fields=spec.text_fields,
    labels=tuple(spec.labels),
    idx=spec.idx,
    without_markup=spec.name == "multirc",
  )
  return seqio.Task(
    spec.task_name,
    source=source,
    output_features=features,
    preprocessors=(
      *(() if local else spec.tfds_steps),
      write,
      *preprocessors.to_tokens(cacheable=not local),
    ),
    postprocess_fn=spec.postprocess_fn,
    metric_fns=spec.metric_fns,
  )


def _num_train(spec: Spec, *, task: seqio.Task) -> float:
  source: Any = task.source
  if isinstance(source, sources.JsonLinesSource):
    return float(source.num_input_examples("train"))
  return float(spec.num_train)


register()
register(tasks=DIAGNOSTICS)
