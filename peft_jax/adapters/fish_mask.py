"""FISH mask: trains the few parameters that matter most (2111.09839)."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from peft_jax.adapters.base import Adapter, Array, Leaf, Position


class FishMask(Adapter):
  """Adds learned changes to the entries with the largest Fisher information.

  The rule's pattern is matched against the backbone's leaf paths. Entries are
  chosen over all of them together (section 3.2), by `choose`; until then they
  are the first ones.

  Example:
    >>> from peft_jax import Rule
    >>> rule = Rule(r".*/kernel", FishMask(keep=0.005))

  Parameters: `values` [k], zero at the start; `leaf` and `offset` [k] int32,
  which leaf and which entry of it, stored and never trained. k is `keep` times
  the number of entries, rounded up.

  Attributes:
    keep: share of the entries that is trained, default 0.005 (the paper's best
      is 0.5 %; T-Few: 0.002 and 0.0002).

  Raises:
    ValueError: unless 0 < keep <= 1.
  """

  method: ClassVar[str] = "fish_mask"

  _: dataclasses.KW_ONLY
  keep: float = 0.005

  def __post_init__(self) -> None:
    if not 0 < self.keep <= 1:
      raise ValueError(f"expected 0 < keep <= 1, found keep={self.keep}.")
    super().__post_init__()

  @property
  def position(self) -> Position:
    return "leaves"

  @property
  def mergeable(self) -> bool:
    return True

  @property
  def constants(self) -> frozenset[str]:
    return frozenset({"leaf", "offset"})

  def own_leaves(
    self, shapes: Mapping[str, tuple[int, ...]]
  ) -> dict[str, Leaf]:
    """The entries' values and places."""
    k = self.count(shapes)
    sizes = [math.prod(shapes[path]) for path in sorted(shapes)]
    # Ends past k do not matter, and might not fit 32 bits.
    ends = np.minimum(np.cumsum(sizes), k)

    def first(which: int) -> Leaf:
      def init(key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
        entry = jnp.arange(shape[0])
        leaf = jnp.searchsorted(jnp.asarray(ends), entry, side="right")
        starts = jnp.asarray(np.concatenate([[0], ends]))
        return (leaf, entry - starts[leaf])[which].astype(dtype)

      return Leaf(
        shape=(k,), initializer=init, axes=("adapter",), dtype="int32"
      )

    values = Leaf(
      shape=(k,), initializer=nn.initializers.zeros, axes=("adapter",)
    )
    return {"values": values, "leaf": first(0), "offset": first(1)}

  def count(self, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Returns k, the number of entries that are trained."""
    entries = self.keep * sum(map(math.prod, shapes.values()))
    # 0.07 * 100 is a little more than 7 in binary.
    return math.ceil(round(entries, 6))

  def transform(
    self, rows: Mapping[str, Array], own: Mapping[str, Array]
  ) -> dict[str, Array]:
    """Returns the backbone's leaves with the changes added.

    Args:
      rows: leaf path -> array, one module per layer.
      own: `values`, `leaf` and `offset`.
    """
    changed = {}
    for i, path in enumerate(sorted(rows)):
      flat = rows[path].reshape(-1)
      # Entries of other leaves go past the end, where they are dropped.
      place = jnp.where(own["leaf"] == i, own["offset"], flat.shape[0])
      values = own["values"].astype(flat.dtype)
      flat = flat.at[place].add(values, mode="drop")
      changed[path] = flat.reshape(rows[path].shape)
    return changed


def fisher(
  loss: Callable[[Any, Any], Array], leaves: Any, batches: Iterable[Any]
) -> Any:
  """Returns the mean squared gradient of every entry: the empirical Fisher.

  Example:
    >>> loss = lambda leaves, x: leaves["w"] * x
    >>> batches = [jnp.float32(1), jnp.float32(3)]
    >>> float(fisher(loss, {"w": jnp.float32(2)}, batches)["w"])
    5.0

  Args:
    loss: (leaves, batch) -> the mean loss of the batch. The paper takes one
      example per batch, as T-Few's code does.
    leaves: tree of arrays.
    batches: at least one batch.

  Raises:
    ValueError: if there is no batch.
  """
  squared = jax.jit(
    lambda leaves, batch: jax.tree.map(
      jnp.square, jax.grad(loss)(leaves, batch)
    )
  )
  total, number = None, 0
  for batch in batches:
    found = squared(leaves, batch)
    total = found if total is None else jax.tree.map(jnp.add, total, found)
    number += 1
  if total is None:
    raise ValueError(
      "expected at least one batch to estimate the Fisher information from,"
      " found none."
    )
  return jax.tree.map(lambda x: x / number, total)


def choose(information: Mapping[str, Array], k: int) -> dict[str, np.ndarray]:
  """Returns `leaf` and `offset` of the k entries with the most information.

  Example:
    >>> chosen = choose({"a": np.array([1.0, 5.0]), "b": np.array([3.0])}, 2)
    >>> chosen["leaf"].tolist(), chosen["offset"].tolist()
    ([0, 1], [1, 0])

  Args:
    information: leaf path -> array, one module per layer.
    k: number of entries.
  """
  paths = sorted(information)
  flat = [np.asarray(information[path]).reshape(-1) for path in paths]
  every = np.concatenate(flat)
  # Of equals, the first: the choice does not depend on the machine.
  best = np.sort(np.argsort(-every, kind="stable")[:k])
  ends = np.cumsum([len(part) for part in flat])
  leaf = np.searchsorted(ends, best, side="right")
  offset = best - np.concatenate([[0], ends])[leaf]
  return {"leaf": leaf.astype(np.int32), "offset": offset.astype(np.int32)}
