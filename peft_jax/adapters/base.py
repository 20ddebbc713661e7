"""What an adapter is: a small Linen module with a position in the network.

An adapter makes its parameters and does its maths. Where it is placed is
`inject`'s business, how it is stored `checkpoint`'s. It never calls the module
it adapts: the backbone's parameters would move under the adapter's name.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from peft_jax import sharding

Array = jax.Array

# 'input': x becomes adapter(x, None). 'output': y becomes adapter(x, y).
# 'attention': adapter(x) gives keys and values in front of the module's own.
# 'stack': adapter() gives vectors in front of the embedded tokens of a stack.
# 'embedding': adapter.add(tokens) is added to what the embedder gives.
# 'leaves': acts on parameters, before the network sees them.
# 'backbone': is the parameters themselves.
Position = Literal[
  "input",
  "output",
  "attention",
  "stack",
  "embedding",
  "leaves",
  "backbone",
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Site:
  """The module that an adapter is placed at.

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
    kernel: [inputs, outputs] the module's own kernel, if it has one.
    bias: [outputs] its bias, if it has one.
    shared: leaves that several sites share (see `Adapter.shared_leaves`).
  """

  inputs: tuple[int, ...]
  outputs: tuple[int, ...]
  input_axis: str
  output_axis: str
  kernel: Array | None = None
  bias: Array | None = None
  shared: Mapping[str, Array] = dataclasses.field(default_factory=dict)

  @property
  def input_size(self) -> int:
    """Product of the input sizes, the rows of the kernel."""
    return math.prod(self.inputs)

  @property
  def output_size(self) -> int:
    """Product of the output sizes, the columns of the kernel."""
    return math.prod(self.outputs)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Leaf:
  """A parameter that is made outside of the network's modules.

  Attributes:
    shape: its shape.
    initializer: as Flax has them: (key, shape, dtype) -> array.
    axes: logical names, one per axis.
    dtype: float32, or int32 for what is kept but never trained.
  """

  shape: tuple[int, ...]
  initializer: nn.initializers.Initializer
  axes: tuple[str | None, ...]
  dtype: str = "float32"


class Adapter(nn.Module):
  """Base of all adapters. Abstract: methods derive from it, never from another.

  Subclasses have keyword-only fields, one compact `__call__` whose arguments
  its position decides, and, where they are linear, `fold`.
  """

  # Where the class's name in lower case does not read well.
  method: ClassVar[str] = ""
  # Fields that say where leaves start and nothing of what they do: weights may
  # be taken over whatever they say.
  start_fields: ClassVar[frozenset[str]] = frozenset()

  @property
  def position(self) -> Position:
    """Where the adapter acts on the module it is placed at."""
    raise NotImplementedError

  @property
  def default_name(self) -> str:
    """Name of its scope under the site, e.g. `lora`."""
    return self.method or type(self).__name__.lower()

  @property
  def mergeable(self) -> bool:
    """Whether `fold` can put it into the backbone's kernel."""
    return type(self).fold is not Adapter.fold

  @property
  def constants(self) -> frozenset[str]:
    """Names of leaves that are stored with the adapter and never trained."""
    return frozenset()

  @property
  def reads_backbone(self) -> bool:
    """Whether `start` needs the backbone's own parameters."""
    return type(self).start is not Adapter.start

  @property
  def goes_first(self) -> bool:
    """Whether no other rule may stand before its own at a module.

    True for what computes with the module's kernel: what stands before would
    have changed it.
    """
    return False

  @property
  def fills_slots(self) -> bool:
    """Whether it has vectors in front of a stack's tokens."""
    return False

  def group(self, path: str) -> str:
    """Returns which sites share leaves with the one at `path`."""
    del path
    return "all"

  def shared_leaves(self, site: Site) -> dict[str, Leaf]:
    """Returns the leaves that all sites of a group share."""
    del site
    return {}

  def start(
    self,
    leaves: dict[str, Array],
    path: str,
    backbone: Mapping[str, Array],
    key: Array,
  ) -> dict[str, Array]:
    """Returns the leaves at one site as they start beside this backbone.

    Args:
      leaves: this adapter's leaves at the site, as `__call__` made them.
      path: of the site.
      backbone: leaf path -> array, one module per layer.
      key: for random draws; a different one per site.
    """
    del path, backbone, key
    return leaves

  def fold(self, kernel: Array, leaves: dict[str, Array]) -> Array:
    """Returns the kernel [inputs, outputs] that acts as both together.

    Args:
      kernel: [inputs, outputs] float32, all head axes joined.
      leaves: this adapter's parameters at the site, float32.
    """
    raise NotImplementedError

  def fold_bias(self, bias: Array, leaves: dict[str, Array]) -> Array:
    """Returns the bias that acts as both together; most leave it as it is.

    Args:
      bias: [outputs] float32.
      leaves: this adapter's parameters at the site, float32.
    """
    del leaves
    return bias


def parameter(
  name: str,
  initializer: nn.initializers.Initializer,
  shape: tuple[int, ...],
  axes: tuple[str, ...],
) -> Array:
  """Returns a float32 parameter with logical axes.

  Call inside an adapter's `__call__`.
  """
  return sharding.param_with_axes(
    name, initializer, shape, jnp.float32, axes=axes
  )


def zero_bias(
  name: str, shape: tuple[int, ...], axis: str, like: Array
) -> Array:
  """Returns a new bias, zero at the start, that can be added to an array.

  Call inside an adapter's `__call__`.

  Args:
    name: of the parameter, [product of shape].
    shape: sizes of the last axes of `like`.
    axis: logical name of these axes, joined.
    like: [B, T, shape...].
  """
  leaf = parameter(name, nn.initializers.zeros, (math.prod(shape),), (axis,))
  return aligned(leaf, shape, like)


def aligned(leaf: Array, shape: tuple[int, ...], like: Array) -> Array:
  """Returns a leaf with the dtype and rank of the array it is to act on.

  Args:
    leaf: [product of shape].
    shape: sizes of the last axes of `like`.
    like: [B, T, shape...].
  """
  lead = (1,) * (like.ndim - len(shape))
  return leaf.astype(like.dtype).reshape(lead + shape)


def joined(x: Array, shape: tuple[int, ...]) -> Array:
  """x: [B, T, shape...] -> [B, T, product of shape]."""
  return x.reshape(*x.shape[: x.ndim - len(shape)], math.prod(shape))


def uniform(bound: float) -> nn.initializers.Initializer:
  """Returns the initialiser that draws from [-bound, bound)."""

  def init(key: Array, shape: tuple[int, ...], dtype: jnp.dtype) -> Array:
    return jax.random.uniform(key, shape, dtype, -bound, bound)

  return init


def check_positive(**values: float) -> None:
  """Raises unless every named value is above zero.

  Raises:
    ValueError: naming the field and its value.
  """
  for name, value in values.items():
    if not value > 0:
      raise ValueError(f"expected {name} > 0, found {name}={value}.")


def check_least(least: float, **values: float) -> None:
  """Raises unless every named value is at least `least`.

  Raises:
    ValueError: naming the field and its value.
  """
  for name, value in values.items():
    if value < least:
      raise ValueError(f"expected {name} >= {least}, found {name}={value}.")


def check_rate(**values: float) -> None:
  """Raises unless every named value is in [0, 1).

  Raises:
    ValueError: naming the field and its value.
  """
  for name, value in values.items():
    if not 0 <= value < 1:
      raise ValueError(f"expected 0 <= {name} < 1, found {value}.")


def check_choice(choices: object, **values: str) -> None:
  """Raises unless every named value is one of the choices.

  Raises:
    ValueError: naming the field, the choices and the value.
  """
  names = sorted(choices)  # pyright: ignore
  for name, value in values.items():
    if value not in names:
      raise ValueError(
        f"expected {name} to be one of {names}, found {value!r}."
      )
