"""Intrinsic SAID: trains a small random subspace (arXiv 2012.13255)."""

import dataclasses
import functools
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
    paths = sorted(rows)
    by_size: dict[int, list[int]] = {}
    for i, path in enumerate(paths):
      by_size.setdefault(math.prod(rows[path].shape), []).append(i)
    moved = {}
    for size, indices in by_size.items():
      names = [zlib.crc32(paths[i].encode()) for i in indices]
      changes = self._changes(own["theta"], size, names)
      for i, change in zip(indices, changes, strict=True):
        row = rows[paths[i]]
        change = change * own["scaling"][i]
        moved[paths[i]] = row + change.reshape(row.shape).astype(row.dtype)
    return {path: moved[path] for path in paths}

  def _changes(self, theta: Array, size: int, names: list[int]) -> Array:
    """Returns the projections [leaves, size] of leaves of one size.

    In a loop: a program with one copy of it for every leaf takes XLA too long
    and, as it works out what is random beforehand, too much memory. What is
    random is drawn again in the backward pass.
    """
    numbers = jax.lax.optimization_barrier(jnp.array(names, jnp.uint32))
    root = jax.random.key(self.seed)

    @jax.checkpoint
    def project(theta: Array, number: Array) -> Array:
      return fastfood(theta, size, jax.random.fold_in(root, number))

    return jax.lax.map(lambda number: project(theta, number), numbers)


def fastfood(theta: Array, size: int, key: Array) -> Array:
  """Returns a random projection of theta [d] to [size].

  Blocks of H G P H B, each d rounded up to a power of two (Le et al. 2013): B
  random signs, H the normalised Walsh-Hadamard transform, P a permutation, G
  Gaussian. Divided so that an entry has the variance of theta's mean square.

  Example:
    >>> fastfood(jnp.ones(3), 10, jax.random.key(0)).shape
    (10,)

  Args:
    theta: [d].
    size: number of entries of the result.
    key: for the projection, the same one every time.
  """
  width = 1 << (theta.shape[0] - 1).bit_length()
  padded = jnp.pad(theta, (0, width - theta.shape[0]))

  def block(key: Array) -> Array:
    signs, order, gaussian = jax.random.split(key, 3)
    z = hadamard(padded * jax.random.rademacher(signs, (width,), theta.dtype))
    g = jax.random.normal(gaussian, (width,), theta.dtype)
    return hadamard(jax.random.permutation(order, z) * g)

  blocks = -(-size // width)
  drawn = jax.vmap(block)(jax.random.split(key, blocks))
  scale = math.sqrt(width / theta.shape[0])
  return drawn.reshape(-1)[:size] * scale


def hadamard(x: Array) -> Array:
  """Returns the normalised Walsh-Hadamard transform of x [2^n].

  Example:
    >>> hadamard(jnp.array([1.0, 0.0, 0.0, 0.0])).tolist()
    [0.5, 0.5, 0.5, 0.5]
  """
  # That of 2^(m + n) is the Kronecker product of those of 2^m and 2^n: two
  # products of matrices, which a TPU is made for.
  size = x.shape[0]
  rows = 1 << (size.bit_length() - 1) // 2
  left, right = _signs(rows), _signs(size // rows)
  multiply = functools.partial(jnp.matmul, precision="highest")
  grid = x.reshape(rows, -1)
  grid = multiply(
    multiply(jnp.asarray(left, x.dtype), grid), jnp.asarray(right, x.dtype)
  )
  return grid.reshape(size) / math.sqrt(size)


def _signs(size: int) -> np.ndarray:
  """Returns the Walsh-Hadamard matrix [2^n, 2^n] of 1 and -1."""
  matrix = np.ones((1, 1), np.float32)
  while len(matrix) < size:
    matrix = np.block([[matrix, matrix], [matrix, -matrix]])
  return matrix
