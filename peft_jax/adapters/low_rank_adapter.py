"""Adapter whose two matrices are of low rank, T-Few's baseline."""

import dataclasses
from typing import ClassVar

from flax import linen as nn

from peft_jax.adapters.base import (
  Adapter,
  Array,
  Position,
  Site,
  check_positive,
  joined,
  parameter,
  zero_bias,
)
from peft_jax.adapters.bottleneck import activation


class LowRankAdapter(Adapter):
  """Adds up(activation(down(y))), with down = l r and up = l' r' of rank R.

  Example:
    >>> from peft_jax import Rule
    >>> rule = Rule(".*mlp", LowRankAdapter(size=64, rank=1))

  Parameters: `down_left` [D, R], `down_right` [R, size], `up_left` [size, R],
  `up_right` [R, D], zero at the start, `down_bias` [size], `up_bias` [D].

  Attributes:
    size: bottleneck size, default 64.
    rank: R, default 1 (T-Few's code).
    activation: default 'relu'.

  Raises:
    ValueError: for a value out of range.
  """

  method: ClassVar[str] = "low_rank_adapter"

  _: dataclasses.KW_ONLY
  size: int = 64
  rank: int = 1
  activation: str = "relu"

  def __post_init__(self) -> None:
    check_positive(size=self.size, rank=self.rank)
    activation(self.activation)
    super().__post_init__()

  @property
  def position(self) -> Position:
    return "output"

  @nn.compact
  def __call__(
    self, x: Array, y: Array, site: Site, deterministic: bool
  ) -> Array:
    """y: [B, T, D] -> [B, T, D]."""
    del x, deterministic
    given, axis = site.output_size, site.output_axis
    z = joined(y, site.outputs)
    z = self._multiply("down", z, self.size, (axis, "bottleneck"))
    z = activation(self.activation)(z)
    z = self._multiply("up", z, given, ("bottleneck", axis))
    return y + z.reshape(y.shape)

  def _multiply(
    self, name: str, z: Array, outputs: int, axes: tuple[str, str]
  ) -> Array:
    """z: [B, T, inputs] -> [B, T, outputs], (z @ left) @ right + bias."""
    draw = nn.initializers.glorot_uniform()
    last = nn.initializers.zeros if name == "up" else draw
    rows, columns = axes
    left = parameter(
      f"{name}_left",
      draw,
      (z.shape[-1], self.rank),
      (rows, "lora_rank"),
    )
    right = parameter(
      f"{name}_right",
      last,
      (self.rank, outputs),
      ("lora_rank", columns),
    )
    z = (z @ left.astype(z.dtype)) @ right.astype(z.dtype)
    return z + zero_bias(f"{name}_bias", (outputs,), columns, z)
