"""AdamW, SGD and gradient clipping, with keyword arguments checked."""

from typing import Any

import jax
import optax

from peft_jax.optim import _checks


def adamw(
  *,
  learning_rate: optax.ScalarOrSchedule,
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-8,
  weight_decay: float = 0.0,
) -> optax.GradientTransformationExtraArgs:
  """Makes Adam with decoupled weight decay, LoRA's optimizer.

  >>> import jax.numpy as jnp
  >>> import optax
  >>> tx = adamw(learning_rate=0.1)
  >>> params = {'b': jnp.zeros((2, 2))}
  >>> updates, _ = tx.update({'b': jnp.ones((2, 2))}, tx.init(params), params)
  >>> optax.apply_updates(params, updates)['b'].round(3)
  Array([[-0.1, -0.1],
         [-0.1, -0.1]], dtype=float32)

  Leaves may have any shape; the two moments of each have its own. One step is
  PyTorch's and Hugging Face's: the decay is multiplied by the learning rate,
  and `eps` is added outside the square root.

  Args:
    learning_rate: a number or a schedule.
    b1: decay of the mean of the gradients. Default 0.9 (Adam, Kingma and Ba,
      algorithm 1).
    b2: decay of the mean of their squares. Default 0.999 (same).
    eps: added to the denominator. Default 1e-8 (same).
    weight_decay: share of each parameter, times the learning rate, taken off
      at each step. Default 0: plain Adam.

  Returns:
    The gradient transformation. Its `update` needs the parameters.

  Raises:
    ValueError: if an option is out of range.
  """
  _checks.learning_rate(learning_rate)
  _checks.fraction("b1", b1)
  _checks.fraction("b2", b2)
  _checks.above("eps", eps, 0.0)
  _checks.at_least("weight_decay", weight_decay, 0.0)
  return _standard_promotion(
    optax.adamw(learning_rate, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay)
  )


def sgd(
  *, learning_rate: optax.ScalarOrSchedule, momentum: float = 0.0
) -> optax.GradientTransformationExtraArgs:
  """Makes stochastic gradient descent.

  >>> import jax.numpy as jnp
  >>> tx = sgd(learning_rate=0.5)
  >>> params = {'scale': jnp.ones(2)}
  >>> updates, _ = tx.update({'scale': jnp.array([1.0, 4.0])}, tx.init(params))
  >>> updates['scale'].tolist()
  [-0.5, -2.0]

  Args:
    learning_rate: a number or a schedule.
    momentum: decay of the running sum of gradients, which is of each leaf's
      own shape. Default 0: no sum is kept.

  Returns:
    The gradient transformation.

  Raises:
    ValueError: if an option is out of range.
  """
  _checks.learning_rate(learning_rate)
  _checks.fraction("momentum", momentum)
  # Optax keeps a sum for a momentum of 0.0, and none for None.
  return optax.sgd(learning_rate, momentum=momentum or None)


def with_clipping(
  tx: optax.GradientTransformation, *, max_norm: float
) -> optax.GradientTransformationExtraArgs:
  """Scales gradients down to a largest global norm before `tx` sees them.

  >>> import jax.numpy as jnp
  >>> tx = with_clipping(sgd(learning_rate=1.0), max_norm=1.0)
  >>> params = {'a': jnp.zeros(()), 'b': jnp.zeros(())}
  >>> gradients = {'a': jnp.array(3.0), 'b': jnp.array(4.0)}
  >>> updates, _ = tx.update(gradients, tx.init(params))
  >>> {name: round(float(update), 3) for name, update in updates.items()}
  {'a': -0.6, 'b': -0.8}

  The norm is over all leaves that `tx` is given. With a whole parameter tree,
  put `freeze` outside, `freeze(with_clipping(tx, max_norm=1.0), mask)`:
  otherwise the frozen gradients count, and have to be computed.

  Args:
    tx: the optimizer.
    max_norm: the largest norm. T-Few's is 1.0 (its `grad_clip_norm`; PyTorch
      there divides by the norm plus 1e-6, this by the norm).

  Returns:
    The gradient transformation.

  Raises:
    ValueError: if `max_norm` is not above 0.
  """
  _checks.above("max_norm", max_norm, 0.0, hint="Leave it out for no limit.")
  return optax.chain(optax.clip_by_global_norm(max_norm), tx)


def lora_plus_ratio(ratio: float = 0.0) -> float:
  """Returns the ratio of `lora_plus` that gin files choose.

  An adapter's file binds it, and a run's file asks for it, in either order.

  >>> lora_plus_ratio()
  0.0

  Args:
    ratio: learning rate of `b` over that of `a`. Default 0: one for both.
  """
  return ratio


def _standard_promotion(
  tx: optax.GradientTransformationExtraArgs,
) -> optax.GradientTransformationExtraArgs:
  """Lets `tx` mix types where jax_numpy_dtype_promotion is 'strict'.

  Optax's Adam raises its decays to the int32 step, which 'strict' refuses.
  """

  def update(
    updates: optax.Updates,
    state: optax.OptState,
    params: optax.Params | None = None,
    **extra_args: Any,
  ) -> tuple[optax.Updates, optax.OptState]:
    with jax.numpy_dtype_promotion("standard"):
      return tx.update(updates, state, params, **extra_args)

  return optax.GradientTransformationExtraArgs(tx.init, update)
