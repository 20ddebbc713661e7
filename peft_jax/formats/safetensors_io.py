"""The safetensors format: 8 bytes of length, a JSON header, the raw arrays.

Arrays are mapped into memory and read when they are used, in every dtype that
JAX has, which numpy alone has not.
"""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

_DTYPES: dict[str, Any] = {
  "F64": np.float64,
  "F32": np.float32,
  "F16": np.float16,
  "BF16": jnp.bfloat16,
  "F8_E4M3": jnp.float8_e4m3fn,
  "F8_E5M2": jnp.float8_e5m2,
  "I64": np.int64,
  "I32": np.int32,
  "I16": np.int16,
  "I8": np.int8,
  "U8": np.uint8,
  "BOOL": np.bool_,
}
_NAMES = {np.dtype(dtype): name for name, dtype in _DTYPES.items()}
# No header of a real file is larger; a wrong file's first bytes say it is.
_LARGEST_HEADER = 100 << 20

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


class FormatError(ValueError):
  """A file that is not what it should be."""


class Tensors(Mapping[str, np.ndarray]):
  """The arrays of one file, or of all files of a sharded index.

  Example:
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "model.safetensors"
    >>> write(path, {"x": np.ones(2, np.float32)})
    >>> Tensors([path])["x"].tolist()
    [1.0, 1.0]

  Raises:
    FormatError: for a file that is cut off, or no safetensors file.
  """

  def __init__(self, paths: list[Path]) -> None:
    self._entries: dict[str, tuple[Path, int, dict]] = {}
    for path in paths:
      header, start = _read_header(path)
      for name, entry in header.items():
        self._entries[name] = (path, start, entry)

  def __getitem__(self, name: str) -> np.ndarray:
    path, start, entry = self._entries[name]
    shape = tuple(entry["shape"])
    dtype = np.dtype(_DTYPES[entry["dtype"]])
    if 0 in shape:
      return np.zeros(shape, dtype)
    begin = start + entry["data_offsets"][0]
    mapped = np.memmap(path, dtype, "r", begin, shape or (1,))
    return np.asarray(mapped).reshape(shape)

  def __iter__(self) -> Iterator[str]:
    return iter(self._entries)

  def __len__(self) -> int:
    return len(self._entries)


def open_directory(directory: str | Path) -> Tensors:
  """Returns the arrays of a model's directory, sharded or not.

  Raises:
    FormatError: if there are none, or a file of the index is missing.
  """
  directory = Path(directory)
  index = directory / INDEX
  if index.is_file():
    names = json.loads(index.read_text("utf-8"))["weight_map"]
    paths = [directory / name for name in sorted(set(names.values()))]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
      raise FormatError(
        f"expected {len(paths)} files that {index} names, found"
        f" {', '.join(missing[:3])} missing. Download the model again."
      )
    return Tensors(paths)
  if (directory / SINGLE).is_file():
    return Tensors([directory / SINGLE])
  found = sorted(path.name for path in directory.glob("*.bin"))
  hint = f" Only {found[0]} is there: save it as safetensors." if found else ""
  raise FormatError(
    f"expected {SINGLE} or {INDEX} in {directory}, found neither.{hint}"
  )


def _read_header(path: Path) -> tuple[dict[str, dict], int]:
  """Returns name -> entry, and where the arrays begin."""
  size = os.path.getsize(path)
  with open(path, "rb") as file:
    length = int.from_bytes(file.read(8), "little")
    start = 8 + length
    if length > _LARGEST_HEADER or start > size:
      raise FormatError(
        f"expected a safetensors file, found {path} of {size} bytes, whose"
        " header would end behind it. It is cut off, or another format."
      )
    try:
      header = json.loads(file.read(length))
    except ValueError as error:
      raise FormatError(
        f"expected a safetensors file, found {path} without a JSON header:"
        f" {error}."
      ) from error
  header.pop("__metadata__", None)
  for name, entry in header.items():
    if entry["dtype"] not in _DTYPES:
      raise FormatError(
        f"expected a dtype of {sorted(_DTYPES)}, found {entry['dtype']} at"
        f" {name} in {path}."
      )
    if start + entry["data_offsets"][1] > size:
      raise FormatError(
        f"expected {name} to end within {path} ({size} bytes), found it cut"
        " off. Download it again."
      )
  return header, start


def write(path: str | Path, arrays: Mapping[str, Any]) -> None:
  """Writes arrays to one file, one after the other, never all in memory.

  Args:
    path: replaced if it exists, and only once all is written.
    arrays: name -> array, read when its turn comes.
  """
  path, offset = Path(path), 0
  header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
  for name, array in arrays.items():
    dtype = np.dtype(array.dtype)
    end = offset + dtype.itemsize * int(np.prod(array.shape, dtype=np.int64))
    header[name] = {
      "dtype": _NAMES[dtype],
      "shape": list(array.shape),
      "data_offsets": [offset, end],
    }
    offset = end
  text = json.dumps(header, separators=(",", ":")).encode()
  text += b" " * (-len(text) % 8)
  partial = path.with_name(path.name + ".partial")
  with open(partial, "wb") as file:
    file.write(len(text).to_bytes(8, "little") + text)
    for array in arrays.values():
      file.write(np.ascontiguousarray(array).tobytes())
  partial.replace(path)
