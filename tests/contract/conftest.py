"""Keeps the tests of one method on one worker: what it compiled is there."""

import pathlib

import pytest

HERE = pathlib.Path(__file__).parent


def pytest_collection_modifyitems(items):
  """Groups tests by method, for `pytest -n N --dist loadgroup`."""
  for item in items:
    params = getattr(item, "callspec", None)
    names = params.params if params else {}
    if "method" in names and item.path.parent == HERE:  # all items come here
      item.add_marker(pytest.mark.xdist_group(names["method"]))
