"""LoRA: a low-rank product beside a projection (arXiv 2106.09685)."""

import dataclasses
import math
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from peft_jax import sharding
from peft_jax.adapters.base import (
  Adapter,
  Array,
  Position,
  Site,
  check_positive,
)

Convention = Literal[
  "microsoft", "hugging_face", "hugging_face_gaussian", "gemma", "tfew"
]


def _uniform(bound: float) -> nn.initializers.Initializer:
  def init(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> Array:
    return jax.random.uniform(key, shape, dtype, -bound, bound)

  return init


# How each code base draws `a` [inputs, R]; `b` starts at zero in all of them.
# n is the number of inputs, r the rank.
INITIALIZERS: dict[str, Callable[[int, int], nn.initializers.Initializer]] = {
  # torch's kaiming_uniform_ with a = sqrt(5): bound sqrt(6 / (1 + 5) / n).
  "microsoft": lambda n, r: _uniform(1 / math.sqrt(n)),
  "hugging_face": lambda n, r: _uniform(1 / math.sqrt(n)),
  "hugging_face_gaussian": lambda n, r: nn.initializers.normal(1 / r),
  # jax's he_uniform, sqrt(6) times wider than torch's call above.
  "gemma": lambda n, r: _uniform(math.sqrt(6 / n)),
  "tfew": lambda n, r: nn.initializers.normal(0.01),
}


class LoRA(Adapter):
  """Adds scaling * x @ a @ b to the output of a projection.

  Zero at the start, because `b` is. The product a @ b is never formed in
  training.

  Example:
    >>> from peft_jax import Rule
    >>> rule = Rule(".*attention/(query|value)", LoRA(rank=8, alpha=16))
    >>> rule.adapter.scaling
    2.0

  Parameters: `a` [inputs, R] and `b` [R, outputs], float32. Head axes are
  joined, so `a` of the output projection is [H*K, R].

  Attributes:
    rank: R, default 8 (Hugging Face; the paper uses 1 to 64).
    alpha: numerator of the scaling; default: the rank, so that the scaling is
      1. T-Few's code uses 1.
    rank_stabilized: scaling alpha / sqrt(R) instead of alpha / R
      (arXiv 2312.03732).
    dropout_rate: of the adapter's input, in training; default 0.
    initializer: how `a` is drawn, one of `INITIALIZERS`: 'hugging_face' and
      'microsoft' (uniform, 1 / sqrt(inputs)), 'hugging_face_gaussian' (normal,
      1 / R), 'gemma' (uniform, sqrt(6 / inputs)), 'tfew' (normal, 0.01).

  Raises:
    ValueError: for a rank or alpha that is not positive, a dropout rate
      outside [0, 1), or an unknown initialiser.
  """

  _: dataclasses.KW_ONLY
  rank: int = 8
  alpha: float | None = None
  rank_stabilized: bool = False
  dropout_rate: float = 0.0
  initializer: Convention = "hugging_face"

  def __post_init__(self) -> None:
    check_positive(rank=self.rank)
    if self.alpha is not None:
      check_positive(alpha=self.alpha)
    if not 0 <= self.dropout_rate < 1:
      raise ValueError(
        f"expected 0 <= dropout_rate < 1, found {self.dropout_rate}."
      )
    if self.initializer not in INITIALIZERS:
      raise ValueError(
        f"expected an initializer of {sorted(INITIALIZERS)}, found"
        f" {self.initializer!r}."
      )
    super().__post_init__()

  @property
  def position(self) -> Position:
    return "parallel"

  @property
  def scaling(self) -> float:
    """Alpha / R, or alpha / sqrt(R) when rank-stabilised."""
    alpha = self.rank if self.alpha is None else self.alpha
    return alpha / (math.sqrt(self.rank) if self.rank_stabilized else self.rank)

  @nn.compact
  def __call__(self, x: Array, site: Site, deterministic: bool) -> Array:
    """x: [B, T, inputs...] -> [B, T, outputs...], to be added to the output."""
    a = sharding.param_with_axes(
      "a",
      INITIALIZERS[self.initializer](site.input_size, self.rank),
      (site.input_size, self.rank),
      jnp.float32,
      axes=(site.input_axis, "lora_rank"),
    )
    b = sharding.param_with_axes(
      "b",
      nn.initializers.zeros,
      (self.rank, site.output_size),
      jnp.float32,
      axes=("lora_rank", site.output_axis),
    )
    lead = x.shape[: x.ndim - len(site.inputs)]
    x = x.reshape(*lead, site.input_size)
    x = nn.Dropout(self.dropout_rate)(x, deterministic=deterministic)
    # The scaling goes to the small array.
    low = (x @ a.astype(x.dtype)) * self.scaling
    return (low @ b.astype(x.dtype)).reshape(*lead, *site.outputs)

  def fold(self, kernel: Array, leaves: dict[str, Array]) -> Array:
    """kernel: [inputs, outputs] + scaling * a @ b."""
    return kernel + self.scaling * (leaves["a"] @ leaves["b"])
