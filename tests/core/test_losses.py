"""Losses against numpy in float64, and their sums."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from peft_jax import losses

RNG = np.random.default_rng(0)
LOGITS = RNG.standard_normal((2, 5, 7)).astype(np.float32) * 3
TARGETS = RNG.integers(0, 7, (2, 5)).astype(np.int32)
WEIGHTS = np.array([[1, 1, 1, 1, 0], [1, 1, 0, 0, 0]], np.float32)


def reference(logits, z_loss=0.0):
  logits = np.asarray(logits, np.float64)
  log_z = np.log(np.exp(logits).sum(-1))
  picked = np.take_along_axis(logits, TARGETS[..., None], -1)[..., 0]
  return log_z - picked + z_loss * log_z**2


@pytest.mark.parametrize("z_loss", [0.0, 1e-4, 0.1])
def test_cross_entropy(z_loss):
  found = losses.cross_entropy(LOGITS, TARGETS, z_loss=z_loss)
  np.testing.assert_allclose(
    found, reference(LOGITS, z_loss), rtol=1e-5, atol=1e-6
  )


def test_cross_entropy_of_extreme_logits_is_finite():
  logits = jnp.array([[[1e9, 0.0], [0.0, -1e9]]])
  targets = jnp.array([[0, 1]])
  found = np.asarray(losses.cross_entropy(logits, targets))
  np.testing.assert_array_equal(found, [[0.0, 1e9]])
  gradient = jax.grad(lambda x: losses.cross_entropy(x, targets).sum())(logits)
  assert np.isfinite(gradient).all()


def test_computes_in_float32():
  logits = jnp.asarray(LOGITS, jnp.bfloat16)
  found = losses.cross_entropy(logits, TARGETS)
  assert found.dtype == jnp.float32
  expected = reference(logits.astype(jnp.float32))
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_language_model_sums_real_tokens():
  total, tokens = losses.language_model(LOGITS, TARGETS, WEIGHTS)
  assert tokens == WEIGHTS.sum() == 6
  expected = (reference(LOGITS) * WEIGHTS).sum()
  np.testing.assert_allclose(total, expected, rtol=1e-5)
  # What stands at padding does not matter.
  changed = np.where(WEIGHTS[..., None] > 0, LOGITS, 50.0).astype(np.float32)
  again, _ = losses.language_model(changed, TARGETS, WEIGHTS)
  np.testing.assert_array_equal(again, total)


def test_parts_of_a_batch_add_up():
  whole = losses.language_model(LOGITS, TARGETS, WEIGHTS, z_loss=0.1)
  parts = [
    losses.language_model(
      LOGITS[i : i + 1], TARGETS[i : i + 1], WEIGHTS[i : i + 1], z_loss=0.1
    )
    for i in range(2)
  ]
  np.testing.assert_allclose(whole, np.sum(parts, axis=0), rtol=1e-6)


def test_accuracy_counts_right_real_tokens():
  best = LOGITS.argmax(-1)
  expected = ((best == TARGETS) * WEIGHTS).sum()
  assert losses.accuracy(LOGITS, TARGETS, WEIGHTS) == expected
  assert losses.accuracy(LOGITS, best, WEIGHTS) == WEIGHTS.sum()


@pytest.mark.t5x
@pytest.mark.parametrize("z_loss", [0.0, 1e-4])
def test_equals_t5x(z_loss):
  from t5x import losses as t5x_losses

  total, t5x_z, _ = t5x_losses.compute_weighted_cross_entropy(
    LOGITS, TARGETS, WEIGHTS, z_loss=z_loss
  )
  found, _ = losses.language_model(LOGITS, TARGETS, WEIGHTS, z_loss=z_loss)
  # T5X's total holds its z-loss.
  np.testing.assert_allclose(found, total, rtol=1e-5)
  assert (float(t5x_z) > 0) == (z_loss > 0)
