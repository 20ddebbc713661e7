"""Table to text: E2E (arXiv 1706.09254), from its official zip file.

A row is a meaning representation and one of several texts that say it. In the
splits that are evaluated a representation stands once, with all of its texts.
"""

import csv
import io
import os
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import seqio
import tensorflow as tf

from peft_jax.tasks import metrics, preprocessors, vocabularies
from peft_jax.tasks.sources import DataError

E2E = "e2e"
ARCHIVE = "e2e-dataset.zip"
_FILES = {
  "train": "trainset.csv",
  "validation": "devset.csv",
  "test": "testset_w_refs.csv",
}
# Between the texts of one representation; it is in none of them.
SEPARATOR = "\n"


def register(
  *,
  data_dir: str | os.PathLike[str],
  vocabulary: str | os.PathLike[str] | seqio.Vocabulary,
) -> seqio.Task:
  """Registers and returns the task `e2e`; again replaces it.

  Args:
    data_dir: folder of `e2e-dataset.zip`.
    vocabulary: a vocabulary, its name or its file; see `vocabularies.load`.

  Raises:
    DataError: if the archive is not there, or is another one.
    VocabularyError: if the vocabulary is not there.
  """
  rows = read(os.path.join(os.fspath(data_dir), ARCHIVE))
  found = vocabularies.resolve(vocabulary)
  task = seqio.Task(
    E2E,
    source=seqio.FunctionDataSource(
      lambda split, shuffle_files, seed=None: _dataset(
        rows[split], shuffle_files, seed
      ),
      splits=tuple(rows),
      num_input_examples={split: len(part) for split, part in rows.items()},
    ),
    output_features=vocabularies.text_features(found),
    preprocessors=preprocessors.to_tokens(cacheable=False),
    postprocess_fn=_postprocess,
    metric_fns=[metrics.bleu],
  )
  seqio.TaskRegistry.remove(E2E)
  seqio.TaskRegistry.add_provider(E2E, task)
  return task


def read(path: str | os.PathLike[str]) -> dict[str, list[dict[str, str]]]:
  """Returns split -> rows of `inputs`, `targets` and `references`.

  Raises:
    DataError: if the archive is not there, or is another one.
  """
  try:
    with zipfile.ZipFile(path) as archive:
      names = {os.path.basename(name): name for name in archive.namelist()}
      return {
        split: _rows(archive.read(names[file]), whole=split == "train")
        for split, file in _FILES.items()
      }
  except (OSError, KeyError, zipfile.BadZipFile) as error:
    raise DataError(
      f"expected E2E's {ARCHIVE} with {', '.join(_FILES.values())} at {path},"
      f" found {type(error).__name__}: {error}. Give its folder as --data_dir."
    ) from error


def _rows(content: bytes, *, whole: bool) -> list[dict[str, str]]:
  """Returns the rows of a file; every text, or every representation, once."""
  texts: dict[str, list[str]] = {}
  rows = []
  for row in csv.DictReader(io.StringIO(content.decode("utf-8"))):
    text = " ".join(row["ref"].split())
    rows.append({"inputs": row["mr"], "targets": text, "references": text})
    texts.setdefault(row["mr"], []).append(text)
  if whole:
    return rows
  return [
    {"inputs": mr, "targets": found[0], "references": SEPARATOR.join(found)}
    for mr, found in texts.items()
  ]


def _dataset(
  rows: Sequence[Mapping[str, str]], shuffle: bool, seed: int | None
) -> tf.data.Dataset:
  columns: Any = {
    name: tf.constant([_text(row, name) for row in rows]) for name in rows[0]
  }
  dataset = tf.data.Dataset.from_tensor_slices(columns)
  return dataset.shuffle(len(rows), seed=seed) if shuffle else dataset


def _text(row: Mapping[str, str], name: str) -> str:
  # As T5's tasks: the format says where the text begins.
  return f"describe: {row[name]} text:" if name == "inputs" else row[name]


def _postprocess(
  text: str, example: Mapping[str, Any] | None = None, is_target: bool = False
) -> str | list[str]:
  """Returns the prediction, or all texts that are right."""
  if is_target and example is not None:
    return example["references"].decode("utf-8").split(SEPARATOR)
  return text
