"""Chooses FISH masks on training examples, before the first step."""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from peft_jax import partition, start
from peft_jax.adapters.fish_mask import FishMask
from peft_jax.train.config import Config, ConfigError
from peft_jax.train.setup import Setup


def masked(
  run: Setup, config: Config, examples: Iterator[Mapping[str, Any]]
) -> Setup:
  """Returns the run with its FISH masks chosen; as it is if it has none.

  Args:
    run: the run before its first step.
    config: says on how many examples.
    examples: of training, as batches of one.

  Raises:
    ConfigError: with several processes, which see other examples each.
  """
  rules = run.model.rules
  if not any(isinstance(rule.adapter, FishMask) for rule in rules):
    return run
  if jax.process_count() > 1:
    raise ConfigError(
      "expected one process to choose a FISH mask, found"
      f" {jax.process_count()}. Choose it on one (--train_steps 1), then start"
      " the others from that run with --gin.WARM_START."
    )
  batches = [
    {name: jnp.asarray(x) for name, x in example.items()}
    for example in itertools.islice(examples, config.fisher_examples)
  ]

  def loss(params: Any, batch: Any) -> jax.Array:
    aim = config.objective
    batch = aim.weigh(batch)
    total, _ = aim.total(run.model, params, batch, enable_dropout=False)
    return total / aim.divisors(batch)[1]

  params = partition.join(run.frozen, run.state.adapter)
  params = start.from_fisher(params, run.model, loss, batches)
  chosen = partition.select(params, run.state.adapter)
  adapter = jax.tree.map(
    lambda leaf, like: jax.device_put(leaf, like.sharding),
    chosen,
    run.state.adapter,
  )
  return dataclasses.replace(run, state=run.state._replace(adapter=adapter))
