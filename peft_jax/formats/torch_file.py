"""Files that `torch.save` wrote of tensors by name, without PyTorch.

Such a file is a zip archive of raw arrays and a pickle that says how they are
called. The pickle is read by an unpickler that knows tensors and dictionaries
and nothing else: a file cannot run code.
"""

import io
import math
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from peft_jax.formats.safetensors_io import FormatError

_DTYPES = {
  "DoubleStorage": np.dtype("float64"),
  "FloatStorage": np.dtype("float32"),
  "HalfStorage": np.dtype("float16"),
  "BFloat16Storage": np.dtype(jnp.bfloat16),
  "LongStorage": np.dtype("int64"),
  "IntStorage": np.dtype("int32"),
  "BoolStorage": np.dtype("bool"),
}


def read(path: str | Path) -> dict[str, np.ndarray]:
  """Returns name -> array of a file.

  Args:
    path: of PyTorch 1.6 or later.

  Raises:
    FormatError: for another file, one that is cut off, or one that holds
      anything but tensors by name.
  """
  try:
    with zipfile.ZipFile(path) as archive:
      [pickled] = [n for n in archive.namelist() if n.endswith("/data.pkl")]
      root = pickled.removesuffix("data.pkl")
      if f"{root}byteorder" in archive.namelist():
        order = archive.read(f"{root}byteorder").decode()
        if order != "little":
          raise FormatError(f"expected little-endian {path}, found {order!r}.")
      content = archive.read(pickled)
      found = _Unpickler(content, lambda key: archive.read(f"{root}data/{key}"))
      tensors = found.load()
  except FormatError:
    raise
  except Exception as error:  # zipfile, zlib and pickle raise many kinds
    raise FormatError(
      f"expected a file of torch.save (1.6 or later) at {path}, found one that"
      f" does not parse: {type(error).__name__}: {error}."
    ) from error
  if not isinstance(tensors, dict) or not all(
    isinstance(x, np.ndarray) for x in tensors.values()
  ):
    raise FormatError(
      f"expected tensors by name in {path}, found {type(tensors).__name__} with"
      " something else. Save the model's state_dict alone."
    )
  return tensors


class _Unpickler(pickle.Unpickler):
  """Makes arrays, and refuses whatever else a pickle may ask for."""

  def __init__(self, content: bytes, data: Callable[[str], bytes]) -> None:
    super().__init__(io.BytesIO(content))
    self._data = data

  def find_class(self, module: str, name: str) -> Any:
    if module == "torch" and name in _DTYPES:
      return _DTYPES[name]
    known: dict[tuple[str, str], Any] = {
      ("collections", "OrderedDict"): dict,
      ("torch._utils", "_rebuild_tensor_v2"): _tensor,
      ("torch._utils", "_rebuild_parameter"): lambda x, *_: x,
    }
    if (module, name) not in known:
      raise FormatError(
        f"expected tensors alone, found {module}.{name} in the file. Nothing of"
        " it was run; save the model's state_dict alone."
      )
    return known[module, name]

  def persistent_load(self, pid: Any) -> np.ndarray:
    _, dtype, key, _, size = pid
    return np.frombuffer(self._data(key), dtype, size)


def _tensor(
  storage: np.ndarray,
  offset: int,
  shape: tuple[int, ...],
  strides: tuple[int, ...],
  *_: Any,
) -> np.ndarray:
  """Returns the array that lies in a storage."""
  last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
  if math.prod(shape) and not 0 <= offset <= last < storage.size:
    raise FormatError(
      f"expected a tensor of shape {shape} within its {storage.size} values,"
      f" found it to end at {last}. The file is damaged."
    )
  itemsize = storage.dtype.itemsize
  view = np.lib.stride_tricks.as_strided(
    storage[offset:], shape, [s * itemsize for s in strides], writeable=False
  )
  return np.array(view)


def write(path: str | Path, tensors: Mapping[str, np.ndarray]) -> None:
  """Writes tensors as `torch.save` does, float32 all.

  Args:
    path: replaced if it exists.
    tensors: name -> array; others than float32 are converted.
  """
  arrays = {
    name: np.asarray(x, "<f4", order="C") for name, x in tensors.items()
  }
  # Stored and not compressed: PyTorch maps it.
  with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
    archive.writestr("archive/data.pkl", _pickled(arrays))
    archive.writestr("archive/byteorder", "little")
    for i, array in enumerate(arrays.values()):
      archive.writestr(f"archive/data/{i}", array.tobytes())
    archive.writestr("archive/version", "3\n")


def _pickled(arrays: Mapping[str, np.ndarray]) -> bytes:
  """Returns the pickle of a dictionary of tensors, opcode by opcode.

  Pickling would have to import the functions of PyTorch that it names.
  """
  parts = [b"\x80\x02}("]  # protocol 2, an empty dictionary, mark
  for i, (name, array) in enumerate(arrays.items()):
    strides = [s // array.itemsize for s in array.strides]
    parts += [
      _text(name),
      b"ctorch._utils\n_rebuild_tensor_v2\n(",
      *(b"(", _text("storage"), b"ctorch\nFloatStorage\n", _text(str(i))),
      *(_text("cpu"), _number(array.size), b"tQ"),  # the storage, by its name
      *(_number(0), _tuple(array.shape), _tuple(strides)),
      b"\x89ccollections\nOrderedDict\n)RtR",  # no gradient, no hooks
    ]
  return b"".join([*parts, b"u."])


def _text(text: str) -> bytes:
  encoded = text.encode()
  return b"X" + struct.pack("<I", len(encoded)) + encoded


def _number(number: int) -> bytes:
  return b"J" + struct.pack("<i", number)


def _tuple(numbers: Any) -> bytes:
  return b"(" + b"".join(map(_number, numbers)) + b"t"
