"""Losses and scores over the answer choices of an example: T-Few's.

Axis letters: B batch, C choices of an example, T length of a choice, V
vocabulary. (arXiv 2205.05638, section 3.2; what its code does otherwise is
`formula='tfew_code'`, from r-three/t-few at 114dece.)
"""

import math
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from peft_jax.losses import cross_entropy

Array = jax.Array

# 'paper': every loss is a mean over examples of a mean over tokens, and
# unlikelihood is -log(1 - p). 'tfew_code': a mean over the batch's tokens;
# -log(1 - p + 0.01), and tokens that do not count add -log(1.01) each to the
# sum, which has no gradient.
Formula = Literal["paper", "tfew_code"]

_TFEW_EPSILON = 1e-2
# The largest log-probability that unlikelihood is finite for in float32.
_CERTAIN = -(2.0**-24)


class Weights(NamedTuple):
  """What each token and each example counts, normalised over a whole batch.

  So the losses of micro-batches, each with its rows of these, add up to those
  of the batch.

  Attributes:
    real: [B, C, T] float32, 1 for a token of a choice, 0 for padding.
    right: [B, C, T] float32, weight of a right choice's token.
    wrong: [B, C, T] float32, weight of a wrong choice's token.
    example: [B] float32, weight of an example.
    idle: [B] float32, weight of an example's tokens that do not count; 0 but
      for 'tfew_code'.
  """

  real: Array
  right: Array
  wrong: Array
  example: Array
  idle: Array


class Losses(NamedTuple):
  """T-Few's three losses, [] each; T-Few adds them.

  Attributes:
    language_model: of the right choice.
    unlikelihood: of the wrong choices.
    length_normalized: of the right choice against all.
  """

  language_model: Array
  unlikelihood: Array
  length_normalized: Array


def weigh(real: Array, labels: Array, *, formula: Formula = "paper") -> Weights:
  """Returns what each token of a batch counts.

  Example:
    >>> real = jnp.array([[[1, 1], [1, 0], [0, 0]]])  # the third is absent
    >>> weigh(real, jnp.array([0])).right.tolist()
    [[[0.5, 0.5], [0.0, 0.0], [0.0, 0.0]]]

  Args:
    real: [B, C, T], not 0 for the tokens of a choice, its end included. A
      choice without any is absent: examples may have fewer than C.
    labels: [B] index of the right choice.
    formula: see `Formula`.

  Raises:
    ValueError: for an unknown formula.
  """
  if formula not in ("paper", "tfew_code"):
    raise ValueError(
      f"expected formula 'paper' or 'tfew_code', found {formula!r}."
    )
  real = (real != 0).astype(jnp.float32)
  is_right = jax.nn.one_hot(labels, real.shape[1], dtype=jnp.float32)
  right = real * is_right[..., None]
  wrong = real - right
  examples = real.shape[0]
  # 'paper' divides per example, then by their number.
  axes = (1, 2) if formula == "paper" else (0, 1, 2)
  share = 1 / examples if formula == "paper" else 1.0

  def normalized(tokens: Array) -> Array:
    count = jnp.sum(tokens, axis=axes, keepdims=True)
    return tokens * share / jnp.maximum(count, 1.0)

  idle = jnp.zeros(examples, jnp.float32)
  if formula == "tfew_code":
    present = jnp.any(real > 0, axis=-1, keepdims=True)
    idle = jnp.sum(jnp.where(present, 1 - wrong, 0.0), axis=(1, 2))
    idle = idle / jnp.maximum(jnp.sum(wrong), 1.0)
  return Weights(
    real=real,
    right=normalized(right),
    wrong=normalized(wrong),
    example=jnp.full(examples, 1 / examples, jnp.float32),
    idle=idle,
  )


def losses(
  logits: Array,
  targets: Array,
  labels: Array,
  weights: Weights,
  *,
  length_norm: float = 1.0,
  formula: Formula = "paper",
) -> Losses:
  """Returns the three losses; those of micro-batches add up.

  Example:
    >>> logits = jnp.zeros((1, 2, 1, 4))  # four tokens, all alike
    >>> targets = jnp.array([[[1], [2]]])
    >>> labels = jnp.array([0])
    >>> found = losses(logits, targets, labels, weigh(targets, labels))
    >>> [round(float(loss), 4) for loss in found]  # log 4, -log 3/4, log 2
    [1.3863, 0.2877, 0.6931]

  Args:
    logits: [B, C, T, V] float.
    targets: [B, C, T] ids.
    labels: [B] index of the right choice.
    weights: of these rows, from `weigh` of the whole batch.
    length_norm: exponent of the length that the sums of the third loss are
      divided by; the paper's is 1, 0 does not normalise.
    formula: as given to `weigh`.
  """
  loss = cross_entropy(logits, targets)
  weights = Weights(*(weight.astype(loss.dtype) for weight in weights))
  if formula == "paper":
    log_unlikely = jnp.log(-jnp.expm1(jnp.minimum(-loss, _CERTAIN)))
  else:
    log_unlikely = jnp.log(1 - jnp.exp(-loss) + _TFEW_EPSILON)
  idle = -math.log(1 + _TFEW_EPSILON) * jnp.sum(weights.idle)
  summed = _scores(loss, weights.real, length_norm)
  against = cross_entropy(-summed, labels)
  return Losses(
    language_model=jnp.sum(weights.right * loss),
    unlikelihood=idle - jnp.sum(weights.wrong * log_unlikely),
    length_normalized=jnp.sum(weights.example * against),
  )


def scores(
  logits: Array, targets: Array, real: Array, *, length_norm: float = 1.0
) -> Array:
  """Returns each choice's negative log-probability; the lowest is the answer.

  Example:
    >>> logits, targets = jnp.zeros((1, 2, 3, 4)), jnp.ones((1, 2, 3), int)
    >>> real = jnp.array([[[1, 1, 1], [1, 0, 0]]])
    >>> found = scores(logits, targets, real, length_norm=0.0)
    >>> (found / jnp.log(4.0)).round(4).tolist()
    [[3.0, 1.0]]

  Args:
    logits: [B, C, T, V] float.
    targets: [B, C, T] ids.
    real: [B, C, T], not 0 for the tokens of a choice; see `weigh`.
    length_norm: exponent of the length that sums are divided by: 1 is a mean
      over tokens (T-Few), 0 the sum (T0).

  Returns:
    [B, C] float32, float64 of float64; infinity for a choice that is absent.
  """
  loss = cross_entropy(logits, targets)
  return _scores(loss, (real != 0).astype(loss.dtype), length_norm)


def _scores(loss: Array, real: Array, length_norm: float) -> Array:
  tokens = jnp.sum(real, axis=-1)
  total = jnp.sum(loss * real, axis=-1)
  found = total / jnp.maximum(tokens, 1.0) ** length_norm
  return jnp.where(tokens > 0, found, jnp.inf)


def calibrated(scores: Array, without_input: Array) -> Array:
  """Returns scores less what the choices score without the input.

  A choice that is likely whatever is asked loses what it has by that alone
  (arXiv 2104.08315, domain-conditional mutual information).

  Example:
    >>> calibrated(jnp.array([[1.0, 2.0]]), jnp.array([[0.5, 2.5]])).tolist()
    [[0.5, -0.5]]

  Args:
    scores: [B, C] of the choices behind their input.
    without_input: [B, C] of the same choices behind an empty one.
  """
  return jnp.where(jnp.isinf(scores), scores, scores - without_input)


def predict(scores: Array) -> Array:
  """Returns the index of the choice with the lowest score, the first of equals.

  Example:
    >>> predict(jnp.array([[3.0, 1.0, 1.0]])).tolist()
    [1]

  Args:
    scores: [B, C].

  Returns:
    [B] int32.
  """
  return jnp.argmin(scores, axis=-1).astype(jnp.int32)
