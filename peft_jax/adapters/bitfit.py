"""BitFit: trains biases alone (arXiv 2106.10199)."""

from flax import linen as nn

from peft_jax.adapters.base import Adapter, Array, Position, Site, zero_bias


class BitFit(Adapter):
  """Adds a learned bias to what a module gives, zero at the start.

  T5 has no biases: T-Few's baseline adds them to every linear map, and trains
  the layer norms besides.

  Example:
    >>> from peft_jax import Rule
    >>> rule = Rule("all_linear", BitFit())

  Parameters: `bias` [outputs]. No kernel of T5 can hold it: it cannot be
  merged.
  """

  @property
  def position(self) -> Position:
    return "output"

  @nn.compact
  def __call__(
    self, x: Array, y: Array, site: Site, deterministic: bool
  ) -> Array:
    """y: [B, T, outputs...] -> [B, T, outputs...]."""
    del x, deterministic
    return y + zero_bias("bias", site.outputs, site.output_axis, y)
