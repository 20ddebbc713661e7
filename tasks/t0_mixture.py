"""T0's multitask mixture, on which T-Few pretrains its vectors.

Every PromptSource template of every data set is a task. A data set gives each
of its templates the same first rows, at most 500,000 for all templates together
(arXiv 2110.08207, appendix; r-three/t-few, src/data/dataset_readers.py), and a
task is drawn in proportion to its rows.
"""

import dataclasses
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from peft_jax.tasks import (
  metrics,
  preprocessors,
  promptsource,
  sources,
  vocabularies,
)
from peft_jax.tasks.few_shot import plain
from peft_jax.tasks.sources import DataError
from peft_jax.tasks.templates import Template, TemplateError

MIXTURE = "t0_mixture"
PREFIX = "t0_"
MAX_ROWS = 500_000
_FILES = {"train": "train.jsonl", "validation": "validation.jsonl"}


@dataclasses.dataclass(frozen=True)
class Dataset:
  """One data set of the mixture.

  Attributes:
    name: at Hugging Face, as PromptSource has it.
    subset: the same; empty: there is none.
    num_train: rows of its training split.
    tfds: TFDS's name for it, where the rows have the same fields.
  """

  name: str
  subset: str
  num_train: int
  tfds: str = ""

  @property
  def mixture(self) -> str:
    """The name of the mixture of its tasks."""
    return f"{PREFIX}{_word('_'.join(filter(None, (self.name, self.subset))))}"

  @property
  def folder(self) -> str:
    """Where its files lie, below `data_dir`."""
    return os.path.join(*filter(None, (self.name, self.subset)))

  def task_name(self, template: str) -> str:
    """Returns T-Few's name of the task of a template, after our prefix.

    Example:
      >>> Dataset("glue", "mrpc", 3_668).task_name("want to know")
      't0_glue_mrpc_want_to_know'
    """
    first = f"{self.name}_{self.subset}_" if self.subset else f"{self.name}_"
    return f"{PREFIX}{_word(first + template)}"

  def cap(self, num_templates: int) -> int:
    """Returns how many rows each of its templates has.

    Example:
      >>> Dataset("glue", "qqp", 363_846).cap(6)
      83333
    """
    return min(self.num_train, MAX_ROWS // num_templates)


def _word(text: str) -> str:
  return re.sub(r"[^\w\d\._]+", "_", text)


# The rows of T-Few's src/data/datasets.csv whose `do_train` is BASE.
DATASETS = (
  Dataset("glue", "mrpc", 3_668, "glue/mrpc:2.0.0"),
  Dataset("glue", "qqp", 363_846, "glue/qqp:2.0.0"),
  Dataset("paws", "labeled_final", 49_401, "paws_wiki:1.1.0"),
  Dataset("kilt_tasks", "hotpotqa", 88_869),
  Dataset("wiki_qa", "", 20_360),
  Dataset("adversarial_qa", "dbidaf", 10_000),
  Dataset("adversarial_qa", "dbert", 10_000),
  Dataset("adversarial_qa", "droberta", 10_000),
  Dataset("duorc", "SelfRC", 60_721),
  Dataset("duorc", "ParaphraseRC", 69_524),
  Dataset("ropes", "", 10_924),
  Dataset("quoref", "", 19_399),
  Dataset("cos_e", "v1.11", 9_741),
  Dataset("cosmos_qa", "", 25_262, "cosmos_qa:1.0.0"),
  Dataset("dream", "", 6_116),
  Dataset("qasc", "", 8_134),
  Dataset("quail", "", 10_246),
  Dataset("quarel", "", 1_941),
  Dataset("quartz", "", 2_696),
  Dataset("sciq", "", 11_679),
  Dataset("social_i_qa", "", 33_410),
  Dataset("wiki_hop", "original", 43_738),
  Dataset("wiqa", "", 29_808),
  Dataset("amazon_polarity", "", 3_600_000),
  Dataset("app_reviews", "", 288_065),
  Dataset("imdb", "", 25_000, "imdb_reviews:1.0.0"),
  Dataset("rotten_tomatoes", "", 8_530),
  Dataset("yelp_review_full", "", 650_000),
  Dataset("common_gen", "", 67_389),
  Dataset("wiki_bio", "", 582_659),
  Dataset("cnn_dailymail", "3.0.0", 287_113, "cnn_dailymail:3.4.0"),
  Dataset("gigaword", "", 3_803_957, "gigaword:1.2.0"),
  Dataset("multi_news", "", 44_972, "multi_news:2.1.0"),
  Dataset("samsum", "", 14_732, "samsum:1.0.0"),
  Dataset("xsum", "", 204_045, "xsum:1.1.0"),
  Dataset("ag_news", "", 120_000),
  Dataset("dbpedia_14", "", 560_000),
  Dataset("trec", "", 5_452),
)

NAMES = (MIXTURE, *(dataset.mixture for dataset in DATASETS))

# Tasks that T-Few leaves out: most are longer than 1024 tokens, one has no
# files. Of PromptSource's present templates none of the above has such a name.
_LEFT_OUT = frozenset(
  f"{PREFIX}{name}"
  for name in (
    *(
      f"hotpot_qa_{part}_{name}"
      for part in ("distractor", "fullwiki")
      for name in (
        "Generate_Explanations",
        "Generate_Answer_and_Explanations",
        "Generate_Answer",
        "Generate_Title_1",
        "Generate_Title_2",
        "Generate_Question",
      )
    ),
    *(f"tab_fact_tab_fact_tab_fact_{n}" for n in range(1, 8)),
    "wiki_hop_masked_Choose_Best_Object_Candidate",
    "wiki_hop_masked_Indirect_Question_about_Birthplace_Citizenship_Place_of"
    "_Death",
    "narrativeqa_Template_05",
    "ecthr_cases_alleged_violation_prediction_silver_rationales",
    "gigaword_summarize_",
  )
)


def register(
  name: str = MIXTURE,
  *,
  vocabulary: str | os.PathLike[str] | seqio.Vocabulary,
  templates: str,
  data_dir: str = "",
) -> seqio.Mixture:
  """Registers and returns the mixture, or that of one data set; again replaces.

  An example has `inputs`, `targets`, `choices`, `label` and `idx`. The choices
  of a template without any are the target alone. Rows that a template makes no
  input or no target of are left out; T-Few's code trains on `<NO INPUT>` and
  `<NO LABEL>` in their place.

  Args:
    name: one of `NAMES`.
    vocabulary: a vocabulary, its name or its file; see `vocabularies.load`.
    templates: PromptSource's folder `promptsource/templates`.
    data_dir: folder with `<data set>/<subset>/train.jsonl`, and perhaps
      `validation.jsonl`, of Hugging Face's rows (`Dataset.to_json`). Empty:
      TFDS, whose rows have another order, so that the first are others.

  Raises:
    DataError: if the name is unknown, or with all files that are missing.
    TemplateError: if there are no templates, or they do not fit the rows.
    VocabularyError: if the vocabulary is not there.
  """
  if name not in NAMES:
    raise DataError(
      f"expected one of {', '.join(NAMES)}, found {name!r}. Name one of them."
    )
  if not templates:
    raise TemplateError(
      f"task {name!r}: expected the folder promptsource/templates of"
      " PromptSource, found none. Pass --templates DIR."
    )
  chosen = [d for d in DATASETS if name in (MIXTURE, d.mixture)]
  _check_present(chosen, data_dir=data_dir)
  features = vocabularies.text_features(vocabularies.resolve(vocabulary))
  rates: dict[str, int] = {}
  tasks = []
  for dataset in chosen:
    found = promptsource.read(
      dataset.name, subset=dataset.subset, folder=templates
    )
    source = _source(dataset, data_dir=data_dir, cap=dataset.cap(len(found)))
    for template in found:
      task = dataset.task_name(template.name)
      if task in _LEFT_OUT:
        continue
      template.check_fields(source.first())
      tasks.append(_task(task, template, source=source, features=features))
      rates[task] = source.count("train")
  seqio.MixtureRegistry.remove(name)
  for task in tasks:
    seqio.TaskRegistry.remove(task.name)
    seqio.TaskRegistry.add_provider(task.name, task)
  return seqio.MixtureRegistry.add(
    name, [(task, float(rate)) for task, rate in rates.items()]
  )


def _check_present(datasets: Sequence[Dataset], *, data_dir: str) -> None:
  if data_dir:
    paths = {
      d: os.path.join(data_dir, d.folder, "train.jsonl") for d in datasets
    }
    missing = [
      d.folder for d, path in paths.items() if not sources.exists(path)
    ]
    where = f"files <data set>/train.jsonl below {data_dir}"
  else:
    missing = [d.folder for d in datasets if not d.tfds]
    where = "data sets that TFDS has in the same form, without --data_dir"
  if missing:
    raise DataError(
      f"expected {where}, for {len(datasets)} data sets, found none for"
      f" {len(missing)}: {', '.join(missing)}. Write them with Hugging Face's"
      " Dataset.to_json, or train on one data set: --task"
      f" {datasets[0].mixture}."
    )


class _Source:
  """The rows of one data set, split by split, the first ones only."""

  def __init__(self, splits: tuple[str, ...]):
    self.splits = splits

  def count(self, split: str) -> int:
    """Returns the number of rows."""
    raise NotImplementedError

  def rows(
    self, split: str, *, shuffle: bool, seed: int | None
  ) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yields the number of a row and the row."""
    raise NotImplementedError

  def first(self) -> Mapping[str, Any]:
    """Returns the first training row."""
    return next(self.rows("train", shuffle=False, seed=None))[1]


class _Files(_Source):
  """JSON-lines files; where each line begins is kept, the rows are not."""

  def __init__(self, paths: Mapping[str, str], *, cap: int):
    super().__init__(tuple(paths))
    self._paths = paths
    self._starts = {
      split: _line_starts(path, cap if split == "train" else None)
      for split, path in paths.items()
    }

  def count(self, split: str) -> int:
    return len(self._starts[split])

  def rows(
    self, split: str, *, shuffle: bool, seed: int | None
  ) -> Iterator[tuple[int, Mapping[str, Any]]]:
    starts, path = self._starts[split], self._paths[split]
    order = np.arange(len(starts))
    if shuffle:
      # All rows: some files are sorted by class.
      order = np.random.default_rng(seed).permutation(order)
    with tf.io.gfile.GFile(path, "rb") as file:
      for index in order.tolist():
        file.seek(starts[index])
        yield (
          index,
          sources.parse_line(file.readline(), place=f"{path}:{index + 1}"),
        )


class _Tfds(_Source):
  """A data set of TFDS."""

  def __init__(self, name: str, *, cap: int):
    super().__init__(("train",))
    self._name, self._cap = name, cap

  def count(self, split: str) -> int:
    return self._cap

  def rows(
    self, split: str, *, shuffle: bool, seed: int | None
  ) -> Iterator[tuple[int, Mapping[str, Any]]]:
    import tensorflow_datasets as tfds

    dataset: Any = tfds.load(self._name, split=f"{split}[:{self._cap}]")
    if shuffle:
      dataset = dataset.shuffle(self._cap, seed=seed)
    for index, row in enumerate(dataset.as_numpy_iterator()):
      yield index, {name: plain(value) for name, value in row.items()}


def _source(dataset: Dataset, *, data_dir: str, cap: int) -> _Source:
  if not data_dir:
    return _Tfds(dataset.tfds, cap=cap)
  folder = os.path.join(data_dir, dataset.folder)
  paths = {split: os.path.join(folder, name) for split, name in _FILES.items()}
  present = {s: path for s, path in paths.items() if sources.exists(path)}
  return _Files(present, cap=cap)


def _line_starts(path: str, cap: int | None) -> np.ndarray:
  """Returns where the first lines begin, in bytes."""
  starts, position = [], 0
  with tf.io.gfile.GFile(path, "rb") as file:
    for line in iter(file.readline, b""):
      if line.strip():
        starts.append(position)
      if cap is not None and len(starts) == cap:
        break
      position += len(line)
  if not starts:
    raise sources.empty_file(path)
  return np.array(starts, np.int64)


def _task(
  name: str,
  template: Template,
  *,
  source: _Source,
  features: Mapping[str, seqio.utils.Feature],
) -> seqio.Task:
  def dataset(
    split: str, shuffle_files: bool, seed: int | None = None
  ) -> tf.data.Dataset:
    def examples() -> Iterator[dict[str, Any]]:
      for index, row in source.rows(split, shuffle=shuffle_files, seed=seed):
        found = prompt(row, template=template, idx=index)
        if found is not None:
          yield found

    return tf.data.Dataset.from_generator(examples, output_signature=_SIGNATURE)

  return seqio.Task(
    name,
    source=seqio.FunctionDataSource(dataset, splits=source.splits),
    output_features=features,
    preprocessors=preprocessors.to_tokens(cacheable=False),
    metric_fns=[metrics.exact_match],
  )


_SIGNATURE = {
  "inputs": tf.TensorSpec([], tf.string),
  "targets": tf.TensorSpec([], tf.string),
  "choices": tf.TensorSpec([None], tf.string),
  "label": tf.TensorSpec([], tf.int32),
  "idx": tf.TensorSpec([], tf.int64),
}


def prompt(
  row: Mapping[str, Any], *, template: Template, idx: int
) -> dict[str, Any] | None:
  """Returns a row in a template's words, None if it makes nothing of it.

  Example:
    >>> template = Template(name="say", jinja="Say it: {{text}} ||| {{text}}")
    >>> prompt({"text": "ho"}, template=template, idx=3)["choices"]
    ['ho']
  """
  rendered = template.render(row, seed=idx)
  if rendered is None or not rendered.inputs or not rendered.target:
    return None
  choices = list(rendered.choices)
  # The target may be cut, or chosen among more than the choices.
  if rendered.target not in choices:
    choices = [rendered.target]
  return {
    "inputs": rendered.inputs,
    "targets": rendered.target,
    "choices": choices,
    "label": choices.index(rendered.target),
    "idx": idx,
  }
