"""Which training examples a run uses: all, the first ones, or a sample."""

import dataclasses
from typing import Any

import seqio

from peft_jax.tasks import few_shot, few_shot_sampling
from peft_jax.tasks.sources import DataError
from peft_jax.train.config import Config, ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Used:
  """The training examples that are used.

  Attributes:
    count: how many; 0: all.
    places: of a sample, in the whole set; empty: it is the first ones.
  """

  count: int = 0
  places: tuple[int, ...] = ()

  def of(self, dataset: Any) -> Any:
    """Returns these of a `tf.data.Dataset`, in its order."""
    if not self.places:
      return dataset.take(self.count) if self.count else dataset
    import tensorflow as tf

    drawn = tf.constant(self.places, tf.int64)
    return (
      dataset.enumerate()
      .filter(lambda place, _: tf.reduce_any(place == drawn))
      .map(lambda _, example: example)
    )


ALL = Used()


def of(config: Config, task: seqio.Task | seqio.Mixture) -> Used:
  """Returns what a run says: MAX_TRAIN_EXAMPLES, or SHOTS and FEW_SHOT_SEED.

  A sample is drawn as T-Few draws. Its own tasks do that themselves, before
  each row has its templates.

  Raises:
    ConfigError: if both are given.
    DataError: for a mixture, or a sample that is larger than the set.
  """
  own = task.name in few_shot.NAMES
  shots = 0 if own else config.few_shot.shots or 0
  first = config.max_train_examples
  if shots and first:
    raise ConfigError(
      f"expected SHOTS or MAX_TRAIN_EXAMPLES, found {shots} and {first}: a"
      " sample of all examples, or the first ones. Set one of them to 0."
    )
  if (shots or first) and isinstance(task, seqio.Mixture):
    name = "SHOTS" if shots else "MAX_TRAIN_EXAMPLES"
    raise DataError(
      f"expected a single task with {name}, found the mixture {task.name!r}."
      " Limit its tasks instead."
    )
  if not shots:
    return Used(count=first)
  dataset = task.get_dataset(
    dict(config.task_feature_lengths), "train", shuffle=False
  )
  size = sum(1 for _ in dataset)
  seed = config.few_shot.seed
  places = few_shot_sampling.sample(range(size), shots=shots, seed=seed)
  return Used(count=shots, places=tuple(places))
