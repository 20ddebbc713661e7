r"""Files of rows as a SeqIO data source, checked before they are used.

JSON lines, or tab-separated values below a line of names if the file is a
`.tsv`; either may be packed (`.gz`).

Every row of every split is read and checked when the source is made, so that a
bad line stops a run before a model is built, with its file and line number:

    DataError: rte/train.jsonl:7: field "label": expected one of "entailment",
    "not_entailment", found "neutral". Correct the row.
"""

import codecs
import dataclasses
import functools
import gzip
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

# What a row without a label has in the place of the label's position, as in
# TFDS.
NO_LABEL = -1

_JSON_NAMES = {
  str: "a string",
  int: "an integer",
  float: "a number",
  bool: "true or false",
  list: "an array",
  dict: "an object",
  type(None): "null",
}

_DTYPES = {
  str: tf.string,
  int: tf.int64,
  float: tf.float32,
  bool: tf.bool,
  list: tf.string,
}

# Enough to see what a folder or a line holds, short enough for a terminal.
_MAX_NAMES = 20
_MAX_TEXT = 80


class DataError(ValueError):
  """A data file that is missing or has a row that cannot be used."""


class RowError(ValueError):
  """What is wrong with a row; the reader adds the file and the line."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Label:
  """A field with few allowed values, read as the position of its value.

  Example:
    >>> Label(values=(False, True)).position(True)
    1

  Attributes:
    values: the allowed values as they stand in the file. Types count: 1 and
      "True" are not true.
  """

  values: tuple[str | int | bool, ...]

  def position(self, value: Any) -> int | None:
    """Returns where `value` stands in `values`, None if it does not."""
    for index, allowed in enumerate(self.values):
      if type(allowed) is type(value) and allowed == value:
        return index
    return None


# `list` is a list of texts.
FieldType = (
  type[str] | type[int] | type[float] | type[bool] | type[list] | Label
)
# Returns what is wrong with a row whose fields are right, one by one.
RowCheck = Callable[[Mapping[str, Any]], str | None]
# (an object of a file, its split) -> the rows that it stands for.
Expand = Callable[[Mapping[str, Any], str], Iterable[Mapping[str, Any]]]


class JsonLinesSource(seqio.DataSource):
  r"""Reads one file of rows for each split, and checks all of them.

  The rows are held in memory. They keep the order of the file unless SeqIO asks
  for shuffling; then the order depends on the seed alone. A shard is every
  n-th row, for any number of shards.

  Example:
    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...   path = pathlib.Path(folder, "train.jsonl")
    ...   _ = path.write_text('{"text": "fine", "label": "good"}\n')
    ...   source = JsonLinesSource(
    ...     split_to_path={"train": path},
    ...     fields={"text": str, "label": Label(values=("bad", "good"))},
    ...   )
    >>> source.num_input_examples("train")
    1
    >>> row = next(source.get_dataset("train").as_numpy_iterator())
    >>> row["text"], int(row["label"])
    (b'fine', 1)
  """

  def __init__(
    self,
    *,
    split_to_path: Mapping[str, str | os.PathLike[str]],
    fields: Mapping[str, FieldType],
    defaults: Mapping[str, Mapping[str, Any]] | None = None,
    row_number: str | None = None,
    check: RowCheck | None = None,
    expand: Expand | None = None,
  ):
    """Reads and checks the files.

    Args:
      split_to_path: the file of each split; anything TensorFlow can open, so
        also `gs://` paths.
      fields: the features to read and their types; other fields of a row are
        ignored.
      defaults: split -> field -> what stands there in rows that lack the field
        (the labels of a test split). Default: no row may lack a field.
      row_number: name of an additional feature with the row's position in its
        file, from 0. Default: none.
      check: returns what is wrong with a row, as "expected ..., found ...", or
        None. Default: nothing.
      expand: returns the rows that an object of a file stands for, none or
        several; may raise `RowError`. Default: the object is the row.

    Raises:
      DataError: if a file is missing or has no rows, or a row is not a JSON
        object, lacks a field or has a value of another type or outside a
        `Label`.
    """
    self._paths = {s: os.fspath(path) for s, path in split_to_path.items()}
    self._columns = {
      split: _columns(
        read_rows(
          path=path,
          fields=fields,
          defaults=(defaults or {}).get(split),
          check=check,
          expand=expand and functools.partial(_expand, expand, split),
        ),
        fields=fields,
        row_number=row_number,
      )
      for split, path in self._paths.items()
    }
    self._dtypes = {
      **{name: _dtype(kind) for name, kind in fields.items()},
      **({row_number: tf.int64} if row_number else {}),
    }
    self._num_rows = {
      split: len(next(iter(columns.values())))
      for split, columns in self._columns.items()
    }
    super().__init__(
      splits=tuple(self._paths),
      num_input_examples=self._num_rows,
      performs_internal_shuffling=True,
    )

  @property
  def split_to_path(self) -> Mapping[str, str]:
    """The file of each split."""
    return dict(self._paths)

  @property
  def supports_arbitrary_sharding(self) -> bool:
    """True: a shard is every n-th row, whatever the number of files."""
    return True

  def list_shards(self, split: str) -> Sequence[str]:
    """Returns the one file of the split."""
    self._check_split(split)
    return [self._paths[split]]

  def num_input_examples(self, split: str) -> int:
    """Returns the number of rows of the split."""
    self._check_split(split)
    return self._num_rows[split]

  def get_dataset(
    self,
    split: str = "train",
    shuffle: bool = False,
    seed: int | None = None,
    shard_info: seqio.ShardInfo | None = None,
    *,
    sequence_length: Mapping[str, int] | None = None,
    use_cached: bool = False,
    num_epochs: int | None = 1,
  ) -> tf.data.Dataset:
    """Returns the rows of a split, or those of one shard of it.

    Args:
      split: which split.
      shuffle: whether to shuffle all rows of the shard.
      seed: seed of the order; default: another order at every call.
      shard_info: which shard of how many; default: all rows.
      sequence_length: unused, as are the ones below; SeqIO's signature.
      use_cached: unused.
      num_epochs: unused.
    """
    del sequence_length, use_cached, num_epochs
    order = np.arange(self.num_input_examples(split))
    if shard_info is not None:
      # Before shuffling: without a seed each host draws its own order, and the
      # shards must have no row in common all the same.
      order = order[shard_info.index :: shard_info.num_shards]
    if shuffle:
      seed = None if seed is None else int(seed)
      order = np.random.default_rng(seed).permutation(order)
    # Any: TensorFlow's own stubs do not know that it takes nested tensors.
    columns: Any = {
      name: _tensor([column[i] for i in order], self._dtypes[name])
      for name, column in self._columns[split].items()
    }
    return tf.data.Dataset.from_tensor_slices(columns)

  def __repr__(self) -> str:
    return f"{type(self).__name__}(split_to_path={self._paths})"

  def _check_split(self, split: str) -> None:
    if split not in self._paths:
      raise DataError(
        f"expected one of the splits {_names(self._paths)}, found"
        f" {_show(split)}. Give a file for it, or choose another split."
      )


def read_rows(
  *,
  path: str | os.PathLike[str],
  fields: Mapping[str, FieldType],
  defaults: Mapping[str, Any] | None = None,
  check: RowCheck | None = None,
  expand: Callable[[Mapping[str, Any]], Iterable[Mapping[str, Any]]]
  | None = None,
) -> list[dict[str, Any]]:
  r"""Returns the checked rows of a file.

  Example:
    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...   path = pathlib.Path(folder, "test.jsonl")
    ...   _ = path.write_text('{"text": "fine"}\n')
    ...   read_rows(
    ...     path=path,
    ...     fields={"text": str, "label": Label(values=("bad", "good"))},
    ...     defaults={"label": NO_LABEL},
    ...   )
    [{'text': 'fine', 'label': -1}]

  Args:
    path: the file, UTF-8: one JSON object on each line, or `.tsv`.
    fields: the fields to read and their types.
    defaults: what stands for a field that a row lacks or has as null. Default:
      no row may lack a field.
    check: see `JsonLinesSource`.
    expand: see `JsonLinesSource`, without the split.

  Raises:
    DataError: see `JsonLinesSource`.
  """
  path = os.fspath(path)
  lines = _read_file(path).removeprefix(codecs.BOM_UTF8).split(b"\n")
  while lines and not lines[-1].strip():
    lines.pop()
  parse, first = _parse_object, 1
  if lines and path.removesuffix(".gz").endswith(".tsv"):
    parse, first = functools.partial(_parse_tabs, header=lines.pop(0)), 2
  rows = []
  for number, line in enumerate(lines, start=first):
    try:
      parsed = parse(line)
      for given in expand(parsed) if expand else [parsed]:
        row = _parse_row(given, fields=fields, defaults=defaults or {})
        wrong = check(row) if check else None
        if wrong:
          raise RowError(wrong)
        rows.append(row)
    except RowError as error:
      raise DataError(f"{path}:{number}: {error}") from None
  if not rows:
    found = "none of use" if lines else "an empty file"
    raise DataError(
      f"{path}: expected one JSON object on each line, found {found}."
      " Write the rows again or give another file."
    )
  return rows


def _expand(
  expand: Expand, split: str, parsed: Mapping[str, Any]
) -> Iterable[Mapping[str, Any]]:
  return expand(parsed, split)


def part(container: Mapping[str, Any], name: str, kind: type) -> Any:
  """Returns a part of a nested row, for `expand`.

  Example:
    >>> part({"passage": {"text": "Rain."}}, "passage", dict)
    {'text': 'Rain.'}

  Args:
    container: the object.
    name: of its field.
    kind: `str`, `int`, `dict`, or `list`: then a list of objects.

  Raises:
    RowError: if it is not there, or of another type.
  """
  found = container.get(name)
  if type(found) is not kind:
    raise RowError(
      f'field "{name}": expected {_JSON_NAMES[kind]}, found {_show(found)}.'
      " Correct the row."
    )
  if isinstance(found, list):
    for item in found:
      if not isinstance(item, dict):
        raise RowError(
          f'field "{name}": expected a list of objects, found {_show(item)} in'
          " it. Correct the row."
        )
  return found


def iterate_objects(
  path: str | os.PathLike[str],
) -> Iterator[tuple[int, dict[str, Any]]]:
  r"""Yields the line number and the whole row of a JSON-lines file, unchecked.

  The file is read as far as rows are asked for.

  Example:
    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...   path = pathlib.Path(folder, "test.jsonl")
    ...   _ = path.write_text('{"text": "fine", "more": [1]}\n')
    ...   list(iterate_objects(path))
    [(1, {'text': 'fine', 'more': [1]})]

  Raises:
    DataError: if the file is missing or empty, or a line is no JSON object.
  """
  path = os.fspath(path)
  _check_exists(path)
  with tf.io.gfile.GFile(path, "rb") as file:
    blank = number = 0
    for number, line in enumerate(iter(file.readline, b""), start=1):
      if not line.strip():
        blank = blank or number
        continue
      if blank:
        # Blank lines may stand at the end only.
        _ = parse_line(b"", place=f"{path}:{blank}")
      yield number, parse_line(line, place=f"{path}:{number}")
  if not number or blank == 1:
    raise empty_file(path)


def parse_line(line: bytes, *, place: str) -> dict[str, Any]:
  r"""Returns the row of a line of a JSON-lines file.

  Example:
    >>> parse_line(b'{"text": "fine"}\n', place="test.jsonl:1")
    {'text': 'fine'}

  Raises:
    DataError: if it is no JSON object, with `place`, its file and number.
  """
  try:
    return _parse_object(line.removeprefix(codecs.BOM_UTF8).rstrip(b"\r\n"))
  except RowError as error:
    raise DataError(f"{place}: {error}") from None


def exists(path: str | os.PathLike[str]) -> bool:
  """Returns whether a file is there; a folder is not a file.

  Example:
    >>> exists("/nowhere/train.jsonl")
    False
  """
  path = os.fspath(path)
  return tf.io.gfile.exists(path) and not tf.io.gfile.isdir(path)


def empty_file(path: str) -> DataError:
  """Returns the error of a file without rows."""
  return DataError(
    f"{path}: expected one JSON object on each line, found an empty file."
    " Write the rows again or give another file."
  )


def _check_exists(path: str) -> None:
  if not exists(path):
    raise DataError(
      f"expected the file {path}, found none there; {_nearest_folder(path)}."
      " Give the path of a file, or put the file there."
    )


def _read_file(path: str) -> bytes:
  _check_exists(path)
  with tf.io.gfile.GFile(path, "rb") as file:
    content = file.read()
  if not path.endswith(".gz"):
    return content
  try:
    return gzip.decompress(content)
  except (OSError, EOFError, zlib.error) as error:
    raise DataError(
      f"{path}: expected a whole gzip file, found {error}. Get it again."
    ) from None


def _nearest_folder(path: str) -> str:
  """Says which existing folder is nearest to `path`, and what it holds."""
  folder = path if tf.io.gfile.isdir(path) else os.path.dirname(path) or "."
  while not tf.io.gfile.isdir(folder):
    parent = os.path.dirname(folder) or "."
    if parent == folder:
      return f"there is no folder {folder} either"
    folder = parent
  held = sorted(tf.io.gfile.listdir(folder))
  return f"the folder {folder} holds {_names(held) or 'nothing'}"


def _parse_row(
  row: Mapping[str, Any],
  *,
  fields: Mapping[str, FieldType],
  defaults: Mapping[str, Any],
) -> dict[str, Any]:
  given = {name: value for name, value in row.items() if value is not None}
  missing = [n for n in fields if n not in given and n not in defaults]
  if missing:
    raise RowError(
      f"expected the fields {_names(fields)}, found {_names(given) or 'none'}:"
      f" {_names(missing)} missing or null. Add what is missing to the row."
    )
  return {
    name: _parse_value(name, given[name], kind=kind)
    if name in given
    else defaults[name]
    for name, kind in fields.items()
  }


def _parse_tabs(line: bytes, *, header: bytes) -> dict[str, str]:
  """Returns a line of a .tsv; quotation marks mean nothing there."""
  names, values = (
    _decoded(text).rstrip("\r").split("\t") for text in (header, line)
  )
  if len(values) > len(names):
    raise RowError(
      f"expected {len(names)} values between tabs, found {len(values)}."
      " Correct the row."
    )
  return dict(zip(names, values, strict=False))


def _decoded(line: bytes) -> str:
  try:
    return line.decode("utf-8")
  except UnicodeDecodeError as error:
    raise RowError(
      f"expected UTF-8 text, found the byte {line[error.start]:#04x} at column"
      f" {error.start + 1}. Save the file as UTF-8."
    ) from None


def _parse_object(line: bytes) -> dict[str, Any]:
  text = _decoded(line)
  try:
    row = json.loads(text)
  except json.JSONDecodeError as error:
    found = _cut(text.strip()) or "an empty line"
    raise RowError(
      f"expected a JSON object, found {found} ({error.msg} at column"
      f" {error.colno}). Write one whole JSON object on each line."
    ) from None
  if not isinstance(row, dict):
    raise RowError(
      f"expected a JSON object, found {_JSON_NAMES[type(row)]}. Write one whole"
      " JSON object on each line."
    )
  return row


def _parse_value(name: str, value: Any, *, kind: FieldType) -> Any:
  """Returns a field's value as the feature it becomes."""
  if isinstance(kind, Label):
    position = kind.position(value)
    if position is None:
      raise RowError(
        f'field "{name}": expected one of {_shown(kind.values)}, found'
        f" {_show(value)}. Correct the row."
      )
    return position
  # In Python true is an int; in a data file it is a mistake.
  fits = type(value) is kind or (kind is float and type(value) is int)
  if not fits:
    raise RowError(
      f'field "{name}": expected {_JSON_NAMES[kind]}, found {_show(value)}.'
      " Correct the row."
    )
  for text in value if isinstance(value, list) else [value]:
    if isinstance(value, list) and not isinstance(text, str):
      raise RowError(
        f'field "{name}": expected a list of texts, found {_show(text)} in it.'
        " Correct the row."
      )
    if isinstance(text, str) and not _is_unicode(text):
      raise RowError(
        f'field "{name}": expected text, found half of a surrogate pair in'
        f" {_show(text)}. Remove it or write the whole character."
      )
  return value


def _is_unicode(text: str) -> bool:
  """False for the lone surrogates that JSON can spell and UTF-8 cannot."""
  try:
    text.encode("utf-8")
  except UnicodeEncodeError:
    return False
  return True


def _columns(
  rows: Sequence[Mapping[str, Any]],
  *,
  fields: Mapping[str, FieldType],
  row_number: str | None,
) -> dict[str, list[Any]]:
  columns = {name: [row[name] for row in rows] for name in fields}
  if row_number is not None:
    columns[row_number] = list(range(len(rows)))
  return columns


def _tensor(column: list[Any], dtype: tf.DType) -> Any:
  """Returns a column; lists of texts need not be of one length."""
  if any(isinstance(value, list) for value in column):
    return tf.ragged.constant(column, dtype)
  return tf.constant(column, dtype)


def _dtype(kind: FieldType) -> tf.DType:
  return tf.int64 if isinstance(kind, Label) else _DTYPES[kind]


def _names(names: Iterable[str]) -> str:
  names = list(names)
  more = len(names) - _MAX_NAMES
  shown = ", ".join(names[:_MAX_NAMES])
  return f"{shown} and {more} more" if more > 0 else shown


def _show(value: Any) -> str:
  return _cut(json.dumps(value))


def _shown(values: Iterable[Any]) -> str:
  return ", ".join(_show(value) for value in values)


def _cut(text: str) -> str:
  return text if len(text) <= _MAX_TEXT else text[:_MAX_TEXT] + "..."
