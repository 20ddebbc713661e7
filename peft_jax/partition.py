"""Splits one tree of parameters into backbone and adapter, and counts them."""

import dataclasses
from typing import Any

import jax
import numpy as np
from flax.core import FrozenDict, unfreeze

from peft_jax import layout, trees
from peft_jax.inject import Adapted

Params = Any


class PartitionError(ValueError):
  """A tree that does not split into backbone and adapter as expected."""


def _flat(params: Params) -> dict[str, Any]:
  return trees.flatten(
    unfreeze(params) if isinstance(params, FrozenDict) else dict(params)
  )


def split(params: Params, model: Adapted) -> tuple[dict, dict]:
  """Returns (frozen, adapter): the backbone's leaves and the adapter's.

  Every leaf is in exactly one of the two; `join` is the inverse.

  Example:
    >>> from peft_jax import IA3, Rule
    >>> model = Adapted(None, [Rule("key", IA3())])
    >>> params = {"key": {"kernel": 1, "ia3": {"scaling": 2}}}
    >>> split(params, model)
    ({'key': {'kernel': 1}}, {'key': {'ia3': {'scaling': 2}}})

  Args:
    params: tree of a network with adapters, or of shapes.
    model: the network with its rules.

  Raises:
    PartitionError: if the tree holds no leaf of one of the rules.
  """
  frozen, adapter, seen = {}, {}, set()
  for path, leaf in _flat(params).items():
    owner = model.rule_of(path)
    if owner is None:
      frozen[path] = leaf
    else:
      adapter[path] = leaf
      seen.add(owner[0])
  for rule in model.rules:
    if rule not in seen:
      raise PartitionError(
        f"expected parameters of {rule.pattern!r} named {rule.name!r}, found"
        f" none among {len(frozen)} leaves (top level: {sorted(params)})."
        " Make the tree with Adapted.init."
      )
  return trees.unflatten(frozen), trees.unflatten(adapter)


def join(frozen: Params, adapter: Params) -> dict:
  """Returns the one tree that the network is applied to.

  Example:
    >>> join({"key": {"kernel": 1}}, {"key": {"ia3": {"scaling": 2}}})
    {'key': {'kernel': 1, 'ia3': {'scaling': 2}}}

  Raises:
    PartitionError: if both hold a leaf of the same path.
  """
  flat, extra = _flat(frozen), _flat(adapter)
  both = sorted(flat.keys() & extra.keys())
  if both:
    raise PartitionError(
      "expected backbone and adapter without common leaves, found"
      f" {len(both)}, first {both[0]!r}. Pass the two results of split."
    )
  return trees.unflatten(flat | extra)


def backbone_of(params: Params, model: Adapted) -> dict:
  """Returns the backbone's own tree, with the leaves that are trained.

  Example:
    >>> from peft_jax import Rule, Unfreeze
    >>> model = Adapted(None, [Rule("key/bias", Unfreeze())])
    >>> backbone_of({"key": {"kernel": 1, "bias": 2}}, model)
    {'key': {'kernel': 1, 'bias': 2}}

  Args:
    params: tree of a network with adapters, or of shapes.
    model: the network with its rules.
  """
  flat = _flat(params)
  beside = model.layers_beside(flat)
  return trees.unflatten(
    {
      path: leaf
      for path, leaf in flat.items()
      if path not in beside and not model.is_added(path)
    }
  )


def overlay(backbone: Params, adapter: Params) -> dict:
  """Returns one tree in which the adapter's leaves replace the backbone's.

  As `join`, for a backbone that still has the leaves that the adapter trains.

  Example:
    >>> overlay({"key": {"kernel": 1, "bias": 2}}, {"key": {"bias": 3}})
    {'key': {'kernel': 1, 'bias': 3}}
  """
  return trees.unflatten(_flat(backbone) | _flat(adapter))


def assemble(backbone: Params, added: Params, model: Adapted) -> dict:
  """Returns one tree of a backbone and the leaves that adapters add to it.

  Layers that are trained beside their stack are copied from it.

  Example:
    >>> from peft_jax import IA3, Rule
    >>> model = Adapted(None, [Rule("key", IA3())])
    >>> assemble({"key": {"kernel": 1}}, {"key": {"ia3": {"scaling": 2}}},
    ...   model)
    {'key': {'kernel': 1, 'ia3': {'scaling': 2}}}

  Args:
    backbone: all of the backbone's own leaves.
    added: leaves that adapters made (see `added_of`).
    model: the network with its rules.
  """
  flat = _flat(backbone)
  beside = {
    layer: flat[path][index]
    for layer, (path, index) in model.layers_beside(flat).items()
  }
  return trees.unflatten(flat | beside | _flat(added))


def added_of(params: Params, model: Adapted) -> dict:
  """Returns the leaves that adapters add, without those of the backbone.

  Example:
    >>> from peft_jax import IA3, Rule
    >>> model = Adapted(None, [Rule("key", IA3())])
    >>> added_of({"key": {"kernel": 1, "ia3": {"scaling": 2}}}, model)
    {'key': {'ia3': {'scaling': 2}}}
  """
  flat = _flat(params)
  added = {path: leaf for path, leaf in flat.items() if model.is_added(path)}
  return trees.unflatten(added)


def select(tree: Params, like: Params) -> dict:
  """Returns the leaves of `tree` whose paths `like` has.

  Example:
    >>> select({"key": {"kernel": 1, "bias": 2}}, {"key": {"bias": None}})
    {'key': {'bias': 2}}

  Raises:
    KeyError: for a path that `tree` does not have.
  """
  flat = _flat(tree)
  return trees.unflatten({path: flat[path] for path in _flat(like)})


def divide(adapter: Params, model: Adapted) -> tuple[dict, dict]:
  """Returns (trained, constant): what training changes, and what it keeps.

  Some methods store what they started from (see `Adapter.constants`).

  Example:
    >>> from peft_jax import IA3, Rule
    >>> model = Adapted(None, [Rule("key", IA3())])
    >>> divide({"key": {"ia3": {"scaling": 2}}}, model)
    ({'key': {'ia3': {'scaling': 2}}}, {})

  Args:
    adapter: the adapter's leaves.
    model: the network with its rules.
  """
  trained, constant = {}, {}
  for path, leaf in _flat(adapter).items():
    kept = is_constant(path, model)
    (constant if kept else trained)[path] = leaf
  return trees.unflatten(trained), trees.unflatten(constant)


def is_constant(path: str, model: Adapted) -> bool:
  """Whether a leaf of the adapter is stored and never trained."""
  owner = model.rule_of(path)
  return owner is not None and path.rsplit("/", 1)[-1] in (
    owner[0].adapter.constants
  )


def is_trained(path: str, model: Adapted) -> bool:
  """Whether training changes a leaf.

  Example:
    >>> from peft_jax import IA3, Rule
    >>> is_trained("key/ia3/scaling", Adapted(None, [Rule("key", IA3())]))
    True
  """
  return model.rule_of(path) is not None and not is_constant(path, model)


def trainable_mask(params: Params, model: Adapted) -> Params:
  """Returns the tree of bools, True for adapter leaves; keeps the tree's type.

  For trainers that hold one tree, with `optim.freeze`.

  Example:
    >>> from peft_jax import IA3, Rule
    >>> model = Adapted(None, [Rule("key", IA3())])
    >>> trainable_mask({"key": {"kernel": 1, "ia3": {"scaling": 2}}}, model)
    {'key': {'ia3': {'scaling': True}, 'kernel': False}}
  """

  def is_trainable(path: tuple, _: Any) -> bool:
    return is_trained("/".join(str(key.key) for key in path), model)

  return jax.tree_util.tree_map_with_path(is_trainable, params)


def count(tree: Params) -> int:
  """Returns the number of parameters in a tree of arrays or shapes.

  Example:
    >>> count({"scaling": np.ones((3, 4))})
    12
  """
  return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def nbytes(tree: Params) -> int:
  """Returns the number of bytes of a tree of arrays or shapes.

  Example:
    >>> nbytes({"scaling": np.ones((3, 4), np.float32)})
    48
  """
  return sum(
    int(np.prod(leaf.shape)) * np.dtype(leaf.dtype).itemsize
    for leaf in jax.tree.leaves(tree)
  )


def counts(params: Params, model: Adapted) -> dict[str, int | float]:
  """Returns how much of a model is trained and stored.

  Example:
    >>> from peft_jax import IA3, Rule
    >>> model = Adapted(None, [Rule("key", IA3())])
    >>> params = {"key": {"kernel": np.ones((3, 4), np.float32),
    ...   "ia3": {"scaling": np.ones(4, np.float32)}}}
    >>> counts(params, model)["trained_parameters"]
    4

  Args:
    params: tree of a network with adapters, or of shapes.
    model: the network with its rules.

  Returns:
    `trained_parameters`; `backbone_parameters`, all of the backbone's own;
    `all_parameters` of both; `share` that is trained of these;
    `adapter_bytes`, what is stored.
  """
  _, adapter = split(params, model)
  trained = count(divide(adapter, model)[0])
  backbone = count(backbone_of(params, model))
  total = backbone + count(added_of(params, model))
  return {
    "trained_parameters": trained,
    "backbone_parameters": backbone,
    "all_parameters": total,
    "share": trained / total,
    "adapter_bytes": nbytes(adapter),
  }


@dataclasses.dataclass(frozen=True, kw_only=True)
class RuleRow:
  """One line of the rule table.

  Attributes:
    adapter: the method it places, e.g. 'LoRA'.
    pattern: the rule's pattern.
    sites: number of modules it is placed at.
    example_path: path of the first.
    parameters: number of parameters that it trains.
    note: what one might overlook, such as a tied leaf.
  """

  adapter: str
  pattern: str
  sites: int
  example_path: str
  parameters: int
  note: str = ""


def rule_table(params: Params, model: Adapted) -> list[RuleRow]:
  """Returns what each rule placed where, one row per rule.

  Example:
    >>> from peft_jax import IA3, Rule
    >>> model = Adapted(None, [Rule("key", IA3())])
    >>> [row] = rule_table({"key": {"ia3": {"scaling": np.ones(4)}}}, model)
    >>> row.sites, row.example_path, row.parameters
    (1, 'key', 4)

  Args:
    params: backbone and adapters in one tree, arrays or shapes.
    model: the network with its rules.
  """
  # Layers are counted one by one, whether or not the network stacks them.
  placed: dict[Any, dict[str, int]] = {rule: {} for rule in model.rules}
  for path, leaf in _flat(params).items():
    for rule in model.rules:
      if rule.adapter.position == "leaves" and model.targets(rule, path):
        rows = layout.rows_of(path, leaf)
        placed[rule] |= {row: 0 for row, _ in rows}
    owner = model.rule_of(path)
    if owner is None or is_constant(path, model):
      continue
    rule, _, name = owner
    rows = layout.rows_of(path, leaf)
    for row, shape in rows:
      # What several sites share is counted under its own name.
      place = row if not name else row.rsplit(f"/{rule.name}/", 1)[0]
      size = int(np.prod(shape))
      placed[rule][place] = placed[rule].get(place, 0) + size
  table = []
  for rule, by_site in placed.items():
    sites = [p for p in by_site if not p.startswith(f"{rule.name}_shared/")]
    table.append(
      RuleRow(
        adapter=type(rule.adapter).__name__,
        pattern=rule.pattern,
        sites=len(sites),
        example_path=sites[0] if sites else "",
        parameters=sum(by_site.values()),
        note=_tied(sites, model),
      )
    )
  return table


def _tied(sites: list[str], model: Adapted) -> str:
  """Says that a rule's site is one leaf with the output layer."""
  config = getattr(model.network, "config", None)
  if not getattr(config, "logits_via_embedding", False):
    return ""
  if not any(site.split("/")[0] == "token_embedder" for site in sites):
    return ""
  return "token_embedder is tied: the output layer is the same leaf"


def format_rule_table(rows: list[RuleRow]) -> str:
  """Returns the rule table as aligned text.

  Example:
    >>> row = RuleRow(adapter="IA3", pattern="kv", sites=2,
    ...   example_path="key", parameters=8)
    >>> print(format_rule_table([row]))
    adapter  pattern  sites  parameters  example
    IA3      kv           2           8  key
  """
  header = ("adapter", "pattern", "sites", "parameters", "example")
  cells = [header] + [
    (
      r.adapter,
      r.pattern,
      str(r.sites),
      f"{r.parameters:,}",
      r.example_path,
    )
    for r in rows
  ]
  widths = [max(len(row[i]) for row in cells) for i in range(len(header))]

  def line(row: tuple[str, ...]) -> str:
    left = [row[0].ljust(widths[0]), row[1].ljust(widths[1])]
    right = [row[2].rjust(widths[2]), row[3].rjust(widths[3])]
    return "  ".join([*left, *right, row[4]])

  notes = [f"{r.pattern}: {r.note}" for r in rows if r.note]
  return "\n".join([*map(line, cells), *notes])
