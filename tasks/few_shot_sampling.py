"""T-Few's few-shot samples: drawn as its code draws them, or read from it.

T-Few shuffles the list of all training rows with numpy's legacy generator and
takes the first ones (r-three/t-few, src/data/dataset_readers.py). A sample is
not balanced over the classes. Numpy keeps that generator's numbers, so the same
rows in the same order give T-Few's published files exactly.
"""

import os
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from peft_jax.tasks import sources
from peft_jax.tasks.few_shot_data import FewShotData, Row
from peft_jax.tasks.sources import DataError

T = TypeVar("T")


def sample(rows: Sequence[T], *, shots: int, seed: int) -> list[T]:
  """Returns the rows that T-Few's code draws with that seed, in its order.

  Example:
    >>> sample(range(2490), shots=3, seed=0)  # RTE: the published `idx`
    [2325, 1450, 1047]

  Args:
    rows: the whole training set, in the order of its official file.
    shots: how many.
    seed: from 0 to 2**32 - 1.

  Raises:
    DataError: if there are fewer rows, or the seed is no such number.
  """
  if not 0 < shots <= len(rows):
    raise DataError(
      f"expected at least {shots} training rows, as many as shots and at least"
      f" one, found {len(rows)}. Set SHOTS, or give the whole training set."
    )
  if not 0 <= seed < 2**32:
    raise DataError(
      f"expected FEW_SHOT_SEED from 0 to 2**32 - 1, found {seed}."
    )
  order = np.arange(len(rows))
  np.random.RandomState(seed).shuffle(order)
  return [rows[i] for i in order[:shots]]


def published_path(
  data: FewShotData, *, folder: str, shots: int, seed: int
) -> str:
  """Returns where T-Few keeps a sample, in its `data/few_shot`.

  Example:
    >>> from peft_jax.tasks.few_shot_data import DATA
    >>> published_path(DATA["hellaswag"], folder="few_shot", shots=20, seed=42)
    'few_shot/h-swag/20_shot/42_seed.jsonl'
  """
  name = f"{seed}_seed.jsonl"
  return os.path.join(folder, data.published, f"{shots}_shot", name)


def read_published(
  data: FewShotData, *, folder: str, shots: int, seed: int
) -> list[Row]:
  """Returns the rows of one of T-Few's few-shot files.

  Raises:
    DataError: if the file is not there, or has another number of rows.
  """
  path = published_path(data, folder=folder, shots=shots, seed=seed)
  if not sources.exists(path):
    raise DataError(
      f"expected T-Few's sample of {data.name} at {path}, found none. Set"
      " FEW_SHOT_FILES to T-Few's folder data/few_shot, SHOTS and FEW_SHOT_SEED"
      " to those of a file in it, or give the training set instead."
    )
  rows = data.read(path)
  if len(rows) != shots:
    raise DataError(
      f"{path}: expected {shots} rows, found {len(rows)}. Give the whole file."
    )
  return rows
