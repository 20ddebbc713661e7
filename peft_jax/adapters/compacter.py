"""Compacter: adapters of Kronecker products (arXiv 2106.04647)."""

import dataclasses

import jax.numpy as jnp
from flax import linen as nn

from peft_jax.adapters.base import (
  Adapter,
  Array,
  Leaf,
  Position,
  Site,
  check_positive,
  joined,
  parameter,
  zero_bias,
)
from peft_jax.adapters.bottleneck import activation


class Compacter(Adapter):
  """Adds up(activation(down(y))) to what a sub-layer gives; both factored.

  Each matrix is W = sum_i kron(A_i, s_i t_i), i < n (section 4, equation 5):
  the A_i [n, n] are shared by all layers, s_i and t_i are a layer's own and of
  rank `phm_rank`. Kronecker products are never formed.

  Example:
    >>> from peft_jax import Rule
    >>> compacter = Rule(".*(attention|mlp)", Compacter(size=24))
    >>> compacter_pp = Rule(".*mlp", Compacter(size=24))

  Parameters per site, with n the division: `down_s` [n, D/n, r], `down_t`
  [n, r, size/n], `up_s` [n, size/n, r], `up_t` [n, r, D/n], `down_bias` [size],
  `up_bias` [D]. Shared: `down_rule` and `up_rule` [n, n, n].

  Attributes:
    size: bottleneck size, default 24 (table 1's setting for T5-base: D / 32).
    division: n, default 4.
    phm_rank: r, default 1.
    activation: default 'gelu'.

  Raises:
    ValueError: if n divides the bottleneck size or the site's size not evenly.
  """

  _: dataclasses.KW_ONLY
  size: int = 24
  division: int = 4
  phm_rank: int = 1
  activation: str = "gelu"

  def __post_init__(self) -> None:
    check_positive(
      size=self.size, division=self.division, phm_rank=self.phm_rank
    )
    if self.size % self.division:
      raise ValueError(
        f"expected division to divide size, found size={self.size} and"
        f" division={self.division}."
      )
    activation(self.activation)
    super().__post_init__()

  @property
  def position(self) -> Position:
    return "output"

  def shared_leaves(self, site: Site) -> dict[str, Leaf]:
    """The A_i of the down and of the up projection, N(0, 0.1)."""
    del site
    n = self.division
    rule = Leaf(
      shape=(n, n, n),
      initializer=nn.initializers.normal(0.1),
      axes=("phm", "phm_in", "phm_out"),
    )
    return {"down_rule": rule, "up_rule": rule}

  @nn.compact
  def __call__(
    self, x: Array, y: Array, site: Site, deterministic: bool
  ) -> Array:
    """y: [B, T, D] -> [B, T, D]."""
    del x, deterministic
    given = site.output_size
    if given % self.division:
      raise ValueError(
        f"expected division to divide the site's {given} features, found"
        f" division={self.division}."
      )
    z = joined(y, site.outputs)
    z = self._multiply("down", z, self.size, "bottleneck", site)
    z = activation(self.activation)(z)
    z = self._multiply("up", z, given, site.output_axis, site)
    return y + z.reshape(y.shape)

  def _multiply(
    self, name: str, z: Array, outputs: int, axis: str, site: Site
  ) -> Array:
    """z: [B, T, inputs] -> [B, T, outputs], z @ W + bias."""
    n, r, inputs = self.division, self.phm_rank, z.shape[-1]
    # Glorot's variance for the matrix s_i t_i; up starts at zero.
    draw = nn.initializers.glorot_uniform(batch_axis=0)
    last = nn.initializers.zeros if name == "up" else draw
    s = self._leaf(f"{name}_s", draw, (n, inputs // n, r))
    t = self._leaf(f"{name}_t", last, (n, r, outputs // n))
    rule, s, t = (
      leaf.astype(z.dtype) for leaf in (site.shared[f"{name}_rule"], s, t)
    )
    blocks = z.reshape(*z.shape[:-1], n, inputs // n)
    low = jnp.einsum("...pu,iur->...ipr", blocks, s)
    mixed = jnp.einsum("...ipr,ipq->...iqr", low, rule)
    out = jnp.einsum("...iqr,irv->...qv", mixed, t)
    out = out.reshape(*z.shape[:-1], outputs)
    return out + zero_bias(f"{name}_bias", (outputs,), axis, out)

  def _leaf(
    self, name: str, init: nn.initializers.Initializer, shape: tuple[int, ...]
  ) -> Array:
    axes = ("phm", "phm_in", "phm_out")
    return parameter(name, init, shape, axes)
