"""LoRA on the embedding table (arXiv 2106.09685)."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
from flax import linen as nn

from peft_jax.adapters import lora
from peft_jax.adapters.base import (
  Adapter,
  Array,
  Leaf,
  Position,
  Site,
  check_positive,
)


class EmbeddingLoRA(Adapter):
  """Adds scaling * a[tokens] @ b to the embeddings of tokens.

  The table is one leaf: encoder and decoder look tokens up in it, and where the
  output layer is tied to it (T5 1.0) the logits gain the same product.

  Example:
    >>> from peft_jax import Rule
    >>> rule = Rule("token_embedder", EmbeddingLoRA(rank=8))

  Parameters: `a` [V, R], zero at the start, and `b` [R, D], N(0, 1) (as
  Microsoft's and Hugging Face's code).

  Attributes:
    rank: R, default 8.
    alpha: numerator of the scaling; default: the rank.
    rank_stabilized: scaling alpha / sqrt(R) instead of alpha / R.

  Raises:
    ValueError: for a rank or alpha that is not positive.
  """

  method: ClassVar[str] = "lora_embedding"

  _: dataclasses.KW_ONLY
  rank: int = 8
  alpha: float | None = None
  rank_stabilized: bool = False

  def __post_init__(self) -> None:
    check_positive(rank=self.rank)
    if self.alpha is not None:
      check_positive(alpha=self.alpha)
    super().__post_init__()

  @property
  def position(self) -> Position:
    return "embedding"

  @property
  def scaling(self) -> float:
    """As LoRA's."""
    return lora.scaling(self.rank, self.alpha, self.rank_stabilized)

  def shared_leaves(self, site: Site) -> dict[str, Leaf]:
    """The two factors, outside of the embedder: it cannot hold children."""
    return {
      "a": Leaf(
        shape=(site.input_size, self.rank),
        initializer=nn.initializers.zeros,
        axes=(site.input_axis, "lora_rank"),
      ),
      "b": Leaf(
        shape=(self.rank, site.output_size),
        initializer=nn.initializers.normal(1.0),
        axes=("lora_rank", site.output_axis),
      ),
    }

  def embed(self, leaves: dict[str, Array], tokens: Array) -> Array:
    """tokens: [B, T] ids -> [B, T, D], to be added to their embeddings."""
    low = jnp.take(leaves["a"], tokens, axis=0, mode="clip")
    return (low * self.scaling) @ leaves["b"]

  def attend(self, leaves: dict[str, Array], x: Array) -> Array:
    """x: [B, T, D] -> [B, T, V], to be added to the tied layer's scores."""
    low = (x.astype(jnp.float32) @ leaves["b"].T) * self.scaling
    return low @ leaves["a"].T

  def fold(self, kernel: Array, leaves: dict[str, Array]) -> Array:
    """kernel: [V, D] + scaling * a @ b."""
    return kernel + self.scaling * (leaves["a"] @ leaves["b"])
