"""Documents for language modelling: C4 (arXiv 1910.10683), or any texts.

Prefix-LM, with which T5 was adapted for prompt tuning (arXiv 2104.08691,
section 3.1): a piece of a document is cut in two at random, and the model
continues the first part.
"""

import functools
import os
from collections.abc import Mapping
from typing import Any

import seqio
import tensorflow as tf

from peft_jax.tasks import sources, vocabularies
from peft_jax.tasks.sources import DataError

PREFIX_LM = "c4_prefix_lm"
_SPLITS = ("train", "validation")
_TFDS = "c4/en:3.1.0"
# Of a piece whose lengths nobody has named; T5's.
_LENGTHS = {"inputs": 512, "targets": 512}


def register(
  *,
  data_dir: str | os.PathLike[str] = "",
  vocabulary: str | os.PathLike[str] | seqio.Vocabulary = "t5",
) -> seqio.Task:
  """Registers and returns the task `c4_prefix_lm`; again replaces it.

  Args:
    data_dir: folder of `train.jsonl` and `validation.jsonl` with rows of a
      `text`, or of TFDS's files of C4. Empty: TFDS.
    vocabulary: a vocabulary, its name or its file; see `vocabularies.load`.

  Raises:
    DataError: if the folder has neither.
    VocabularyError: if the vocabulary is not there.
  """
  found = vocabularies.resolve(vocabulary)
  task = seqio.Task(
    PREFIX_LM,
    source=_source(os.fspath(data_dir)),
    output_features={
      "inputs": seqio.Feature(vocabulary=found, add_eos=False),
      "targets": seqio.Feature(vocabulary=found, add_eos=True),
    },
    preprocessors=[
      functools.partial(seqio.preprocessors.rekey, key_map={"targets": "text"}),
      _tokenize,
      pieces,
      cut_in_two,
      seqio.preprocessors.append_eos_after_trim,
    ],
    metric_fns=[],
  )
  seqio.TaskRegistry.remove(PREFIX_LM)
  seqio.TaskRegistry.add_provider(PREFIX_LM, task)
  return task


def _source(data_dir: str) -> seqio.DataSource:
  if not data_dir:
    return seqio.TfdsDataSource(tfds_name=_TFDS, splits=_SPLITS)
  rows = {s: os.path.join(data_dir, f"{s}.jsonl") for s in _SPLITS}
  if sources.exists(rows["train"]):
    return sources.JsonLinesSource(
      split_to_path={s: p for s, p in rows.items() if sources.exists(p)},
      fields={"text": str},
    )
  records = {
    split: sorted(
      tf.io.gfile.glob(os.path.join(data_dir, f"*-{split}.tfrecord-*"))
    )
    for split in _SPLITS
  }
  if not records["train"]:
    raise DataError(
      f"expected train.jsonl, or TFDS's *-train.tfrecord-* of C4, in"
      f" {data_dir},"
      " found neither. Give the folder that holds them as --data_dir."
    )
  spec = {"text": tf.io.FixedLenFeature([], tf.string)}
  return seqio.TFExampleDataSource(
    split_to_filepattern={s: files for s, files in records.items() if files},
    feature_description=spec,
  )


def _tokenize(
  dataset: tf.data.Dataset, output_features: Mapping[str, Any]
) -> tf.data.Dataset:
  text = {"targets": output_features["targets"]}
  return seqio.preprocessors.tokenize(
    dataset, output_features=text, copy_pretokenized=False
  )


def pieces(
  dataset: tf.data.Dataset, sequence_length: Mapping[str, int] | None
) -> tf.data.Dataset:
  """Cuts documents into pieces that fill inputs and targets.

  Example:
    >>> rows = tf.data.Dataset.from_tensors({"targets": [2, 3, 4, 5, 6, 7, 8]})
    >>> found = pieces(rows, {"inputs": 2, "targets": 2})
    >>> [row["targets"].tolist() for row in found.as_numpy_iterator()]
    [[2, 3, 4], [5, 6, 7]]

  Args:
    dataset: rows of token ids `targets`, without EOS.
    sequence_length: tokens of inputs and of targets, EOS included. A piece of
      one token is dropped: there is nothing to continue.
  """
  lengths = sequence_length or _LENGTHS
  size = lengths["inputs"] + lengths["targets"] - 1

  def cut(row: Mapping[str, tf.Tensor]) -> tf.data.Dataset:
    ids = tf.data.Dataset.from_tensor_slices(row["targets"])
    return ids.batch(size).map(lambda piece: {"targets": piece})

  return dataset.flat_map(cut).filter(lambda row: tf.size(row["targets"]) > 1)


@seqio.utils.map_over_dataset(num_seeds=1)
def cut_in_two(
  row: Mapping[str, tf.Tensor],
  sequence_length: Mapping[str, int] | None,
  seed: tf.Tensor,
) -> dict[str, tf.Tensor]:
  """Cuts a piece at random so that both parts fit and neither is empty."""
  ids, lengths = row["targets"], sequence_length or _LENGTHS
  size = tf.size(ids)
  low = tf.maximum(1, size - (lengths["targets"] - 1))
  high = tf.minimum(lengths["inputs"], size - 1)
  place = tf.random.stateless_uniform([], seed, low, high + 1, tf.int32)
  return {"inputs": ids[:place], "targets": ids[place:]}
