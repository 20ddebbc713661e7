"""LoRA: a low-rank product beside a projection (arXiv 2106.09685)."""

import dataclasses
import math
from collections.abc import Callable
from typing import ClassVar, Literal

from flax import linen as nn

from peft_jax.adapters.base import (
  Adapter,
  Array,
  Position,
  Site,
  check_choice,
  check_positive,
  check_rate,
  joined,
  parameter,
  uniform,
)
from peft_jax.adapters.gate import gate

Convention = Literal[
  "microsoft", "hugging_face", "hugging_face_gaussian", "gemma", "tfew"
]


# How each code base draws `a` [inputs, R]; `b` starts at zero in all of them.
# n is the number of inputs, r the rank.
INITIALIZERS: dict[str, Callable[[int, int], nn.initializers.Initializer]] = {
  # torch's kaiming_uniform_ with a = sqrt(5): bound sqrt(6 / (1 + 5) / n).
  "microsoft": lambda n, r: uniform(1 / math.sqrt(n)),
  "hugging_face": lambda n, r: uniform(1 / math.sqrt(n)),
  "hugging_face_gaussian": lambda n, r: nn.initializers.normal(1 / r),
  # jax's he_uniform, sqrt(6) times wider than torch's call above.
  "gemma": lambda n, r: uniform(math.sqrt(6 / n)),
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
  joined, so `a` of the output projection is [H*K, R]. With `gated`, also `gate`
  [inputs, 1].

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
    gated: multiplies what is added by a gate per token (UniPELT, see `gate`);
      such an adapter cannot be merged.

  Raises:
    ValueError: for a rank or alpha that is not positive, a dropout rate
      outside [0, 1), or an unknown initialiser.
  """

  start_fields: ClassVar[frozenset[str]] = frozenset({"initializer"})

  _: dataclasses.KW_ONLY
  rank: int = 8
  alpha: float | None = None
  rank_stabilized: bool = False
  dropout_rate: float = 0.0
  initializer: Convention = "hugging_face"
  gated: bool = False

  def __post_init__(self) -> None:
    check_settings(self.rank, self.alpha, self.dropout_rate, self.initializer)
    super().__post_init__()

  @property
  def position(self) -> Position:
    return "output"

  @property
  def mergeable(self) -> bool:
    return not self.gated

  @property
  def scaling(self) -> float:
    """Alpha / R, or alpha / sqrt(R) when rank-stabilised."""
    return scaling(self.rank, self.alpha, self.rank_stabilized)

  @nn.compact
  def __call__(
    self, x: Array, y: Array, site: Site, deterministic: bool
  ) -> Array:
    """x: [B, T, inputs...], y: [B, T, outputs...] -> [B, T, outputs...]."""
    a, b = factors(self.rank, self.initializer, site)
    x = joined(x, site.inputs)
    dropped = nn.Dropout(self.dropout_rate)(x, deterministic=deterministic)
    # The scaling goes to the small array.
    low = (dropped @ a.astype(x.dtype)) * self.scaling
    if self.gated:
      low = low * gate(x, site.input_axis)
    return y + (low @ b.astype(x.dtype)).reshape(y.shape)

  def fold(self, kernel: Array, leaves: dict[str, Array]) -> Array:
    """kernel: [inputs, outputs] + scaling * a @ b."""
    return kernel + self.scaling * (leaves["a"] @ leaves["b"])


def check_settings(
  rank: int, alpha: float | None, dropout_rate: float, initializer: str
) -> None:
  """Raises for settings of LoRA that are out of range.

  Raises:
    ValueError: naming the field and its value.
  """
  check_positive(rank=rank)
  if alpha is not None:
    check_positive(alpha=alpha)
  check_rate(dropout_rate=dropout_rate)
  check_choice(INITIALIZERS, initializer=initializer)


def scaling(rank: int, alpha: float | None, rank_stabilized: bool) -> float:
  """Returns alpha / R, or alpha / sqrt(R); alpha is R where it is None.

  Example:
    >>> scaling(4, 8, False), scaling(4, 8, True), scaling(4, None, False)
    (2.0, 4.0, 1.0)
  """
  alpha = rank if alpha is None else alpha
  return alpha / (math.sqrt(rank) if rank_stabilized else rank)


def factors(rank: int, initializer: str, site: Site) -> tuple[Array, Array]:
  """Returns the parameters `a` [inputs, R] and `b` [R, outputs].

  Call inside an adapter's `__call__`.
  """
  a = parameter(
    "a",
    INITIALIZERS[initializer](site.input_size, rank),
    (site.input_size, rank),
    (site.input_axis, "lora_rank"),
  )
  b = parameter(
    "b",
    nn.initializers.zeros,
    (rank, site.output_size),
    ("lora_rank", site.output_axis),
  )
  return a, b
