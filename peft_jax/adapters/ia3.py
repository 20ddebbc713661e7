"""(IA)3: learned vectors that rescale activations (arXiv 2205.05638, 3.3)."""

import dataclasses
from typing import Literal

from flax import linen as nn

from peft_jax.adapters.base import (
  Adapter,
  Array,
  Position,
  Site,
  aligned,
  check_choice,
  parameter,
)


class IA3(Adapter):
  """Multiplies the input or the output of a module by a learned vector.

  The paper scales the keys, the values and the hidden activation in front of
  `wo`, all of them ones at the start (arXiv 2205.05638, section 3.3).

  Example:
    >>> from peft_jax import Rule
    >>> rules = [
    ...   Rule(".*attention/(key|value)", IA3()),
    ...   Rule(".*mlp/wo", IA3(side="input")),
    ... ]

  Parameters: `scaling`, [H*K] or [F], float32; named by the axis it scales.

  Attributes:
    side: 'output' scales what the module gives, 'input' what it is given.

  Raises:
    ValueError: for another side.
  """

  _: dataclasses.KW_ONLY
  side: Literal["input", "output"] = "output"

  def __post_init__(self) -> None:
    check_choice(("input", "output"), side=self.side)
    super().__post_init__()

  @property
  def position(self) -> Position:
    return self.side

  @nn.compact
  def __call__(
    self, x: Array, y: Array | None, site: Site, deterministic: bool
  ) -> Array:
    """X or y: [B, T, ...] -> [B, T, ...], rescaled along the trailing axes."""
    del deterministic
    shape, axis = site.inputs, site.input_axis
    if y is not None:
      x, shape, axis = y, site.outputs, site.output_axis
    size = site.input_size if self.side == "input" else site.output_size
    scaling = parameter("scaling", nn.initializers.ones, (size,), (axis,))
    return x * aligned(scaling, shape, x)

  def fold(self, kernel: Array, leaves: dict[str, Array]) -> Array:
    """kernel: [inputs, outputs] with its rows or columns rescaled."""
    scaling = leaves["scaling"]
    if self.side == "input":
      return kernel * scaling[:, None]
    return kernel * scaling[None, :]

  def fold_bias(self, bias: Array, leaves: dict[str, Array]) -> Array:
    """bias: [outputs], rescaled where the output is."""
    return bias * leaves["scaling"] if self.side == "output" else bias
