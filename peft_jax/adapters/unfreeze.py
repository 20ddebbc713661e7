"""Trains parameters of the backbone itself: some, or all of them."""

from peft_jax.adapters.base import Adapter, Position


class Unfreeze(Adapter):
  """Trains the backbone's own leaves, whole.

  The rule's pattern is matched against leaf paths: r".*layer_norm/scale" tunes
  the layer norms, r"(encoder|decoder)/layers_(22|23)/.*" the top two layers,
  r".*" everything (full fine-tuning). Under a scan, layers that are trained
  while the others of their stack are not are kept beside the stack.

  Example:
    >>> from peft_jax import Rule
    >>> rule = Rule(r".*norm/scale", Unfreeze())

  Parameters: the leaves themselves, stored in full with the adapter.
  """

  @property
  def position(self) -> Position:
    return "backbone"

  @property
  def mergeable(self) -> bool:
    return True
