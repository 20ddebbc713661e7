"""VeRA: fixed random matrices, learned vectors (arXiv 2310.11454)."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from peft_jax.adapters.base import (
  Adapter,
  Array,
  Position,
  Site,
  check_positive,
  check_rate,
  joined,
  parameter,
)


class VeRA(Adapter):
  """Adds ((x @ A) * d) @ B * b, with A and B random and never trained.

  A and B are drawn from `seed` wherever they are needed and stored nowhere.
  Layers of one shape share them (section 3.1).

  Example:
    >>> from peft_jax import Rule
    >>> rule = Rule("qv", VeRA(rank=256))

  Parameters: `d` [R], 0.1 at the start, and `b` [outputs], zeros.

  Attributes:
    rank: R, default 256 (the paper's for RoBERTa-large).
    d_initial: start of `d`, default 0.1 (section 4).
    seed: of A and B, Kaiming uniform.
    dropout_rate: of the adapter's input, in training; default 0.

  Raises:
    ValueError: for a value out of range.
  """

  start_fields: ClassVar[frozenset[str]] = frozenset({"d_initial"})

  _: dataclasses.KW_ONLY
  rank: int = 256
  d_initial: float = 0.1
  seed: int = 0
  dropout_rate: float = 0.0

  def __post_init__(self) -> None:
    check_positive(rank=self.rank, d_initial=self.d_initial)
    check_rate(dropout_rate=self.dropout_rate)
    super().__post_init__()

  @property
  def position(self) -> Position:
    return "output"

  def matrices(self, inputs: int, outputs: int) -> tuple[Array, Array]:
    """Returns A [inputs, R] and B [R, outputs]."""
    first, second = jax.random.split(jax.random.key(self.seed))
    draw = nn.initializers.he_uniform()
    return (
      draw(first, (inputs, self.rank), jnp.float32),
      draw(second, (self.rank, outputs), jnp.float32),
    )

  @nn.compact
  def __call__(
    self, x: Array, y: Array, site: Site, deterministic: bool
  ) -> Array:
    """x: [B, T, inputs...], y: [B, T, outputs...] -> [B, T, outputs...]."""
    d = parameter(
      "d",
      nn.initializers.constant(self.d_initial),
      (self.rank,),
      ("lora_rank",),
    )
    b = parameter(
      "b",
      nn.initializers.zeros,
      (site.output_size,),
      (site.output_axis,),
    )
    left, right = self.matrices(site.input_size, site.output_size)
    x = joined(x, site.inputs)
    x = nn.Dropout(self.dropout_rate)(x, deterministic=deterministic)
    low = x @ (left * d[None, :]).astype(x.dtype)
    added = low @ (right * b[None, :]).astype(x.dtype)
    return y + added.reshape(y.shape)

  def fold(self, kernel: Array, leaves: dict[str, Array]) -> Array:
    """kernel: [inputs, outputs] + A * d @ B * b."""
    left, right = self.matrices(*kernel.shape)
    return kernel + (left * leaves["d"][None, :]) @ (
      right * leaves["b"][None, :]
    )
