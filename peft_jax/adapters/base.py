"""What an adapter is: a small Linen module with a position at a site.

An adapter makes its parameters and does its maths. Where it is placed is
`inject`'s business, how it is stored `checkpoint`'s. It never calls the module
it adapts: the backbone's parameters would move under the adapter's name.
"""

import dataclasses
import math
from typing import Literal

import jax
from flax import linen as nn

Array = jax.Array

# 'input': replaces x by adapter(x). 'output': replaces y by adapter(y).
# 'parallel': adds adapter(x) to y.
Position = Literal["input", "output", "parallel"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Site:
  """The shape of the module that an adapter is placed at.

  Example:
    >>> site = Site(inputs=(512,), outputs=(6, 64),
    ...   input_axis="embed", output_axis="joined_kv")
    >>> site.output_size
    384

  Attributes:
    inputs: sizes of the input axes that the module contracts, e.g. (D,).
    outputs: sizes of its output axes, e.g. (H, K).
    input_axis: logical name of the joined input axes.
    output_axis: logical name of the joined output axes.
  """

  inputs: tuple[int, ...]
  outputs: tuple[int, ...]
  input_axis: str
  output_axis: str

  @property
  def input_size(self) -> int:
    """Product of the input sizes, the rows of the kernel."""
    return math.prod(self.inputs)

  @property
  def output_size(self) -> int:
    """Product of the output sizes, the columns of the kernel."""
    return math.prod(self.outputs)


class Adapter(nn.Module):
  """Base of all adapters. Abstract: methods derive from it, never from another.

  Subclasses have keyword-only fields, one compact `__call__(x, site,
  deterministic)` and, where they are linear, `fold`.
  """

  @property
  def position(self) -> Position:
    """Where the adapter acts on the module it is placed at."""
    raise NotImplementedError

  @property
  def default_name(self) -> str:
    """Name of its scope under the site, e.g. `lora`."""
    return type(self).__name__.lower()

  @property
  def mergeable(self) -> bool:
    """Whether `fold` can put it into the backbone's kernel."""
    return type(self).fold is not Adapter.fold

  def fold(self, kernel: Array, leaves: dict[str, Array]) -> Array:
    """Returns the kernel [inputs, outputs] that acts as both together.

    Args:
      kernel: [inputs, outputs] float32, all head axes joined.
      leaves: this adapter's parameters at the site, float32.
    """
    raise NotImplementedError


def check_positive(**values: float) -> None:
  """Raises unless every named value is above zero.

  Raises:
    ValueError: naming the field and its value.
  """
  for name, value in values.items():
    if not value > 0:
      raise ValueError(f"expected {name} > 0, found {name}={value}.")
