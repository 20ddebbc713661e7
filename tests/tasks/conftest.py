"""What the tests of the tasks share. Without SeqIO there are no tasks."""

import importlib.util
import json
import pathlib

import pytest

if importlib.util.find_spec("seqio") is None:
  collect_ignore_glob = ["test_*.py"]

SHARED = pathlib.Path(__file__).resolve().parents[3] / "shared" / "data"


@pytest.fixture(autouse=True)
def registries():
  """Puts SeqIO's registries back to what they were before a test."""
  import seqio

  kinds = (seqio.TaskRegistry, seqio.MixtureRegistry)
  before = [{name: kind.get(name) for name in kind.names()} for kind in kinds]
  yield
  for kind, providers in zip(kinds, before, strict=True):
    for name in list(kind.names()):
      kind.remove(name)
    for name, provider in providers.items():
      kind.add_provider(name, provider)


@pytest.fixture
def write_rows():
  """Returns a function that writes rows as JSON lines, and text as it is."""

  def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [r if isinstance(r, str) else json.dumps(r) for r in rows]
    path.write_text("".join(f"{line}\n" for line in lines))
    return path

  return write


@pytest.fixture
def shared_data():
  """Returns a function to a file or folder of the shared data, or a skip."""

  def find(name):
    path = SHARED / name
    if not path.exists():
      pytest.skip(f"needs the shared data {path}, which is not here")
    return path

  return find
