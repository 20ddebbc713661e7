"""Bottleneck adapters, in series or in parallel.

Houlsby et al. (arXiv 1902.00751), Pfeiffer et al. (2005.00247), He et al.
(parallel; 2110.04366) and LLM-Adapters (2304.01933) differ in where the same
small network stands: the rule and `placement` say so.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import ClassVar, Literal

import jax.numpy as jnp
from flax import linen as nn

from peft_jax.adapters.base import (
  Adapter,
  Array,
  Position,
  Site,
  aligned,
  check_choice,
  check_positive,
  check_rate,
  joined,
  parameter,
  zero_bias,
)
from peft_jax.adapters.gate import gate
from peft_jax.precision import widened

Placement = Literal["after", "before", "parallel"]

# How `down` and `up` are drawn. With 'bert' the model is not itself at the
# start: LLM-Adapters draws both from N(0, 0.02) (see docs/implementation.md).
INITIALIZERS = {
  # He et al.'s: Kaiming uniform below, zeros above.
  "identity": (nn.initializers.he_uniform(), nn.initializers.zeros),
  "houlsby": (
    nn.initializers.truncated_normal(0.01),
    nn.initializers.truncated_normal(0.01),
  ),
  "bert": (nn.initializers.normal(0.02), nn.initializers.normal(0.02)),
}


ACTIVATIONS = (
  *("elu", "gelu", "leaky_relu", "relu", "relu6", "selu", "sigmoid", "silu"),
  *("softplus", "swish", "tanh"),
)


class Bottleneck(Adapter):
  """Adds scaling * up(activation(down(z))) beside or around a module.

  placement 'after':    y + s * f(y), what the module gives goes through it
  placement 'before':   the module is given x + s * f(x)
  placement 'parallel': y + s * f(x)

  Around a whole sub-layer (`.*attention`, `.*mlp`) 'after' twice per layer is
  Houlsby's adapter, once (`.*mlp`) Pfeiffer's, 'parallel' He et al.'s. Around
  one projection they are those of LLM-Adapters.

  Example:
    >>> from peft_jax import Rule
    >>> houlsby = Rule(".*(attention|mlp)", Bottleneck(size=64))
    >>> parallel = Rule(".*mlp", Bottleneck(placement="parallel", scaling=4.0))

  Parameters: `down` [inputs, size], `up` [size, outputs]; with `use_bias`
  `down_bias` [size] and `up_bias` [outputs]; with scaling 'learned' `scaling`
  [1]; with `layer_norm` `norm_scale` [inputs]; with `gated` `gate` [inputs, 1].

  Attributes:
    size: bottleneck size, default 64 (Houlsby et al.; LLM-Adapters: 256).
    placement: see above; default 'after'.
    activation: default 'relu' (LLM-Adapters: 'tanh'; Houlsby: 'gelu').
    scaling: s, a number, or 'learned', 1 at the start; default 1.
    initializer: 'identity' (up is zero), 'houlsby' (both near zero), 'bert'
      (N(0, 0.02); not the identity).
    use_bias: default True; LLM-Adapters has none.
    dropout_rate: of the adapter's input, in training; default 0.
    layer_norm: normalises the adapter's input as T5 does.
    gated: multiplies what is added by a gate per token (UniPELT, see `gate`).

  Raises:
    ValueError: for a value out of range.
  """

  start_fields: ClassVar[frozenset[str]] = frozenset({"initializer"})

  _: dataclasses.KW_ONLY
  size: int = 64
  placement: Placement = "after"
  activation: str = "relu"
  scaling: float | Literal["learned"] = 1.0
  initializer: str = "identity"
  use_bias: bool = True
  dropout_rate: float = 0.0
  layer_norm: bool = False
  gated: bool = False

  def __post_init__(self) -> None:
    check_positive(size=self.size)
    check_choice(("after", "before", "parallel"), placement=self.placement)
    check_choice(INITIALIZERS, initializer=self.initializer)
    check_rate(dropout_rate=self.dropout_rate)
    if not isinstance(self.scaling, int | float):
      check_choice(("learned",), scaling=self.scaling)
    activation(self.activation)
    super().__post_init__()

  @property
  def position(self) -> Position:
    return "input" if self.placement == "before" else "output"

  @nn.compact
  def __call__(
    self, x: Array, y: Array | None, site: Site, deterministic: bool
  ) -> Array:
    """x: [B, T, inputs...], y: [B, T, outputs...] -> the new x or y."""
    base = x if y is None else y
    reads_y = self.placement == "after"
    z = y if reads_y else x
    shape, axis = site.inputs, site.input_axis
    if reads_y:
      shape, axis = site.outputs, site.output_axis
    given = math.prod(shape)
    out_axis = site.input_axis if y is None else site.output_axis
    assert z is not None
    z = joined(z, shape)
    raw = z
    if self.layer_norm:
      z = _normalized(z, axis)
    z = nn.Dropout(self.dropout_rate)(z, deterministic=deterministic)
    total = math.prod(base.shape[raw.ndim - 1 :])
    first, second = INITIALIZERS[self.initializer]
    down = parameter("down", first, (given, self.size), (axis, "bottleneck"))
    up = parameter("up", second, (self.size, total), ("bottleneck", out_axis))
    z = z @ down.astype(z.dtype)
    if self.use_bias:
      z = z + zero_bias("down_bias", (self.size,), "bottleneck", z)
    z = activation(self.activation)(z)
    scaling = self.scaling
    if scaling == "learned":
      scaling = parameter("scaling", nn.initializers.ones, (1,), ("adapter",))
      scaling = aligned(scaling, (), z)
    # The scaling goes to the small arrays; it holds for the bias too.
    z = (z * scaling) @ up.astype(z.dtype)
    if self.use_bias:
      z = z + zero_bias("up_bias", (total,), out_axis, z) * scaling
    if self.gated:
      z = z * gate(raw, axis)
    return base + z.reshape(base.shape)


def activation(name: str) -> Callable[[Array], Array]:
  """Returns the activation by that name.

  Raises:
    ValueError: if there is none.
  """
  check_choice(ACTIVATIONS, activation=name)
  return getattr(nn, name)


def _normalized(z: Array, axis: str) -> Array:
  """z: [B, T, inputs], scaled by its root mean square as T5's layer norm."""
  scale = parameter("norm_scale", nn.initializers.ones, (z.shape[-1],), (axis,))
  wide = widened(z)
  mean = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
  normed = wide / jnp.sqrt(mean + 1e-6) * aligned(scale, z.shape[-1:], wide)
  return normed.astype(z.dtype)
