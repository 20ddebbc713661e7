"""One training step: differentiates the adapter only, compiled once."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from peft_jax import partition
from peft_jax.inject import Adapted
from peft_jax.train.forward import Batch
from peft_jax.train.objective import LanguageModel, Objective

Array = jax.Array


class TrainState(NamedTuple):
  """All that a step changes, and all that resuming needs.

  Attributes:
    step: [] int32, number of updates done.
    adapter: the trained leaves.
    opt_state: the optimizer's state, for these leaves only.
    rng: key from which each step derives its dropout.
  """

  step: Array
  adapter: Any
  opt_state: Any
  rng: Array


def init_state(
  adapter: Any, tx: optax.GradientTransformation, rng: Array, model: Any = None
) -> TrainState:
  """Returns the state before the first update.

  Args:
    adapter: the adapter's leaves.
    tx: the optimizer.
    rng: key for dropout.
    model: network with adapters; None: all leaves are trained.
  """
  trained, _ = _divide(adapter, model)
  return TrainState(jnp.int32(0), adapter, tx.init(trained), rng)


def _divide(adapter: Any, model: Any) -> tuple[Any, Any]:
  """Returns what is trained and what is kept; a network has nothing to keep."""
  if isinstance(model, Adapted):
    return partition.divide(adapter, model)
  return adapter, {}


def make_train_step(
  model: Any,
  tx: optax.GradientTransformation,
  *,
  micro_batches: int = 1,
  dropout: bool = True,
  objective: Objective | None = None,
) -> Callable[[TrainState, Any, Batch], tuple[TrainState, dict[str, Array]]]:
  """Returns the function (state, frozen, batch) -> (state, metrics).

  The caller jits it, with shardings and `donate_argnums=0`.

  Args:
    model: network with adapters, or a network to train whole.
    tx: the optimizer.
    micro_batches: number of parts the batch is cut into, one after the other;
      the loss is normalised over the whole batch, so it does not change.
    dropout: whether to drop in training, at the network's own rate.
    objective: what is minimised; default `objective.LanguageModel`.

  Returns:
    metrics: those of the objective, such as `loss` and `accuracy` (share of
    right tokens), `tokens`, `gradient_norm`, float32 scalars on the device, and
    `unreached`, one bool per trained leaf: whether its gradient is zero
    everywhere.
  """
  aim = objective or LanguageModel()

  def total_loss(
    trained: Any, kept: Any, batch: Batch, rng: Array
  ) -> tuple[Array, dict[str, Array]]:
    return aim.total(
      model,
      partition.join(kept, trained),
      batch,
      enable_dropout=dropout,
      rngs={"dropout": rng} if dropout else {},
    )

  gradient = jax.value_and_grad(total_loss, has_aux=True)

  def accumulate(trained: Any, kept: Any, batch: Batch, rng: Array) -> Any:
    if micro_batches == 1:
      return gradient(trained, kept, batch, rng)

    def one(carry: Any, part: tuple[Array, Batch]) -> tuple[Any, None]:
      index, micro = part
      found = gradient(trained, kept, micro, jax.random.fold_in(rng, index))
      return jax.tree.map(jnp.add, carry, found), None

    parts = jax.tree.map(lambda x: _cut(x, micro_batches), dict(batch))
    first = jax.tree.map(lambda x: x[0], parts)
    sums, _ = jax.eval_shape(gradient, trained, kept, first, rng)
    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), sums)
    start = (zero, jax.tree.map(jnp.zeros_like, trained))
    total, _ = jax.lax.scan(one, start, (jnp.arange(micro_batches), parts))
    return total

  def step(
    state: TrainState, frozen: Any, batch: Batch
  ) -> tuple[TrainState, dict[str, Array]]:
    trained, constant = _divide(state.adapter, model)
    kept = partition.join(frozen, constant)
    rng = jax.random.fold_in(state.rng, state.step)
    weighed = aim.weigh(batch)
    (_, sums), grads = accumulate(trained, kept, weighed, rng)
    of_gradient, of_metrics = aim.divisors(batch)
    grads = jax.tree.map(lambda g: g / of_gradient.astype(g.dtype), grads)
    updates, opt_state = tx.update(grads, state.opt_state, trained)
    adapter = optax.apply_updates(trained, updates)
    if constant:
      adapter = partition.join(adapter, constant)
    metrics = {
      **{name: total / of_metrics for name, total in sums.items()},
      "tokens": jnp.sum(batch["decoder_loss_weights"].astype(jnp.float32)),
      "gradient_norm": optax.tree.norm(grads),
      "unreached": jnp.stack([jnp.all(g == 0) for g in jax.tree.leaves(grads)]),
    }
    return TrainState(state.step + 1, adapter, opt_state, state.rng), metrics

  return step


def _cut(x: Array, micro_batches: int) -> Array:
  """x: [B, ...] -> [micro-batches, B / micro-batches, ...].

  Rows are dealt out in turn, so that every micro-batch stays spread over the
  data axis.
  """
  return jnp.swapaxes(
    x.reshape(x.shape[0] // micro_batches, micro_batches, *x.shape[1:]), 0, 1
  )
