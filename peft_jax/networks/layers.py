"""Linear maps, embeddings, norms and feed-forward blocks, named as in T5X.

Axis letters: B batch, T length, D model, H heads, K head dim, F hidden of the
MLP, V vocabulary. Kernels are stored as matrices [inputs, outputs] with the
head axes joined, which is the form of the published T5X checkpoints;
activations keep H and K apart.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax

from peft_jax import sharding
from peft_jax.precision import widened

Array = jax.Array
Initializer = Callable[..., Array]

_fan_in = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")
fan_in_normal = nn.initializers.variance_scaling(1.0, "fan_in", "normal")


class DenseGeneral(nn.Module):
  """A linear map over one or several trailing axes.

  Attributes:
    features: output sizes, e.g. D or (H, K).
    axis: input axes that are contracted, counted from the end.
    kernel_axes: logical names of the kernel [inputs, outputs].
    kernel_init: initialiser of the kernel.
    use_bias: whether a bias [outputs] is added.
    dtype: dtype of the computation; the kernel is stored in float32.
  """

  features: int | tuple[int, ...]
  axis: int | tuple[int, ...] = -1
  kernel_axes: tuple[str, ...] = ("embed", "mlp")
  kernel_init: Initializer = _fan_in
  use_bias: bool = False
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
    if self.use_bias:
      bias = sharding.param_with_axes(
        "bias",
        nn.initializers.zeros,
        (math.prod(features),),
        jnp.float32,
        axes=self.kernel_axes[-1:],
      )
      outputs = outputs + _as_row(bias.astype(self.dtype), outputs.ndim)
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
    x = widened(x)
    return x @ self.embedding.astype(x.dtype).T


class LayerNorm(nn.Module):
  """Scales each vector to a root mean square of one.

  Attributes:
    kind: 'rms' is T5's and LLaMA's, which neither subtracts the mean nor adds a
      bias; 'layer' does both (arXiv 1607.06450).
    epsilon: added to the variance.
    axis: logical name of the last axis.
    dtype: dtype of the result; the computation is in float32.
  """

  kind: Literal["rms", "layer"] = "rms"
  epsilon: float = 1e-6
  axis: str = "embed"
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """x: [..., D] -> [..., D]."""
    x = widened(x)
    if self.kind == "layer":
      x = x - jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
    make = functools.partial(
      sharding.param_with_axes,
      shape=(x.shape[-1],),
      dtype=jnp.float32,
      axes=(self.axis,),
    )
    normed = (x * lax.rsqrt(variance + self.epsilon)).astype(self.dtype)
    scale = make("scale", nn.initializers.ones)
    y = normed * _as_row(scale.astype(self.dtype), x.ndim)
    if self.kind == "rms":
      return y
    bias = make("bias", nn.initializers.zeros)
    return y + _as_row(bias.astype(self.dtype), x.ndim)


def _as_row(x: Array, ndim: int) -> Array:
  """x: [D] -> [1, ..., D] with that many axes."""
  return jnp.expand_dims(x, tuple(range(ndim - 1)))


class MlpBlock(nn.Module):
  """Feed-forward block: act(wi_0 x) * act(wi_1 x), or act(wi x), then wo.

  Attributes:
    intermediate_dim: F.
    activations: one name per input projection; two make the gated form.
    use_bias: whether the projections have biases.
    dropout_rate: of the hidden activations.
    dtype: dtype of the computation.
  """

  intermediate_dim: int
  activations: tuple[str, ...] = ("gelu", "linear")
  use_bias: bool = False
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
        use_bias=self.use_bias,
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
      use_bias=self.use_bias,
      dtype=self.dtype,
      name="wo",
    )(hidden)


def activation_function(name: str) -> Callable[[Array], Array]:
  """Returns the activation of that name.

  `gelu` is the tanh approximation of T5 and GPT-2, `gelu_exact` the error
  function's, `linear` the identity.

  Example:
    >>> float(activation_function("linear")(jnp.float32(2.0)))
    2.0

  Raises:
    ValueError: if Flax has no activation of that name.
  """
  if name == "linear":
    return lambda x: x
  if name == "gelu_exact":
    return functools.partial(nn.gelu, approximate=False)
  found = getattr(nn, name, None)
  if found is None:
    raise ValueError(
      f"expected an activation of flax.linen or 'linear', found {name!r}."
    )
  return found
