"""Pretrains the tiny model that ships with the package.

    python -m peft_jax.train.pretrain_tiny --steps 1500 --to tiny.npz

It trains all parameters on the quickstart's multi-task mixture (see
`peft_jax.tasks.quickstart`), which does not contain the held-out task, and
writes them as float16, half the size.
"""

import argparse
import itertools
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import optax

from peft_jax import networks, trees
from peft_jax.tasks import quickstart, vocabularies
from peft_jax.train.forward import network_inputs
from peft_jax.train.step import init_state, make_train_step

BATCH_SIZE = 64
INPUT_LENGTH, TARGET_LENGTH = 56, 12
PEAK_LEARNING_RATE = 1e-3
WARMUP_STEPS = 100


def batches(seed: int) -> Iterator[dict[str, Any]]:
  """Yields batches of the mixture without end.

  Example:
    >>> next(batches(0))["encoder_input_tokens"].shape
    (64, 56)
  """
  vocabulary = vocabularies.load("bytes")
  examples = quickstart.mixture_examples(seed)

  def encode(texts: list[str], length: int) -> np.ndarray:
    ids = np.zeros((len(texts), length), np.int32)
    for i, text in enumerate(texts):
      row = [*vocabulary.encode(text)[: length - 1], vocabulary.eos_id]
      ids[i, : len(row)] = row
    return ids

  while True:
    rows = list(itertools.islice(examples, BATCH_SIZE))
    targets = encode([row["targets"] for row in rows], TARGET_LENGTH)
    yield {
      "encoder_input_tokens": encode(
        [row["inputs"] for row in rows], INPUT_LENGTH
      ),
      "decoder_input_tokens": np.pad(targets, ((0, 0), (1, 0)))[:, :-1],
      "decoder_target_tokens": targets,
      "decoder_loss_weights": (targets > 0).astype(np.float32),
    }


def pretrain(*, steps: int, path: str, seed: int = 0) -> None:
  """Trains the tiny model and writes it.

  Args:
    steps: number of updates.
    path: the `.npz` file.
    seed: of initialisation, dropout and data.
  """
  network = networks.create("tiny")
  key = jax.random.key(seed)
  stream = batches(seed + 1)
  inputs: dict[str, Any] = network_inputs(next(stream))
  params = network.init(key, **inputs)["params"]
  rate = optax.warmup_cosine_decay_schedule(
    0.0, PEAK_LEARNING_RATE, WARMUP_STEPS, steps
  )
  tx = optax.chain(
    optax.clip_by_global_norm(1.0), optax.adamw(rate, weight_decay=1e-4)
  )
  state = init_state(params, tx, jax.random.fold_in(key, 1))
  step = jax.jit(make_train_step(network, tx, dropout=False), donate_argnums=0)
  for i in range(1, steps + 1):
    state, metrics = step(state, {}, next(stream))
    if i % 100 == 0:
      loss, right = float(metrics["loss"]), float(metrics["accuracy"])
      print(
        f"step {i}/{steps}  loss {loss:.4f}  tokens right {100 * right:.1f} %"
      )
  flat = trees.flatten(jax.device_get(state.adapter))
  np.savez_compressed(
    path, **{name: leaf.astype(np.float16) for name, leaf in flat.items()}
  )


def main() -> None:
  """Runs the command line."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--steps", type=int, default=1500)
  parser.add_argument("--to", required=True, metavar="FILE")
  parser.add_argument("--seed", type=int, default=0)
  args = parser.parse_args()
  pretrain(steps=args.steps, path=args.to, seed=args.seed)


if __name__ == "__main__":
  main()
