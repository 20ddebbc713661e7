"""Schedules against numbers computed in plain Python."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from peft_jax.optim import (
  constant,
  cosine_decay,
  inverse_sqrt,
  linear_decay,
  starting_at,
)

STEPS = (0, 1, 2, 29, 59, 60, 61, 500, 999, 1000, 1001, 5000)


def hugging_face_linear(step: int, warmup: int, total: int) -> float:
  """What get_linear_schedule_with_warmup multiplies the learning rate by."""
  if step < warmup:
    return step / max(1, warmup)
  return max(0.0, (total - step) / max(1, total - warmup))


def hugging_face_cosine(step: int, warmup: int, total: int) -> float:
  if step < warmup:
    return step / max(1, warmup)
  progress = min(1.0, (step - warmup) / max(1, total - warmup))
  return 0.5 * (1.0 + math.cos(math.pi * progress))


def values(schedule: optax.Schedule, steps: tuple[int, ...]) -> np.ndarray:
  return np.array([schedule(step) for step in steps])


@pytest.mark.parametrize("warmup", [0, 1, 60, 1000])
def test_linear_decay_is_hugging_faces(warmup: int) -> None:
  schedule = linear_decay(
    learning_rate=3e-3, total_steps=1000, warmup_steps=warmup
  )
  expected = [3e-3 * hugging_face_linear(step, warmup, 1000) for step in STEPS]
  np.testing.assert_allclose(
    values(schedule, STEPS), expected, rtol=1e-6, atol=0
  )


def test_tfew_starts_and_ends_at_zero() -> None:
  schedule = linear_decay(learning_rate=3e-3, total_steps=1000, warmup_steps=60)
  assert float(schedule(0)) == 0.0
  assert float(schedule(1000)) == 0.0
  assert float(schedule(60)) == np.float32(3e-3)


@pytest.mark.parametrize("warmup", [0, 60])
def test_cosine_decay_is_hugging_faces(warmup: int) -> None:
  schedule = cosine_decay(
    learning_rate=0.5, total_steps=1000, warmup_steps=warmup
  )
  expected = [0.5 * hugging_face_cosine(step, warmup, 1000) for step in STEPS]
  np.testing.assert_allclose(values(schedule, STEPS), expected, atol=5e-8)


@pytest.mark.parametrize("make", [linear_decay, cosine_decay])
def test_decays_end_at_the_final_value(
  make: Callable[..., optax.Schedule],
) -> None:
  schedule = make(
    learning_rate=1.0, total_steps=10, warmup_steps=2, final_value=0.25
  )
  # 6 is half way from 2 to 10, where the two agree.
  np.testing.assert_allclose(
    values(schedule, (0, 1, 2, 6, 10, 11)),
    [0.0, 0.5, 1.0, 0.625, 0.25, 0.25],
    rtol=1e-6,
  )


def test_constant_warms_up() -> None:
  schedule = constant(learning_rate=0.3, warmup_steps=4)
  np.testing.assert_allclose(
    values(schedule, (0, 1, 4, 10**6)), [0.0, 0.075, 0.3, 0.3], rtol=1e-6
  )
  assert float(constant(learning_rate=0.3)(0)) == np.float32(0.3)


def test_inverse_sqrt_is_t5xs() -> None:
  steps = (0, 1, 99, 100, 101, 10_000, 1_100_000)
  level = [2.0 / math.sqrt(max(step, 100)) for step in steps]
  rising = [
    max(1e-8, value * min(1.0, step / 100))
    for step, value in zip(steps, level, strict=True)
  ]
  options = {"learning_rate": 2.0, "warmup_steps": 100}
  np.testing.assert_allclose(
    values(inverse_sqrt(**options), steps), level, rtol=1e-6
  )
  np.testing.assert_allclose(
    values(inverse_sqrt(**options, linear_warmup=True), steps),
    rising,
    rtol=1e-6,
  )


def test_inverse_sqrt_stops_at_the_final_value() -> None:
  schedule = inverse_sqrt(warmup_steps=4, final_value=0.1)
  np.testing.assert_allclose(
    values(schedule, (0, 100, 10**6)), [0.5, 0.1, 0.1], rtol=1e-6
  )


def test_starting_at_shifts() -> None:
  schedule = linear_decay(learning_rate=1.0, total_steps=10, warmup_steps=2)
  shifted = starting_at(schedule, step=1_100_000)
  steps = (0, 1, 2, 5, 10)
  np.testing.assert_array_equal(
    values(shifted, tuple(1_100_000 + step for step in steps)),
    values(schedule, steps),
  )
  assert float(shifted(0)) == 0.0


@pytest.mark.parametrize(
  "schedule",
  [
    constant(learning_rate=1, warmup_steps=3),
    constant(learning_rate=1),
    linear_decay(learning_rate=1, total_steps=9, warmup_steps=3),
    cosine_decay(learning_rate=1, total_steps=9, warmup_steps=3),
    inverse_sqrt(learning_rate=1, warmup_steps=3),
    starting_at(constant(learning_rate=1), step=2),
  ],
)
def test_a_step_may_be_traced_and_gives_float32(
  schedule: optax.Schedule,
) -> None:
  for step in (0, 2, 3, 8):
    traced = jax.jit(schedule)(jnp.asarray(step, jnp.int32))
    plain = schedule(step)
    assert traced.dtype == plain.dtype == jnp.float32
    assert traced.shape == plain.shape == ()
    np.testing.assert_allclose(traced, plain, rtol=1e-6, atol=1e-7)


def test_optax_takes_a_schedule() -> None:
  tx = optax.sgd(linear_decay(learning_rate=1.0, total_steps=2))
  params = {"scale": jnp.ones(3)}
  state, taken = tx.init(params), []
  for _ in range(3):
    updates, state = tx.update(params, state)
    taken.append(float(updates["scale"][0]))
  assert taken == [-1.0, -0.5, 0.0]


@pytest.mark.parametrize(
  ("make", "options", "message"),
  [
    (
      constant,
      {"learning_rate": -1.0},
      "learning_rate: expected .* found -1.0",
    ),
    (constant, {"warmup_steps": -1}, "warmup_steps: expected a whole number"),
    (constant, {"warmup_steps": 0.06}, "whole number of 0 or more, found 0.06"),
    (linear_decay, {"total_steps": 0}, "total_steps: .* of 1 or more, found 0"),
    (
      linear_decay,
      {"total_steps": 50, "warmup_steps": 60},
      "of 60 or more, found 50. The warm-up is part of the total",
    ),
    (
      cosine_decay,
      {"total_steps": 50, "final_value": -1.0},
      "final_value: expected a number of 0.0 or more, found -1.0",
    ),
    (inverse_sqrt, {"warmup_steps": 0}, "divided by its square root"),
    (inverse_sqrt, {"final_value": float("inf")}, "final_value: .* found inf"),
  ],
)
def test_refuses_options(
  make: Callable[..., optax.Schedule], options: dict[str, Any], message: str
) -> None:
  with pytest.raises(ValueError, match=message):
    make(**{"learning_rate": 0.1, **options})


def test_starting_at_refuses_what_it_cannot_shift() -> None:
  with pytest.raises(ValueError, match=r"found 0.3. A constant number needs"):
    starting_at(0.3, step=5)
  with pytest.raises(ValueError, match="step: expected a whole number"):
    starting_at(constant(learning_rate=1.0), step=-5)
