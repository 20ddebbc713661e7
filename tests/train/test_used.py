"""Which training examples a run uses."""

import numpy as np
import pytest
import seqio
from helpers.runs import SMALL, write_rows

from peft_jax.tasks.sources import DataError
from peft_jax.train import config, data, loop, used
from peft_jax.train.config import ConfigError

WORDS = [f"{a}{b}" for a in "abcd" for b in "abcde"]


@pytest.fixture
def resolve(tmp_path):
  """Returns a function that resolves a run on twenty rows."""
  rows = [{"inputs": f"say {word}", "targets": word} for word in WORDS]
  folder = write_rows(tmp_path / "data", rows)

  def resolved(*bindings):
    return config.resolve(
      ["runs/train.gin", "models/tiny.gin", "adapters/ia3.gin"],
      [
        *SMALL,
        f"DATA_DIR = {str(folder)!r}",
        f"MODEL_DIR = {str(tmp_path / 'run')!r}",
        *bindings,
      ],
    )

  return resolved


def words_of(resolved, steps=4):
  """Returns the words that some batches of training are made of."""
  settings = resolved.config
  task = data.get_task(settings)
  batches = data.train_batches(
    task,
    lengths=settings.task_feature_lengths,
    batch_size=settings.batch_size,
    seed=settings.random_seed,
    use=used.of(settings, task),
  )
  vocabulary = task.output_features["targets"].vocabulary
  rows = np.concatenate(
    [next(batches)["decoder_target_tokens"] for _ in range(steps)]
  )
  return {vocabulary.decode(row.tolist()) for row in rows}


def test_all_of_them(resolve):
  assert words_of(resolve(), steps=20) == set(WORDS)


def test_the_first_ones(resolve):
  assert words_of(resolve("MAX_TRAIN_EXAMPLES = 8")) == set(WORDS[:8])


@pytest.mark.parametrize("seed", [0, 1])
def test_a_sample_is_drawn_as_numpy_shuffles(resolve, seed):
  drawn = np.random.RandomState(seed).permutation(20)[:8]
  words = words_of(resolve("SHOTS = 8", f"FEW_SHOT_SEED = {seed}"))
  assert words == {WORDS[place] for place in drawn}


def test_no_shots_are_all(resolve):
  task = data.get_task(resolve().config)
  assert used.of(resolve("SHOTS = 0").config, task) == used.ALL


@pytest.mark.parametrize(
  ("bindings", "error", "message"),
  [
    (
      ["SHOTS = 8", "MAX_TRAIN_EXAMPLES = 4"],
      ConfigError,
      "expected SHOTS or MAX_TRAIN_EXAMPLES, found 8 and 4",
    ),
    (["SHOTS = 21"], DataError, "expected at least 21 training rows"),
    (
      ["SHOTS = 8", "FEW_SHOT_SEED = -1"],
      DataError,
      "expected FEW_SHOT_SEED from 0",
    ),
  ],
)
def test_mistakes_stop_before_anything_is_written(
  resolve, tmp_path, bindings, error, message
):
  with pytest.raises(error, match=message):
    loop.train(resolve(*bindings))
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["SHOTS", "MAX_TRAIN_EXAMPLES"])
def test_a_mixture_is_no_single_task(resolve, name):
  settings = resolve(f"{name} = 8").config
  mixture = seqio.Mixture(
    "mixed", [data.get_task(settings).name], default_rate=1.0
  )
  with pytest.raises(DataError, match=f"expected a single task with {name}"):
    used.of(settings, mixture)
