"""TensorFlow as a feeder of data: no devices, no notes at its start."""

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator

# What its C++ libraries say before any of its settings is read.
_NOTES = re.compile(
  r"absl::InitializeLog|oneDNN custom operations|Could not find cuda drivers"
  r"|failed call to cuInit|rebuild TensorFlow with the appropriate compiler"
)


def import_tensorflow() -> None:
  """Imports TensorFlow, once, and keeps it off the accelerators.

  It would otherwise take all memory of a GPU that JAX trains on.

  Raises:
    RuntimeError: if somebody has used it with a GPU before.
  """
  # JAX has set 1, which shows warnings; who wants them all sets 0.
  if os.environ.get("TF_CPP_MIN_LOG_LEVEL", "1") == "1":
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
  if "tensorflow" in sys.modules:
    _hide_devices()
    return
  with _without_notes():
    import tensorflow_text

    del tensorflow_text  # its operations are registered now
    _hide_devices()


def _hide_devices() -> None:
  import tensorflow as tf

  if not tf.config.get_visible_devices("GPU"):
    return
  try:
    tf.config.set_visible_devices([], "GPU")
  except RuntimeError as error:
    raise RuntimeError(
      "expected TensorFlow without GPUs, which JAX trains on, found it started"
      " with them. Call peft_jax.train.host_tensorflow.import_tensorflow()"
      " before you use TensorFlow."
    ) from error


@contextlib.contextmanager
def _without_notes() -> Iterator[None]:
  """Holds back what is written to standard error, and all but notes go on."""
  sys.stderr.flush()
  kept = os.dup(2)
  with tempfile.TemporaryFile() as file:
    os.dup2(file.fileno(), 2)
    try:
      yield
    finally:
      sys.stderr.flush()
      os.dup2(kept, 2)
      os.close(kept)
      file.seek(0)
      for line in file:
        text = line.decode(errors="replace")
        if not _NOTES.search(text):
          sys.stderr.write(text)
