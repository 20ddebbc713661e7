"""UniPELT's gates: how much of a method a token takes (arXiv 2110.07577)."""

import jax
from flax import linen as nn

from peft_jax.adapters.base import Array, parameter


def gate_logits(x: Array, axis: str) -> Array:
  """Returns x @ w, [B, T, 1], from the parameter `gate` [inputs, 1].

  The paper's gate is a linear map and a sigmoid (section 3.2). It averages over
  the tokens of an example; this one is taken per token, because an average over
  a decoder's tokens would look ahead, and would depend on padding.

  Call inside an adapter's `__call__`.

  Args:
    x: [B, T, inputs] what the site is given.
    axis: logical name of the inputs.
  """
  w = parameter(
    "gate",
    nn.initializers.normal(0.02),
    (x.shape[-1], 1),
    (axis, "gate"),
  )
  return x @ w.astype(x.dtype)


def gate(x: Array, axis: str) -> Array:
  """Returns the gate in (0, 1), [B, T, 1]; see `gate_logits`."""
  return jax.nn.sigmoid(gate_logits(x, axis))
