"""PiSSA: LoRA that starts from the kernel's principal part (2404.02948)."""

import dataclasses
from collections.abc import Mapping

import jax.numpy as jnp
from flax import linen as nn

from peft_jax.adapters.base import (
  Adapter,
  Array,
  Position,
  Site,
  check_positive,
  joined,
  parameter,
)


class PiSSA(Adapter):
  """Trains the R largest singular directions of W, the rest stays frozen.

  The paper replaces W by W - a0 @ b0; here W stays as it is and the output
  gains x @ a @ b - x @ a0 @ b0, which is the same and leaves the backbone as it
  was.

  Example:
    >>> from peft_jax import Rule
    >>> rule = Rule("qv", PiSSA(rank=8))

  Parameters: `a` [inputs, R] and `b` [R, outputs], U sqrt(S) and sqrt(S) V^T of
  the R largest singular values at the start; `a_start` and `b_start`, the same,
  stored and never trained.

  Attributes:
    rank: R, default 8.

  Raises:
    ValueError: for a rank that is not positive.
  """

  _: dataclasses.KW_ONLY
  rank: int = 8

  def __post_init__(self) -> None:
    check_positive(rank=self.rank)
    super().__post_init__()

  @property
  def position(self) -> Position:
    return "output"

  @property
  def constants(self) -> frozenset[str]:
    return frozenset({"a_start", "b_start"})

  @nn.compact
  def __call__(
    self, x: Array, y: Array, site: Site, deterministic: bool
  ) -> Array:
    """x: [B, T, inputs...], y: [B, T, outputs...] -> [B, T, outputs...]."""
    del deterministic
    if self.rank > min(site.input_size, site.output_size):
      raise ValueError(
        f"expected rank <= {min(site.input_size, site.output_size)}, the"
        f" kernel's own, found rank={self.rank}."
      )
    left = self._factor("a", (site.input_size, self.rank), site.input_axis, 0)
    right = self._factor(
      "b", (self.rank, site.output_size), site.output_axis, 1
    )
    x = joined(x, site.inputs)
    # One pair of products for both terms: x [a, a0] [b; -b0].
    low = x @ left.astype(x.dtype)
    return y + (low @ right.astype(x.dtype)).reshape(y.shape)

  def _factor(
    self, name: str, shape: tuple[int, int], axis: str, side: int
  ) -> Array:
    """Returns the trained and the starting factor side by side."""
    axes = (axis, "lora_rank") if side == 0 else ("lora_rank", axis)
    now, start = (
      parameter(leaf, nn.initializers.constant(jnp.nan), shape, axes)
      for leaf in (name, f"{name}_start")
    )
    return jnp.concatenate([now, start if side == 0 else -start], axis=1 - side)

  def start(
    self,
    leaves: dict[str, Array],
    path: str,
    backbone: Mapping[str, Array],
    key: Array,
  ) -> dict[str, Array]:
    """Takes the factors from the kernel's singular value decomposition."""
    del leaves, key
    kernel = jnp.asarray(backbone[f"{path}/kernel"], jnp.float32)
    u, s, v = jnp.linalg.svd(kernel, full_matrices=False)
    root = jnp.sqrt(s[: self.rank])
    a, b = u[:, : self.rank] * root[None, :], root[:, None] * v[: self.rank]
    return {"a": a, "b": b, "a_start": a, "b_start": b}

  def fold(self, kernel: Array, leaves: dict[str, Array]) -> Array:
    """kernel: [inputs, outputs] + a @ b - a0 @ b0."""
    moved = leaves["a"] @ leaves["b"] - leaves["a_start"] @ leaves["b_start"]
    return kernel + moved
