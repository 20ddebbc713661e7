"""From a SeqIO task to batches on the devices.

Every process reads the same stream and places what its devices hold of each
batch. The batches are therefore the same whatever the number of processes and
the mesh, and a resumed run goes on exactly where it stopped.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import seqio
from jax.sharding import NamedSharding

from peft_jax.tasks import prepare
from peft_jax.tasks.preprocessors import CHOICES, LABEL
from peft_jax.tasks.sources import DataError
from peft_jax.train import host_tensorflow, used
from peft_jax.train.config import Config, ConfigError
from peft_jax.train.features import (
  EncoderDecoder,
  Features,
  end_id,
  longest_choice,
  most_choices,
)
from peft_jax.train.features import of as features_of
from peft_jax.train.objective import AnswerChoices

Task = seqio.Task | seqio.Mixture

# Examples that the checks before training look at, and the fewest of a task
# that is one of many.
_CHECKED = 1000
_CHECKED_OF_A_TASK = 10


def get_task(config: Config) -> Task:
  """Returns the run's task or mixture, registered.

  Raises:
    DataError: if the task or its files are not as expected.
  """
  host_tensorflow.import_tensorflow()
  return prepare.prepare(
    config.task,
    vocabulary=config.vocabulary,
    data_dir=config.data_dir,
    answer_choices=config.answer_choices,
    raft_settings=dataclasses.asdict(config.raft),
    few_shot_settings=dataclasses.asdict(config.few_shot),
  )


def check_vocabulary(task: Task, rows: int) -> None:
  """Raises if the vocabulary has ids that the embedding table has not.

  Args:
    task: a SeqIO task or mixture.
    rows: rows of the network's embedding table.

  Raises:
    ConfigError: with both sizes.
  """
  for name, feature in task.output_features.items():
    size = feature.vocabulary.vocab_size
    if size > rows:
      raise ConfigError(
        f"expected a network with at least {size} embeddings, the size of the"
        f" vocabulary of {name!r} in {task.name!r}, found {rows}. Use the"
        " model's own vocabulary (--vocabulary), or a model with more rows"
        f" (--gin.networks.create.vocab_size={-(-size // 128) * 128})."
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lengths:
  """How long a task's examples are, and how many do not fit.

  Attributes:
    examples: number of examples looked at.
    longest: feature -> tokens of the longest example.
    cut: feature -> number of examples longer than allowed.
  """

  examples: int
  longest: Mapping[str, int]
  cut: Mapping[str, int]


def measure_lengths(
  task: Task, lengths: Mapping[str, int], *, split: str = "train"
) -> Lengths:
  """Returns how many of the first examples are longer than allowed.

  Args:
    task: a SeqIO task or mixture.
    lengths: feature -> tokens allowed, EOS included.
    split: the split to look at.
  """
  longest, cut = dict.fromkeys(lengths, 0), dict.fromkeys(lengths, 0)
  examples = 0
  for _, found in _first_examples(task, split):
    for example in found:
      examples += 1
      for name, allowed in lengths.items():
        length = len(example[name])
        longest[name] = max(longest[name], length)
        cut[name] += length > allowed
  return Lengths(examples=examples, longest=longest, cut=cut)


def check_targets(
  task: Task, lengths: Mapping[str, int], *, split: str = "train"
) -> Lengths:
  """Raises if a target does not fit: its answer would silently be cut.

  Raises:
    DataError: with the length that is needed.
  """
  found = measure_lengths(task, lengths, split=split)
  if found.cut["targets"]:
    raise DataError(
      f"expected targets of at most {lengths['targets']} tokens in task"
      f" {task.name!r}, found {found.cut['targets']} of {found.examples} longer"
      f" (longest {found.longest['targets']}). Set"
      f" TASK_FEATURE_LENGTHS['targets'] to {found.longest['targets']}, or"
      " ALLOW_CUT_TARGETS = True."
    )
  return found


def choices_width(config: Config, task: Task) -> int:
  """Returns how many answer choices a training example may have, 0 for none.

  Args:
    config: the run's.
    task: a SeqIO task or mixture, whose first examples are looked at.

  Raises:
    DataError: if an example has no choices, one that is too long, or no label.
  """
  if not isinstance(config.objective, AnswerChoices):
    return 0
  width, allowed = 0, config.task_feature_lengths["targets"]
  for part, examples in _first_examples(task, "train"):
    end = end_id(part.output_features["targets"].vocabulary)
    width = max(width, most_choices(examples, end))
    _check_labels(examples, part.name)
    longest = [longest_choice(example, end) for example in examples]
    long = sum(length > allowed for length in longest)
    if long and not config.allow_cut_targets:
      raise DataError(
        f"expected answer choices of at most {allowed} tokens in"
        f" {part.name!r}, found longer ones in {long} of {len(examples)}"
        f" examples (longest {max(longest)}). Set"
        f" TASK_FEATURE_LENGTHS['targets'] to {max(longest)}, or"
        " ALLOW_CUT_TARGETS = True."
      )
  return config.max_choices or width


def _first_examples(
  task: Task, split: str
) -> Iterator[tuple[seqio.Task, list[Mapping[str, Any]]]]:
  """Yields the tasks that have the split, with their first examples."""
  parts = [part for part in tasks_of(task) if split in part.splits]
  for part in parts:
    count = max(_CHECKED // len(parts), _CHECKED_OF_A_TASK)
    dataset = part.get_dataset(None, split, shuffle=False).take(count)
    examples = list(dataset.as_numpy_iterator())
    if not examples:
      raise DataError(
        f"expected examples in split {split!r} of {part.name!r}, found none."
      )
    yield part, examples


def _check_labels(examples: Iterable[Mapping[str, Any]], name: str) -> None:
  unknown = sum(int(example[LABEL]) < 0 for example in examples)
  if unknown:
    raise DataError(
      f"expected a label for every training example of {name!r}, found"
      f" {unknown} without one. Remove these rows, or write their labels."
    )


def train_batches(
  task: Task,
  *,
  lengths: Mapping[str, int],
  batch_size: int,
  seed: int,
  use: used.Used = used.ALL,
  start_step: int = 0,
  features: Features | None = None,
  width: int = 0,
) -> Iterator[dict[str, np.ndarray]]:
  """Yields the training batches, without end, the same on every process.

  Args:
    task: a SeqIO task or mixture.
    lengths: feature -> tokens.
    batch_size: B, over all processes.
    seed: of the shuffling.
    use: the examples that are used, of a single task; default: all.
    start_step: batches that an earlier run has already used.
    features: of the network; default: an encoder-decoder's.
    width: answer choices of an example, see `choices_width`; 0: batches of
      inputs and targets alone.

  Raises:
    DataError: if the split is empty, or smaller than a sample of it.
  """
  wanted = dict(lengths)
  if use.count:
    dataset = task.get_dataset(wanted, "train", shuffle=False, seed=seed)
    dataset = use.of(dataset).cache()
    dataset = dataset.shuffle(use.count, seed=seed).repeat()
  else:
    # A mixture drops what is not asked for.
    passed: dict[str, Any] = {}
    if width and isinstance(task, seqio.Mixture):
      passed = {"passthrough_features": [CHOICES, LABEL]}
    dataset = task.get_dataset(
      wanted, "train", shuffle=True, num_epochs=None, seed=seed, **passed
    )
  features = features or EncoderDecoder()
  if not width:
    dataset = features.train(dataset, wanted)
  dataset = dataset.skip(start_step * batch_size)
  if width:
    examples = _deterministic(dataset).prefetch(2 * batch_size)
    for part in _groups(examples.as_numpy_iterator(), batch_size):
      yield features.choices(part, lengths, width=width)
    return
  dataset = _deterministic(dataset.batch(batch_size, drop_remainder=True))
  yield from dataset.prefetch(2).as_numpy_iterator()


def _groups(examples: Iterator[Any], size: int) -> Iterator[list[Any]]:
  """Yields so many examples at a time; what is left over is dropped."""
  while len(part := list(itertools.islice(examples, size))) == size:
    yield part


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asked:
  """Examples that are to be answered, in order.

  Attributes:
    examples: with `inputs`, and to be ranked `choices` and
      `choices_pretokenized`, as a task has them.
    vocabulary: that answers are written in.
    lengths: feature -> tokens.
    features: of the network.
  """

  examples: Sequence[Mapping[str, Any]]
  vocabulary: seqio.Vocabulary
  lengths: Mapping[str, int]
  features: Features

  @functools.cached_property
  def inputs(self) -> Mapping[str, np.ndarray]:
    """What `decoding` is given, all [N, S]; see `features`."""
    return self.features.inputs(self.examples, self.lengths)

  @functools.cached_property
  def choices(self) -> Mapping[str, np.ndarray]:
    """What the answer choices are scored on, all [N, ...]; see `features`.

    Raises:
      DataError: if an example has no choices, or one that is too long.
    """
    return self.features.choices(self.examples, self.lengths)

  @functools.cached_property
  def blank_choices(self) -> Mapping[str, np.ndarray]:
    """The same behind an input of no text."""
    end = np.array([self.eos_id], np.int32)
    blank = [{**example, "inputs": end} for example in self.examples]
    return self.features.choices(blank, self.lengths)

  def choice_texts(self, row: int) -> list[str]:
    """Returns the texts of an example's choices."""
    texts = self.examples[row][f"{CHOICES}_pretokenized"]
    return [text.decode() for text in texts]

  @property
  def eos_id(self) -> int:
    """Id that ends an answer."""
    return end_id(self.vocabulary)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalSet(Asked):
  """The examples of one task that is evaluated.

  Attributes:
    task: the task, which also post-processes them.
  """

  task: seqio.Task


def configured_sets(config: Config, task: Task) -> list[EvalSet]:
  """Returns what a run is configured to evaluate, see `eval_sets`.

  Args:
    config: the run's.
    task: its task, see `get_task`.
  """
  return eval_sets(
    task,
    lengths=config.task_feature_lengths,
    split=config.eval_split,
    max_examples=config.max_eval_examples,
    features=features_of(config, task),
  )


def eval_sets(
  task: Task,
  *,
  lengths: Mapping[str, int],
  split: str,
  max_examples: int = 0,
  features: Features | None = None,
) -> list[EvalSet]:
  """Returns the evaluation examples of every task in a task or mixture.

  Args:
    task: a SeqIO task or mixture.
    lengths: feature -> tokens.
    split: the split to evaluate.
    max_examples: only the first so many of each task; 0: all.
    features: of the network; default: an encoder-decoder's.

  Raises:
    DataError: if no task has the split, or it is empty.
  """
  parts = [part for part in tasks_of(task) if split in part.splits]
  if not parts:
    raise DataError(
      f"expected a task of {task.name!r} with the split {split!r}, found"
      f" {sorted({s for p in tasks_of(task) for s in p.splits})}. Set"
      " EVAL_SPLIT."
    )
  features = features or EncoderDecoder()
  return [
    _eval_set(part, lengths, split, max_examples, features) for part in parts
  ]


def _eval_set(
  task: seqio.Task,
  lengths: Mapping[str, int],
  split: str,
  max_examples: int,
  features: Features,
) -> EvalSet:
  dataset = task.get_dataset(dict(lengths), split, shuffle=False)
  if max_examples:
    dataset = dataset.take(max_examples)
  examples = list(dataset.as_numpy_iterator())
  if not examples:
    raise DataError(
      f"expected examples in split {split!r} of {task.name!r}, found none."
    )
  return EvalSet(
    task=task,
    examples=examples,
    vocabulary=task.output_features["targets"].vocabulary,
    lengths=lengths,
    features=features,
  )


def padded_batches(
  features: Mapping[str, np.ndarray], batch_size: int
) -> Iterator[tuple[dict[str, np.ndarray], int]]:
  """Yields (batch, number of real rows); the last batch is filled with zeros.

  Example:
    >>> batches = padded_batches({"ids": np.ones((3, 2))}, 2)
    >>> [(batch["ids"].shape, real) for batch, real in batches]
    [((2, 2), 2), ((2, 2), 1)]
  """
  total = len(next(iter(features.values())))
  for start in range(0, total, batch_size):
    real = min(batch_size, total - start)
    pad = batch_size - real
    yield (
      {
        name: np.pad(
          value[start : start + real], [(0, pad)] + [(0, 0)] * (value.ndim - 1)
        )
        for name, value in features.items()
      },
      real,
    )


def to_devices(
  batch: Mapping[str, np.ndarray], sharding: NamedSharding
) -> dict[str, jax.Array]:
  """Places a batch, of which each device takes its rows.

  Args:
    batch: name -> [B, ...], whole on every process.
    sharding: of B.
  """
  return {
    name: jax.make_array_from_callback(value.shape, sharding, value.__getitem__)
    for name, value in batch.items()
  }


def tasks_of(task: Task) -> list[seqio.Task]:
  """Returns the tasks of a mixture, or the task."""
  return list(task.tasks) if isinstance(task, seqio.Mixture) else [task]


def _deterministic(dataset: Any) -> Any:
  import tensorflow as tf

  options = tf.data.Options()
  options.deterministic = True
  options.threading.private_threadpool_size = 1
  return dataset.with_options(options)
