"""How networks know positions: relative biases, ALiBi, rotary, learned.

Axis letters: B batch, T query length, S key length, D model, H heads,
K head dim.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from peft_jax import sharding
from peft_jax.networks.config import Rotary
from peft_jax.precision import widened

Array = jax.Array


class RelativePositionBiases(nn.Module):
  """T5's relative position biases.

  Attributes:
    num_heads: H.
    bidirectional: whether keys after the query have buckets of their own.
    num_buckets: number of buckets that distances fall into (T5: 32).
    max_distance: distances from here on share the last bucket (T5: 128).
    dtype: dtype of the bias.
  """

  num_heads: int
  bidirectional: bool
  num_buckets: int = 32
  max_distance: int = 128
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, query_length: int, key_length: int, offset: Array | int = 0
  ) -> Array:
    """Returns the bias [1, H, T, S] of queries at offset .. offset + T."""
    table = sharding.param_with_axes(
      "rel_embedding",
      nn.initializers.variance_scaling(1.0, "fan_avg", "uniform"),
      (self.num_heads, self.num_buckets),
      jnp.float32,
      axes=("heads", "relpos_buckets"),
    )
    # The buckets of all distinct distances are a constant of the program; past
    # max_distance they no longer change.
    distances = np.arange(-self.max_distance, self.max_distance + 1)
    buckets = relative_position_buckets(
      distances,
      bidirectional=self.bidirectional,
      num_buckets=self.num_buckets,
      max_distance=self.max_distance,
    )
    queries = offset + jnp.arange(query_length)
    distance = jnp.arange(key_length)[None, :] - queries[:, None]
    row = jnp.clip(distance, -self.max_distance, self.max_distance)
    by_distance = table.astype(self.dtype)[:, buckets]
    return by_distance[:, row + self.max_distance][None]


def relative_position_buckets(
  distance: np.ndarray,
  *,
  bidirectional: bool,
  num_buckets: int = 32,
  max_distance: int = 128,
) -> np.ndarray:
  """Maps key position minus query position to a bucket, as T5 does.

  Half of the buckets hold one distance each, the other half grow
  logarithmically up to `max_distance` (arXiv 1910.10683, section 2.1).

  Example:
    >>> distance = np.array([0, -1, -200, 1])
    >>> relative_position_buckets(distance, bidirectional=True).tolist()
    [0, 1, 15, 17]

  Args:
    distance: [...] int, key position - query position.
    bidirectional: whether later keys get buckets of their own.
    num_buckets: total number of buckets.
    max_distance: distances from here on share the last bucket.

  Returns:
    [...] int in [0, num_buckets).
  """
  offset = np.zeros_like(distance)
  if bidirectional:
    num_buckets //= 2
    offset = np.where(distance > 0, num_buckets, 0)
    past = np.abs(distance)
  else:
    past = np.maximum(-distance, 0)
  exact = num_buckets // 2
  # float32 with this epsilon, because published models were trained with the
  # buckets that its rounding gives.
  ratio = past.astype(np.float32) / exact + np.finfo(np.float32).eps
  grown = np.log(ratio) / np.log(max_distance / exact) * (num_buckets - exact)
  logarithmic = np.minimum(exact + grown.astype(np.int32), num_buckets - 1)
  return offset + np.where(past < exact, past, logarithmic)


class AlibiBiases(nn.Module):
  """Attention with linear biases (arXiv 2108.12409); has no parameters.

  Attributes:
    num_heads: H.
    dtype: dtype of the bias.
  """

  num_heads: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, key_positions: Array) -> Array:
    """key_positions: [B, S] -> bias [B, H, 1, S].

    A query's own position would add the same to all of its logits, so it is
    left out.
    """
    slopes = jnp.asarray(alibi_slopes(self.num_heads), self.dtype)
    positions = key_positions.astype(self.dtype)
    return slopes[None, :, None, None] * positions[:, None, None, :]


def alibi_slopes(num_heads: int) -> np.ndarray:
  """Returns the slope of every head, [H] (arXiv 2108.12409, section 3).

  Example:
    >>> alibi_slopes(2).tolist()
    [0.0625, 0.00390625]
  """
  power = 2 ** math.floor(math.log2(num_heads))
  slopes = 2.0 ** (-8.0 / power * np.arange(1, power + 1))
  # Other numbers of heads take every second slope of the next power of two.
  rest = 2.0 ** (-4.0 / power * np.arange(1, 2 * (num_heads - power), 2))
  return np.concatenate([slopes, rest])


class PositionEmbed(nn.Module):
  """A learned vector per position.

  Attributes:
    num_embeddings: rows of the table.
    features: D.
    first: row of position 0.
    dtype: dtype of the vectors that are returned.
  """

  num_embeddings: int
  features: int
  first: int = 0
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, positions: Array) -> Array:
    """positions: [B, T] -> [B, T, D]."""
    table = sharding.param_with_axes(
      "embedding",
      nn.initializers.normal(stddev=0.02),
      (self.num_embeddings, self.features),
      jnp.float32,
      axes=("abspos_buckets", "embed"),
    )
    rows = jnp.take(table, positions + self.first, axis=0, mode="clip")
    return rows.astype(self.dtype)


def rotate(x: Array, positions: Array, rotary: Rotary) -> Array:
  """Turns queries or keys by the angles of their positions.

  Example:
    >>> x = jnp.ones((1, 1, 1, 2))
    >>> rotate(x, jnp.zeros((1, 1), int), Rotary()).tolist()
    [[[[1.0, 1.0]]]]

  Args:
    x: [B, T, H, K].
    positions: [B, T] int; what has a negative one is left as it is.
    rotary: settings.
  """
  dim = rotary.dim or x.shape[-1]
  turned, rest = widened(x[..., :dim]), x[..., dim:]
  waves = jnp.asarray(frequencies(rotary, dim), turned.dtype)
  angles = (
    positions.astype(turned.dtype)[..., None, None] * waves[None, None, None, :]
  )  # [B, T, 1, dim / 2]
  placed = positions[..., None, None] >= 0
  cos = jnp.where(placed, jnp.cos(angles) * rotary.magnitude, 1.0)
  sin = jnp.where(placed, jnp.sin(angles) * rotary.magnitude, 0.0)
  if rotary.interleaved:
    first, second = turned[..., 0::2], turned[..., 1::2]
  else:
    first, second = jnp.split(turned, 2, axis=-1)
  pair = (first * cos - second * sin, second * cos + first * sin)
  if rotary.interleaved:
    turned = jnp.stack(pair, axis=-1).reshape(turned.shape)
  else:
    turned = jnp.concatenate(pair, axis=-1)
  return jnp.concatenate([turned.astype(x.dtype), rest], axis=-1)


def frequencies(rotary: Rotary, dim: int) -> np.ndarray:
  """Returns the angle per position of every pair of components, [dim / 2].

  Example:
    >>> frequencies(Rotary(theta=100.0), 4).tolist()
    [1.0, 0.1]
  """
  exponents = np.arange(0, dim, 2, dtype=np.float64) / dim
  plain = rotary.theta**-exponents
  stretched = plain / rotary.factor
  match rotary.scaling:
    case "linear":
      return stretched
    case "llama3":
      turns = rotary.original_length * plain / (2 * math.pi)
      low, high = rotary.low_frequency_factor, rotary.high_frequency_factor
      kept = np.clip((turns - low) / (high - low), 0, 1)
    case "yarn":
      first, last = (
        dim
        * math.log(rotary.original_length / (turns * 2 * math.pi))
        / (2 * math.log(rotary.theta))
        for turns in (rotary.beta_fast, rotary.beta_slow)
      )
      first, last = max(math.floor(first), 0), min(math.ceil(last), dim - 1)
      last = last if last != first else last + 0.001
      ramp = (np.arange(dim // 2) - first) / (last - first)
      kept = 1 - np.clip(ramp, 0, 1)
    case _:
      return plain
  return kept * plain + (1 - kept) * stretched
