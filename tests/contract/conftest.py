"""Keeps the tests of one model on one worker: what it compiled is there."""

import pytest


def pytest_collection_modifyitems(items):
  """Groups tests by network and method, for `pytest -n N --dist loadgroup`."""
  for item in items:
    params = getattr(item, "callspec", None)
    names = params.params if params else {}
    if {"kind", "method"} <= names.keys():
      group = f"{names['kind']}-{names['method']}"
      item.add_marker(pytest.mark.xdist_group(group))
