"""What is computed more precisely than activations are kept.

Norms, softmax, rotations and logits are in float32 where activations are
bfloat16. Where a network is float64, which serves comparisons with other code,
they are too: else its results would be no better than float32's.
"""

from typing import Any

import jax
import jax.numpy as jnp


def wide(dtype: Any) -> Any:
  """Returns the dtype of sums over activations of `dtype`.

  Example:
    >>> [wide(x).__name__ for x in (jnp.bfloat16, jnp.float32, jnp.float64)]
    ['float32', 'float32', 'float64']
  """
  is_double = jnp.dtype(dtype) == jnp.dtype("float64")
  return jnp.float64 if is_double else jnp.float32


def widened(x: jax.Array) -> jax.Array:
  """Returns x in float32, and float64 as it is.

  Example:
    >>> widened(jnp.ones(2, jnp.bfloat16)).dtype.name
    'float32'
  """
  return x.astype(wide(x.dtype))
