"""Prefix tuning: learned keys and values in every attention (ACL 2021)."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from peft_jax.adapters.base import (
  Adapter,
  Array,
  Leaf,
  Position,
  Site,
  check_positive,
  parameter,
)
from peft_jax.adapters.gate import gate_logits
from peft_jax.precision import widened

# The leaves that a direct prefix has at each attention.
DIRECT = ("key", "value")


class Prefix(Adapter):
  """Puts P learned keys and values in front of an attention's own.

  Every query sees all of them: their mask is open. With `own_positions` they
  take the P positions in front of the text: relative and ALiBi biases reach
  them, and text moves by P where positions are learned or rotary. Otherwise
  their bias is zero and text stays where it is. A rotary network uses them as
  they are, unturned (see docs/implementation.md).

  Example:
    >>> from peft_jax import Rule
    >>> everywhere = Rule(".*attention", Prefix(length=10))
    >>> infix = Rule("decoder/.*attention", Prefix(length=10))

  Parameters: `key` and `value` [P, H*K]. With `hidden_size` M a network makes
  them, whose first half the layers of a group (encoder self-, decoder self- or
  cross-attention) share: `embedding` [P, D], `hidden` [D, M], `hidden_bias`
  [M]; each layer has its own `out` [M, 2*H*K] and `out_bias` [2*H*K]. Export
  drops the network. With `gated`, also `gate` [D, 1].

  Attributes:
    length: P, default 10 (the paper's for table-to-text; 200 for XSUM).
    hidden_size: M of the reparametrisation; 0: none. Default 512 (section 4.3
      and the authors' code).
    scale: standard deviation of a direct prefix at the start, default 1 as
      T-Few's randn.
    own_positions: whether the prefix takes positions; None: in decoder-only
      networks, as the authors' code for GPT-2, and not in encoder-decoders, as
      theirs for BART. Hugging Face PEFT's prefixes do in both.
    gated: a gate per token adds its logarithm to the prefix's logits; 0 is no
      prefix (UniPELT has a gate per example, see `gate`).

  Raises:
    ValueError: for a value out of range.
  """

  start_fields: ClassVar[frozenset[str]] = frozenset({"scale"})

  _: dataclasses.KW_ONLY
  length: int = 10
  hidden_size: int = 512
  scale: float = 1.0
  own_positions: bool | None = None
  gated: bool = False

  def __post_init__(self) -> None:
    check_positive(length=self.length, scale=self.scale)
    if self.hidden_size < 0:
      raise ValueError(f"expected hidden_size >= 0, found {self.hidden_size}.")
    super().__post_init__()

  @property
  def position(self) -> Position:
    return "attention"

  @property
  def reparametrized(self) -> bool:
    """Whether a network makes the prefix, which export drops."""
    return self.hidden_size > 0

  def group(self, path: str) -> str:
    """Layers of one stack and one kind of attention share."""
    return f"{path.split('/')[0]}_{path.split('/')[-1]}"

  def shared_leaves(self, site: Site) -> dict[str, Leaf]:
    """The first half of the network, one per group."""
    if not self.hidden_size:
      return {}
    size, mid = site.input_size, self.hidden_size
    return {
      "embedding": Leaf(
        shape=(self.length, size),
        initializer=nn.initializers.normal(1.0),
        axes=("prompt", "embed"),
      ),
      "hidden": Leaf(
        shape=(size, mid),
        initializer=nn.initializers.lecun_normal(),
        axes=("embed", "bottleneck"),
      ),
      "hidden_bias": Leaf(
        shape=(mid,), initializer=nn.initializers.zeros, axes=("bottleneck",)
      ),
    }

  @nn.compact
  def __call__(self, x: Array, site: Site) -> tuple[Array, Array, Array | None]:
    """Returns key and value [P, H, K], and log gates [B, 1, T, P] or None."""
    shape = (self.length, *site.outputs)
    gates = None
    if self.gated:
      logits = jax.nn.log_sigmoid(widened(gate_logits(x, "embed")))
      gates = jnp.broadcast_to(
        logits[:, None], (x.shape[0], 1, x.shape[1], self.length)
      )
    if self.hidden_size:
      leaves = self._own(site)
      key, value = (
        half.reshape(shape) for half in self._made(leaves, site.shared)
      )
      return key, value, gates
    key, value = (
      parameter(
        name,
        nn.initializers.normal(self.scale),
        (self.length, site.output_size),
        ("prompt", "joined_kv"),
      ).reshape(shape)
      for name in DIRECT
    )
    return key, value, gates

  def _own(self, site: Site) -> dict[str, Array]:
    """The second half of the network, a layer's own."""
    mid, size = self.hidden_size, 2 * site.output_size
    draw = nn.initializers.lecun_normal()
    return {
      "out": parameter("out", draw, (mid, size), ("bottleneck", "prefix_kv")),
      "out_bias": parameter(
        "out_bias", nn.initializers.zeros, (size,), ("prefix_kv",)
      ),
    }

  def _made(
    self, leaves: Mapping[str, Array], shared: Mapping[str, Array]
  ) -> tuple[Array, Array]:
    """Returns key and value, [P, H*K], as the network makes them."""
    hidden = shared["embedding"] @ shared["hidden"]
    hidden = jnp.tanh(hidden + shared["hidden_bias"][None, :])
    both = hidden @ leaves["out"] + leaves["out_bias"][None, :]
    key, value = jnp.split(both, 2, axis=-1)
    return key, value

  def flatten(
    self, leaves: dict[str, Array], shared: dict[str, Array]
  ) -> dict[str, Array]:
    """Returns the leaves of `plain` at one attention."""
    key, value = self._made(leaves, shared)
    kept = {"gate": leaves["gate"]} if "gate" in leaves else {}
    return {"key": key, "value": value} | kept

  def plain(self) -> "Prefix":
    """Returns the same prefix without its network."""
    return self.clone(hidden_size=0)
