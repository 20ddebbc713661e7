"""DoRA: LoRA with learned magnitudes of the columns (arXiv 2402.09353)."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from peft_jax.adapters import lora
from peft_jax.adapters.base import (
  Adapter,
  Array,
  Position,
  Site,
  aligned,
  joined,
  parameter,
)
from peft_jax.precision import widened


class DoRA(Adapter):
  """Replaces W by m * V / |V|, with V = W + scaling * a @ b, column by column.

  |V| counts as a constant in the backward pass (section 4.3), and V is formed
  for it alone: the output is (y + scaling * x @ a @ b) * m / |V|.

  Example:
    >>> from peft_jax import Rule
    >>> rule = Rule("qv", DoRA(rank=8, alpha=16))

  Parameters: `a` [inputs, R], `b` [R, outputs], `magnitude` [outputs], the
  norms of the columns of W at the start.

  Attributes:
    rank: R, default 8.
    alpha: numerator of the scaling; default: the rank.
    rank_stabilized: scaling alpha / sqrt(R) instead of alpha / R.
    dropout_rate: of what `a` is given, in training; default 0.
    initializer: how `a` is drawn, see `LoRA`.

  Raises:
    ValueError: for a value out of range.
  """

  start_fields: ClassVar[frozenset[str]] = frozenset({"initializer"})

  _: dataclasses.KW_ONLY
  rank: int = 8
  alpha: float | None = None
  rank_stabilized: bool = False
  dropout_rate: float = 0.0
  initializer: lora.Convention = "hugging_face"

  def __post_init__(self) -> None:
    lora.check_settings(
      self.rank, self.alpha, self.dropout_rate, self.initializer
    )
    super().__post_init__()

  @property
  def position(self) -> Position:
    return "output"

  @property
  def goes_first(self) -> bool:
    return True  # |V| is of the kernel that it merges into

  @property
  def scaling(self) -> float:
    """As LoRA's."""
    return lora.scaling(self.rank, self.alpha, self.rank_stabilized)

  @nn.compact
  def __call__(
    self, x: Array, y: Array, site: Site, deterministic: bool
  ) -> Array:
    """x: [B, T, inputs...], y: [B, T, outputs...] -> [B, T, outputs...]."""
    assert site.kernel is not None
    a, b = lora.factors(self.rank, self.initializer, site)
    magnitude = parameter(
      "magnitude",
      nn.initializers.constant(jnp.nan),
      (site.output_size,),
      (site.output_axis,),
    )
    x = joined(x, site.inputs)
    x = nn.Dropout(self.dropout_rate)(x, deterministic=deterministic)
    low = (x @ a.astype(x.dtype)) * self.scaling
    bias = site.bias  # the magnitude is the kernel's alone
    if bias is not None:
      bias = aligned(bias, site.outputs, y)
      y = y - bias
    added = y + (low @ b.astype(x.dtype)).reshape(y.shape)
    kernel = widened(site.kernel)
    norm = jnp.linalg.norm(kernel + self.scaling * (a @ b), axis=0)
    ratio = magnitude / jax.lax.stop_gradient(norm)
    scaled = added * aligned(ratio, site.outputs, y)
    return scaled if bias is None else scaled + bias

  def start(
    self,
    leaves: dict[str, Array],
    path: str,
    backbone: Mapping[str, Array],
    key: Array,
  ) -> dict[str, Array]:
    """Sets the magnitudes to the norms of the kernel's columns."""
    del key
    kernel = jnp.asarray(backbone[f"{path}/kernel"], jnp.float32)
    return leaves | {"magnitude": jnp.linalg.norm(kernel, axis=0)}

  def fold(self, kernel: Array, leaves: dict[str, Array]) -> Array:
    """kernel: [inputs, outputs] -> m * V / |V|."""
    v = kernel + self.scaling * (leaves["a"] @ leaves["b"])
    return v * (leaves["magnitude"] / jnp.linalg.norm(v, axis=0))[None, :]
