"""Attention over given queries, keys and values, by one of several kernels.

'xla' is plain and does everything. 'cudnn' (GPU) and 'flash' (Pallas, TPU) do
not hold all weights at once, and do less: what they cannot do is an error with
its reason, never another result.

Axis letters: B batch, T query length, S key length, H heads, G groups of heads
that share keys and values, K head dim.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import PartitionSpec

from peft_jax.networks.config import Kernel
from peft_jax.precision import wide, widened

Array = jax.Array

# Large enough to hide a position in float32 and bfloat16 softmax, small enough
# that adding a bias cannot overflow.
MASKED = -1e10
# Keys that only fill a block up: hidden from a query that may see nothing, too.
_ABSENT = 2 * MASKED
# The Pallas kernel takes lengths in blocks of so many.
_BLOCK = 128
_PLATFORMS = {"cudnn": "gpu", "flash": "tpu"}


class KernelError(ValueError):
  """A kernel was asked for by name that cannot compute this attention."""


def choose(
  kernel: Kernel,
  query: Any,
  bias: Any = None,
  *,
  dropout_rate: float = 0.0,
  platform: str,
) -> Kernel:
  """Returns the kernel to use: 'xla', 'cudnn' or 'flash'.

  'auto' is 'xla' on every device: the other two have not been run on the
  devices that they are for (docs/performance.md). One query, a step over a
  cache, is 'xla' always: there are no weights to save.

  Example:
    >>> query = jax.ShapeDtypeStruct((1, 8, 2, 64), jnp.float32)
    >>> choose("auto", query, platform="tpu")
    'xla'

  Args:
    kernel: what was asked for.
    query: [B, T, H, K], an array or its shape.
    bias: [1 or B, H, 1 or T, S], its shape, or None.
    dropout_rate: of the weights in this call.
    platform: 'cpu', 'gpu' or 'tpu'.

  Raises:
    KernelError: if a kernel was named that cannot be used, with the reason.
  """
  if kernel in ("auto", "xla") or query.shape[1] == 1:
    return "xla"
  reason = reason_against(
    kernel, query, bias, dropout_rate=dropout_rate, platform=platform
  )
  if reason:
    raise KernelError(
      f"expected an attention that {kernel!r} can compute, found {reason}. Set"
      " attention_kernel='xla', or change that."
    )
  return kernel


def reason_against(
  kernel: Kernel,
  query: Any,
  bias: Any = None,
  *,
  dropout_rate: float = 0.0,
  platform: str,
) -> str | None:
  """Returns what a kernel cannot do of this attention, or None.

  Example:
    >>> query = jax.ShapeDtypeStruct((1, 8, 2, 64), jnp.float32)
    >>> reason_against("cudnn", query, platform="cpu")
    "a device of kind 'cpu', and it runs on 'gpu'"

  Args:
    kernel: 'cudnn' or 'flash'.
    query: as in `choose`.
    bias: as in `choose`.
    dropout_rate: as in `choose`.
    platform: as in `choose`.
  """
  if platform != _PLATFORMS[kernel]:
    return (
      f"a device of kind {platform!r}, and it runs on {_PLATFORMS[kernel]!r}"
    )
  if dropout_rate:
    return f"dropout of the weights ({dropout_rate}), which it does not form"
  head_dim, dtype = query.shape[-1], jnp.dtype(query.dtype)
  if kernel == "flash":
    if head_dim > _BLOCK and head_dim % _BLOCK:
      return f"head_dim={head_dim}, neither below {_BLOCK} nor a multiple of it"
    return None
  if dtype != jnp.bfloat16:
    return f"dtype {dtype}, and it takes bfloat16"
  if head_dim % 8 or head_dim > 128:
    return f"head_dim={head_dim}, no multiple of 8 up to 128"
  if bias is not None and jnp.dtype(bias.dtype) != dtype:
    # ALiBi's grow with the length: in bfloat16 neighbours would be alike.
    return (
      f"a bias in {jnp.dtype(bias.dtype)}, and it would round it to {dtype}"
    )
  return None


def attend(
  query: Array,
  key: Array,
  value: Array,
  bias: Array | None = None,
  mask: Array | None = None,
  *,
  kernel: Kernel = "auto",
  dropout_rate: float = 0.0,
  drop: Callable[[Array], Array] = lambda weights: weights,
) -> Array:
  """Returns softmax(query key + bias) value, [B, T, H, K].

  Example:
    >>> x = jnp.ones((1, 3, 2, 4))
    >>> attend(x, x, x).shape
    (1, 3, 2, 4)

  Args:
    query: [B, T, H, K], scaled.
    key: [B, S, H / G, K].
    value: [B, S, H / G, K].
    bias: [1 or B, H, 1 or T, S] added to the logits.
    mask: [B, 1, T, S] bool, True where attention is allowed.
    kernel: as in `choose`.
    dropout_rate: of this call; 0: none.
    drop: drops weights [B, H, T, S].

  Raises:
    KernelError: as `choose`.
  """
  chosen = choose(
    kernel,
    query,
    bias,
    dropout_rate=dropout_rate,
    platform=jax.default_backend(),
  )
  if chosen == "xla":
    return _xla(query, key, value, bias, mask, drop)
  return {"cudnn": cudnn, "flash": flash}[chosen](query, key, value, bias, mask)


def _xla(
  query: Array,
  key: Array,
  value: Array,
  bias: Array | None,
  mask: Array | None,
  drop: Callable[[Array], Array],
) -> Array:
  dtype = query.dtype
  # Heads in front: both products are then plain batched matrix products.
  query, key, value = (jnp.swapaxes(x, 1, 2) for x in (query, key, value))
  shape, kv_heads = query.shape, key.shape[1]
  if shape[1] != kv_heads:
    # Queries of one group become rows of one product.
    query = query.reshape(shape[0], kv_heads, -1, shape[3])
  logits = jnp.einsum(
    "bhtk,bhsk->bhts", query, key, preferred_element_type=wide(dtype)
  ).reshape(*shape[:3], -1)
  # Bias and mask are small and fuse into one addition.
  bias = _merged(bias, mask)
  if bias is not None:
    logits = logits + bias
  weights = drop(softmax(logits).astype(dtype))
  if shape[1] != kv_heads:
    weights = weights.reshape(*query.shape[:3], -1)
  context = (weights @ value).reshape(shape)
  return jnp.swapaxes(context, 1, 2)


def _merged(bias: Array | None, mask: Array | None) -> Array | None:
  """Returns what to add to the logits, in their dtype."""
  if bias is not None:
    bias = widened(bias)
  if mask is None:
    return bias
  masked = jnp.where(mask, 0.0, MASKED)
  return masked if bias is None else bias + masked


def cudnn(
  query: Array,
  key: Array,
  value: Array,
  bias: Array | None = None,
  mask: Array | None = None,
  *,
  implementation: Literal["cudnn", "xla"] = "cudnn",
) -> Array:
  """Returns the attention as cuDNN computes it, gradients of a bias included.

  Lengths are made even, as its gradients want where there is a bias. A query
  that may see nothing gets a mean of the values, zeros behind them counted.

  Example:
    >>> x = jnp.ones((1, 3, 2, 4))
    >>> cudnn(x, x, x, implementation="xla").shape
    (1, 3, 2, 4)

  Args:
    query: as in `attend`, as the four that follow.
    key: [B, S, H / G, K].
    value: [B, S, H / G, K].
    bias: [1 or B, H, 1 or T, S].
    mask: [B, 1, T, S].
    implementation: 'xla' does the same on any device, to compare with.
  """
  (batch, steps), length = query.shape[:2], key.shape[1]
  if mask is None and length % 2:
    mask = jnp.ones((batch, 1, steps, length), bool)
  if mask is not None:
    mask = _fill(mask, 2, axes=(-2, -1))
  if bias is not None:
    bias = jnp.broadcast_to(bias, (*bias.shape[:2], steps, length))
    bias = _fill(bias, 2, axes=(-2, -1))
  found = jax.nn.dot_product_attention(
    *(_fill(x, 2, axes=(1,)) for x in (query, key, value)),
    bias=bias,
    mask=mask,
    scale=1.0,
    implementation=implementation,
  )
  return found[:, :steps]


def flash(
  query: Array,
  key: Array,
  value: Array,
  bias: Array | None = None,
  mask: Array | None = None,
) -> Array:
  """Returns the attention as JAX's Pallas kernel for TPU computes it.

  Bias and mask become one float32 array [B, H, T, S], which it differentiates:
  only without either is less memory needed than by 'xla'. On a mesh each device
  takes its rows and heads.

  Args:
    query: as in `attend`, as the four that follow.
    key: [B, S, H / G, K].
    value: [B, S, H / G, K].
    bias: [1 or B, H, 1 or T, S].
    mask: [B, 1, T, S].
  """
  (batch, steps, heads), length = query.shape[:3], key.shape[1]
  groups = heads // key.shape[2]
  key, value = (jnp.repeat(x, groups, axis=2) for x in (key, value))
  bias = _merged(bias, mask)
  if bias is None and length % _BLOCK:
    bias = jnp.zeros((1, 1, 1, 1), jnp.float32)
  operands = [
    jnp.swapaxes(_fill(x, _BLOCK, axes=(1,)), 1, 2) for x in (query, key, value)
  ]
  if bias is not None:
    bias = jnp.broadcast_to(bias, (batch, heads, steps, length))
    bias = _fill(bias, _BLOCK, axes=(-1,), value=_ABSENT)
    operands.append(_fill(bias, _BLOCK, axes=(-2,)))
  found = _on_mesh(_pallas, operands)(*operands)
  return jnp.swapaxes(found, 1, 2)[:, :steps]


def _pallas(*operands: Array) -> Array:
  # Here, as importing Pallas takes longer than all of this package.
  from jax.experimental.pallas.ops.tpu import flash_attention

  return flash_attention.flash_attention(*operands, sm_scale=1.0)


def _on_mesh(
  function: Callable[..., Array], operands: Sequence[Array]
) -> Callable[..., Array]:
  """Returns the function over rows and heads of each device.

  XLA does not split what Pallas makes.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1:
    return function
  to_mesh: Any = nn.logical_to_mesh_axes  # pyright: ignore
  names = to_mesh(("batch", "heads", "length", "kv"))
  axes = [
    name if name and size % mesh.shape[name] == 0 else None
    for name, size in zip(names or (), operands[0].shape, strict=False)
  ]
  spec = PartitionSpec(*axes)
  return jax.shard_map(
    function,
    mesh=mesh,
    in_specs=(spec,) * len(operands),
    out_specs=spec,
    check_vma=False,
  )


def _fill(
  x: Array, block: int, *, axes: Sequence[int], value: float = 0
) -> Array:
  """Returns x with these axes filled up to a multiple of `block`."""
  widths = [(0, 0)] * x.ndim
  for axis in axes:
    widths[axis] = (0, -x.shape[axis] % block)
  return jnp.pad(x, widths, constant_values=np.array(value, x.dtype))


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
