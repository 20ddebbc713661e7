"""Intrinsic SAID: trains a small random subspace (arXiv 2012.13255)."""

import dataclasses
import math
import zlib
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from peft_jax.adapters.base import (
  Adapter,
  Array,
  Leaf,
  Position,
  check_positive,
)


class IntrinsicSAID(Adapter):
  """Adds scaling_i * fastfood_i(theta) to every leaf i of the backbone.

  One vector theta serves all leaves; each has a fixed random projection of its
  own, drawn from `seed`, and a learned scale (structure-aware, section 3.2).

  Example:
    >>> from peft_jax import Rule
    >>> rule = Rule(r".*/kernel", IntrinsicSAID(dimension=20_000))

  Parameters: `theta` [d], zero at the start; `scaling` [leaves], ones.

  Attributes:
    dimension: d, default 20,000 (T-Few's smaller setting; its larger is
      500,000).
    seed: of the projections.

  Raises:
    ValueError: for a dimension that is not positive.
  """

  method: ClassVar[str] = "intrinsic_said"

  _: dataclasses.KW_ONLY
  dimension: int = 20_000
  seed: int = 0

  def __post_init__(self) -> None:
    check_positive(dimension=self.dimension)
    super().__post_init__()

  @property
  def position(self) -> Position:
    return "leaves"

  @property
  def mergeable(self) -> bool:
    return True

  def own_leaves(
    self, shapes: Mapping[str, tuple[int, ...]]
  ) -> dict[str, Leaf]:
    """The vector, and a scale per leaf."""
    return {
      "theta": Leaf(
        shape=(self.dimension,),
        initializer=nn.initializers.zeros,
        axes=("adapter",),
      ),
      "scaling": Leaf(
        shape=(len(shapes),),
        initializer=nn.initializers.ones,
        axes=("adapter",),
      ),
    }

  def transform(
    self, rows: Mapping[str, Array], own: Mapping[str, Array]
  ) -> dict[str, Array]:
    """Returns the backbone's leaves, moved along the subspace.

    Args:
      rows: leaf path -> array, one module per layer.
      own: `theta` and `scaling`.
    """
    # Or XLA draws all that is random while it compiles, and keeps it.
    seed = jax.random.key_data(jax.random.key(self.seed))
    root = jax.random.wrap_key_data(jax.lax.optimization_barrier(seed))
    width = _width(own["theta"])
    paths = sorted(rows)
    sizes = [math.prod(rows[path].shape) for path in paths]
    counts = [-(-size // width) for size in sizes]
    # A leaf's key and, folded in, the number of the projection.
    names = jnp.array([zlib.crc32(path.encode()) for path in paths], jnp.uint32)
    numbers = np.concatenate([np.arange(count) for count in counts])
    fold_in = jax.vmap(jax.random.fold_in)
    leaf_keys = jax.vmap(lambda name: jax.random.fold_in(root, name))(names)
    keys = fold_in(jnp.repeat(leaf_keys, np.array(counts)), numbers)
    # All leaves together: one program, however many there are. `split` and not
    # slices, whose gradients would each be as large as all together.
    drawn = fastfood(own["theta"], keys)
    parts = jnp.split(drawn, np.cumsum(counts)[:-1])
    moved = {}
    for path, size, part, scaling in zip(
      paths, sizes, parts, own["scaling"], strict=True
    ):
      row = rows[path]
      change = part.reshape(-1)[:size] * scaling
      moved[path] = row + change.reshape(row.shape).astype(row.dtype)
    return moved


def _width(theta: Array) -> int:
  """Returns d rounded up to a power of two."""
  return 1 << (theta.shape[0] - 1).bit_length()


def fastfood(theta: Array, keys: Array) -> Array:
  """Returns random projections of theta [d], one per key.

  Each is H G P H B, on d rounded up to a power of two W (Le et al. 2013): B
  random signs, H the normalised Walsh-Hadamard transform, P a permutation, G
  Gaussian. Divided so that an entry has the variance of theta's mean square.

  Example:
    >>> fastfood(jnp.ones(3), jax.random.split(jax.random.key(0), 5)).shape
    (5, 4)

  Args:
    theta: [d].
    keys: [N], each for a projection, the same one every time.

  Returns:
    [N, W].
  """
  width = _width(theta)
  padded = jnp.pad(theta, (0, width - theta.shape[0]))

  @jax.checkpoint  # what is random is drawn again in the backward pass
  def project(key: Array) -> Array:
    signs, order, gaussian = jax.random.split(key, 3)
    z = hadamard(padded * jax.random.rademacher(signs, (width,), theta.dtype))
    g = jax.random.normal(gaussian, (width,), theta.dtype)
    return hadamard(permuted(jax.random.key_data(order), z) * g)

  count = keys.shape[0]
  if count > _AT_ONCE:
    # What is left over would be compiled as a program of its own.
    keys = jnp.concatenate([keys, keys[: -count % _AT_ONCE]])
  drawn = jax.lax.map(project, keys, batch_size=_AT_ONCE)
  return drawn[:count] * math.sqrt(width / theta.shape[0])


# Projections that are made side by side; more take turns, to save memory.
_AT_ONCE = 64
# Sylvester's matrix of 2^n is the Kronecker product of smaller ones: a few
# matrix products take the place of n rounds of additions.
_FACTOR_BITS = 8


def hadamard(x: Array) -> Array:
  """Returns the normalised Walsh-Hadamard transform of x [2^n].

  Example:
    >>> hadamard(jnp.array([1.0, 0.0, 0.0, 0.0])).tolist()
    [0.5, 0.5, 0.5, 0.5]
  """
  bits = x.shape[0].bit_length() - 1
  parts = -(-bits // _FACTOR_BITS)
  for part in range(parts):
    # Of x as a block with an axis per factor: the last one is multiplied, and
    # becomes the first; so in the end all are where they were.
    factor = 1 << (bits + part) // parts
    matrix = jnp.asarray(_sylvester(factor), x.dtype)
    rows = x.reshape(-1, factor)
    x = jnp.dot(rows, matrix, precision=jax.lax.Precision.HIGHEST).T.reshape(-1)
  return x


@jax.custom_vjp
def permuted(key: Array, x: Array) -> Array:
  """Returns `jax.random.permutation` of x [N], whose gradient sorts as well.

  JAX's own gathers and scatters single numbers in its gradient, which a TPU is
  slow at, and compiles each round of sorting.

  Example:
    >>> key = jax.random.key_data(jax.random.key(0))
    >>> sorted(permuted(key, jnp.arange(4.0)).tolist())
    [0.0, 1.0, 2.0, 3.0]

  Args:
    key: [2] uint32.
    x: [N].
  """

  def sort(key: Array, x: Array) -> tuple[Array, Array]:
    key, own = jax.random.split(key)
    return key, jax.lax.sort_key_val(jax.random.bits(own, x.shape), x)[1]

  # As often as it takes for no order to be likelier than another.
  rounds = math.ceil(3 * math.log(max(1, x.shape[0])) / math.log(2**32 - 1))
  first = jax.random.wrap_key_data(key)
  return jax.lax.fori_loop(0, rounds, lambda _, kx: sort(*kx), (first, x))[1]


def _permuted_forward(key: Array, x: Array) -> tuple[Array, Array]:
  return permuted(key, x), key


def _permuted_backward(key: Array, change: Array) -> tuple[None, Array]:
  order = permuted(key, jnp.arange(change.shape[0], dtype=jnp.int32))
  # No two are alike, and what need not be stable compiles in half the time.
  _, back = jax.lax.sort((order, change), num_keys=1, is_stable=False)
  return None, back


permuted.defvjp(_permuted_forward, _permuted_backward)


def _sylvester(size: int) -> np.ndarray:
  """Returns Sylvester's matrix [size, size], normalised."""
  row = np.arange(size)
  shared = np.bitwise_count(row[:, None] & row[None, :])
  return (1.0 - 2.0 * (shared % 2)) / math.sqrt(size)
