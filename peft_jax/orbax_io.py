"""Trees of arrays as Orbax checkpoints, on disk or in a bucket.

The only core file that needs Orbax.

Orbax is imported when it is used: it takes as long to import as JAX, and
machines that only train or measure do without it.
"""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np


def locate(path: str | os.PathLike[str]) -> Any:
  """Returns a path of this machine as absolute, a bucket's as it is.

  `pathlib` would take `gs://bucket/run` for a folder called `gs:`.

  Example:
    >>> str(locate("gs://bucket/run"))
    'gs://bucket/run'
  """
  if "://" in os.fspath(path):
    from etils import epath

    return epath.Path(path)
  return Path(path).absolute()


def vacant(path: str | os.PathLike[str], error: type[ValueError]) -> Path:
  """Returns the path, where a new directory can be written.

  Example:
    >>> vacant("new", ValueError).name
    'new'

  Args:
    path: must not exist, or be empty.
    error: what to raise.

  Raises:
    ValueError: of that class, if the path is taken, or in a bucket.
  """
  directory = locate(path)
  if not isinstance(directory, Path):
    raise error(
      f"expected a folder of this machine, found {directory}. Nothing was"
      " written; write it here, then copy it: gcloud storage cp --recursive."
    )
  if directory.exists() and any(directory.iterdir()):
    raise error(
      f"expected a new or empty directory, found {directory} with"
      f" {sorted(p.name for p in directory.iterdir())[:3]}. Nothing was"
      " written; choose another one."
    )
  return directory


@contextlib.contextmanager
def finished(directory: Path) -> Iterator[Path]:
  """Gives a folder to write in, and names it when all is written.

  So a directory is whole or not there. What an interrupted call left behind is
  removed by the next one.

  Example:
    >>> import tempfile
    >>> new = Path(tempfile.mkdtemp()) / "new"
    >>> with finished(new) as partial:
    ...   _ = (partial / "a.txt").write_text("a")
    >>> [path.name for path in new.iterdir()]
    ['a.txt']

  Args:
    directory: does not exist, or is empty.
  """
  partial = directory.with_name(directory.name + ".partial")
  shutil.rmtree(partial, ignore_errors=True)
  partial.mkdir(parents=True)
  yield partial
  if directory.exists():
    directory.rmdir()
  partial.rename(directory)


def write(path: Path, tree: Any) -> None:
  """Writes a tree of arrays to a new directory.

  Args:
    path: absolute; must not exist.
    tree: nested dicts of arrays.
  """
  import orbax.checkpoint as ocp

  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(path, tree)


def read(path: Path) -> Any:
  """Reads a tree as numpy arrays, whatever devices wrote it.

  Args:
    path: absolute.
  """
  import orbax.checkpoint as ocp

  with ocp.PyTreeCheckpointer() as checkpointer:
    metadata = checkpointer.metadata(path).item_metadata
    args = jax.tree.map(
      lambda _: ocp.RestoreArgs(restore_type=np.ndarray), metadata.tree
    )
    return checkpointer.restore(path, restore_args=args)
