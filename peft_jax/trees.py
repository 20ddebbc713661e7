"""Nested dicts of leaves, and the same by '/'-joined paths."""

from collections.abc import Mapping
from typing import Any

from flax.traverse_util import flatten_dict, unflatten_dict


def flatten(tree: Any) -> dict[str, Any]:
  """Returns '/'-joined path -> leaf.

  Example:
    >>> flatten({"query": {"kernel": 1}})
    {'query/kernel': 1}

  Args:
    tree: nested dicts, or Flax's frozen ones.
  """
  return flatten_dict(tree, sep="/")


def unflatten(leaves: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the nested dicts that `flatten` took apart.

  Example:
    >>> unflatten({"query/kernel": 1})
    {'query': {'kernel': 1}}

  Args:
    leaves: '/'-joined path -> leaf.
  """
  return unflatten_dict(leaves, sep="/")
