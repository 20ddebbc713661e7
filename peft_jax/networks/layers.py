"""The layers of the T5 family, with T5X's module and parameter names.

Axis letters: B batch, T query length, S key length, D model, H heads,
K head dim, F hidden of the MLP, V vocabulary. Kernels are stored as matrices
[inputs, outputs] with the head axes joined, which is the form of the published
T5X checkpoints; activations keep H and K apart.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax

from peft_jax import sharding

Array = jax.Array
Initializer = Callable[..., Array]

# Large enough to hide a position in float32 and bfloat16 softmax, small enough
# that adding a bias cannot overflow.
MASKED = -1e10

_fan_in = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")
_fan_in_normal = nn.initializers.variance_scaling(1.0, "fan_in", "normal")


class DenseGeneral(nn.Module):
  """A linear map without bias over one or several trailing axes.

  Attributes:
    features: output sizes, e.g. D or (H, K).
    axis: input axes that are contracted, counted from the end.
    kernel_axes: logical names of the kernel [inputs, outputs].
    kernel_init: initialiser of the kernel.
    dtype: dtype of the computation; the kernel is stored in float32.
  """

  features: int | tuple[int, ...]
  axis: int | tuple[int, ...] = -1
  kernel_axes: tuple[str, ...] = ("embed", "mlp")
  kernel_init: Initializer = _fan_in
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, inputs: Array) -> Array:
    features = np.atleast_1d(self.features)
    contracted = len(np.atleast_1d(self.axis))
    lead, last = inputs.shape[:-contracted], inputs.shape[-contracted:]
    kernel = sharding.param_with_axes(
      "kernel",
      self.kernel_init,
      (math.prod(last), math.prod(features)),
      jnp.float32,
      axes=self.kernel_axes,
    )
    # One matrix product over the joined axes: reshapes are free, a dot over
    # several axes is not on every backend.
    flat = inputs.astype(self.dtype).reshape(*lead, math.prod(last))
    outputs = flat @ kernel.astype(self.dtype)
    return outputs.reshape(*lead, *(int(size) for size in features))


class Embed(nn.Module):
  """Token embeddings, looked up by gather.

  Attributes:
    num_embeddings: V.
    features: D.
    dtype: dtype of the vectors that are returned.
  """

  num_embeddings: int
  features: int
  dtype: Any = jnp.float32

  def setup(self) -> None:
    self.embedding = sharding.param_with_axes(
      "embedding",
      nn.initializers.normal(stddev=1.0),
      (self.num_embeddings, self.features),
      jnp.float32,
      axes=("vocab", "embed"),
    )

  def __call__(self, tokens: Array) -> Array:
    """tokens: [B, T] ids -> [B, T, D]."""
    vectors = jnp.take(self.embedding, tokens, axis=0, mode="clip")
    return vectors.astype(self.dtype)

  def attend(self, x: Array) -> Array:
    """x: [B, T, D] -> [B, T, V] float32 scores against every embedding."""
    return x.astype(jnp.float32) @ self.embedding.T


class LayerNorm(nn.Module):
  """T5's layer norm: scales by the root mean square, no mean, no bias."""

  epsilon: float = 1e-6
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    x = x.astype(jnp.float32)
    variance = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
    scale = sharding.param_with_axes(
      "scale",
      nn.initializers.ones,
      (x.shape[-1],),
      jnp.float32,
      axes=("embed",),
    )
    normed = (x * lax.rsqrt(variance + self.epsilon)).astype(self.dtype)
    return normed * jnp.expand_dims(
      scale.astype(self.dtype), tuple(range(x.ndim - 1))
    )


class MlpBlock(nn.Module):
  """Feed-forward block: act(wi_0 x) * act(wi_1 x), or act(wi x), then wo.

  Attributes:
    intermediate_dim: F.
    activations: one name per input projection; two make the gated form.
    dropout_rate: of the hidden activations.
    dtype: dtype of the computation.
  """

  intermediate_dim: int
  activations: tuple[str, ...] = ("gelu", "linear")
  dropout_rate: float = 0.0
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, inputs: Array, deterministic: bool = True) -> Array:
    gated = len(self.activations) > 1
    hidden = None
    for i, activation in enumerate(self.activations):
      projected = DenseGeneral(
        self.intermediate_dim,
        kernel_axes=("embed", "mlp"),
        dtype=self.dtype,
        name=f"wi_{i}" if gated else "wi",
      )(inputs)
      activated = activation_function(activation)(projected)
      hidden = activated if hidden is None else hidden * activated
    hidden = nn.Dropout(self.dropout_rate, broadcast_dims=(-2,))(
      hidden, deterministic=deterministic
    )
    hidden = sharding.constrain(hidden, ("batch", "length", "mlp"))
    return DenseGeneral(
      inputs.shape[-1],
      kernel_axes=("mlp", "embed"),
      dtype=self.dtype,
      name="wo",
    )(hidden)


def activation_function(name: str) -> Callable[[Array], Array]:
  """Returns the activation of that name; `linear` is the identity.

  Example:
    >>> float(activation_function("linear")(jnp.float32(2.0)))
    2.0

  Raises:
    ValueError: if Flax has no activation of that name.
  """
  if name == "linear":
    return lambda x: x
  found = getattr(nn, name, None)
  if found is None:
    raise ValueError(
      f"expected an activation of flax.linen or 'linear', found {name!r}."
    )
  return found


class Attention(nn.Module):
  """Multi-head attention with T5's conventions and a key-value cache.

  T5 does not divide the logits by sqrt(K); the initialiser of the query does.

  Attributes:
    num_heads: H.
    head_dim: K.
    dropout_rate: of the attention weights, shared along the query axis.
    dtype: dtype of the computation; logits and softmax are float32.
  """

  num_heads: int
  head_dim: int
  dropout_rate: float = 0.0
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
      bias: [1, H, T, S] added to the logits.
      deterministic: turns dropout off.
      decode: self-attention over a cache that grows by T each call. The first
        call, without a cache, only makes an empty one of length S.
      cache_once: stores the keys and values of this call (cross-attention).

    Returns:
      [B, T, D].
    """

    def project(name: str, init: Initializer, x: Array) -> Array:
      projected = DenseGeneral(
        (self.num_heads, self.head_dim),
        kernel_axes=("embed", "joined_kv"),
        kernel_init=init,
        dtype=self.dtype,
        name=name,
      )(x)
      return sharding.constrain(projected, ("batch", "length", "heads", "kv"))

    scale = math.sqrt(self.head_dim)
    query = project("query", lambda *a: _fan_in_normal(*a) / scale, inputs_q)
    if inputs_kv is None:
      key = self.get_variable("cache", "cached_key")
      value = self.get_variable("cache", "cached_value")
    else:
      key = project("key", _fan_in_normal, inputs_kv)
      value = project("value", _fan_in_normal, inputs_kv)
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
      kernel_init=_fan_in_normal,
      dtype=self.dtype,
      name="out",
    )(context)

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
    """Query [B, T, H, K]; key, value [B, S, H, K] -> [B, T, H, K]."""
    # Heads in front: both products are then plain batched matrix products.
    query, key, value = (jnp.swapaxes(x, 1, 2) for x in (query, key, value))
    logits = jnp.einsum(
      "bhtk,bhsk->bhts", query, key, preferred_element_type=jnp.float32
    )
    # Bias and mask are small and fuse into one addition.
    if mask is not None:
      masked = jnp.where(mask, 0.0, MASKED)
      bias = masked if bias is None else bias.astype(jnp.float32) + masked
    if bias is not None:
      logits = logits + bias.astype(jnp.float32)
    weights = softmax(logits).astype(self.dtype)
    weights = nn.Dropout(self.dropout_rate, broadcast_dims=(-2,))(
      weights, deterministic=deterministic
    )
    return jnp.swapaxes(weights @ value, 1, 2)


@jax.custom_jvp
def softmax(x: Array) -> Array:
  """Returns the softmax over the last axis; x: [..., S] float.

  As `jax.nn.softmax`, but its backward pass needs the result alone, which saves
  a fifth of a training step's temporary memory on CPU.

  Example:
    >>> softmax(jnp.zeros(4)).tolist()
    [0.25, 0.25, 0.25, 0.25]
  """
  unnormalized = jnp.exp(x - jnp.max(x, axis=-1, keepdims=True))
  return unnormalized / jnp.sum(unnormalized, axis=-1, keepdims=True)


@softmax.defjvp
def _softmax_jvp(
  primals: tuple[Array], tangents: tuple[Array]
) -> tuple[Array, Array]:
  (dx,) = tangents
  y = softmax(*primals)
  return y, y * (dx - jnp.sum(y * dx, axis=-1, keepdims=True))


class RelativePositionBiases(nn.Module):
  """T5's relative position biases, one table for a whole stack.

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
