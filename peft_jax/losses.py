"""Losses, normalised so that they do not depend on how a batch is cut."""

from typing import Literal

import jax
import jax.numpy as jnp

from peft_jax.precision import widened

Array = jax.Array

# 'tokens': mean over the real target tokens of the whole batch. 'none': their
# sum, as T5X's LOSS_NORMALIZING_FACTOR=None.
Normalization = Literal["tokens", "none"]


def cross_entropy(
  logits: Array, targets: Array, *, z_loss: float = 0.0
) -> Array:
  """Returns -log p(target) per token, with T5X's z-loss.

  Example:
    >>> logits = jnp.array([[[0.0, 0.0]]])
    >>> float(cross_entropy(logits, jnp.array([[1]]))[0, 0])  # log 2
    0.6931471824645996

  Args:
    logits: [B, T, V] float.
    targets: [B, T] ids.
    z_loss: weight of log(Z)^2, which keeps the normaliser near 1.

  Returns:
    [B, T] float32; float64 of float64.
  """
  logits = widened(logits)
  log_z = jax.nn.logsumexp(logits, axis=-1)
  picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
  loss = log_z - picked
  return loss + z_loss * jnp.square(log_z) if z_loss else loss


def language_model(
  logits: Array, targets: Array, weights: Array, *, z_loss: float = 0.0
) -> tuple[Array, Array]:
  """Returns the summed loss over real tokens and their number.

  A sum, so that micro-batches add up; divide by the number of tokens of the
  whole batch.

  Example:
    >>> logits, targets = jnp.zeros((1, 2, 4)), jnp.array([[1, 0]])
    >>> total, tokens = language_model(logits, targets, jnp.array([[1., 0.]]))
    >>> round(float(total), 4), float(tokens)
    (1.3863, 1.0)

  Args:
    logits: [B, T, V] float.
    targets: [B, T] ids.
    weights: [B, T] float, 0 for padding.
    z_loss: see `cross_entropy`.
  """
  loss = cross_entropy(logits, targets, z_loss=z_loss)
  return jnp.sum(loss * weights), jnp.sum(weights)


def accuracy(logits: Array, targets: Array, weights: Array) -> Array:
  """Returns the number of real tokens whose most likely id is the target.

  Example:
    >>> logits = jnp.array([[[0.0, 1.0], [1.0, 0.0]]])
    >>> float(accuracy(logits, jnp.array([[1, 1]]), jnp.ones((1, 2))))
    1.0
  """
  right = jnp.argmax(logits, axis=-1) == targets
  return jnp.sum(jnp.where(right, weights, 0.0))
