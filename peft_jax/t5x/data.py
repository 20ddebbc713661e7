"""Training data for T5X that goes on where a stopped job was.

Every process reads the same stream and keeps its rows, as in `train.data`: so
batches do not depend on the number of processes, and going on is skipping.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import seqio
from clu.data import dataset_iterator
from t5x import utils

from peft_jax.tasks import prepare
from peft_jax.tasks.sources import DataError

ArraySpec = dataset_iterator.ArraySpec


def task_name(
  name: str,
  *,
  vocabulary: str,
  data_dir: str = "",
  answer_choices: Sequence[str] = (),
) -> str:
  """Registers a task with SeqIO if it needs it, and returns its name.

  Example:
    >>> task_name("quickstart", vocabulary="bytes")
    'quickstart'

  Args:
    name: of a task or mixture; see `tasks.prepare`.
    vocabulary: see `tasks.vocabularies.load`.
    data_dir: local files in the place of TFDS; empty: TFDS.
    answer_choices: the only targets that files of your own may have.

  Raises:
    DataError: if the task or its files are not as expected.
  """
  task = prepare.prepare(
    name,
    vocabulary=vocabulary,
    data_dir=data_dir,
    answer_choices=answer_choices,
  )
  return task.name


class Batches(dataset_iterator.DatasetIterator):
  """A process's rows of every batch; its position is a number of batches."""

  def __init__(self, make: Callable[[], Any], rows: slice) -> None:
    """Starts at the first batch.

    Args:
      make: returns the dataset of whole batches, the same on every process.
      rows: this process's rows of each.
    """
    self._make = make
    self._dataset = make()
    self._rows = rows
    self._start = 0
    self._iterator: Iterator[dict[str, np.ndarray]] | None = None

  def __next__(self) -> dict[str, np.ndarray]:
    if self._iterator is None:
      ahead = self._dataset.skip(self._start)
      self._iterator = ahead.as_numpy_iterator()
    return {k: value[self._rows] for k, value in next(self._iterator).items()}

  def reset(self) -> None:
    """Goes back to the first batch."""
    self.restore("0")

  @property
  def element_spec(self) -> dict[str, ArraySpec]:
    """Feature -> dtype and shape [rows, T]."""
    count = self._rows.stop - self._rows.start
    return {
      name: ArraySpec(
        dtype=spec.dtype.as_numpy_dtype, shape=(count, *spec.shape[1:])
      )
      for name, spec in self._dataset.element_spec.items()
    }

  def save(self, filename: Any) -> None:
    """Does nothing: the position is in the checkpoint (see `checkpointer`)."""

  def restore(self, filename: Any) -> None:
    """Goes to a position.

    Args:
      filename: not a file but the number of batches to leave out; T5X hands
        on only this argument.
    """
    # Anew: TensorFlow shuffles one dataset differently when it is read again.
    if self._iterator is not None:
      self._dataset = self._make()
    self._start, self._iterator = int(filename), None


def get_dataset(
  cfg: utils.DatasetConfig,
  shard_id: int,
  num_shards: int,
  feature_converter_cls: Callable[..., seqio.FeatureConverter],
  num_epochs: int | None = None,
  continue_from_last_checkpoint: bool = False,
) -> Batches:
  """Returns the training batches; for `get_dataset_fn` of T5X's train.

  Args:
    cfg: T5X's configuration of the data.
    shard_id: which rows of each batch this process feeds.
    num_shards: into how many parts batches are cut.
    feature_converter_cls: the model's.
    num_epochs: None: without end.
    continue_from_last_checkpoint: T5X's; must be False.

  Raises:
    DataError: without a seed: a restarted job could not go on.
  """
  if continue_from_last_checkpoint:
    raise DataError(
      "expected continue_from_last_checkpoint=False, found True: the position"
      " is in the checkpoint already."
    )
  if cfg.seed is None:
    raise DataError(
      "expected a seed for the training data, found None: a restarted job would"
      " read other data. Set RANDOM_SEED to a number."
    )
  if cfg.batch_size % num_shards:
    raise DataError(
      f"expected a batch size that {num_shards} processes can share, found"
      f" {cfg.batch_size}."
    )
  make = functools.partial(
    utils.get_dataset_inner,
    cfg,
    seqio.ShardInfo(0, 1),
    feature_converter_cls,
    cfg.seed,
    num_epochs,
  )
  share = cfg.batch_size // num_shards
  return Batches(make, slice(shard_id * share, (shard_id + 1) * share))
