"""Training batches for T5X: rows per process, positions, what is refused."""

import doctest
import importlib

import numpy as np
import pytest
import seqio
from helpers.package import MODULES, stage

from peft_jax.tasks.sources import DataError

pytestmark = pytest.mark.t5x


def batches(shard=0, shards=1, size=4, seed=0, **options):
  from t5x import utils

  from peft_jax.t5x import data

  cfg = utils.DatasetConfig(
    mixture_or_task_name=data.task_name("quickstart", vocabulary="bytes"),
    task_feature_lengths={"inputs": 48, "targets": 12},
    split="train",
    batch_size=size,
    shuffle=True,
    seed=seed,
  )
  return data.get_dataset(
    cfg, shard, shards, seqio.EncDecFeatureConverter, **options
  )


def assert_equal(one, other):
  assert one.keys() == other.keys()
  for name, value in one.items():
    np.testing.assert_array_equal(value, other[name])


def test_a_position_is_a_number_of_batches():
  first = batches()
  seen = [next(first) for _ in range(4)]
  again = batches()
  next(again)
  again.restore("2")
  assert_equal(next(again), seen[2])
  assert_equal(next(again), seen[3])
  again.reset()
  assert_equal(next(again), seen[0])


def test_processes_share_each_batch():
  whole = next(batches())
  parts = [batches(shard, 2) for shard in range(2)]
  found = [next(part) for part in parts]
  for name, value in whole.items():
    joined = np.concatenate([part[name] for part in found])
    np.testing.assert_array_equal(joined, value)
    spec = parts[1].element_spec[name]
    assert (spec.shape, spec.dtype) == (found[1][name].shape, value.dtype)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"seed": None}, "Set RANDOM_SEED to a number"),
    ({"shards": 3}, "a batch size that 3 processes can share, found 4"),
    ({"continue_from_last_checkpoint": True}, "found True: the position"),
  ],
)
def test_what_is_refused(options, message):
  with pytest.raises(DataError, match=message):
    batches(**options)


@pytest.mark.parametrize(
  "name", [module for module in MODULES if stage(module) == "t5x"]
)
def test_examples(name):
  assert doctest.testmod(importlib.import_module(name)).failed == 0
