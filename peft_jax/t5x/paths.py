"""What lies at a path that T5X is given: a backbone, an adapter, or less."""

from peft_jax import manifest as manifests
from peft_jax.formats import hugging_face
from peft_jax.formats import t5x as t5x_files
from peft_jax.orbax_io import locate
from peft_jax.train import checkpoints, setup

# Names of a backbone that are no paths.
_NAMES = ("random", *setup.SHIPPED)


def source_of(path: str) -> str:
  """Returns a backbone's path as manifests name it.

  Example:
    >>> source_of("random")
    'random'
  """
  known = (t5x_files.PREFIX, hugging_face.PREFIX)
  if path in _NAMES or path.startswith(known):
    return path
  if t5x_files.is_checkpoint(path) and not path.endswith(".npz"):
    return f"{t5x_files.PREFIX}{path}"
  return path


def checkpoint_path(path: str) -> str:
  """Returns an adapter's path as T5X's evaluation wants it.

  At its end T5X sorts the paths by the number that they end in. So of a run it
  is the last checkpoint; to an exported adapter its step is appended, and taken
  off again by `AdapterCheckpointer`. Other paths are returned as they are.

  Args:
    path: a run, one of its checkpoints, or an exported adapter.
  """
  if not is_adapter(path):
    return path
  if steps := checkpoints.steps_of(path):
    return str(checkpoints.folder_of(path, steps[-1]))
  if checkpoints.is_checkpoint(path):
    return path
  step = manifests.read(path).training.get("step", 0)
  return f"{path}/{step}"


def located(path: str) -> str:
  """Takes off what `checkpoint_path` appended.

  Example:
    >>> located("/nowhere/adapter/200")
    '/nowhere/adapter'
  """
  parent, _, name = path.rstrip("/").rpartition("/")
  if name.isdigit() and parent and not locate(path).exists():
    return parent
  return path


def is_adapter(path: str) -> bool:
  """Whether a path is a run, a checkpoint of one, or an exported adapter."""
  if path in _NAMES or not locate(path).is_dir():
    return False
  return bool(
    checkpoints.steps_of(path)
    or checkpoints.is_checkpoint(path)
    or (locate(path) / manifests.FILE_NAME).is_file()
  )


def is_partial(path: str) -> bool:
  """Whether a job was killed while it wrote a checkpoint to a bucket."""
  name = path.rstrip("/").rpartition("/")[2]
  prefix, _, step = name.rpartition("_")
  if prefix != checkpoints.T5X_PREFIX or not step.isdigit():
    return False
  if not locate(path).is_dir():
    return False
  found = {p.name.split(".")[0] for p in locate(path).iterdir()}
  return found <= {
    *("adapter", "optimizer", "manifest", "metrics"),
    *("_CHECKPOINT_METADATA", "commit_success"),
  }


def exists(path: str) -> bool:
  """Whether there is anything, or it is a backbone's name."""
  return path in _NAMES or locate(path).exists()
