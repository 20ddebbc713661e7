"""Deep prompts: other vectors in front of every layer (arXiv 2110.07602)."""

import dataclasses
from typing import ClassVar, Literal

import jax.numpy as jnp
from flax import linen as nn

from peft_jax.adapters.base import (
  Adapter,
  Array,
  Position,
  Site,
  check_choice,
  check_positive,
  parameter,
  uniform,
)


class DeepPrompt(Adapter):
  r"""Writes P learned vectors into the prompt's slots, layer by layer.

  Place it at the encoder's layers, all of one length, alone or below a `Prompt`
  of the same length; alone, the slots come empty.

  Example:
    >>> from peft_jax import Rule
    >>> rule = Rule(r"encoder/layers_\d+", DeepPrompt(length=10))

  Parameters: `prompt` [P, D] per layer.

  Attributes:
    length: P, default 10 (google-research/prompt-tuning's per-layer prompts).
    combine: 'replace' what the layer below left in the slots, or 'add' to it.
    scale: vectors start uniform in [-scale, scale]; default 0.5.

  Raises:
    ValueError: for a value out of range.
  """

  method: ClassVar[str] = "deep_prompt"

  start_fields: ClassVar[frozenset[str]] = frozenset({"scale"})

  _: dataclasses.KW_ONLY
  length: int = 10
  combine: Literal["replace", "add"] = "replace"
  scale: float = 0.5

  def __post_init__(self) -> None:
    check_positive(length=self.length, scale=self.scale)
    check_choice(("replace", "add"), combine=self.combine)
    super().__post_init__()

  @property
  def fills_slots(self) -> bool:
    return True

  @property
  def position(self) -> Position:
    return "input"

  @nn.compact
  def __call__(
    self, x: Array, y: None, site: Site, deterministic: bool
  ) -> Array:
    """x: [B, P + T, D] -> [B, P + T, D]."""
    del y, deterministic
    prompt = parameter(
      "prompt",
      uniform(self.scale),
      (self.length, site.input_size),
      ("prompt", "embed"),
    )
    rows = jnp.broadcast_to(
      prompt.astype(x.dtype), (*x.shape[:-2], *prompt.shape)
    )
    if self.combine == "add":
      rows = rows + x[..., : self.length, :]
    return jnp.concatenate([rows, x[..., self.length :, :]], axis=-2)
