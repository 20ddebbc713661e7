"""Multi-head attention with a key-value cache, and its masks.

Axis letters: B batch, T query length, S key length, D model, H heads, G groups
of heads that share keys and values, K head dim.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from peft_jax import sharding
from peft_jax.networks import kernels
from peft_jax.networks.config import Kernel, Rotary
from peft_jax.networks.layers import (
  DenseGeneral,
  Initializer,
  LayerNorm,
  fan_in_normal,
)
from peft_jax.networks.positions import rotate

Array = jax.Array


class Attention(nn.Module):
  """Multi-head attention with a key-value cache.

  Attributes:
    num_heads: H.
    head_dim: K.
    num_kv_heads: heads of keys and values; 0: H. Fewer are shared by groups.
    scale: multiplies the logits. T5 does not, its initialiser of the query
      does: default 1.
    use_bias: whether query, key and value have biases.
    use_out_bias: whether the output projection has one.
    rotary: turns queries and keys by their positions; None: not.
    norm_epsilon: of the norms of queries and keys; 0: they have none.
    dropout_rate: of the attention weights, shared along the query axis.
    kernel: what computes it, see `kernels`.
    dtype: dtype of the computation; logits and softmax are float32.
  """

  num_heads: int
  head_dim: int
  num_kv_heads: int = 0
  scale: float = 1.0
  use_bias: bool = False
  use_out_bias: bool = False
  rotary: Rotary | None = None
  norm_epsilon: float = 0.0
  dropout_rate: float = 0.0
  kernel: Kernel = "auto"
  dtype: Any = jnp.float32

  # Of the cached keys and values [B, S, H, K]; T5X keeps the length last.
  cache_length_axis: ClassVar[int] = 1

  @nn.compact
  def __call__(
    self,
    inputs_q: Array,
    inputs_kv: Array | None,
    mask: Array | None = None,
    bias: Array | None = None,
    query_positions: Array | None = None,
    key_positions: Array | None = None,
    *,
    deterministic: bool = True,
    decode: bool = False,
    cache_once: bool = False,
  ) -> Array:
    """Attends from `inputs_q` to `inputs_kv`.

    Args:
      inputs_q: [B, T, D] queries.
      inputs_kv: [B, S, D] keys and values; None reads those that an earlier
        call with `cache_once` stored.
      mask: [B, 1, T, S] bool, True where attention is allowed.
      bias: [1 or B, H, 1 or T, S] added to the logits.
      query_positions: [B, T] of the queries, for `rotary`.
      key_positions: [B, S] of the keys of this call, for `rotary`.
      deterministic: turns dropout off.
      decode: self-attention over a cache that grows by T each call. The first
        call, without a cache, only makes an empty one of length S.
      cache_once: stores the keys and values of this call (cross-attention).

    Returns:
      [B, T, D].
    """
    query = self._project("query", self.num_heads, inputs_q)
    query = self._placed("query", query, query_positions)
    if inputs_kv is None:
      key = self.get_variable("cache", "cached_key")
      value = self.get_variable("cache", "cached_value")
    else:
      heads = self.num_kv_heads or self.num_heads
      key = self._project("key", heads, inputs_kv)
      key = self._placed("key", key, key_positions)
      value = self._project("value", heads, inputs_kv)
      if cache_once:
        self.put_variable("cache", "cached_key", key)
        self.put_variable("cache", "cached_value", value)
    if decode:
      key, value, written = self._extend_cache(key, value)
      if written is not None:
        mask = written if mask is None else jnp.logical_and(mask, written)

    context = self._attend(query, key, value, mask, bias, deterministic)
    return DenseGeneral(
      inputs_q.shape[-1],
      axis=(-2, -1),
      kernel_axes=("joined_kv", "embed"),
      kernel_init=fan_in_normal,
      use_bias=self.use_out_bias,
      dtype=self.dtype,
      name="out",
    )(context)

  def _project(self, name: str, heads: int, x: Array) -> Array:
    """x: [B, T, D] -> [B, T, heads, K]."""
    init: Initializer = fan_in_normal
    if name == "query" and self.scale == 1.0:
      init = _divided(math.sqrt(self.head_dim))
    projected = DenseGeneral(
      (heads, self.head_dim),
      kernel_axes=("embed", "joined_kv"),
      kernel_init=init,
      use_bias=self.use_bias,
      dtype=self.dtype,
      name=name,
    )(x)
    if heads != self.num_heads:
      # Shared heads may be fewer than the devices that split the others.
      return projected
    return sharding.constrain(projected, ("batch", "length", "heads", "kv"))

  def _placed(self, name: str, x: Array, positions: Array | None) -> Array:
    """Normalises and turns queries or keys x [B, T, H, K]."""
    if self.norm_epsilon:
      x = LayerNorm(
        epsilon=self.norm_epsilon,
        axis="kv",
        dtype=self.dtype,
        name=f"{name}_norm",
      )(x)
    if self.rotary is None:
      return x
    assert positions is not None
    return rotate(x, positions, self.rotary)

  def _extend_cache(
    self, key: Array, value: Array
  ) -> tuple[Array, Array, Array | None]:
    """Writes key, value [B, T, H, K] behind what the cache already holds.

    Returns:
      The whole cache [B, S, H, K], twice, and the mask [B, 1, T, S] of the
      positions that each query may see; None when the cache was just made.
    """
    is_filling = self.has_variable("cache", "cached_key")
    cached_key = self.variable("cache", "cached_key", jnp.zeros_like, key)
    cached_value = self.variable("cache", "cached_value", jnp.zeros_like, value)
    index = self.variable("cache", "cache_index", lambda: jnp.int32(0))
    if not is_filling:
      return key, value, None
    start = (0, index.value, 0, 0)
    cached_key.value = lax.dynamic_update_slice(cached_key.value, key, start)
    cached_value.value = lax.dynamic_update_slice(
      cached_value.value, value, start
    )
    length, steps = cached_key.value.shape[1], key.shape[1]
    query_positions = index.value + jnp.arange(steps)
    written = jnp.arange(length)[None, :] <= query_positions[:, None]
    index.value = index.value + steps
    written = jnp.broadcast_to(written, (key.shape[0], 1, steps, length))
    return cached_key.value, cached_value.value, written

  def _attend(
    self,
    query: Array,
    key: Array,
    value: Array,
    mask: Array | None,
    bias: Array | None,
    deterministic: bool,
  ) -> Array:
    """Query [B, T, H, K]; key, value [B, S, H / G, K] -> [B, T, H, K]."""
    if self.scale != 1.0:
      query = query * jnp.asarray(self.scale, query.dtype)
    dropout = nn.Dropout(self.dropout_rate, broadcast_dims=(-2,))
    return kernels.attend(
      query,
      key,
      value,
      bias,
      mask,
      kernel=self.kernel,
      dropout_rate=0.0 if deterministic else self.dropout_rate,
      drop=lambda weights: dropout(weights, deterministic=deterministic),
    )


def _divided(divisor: float) -> Initializer:
  return lambda *args: fan_in_normal(*args) / divisor


def attention_mask(
  queries: Array,
  keys: Array,
  compare: Callable[[Array, Array], Array] = jnp.logical_and,
) -> Array:
  """Returns the mask [B, 1, T, S] of `compare` over all pairs.

  Example:
    >>> attention_mask(jnp.array([[True]]), jnp.array([[True, False]])).tolist()
    [[[[True, False]]]]

  Args:
    queries: [B, T] per-position values.
    keys: [B, S] per-position values.
    compare: elementwise function of the two.
  """
  return compare(queries[:, None, :, None], keys[:, None, None, :])


def combine_masks(masks: Sequence[Array | None]) -> Array | None:
  """Returns the masks' logical and; None entries allow everything."""
  present = [mask for mask in masks if mask is not None]
  if not present:
    return None
  combined = present[0]
  for mask in present[1:]:
    combined = jnp.logical_and(combined, mask)
  return combined
