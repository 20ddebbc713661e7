"""Prefix-LM over documents, from rows of one's own and from TFDS's files."""

import numpy as np
import pytest
import seqio
import tensorflow as tf

from peft_jax.tasks import c4, prepare
from peft_jax.tasks.sources import DataError

LENGTHS = {"inputs": 6, "targets": 5}
TEXTS = ["a document of some length, cut into pieces", "short", "x"]


def rows_of(task, split="train", lengths=LENGTHS, seed=0):
  dataset = task.get_dataset(lengths, split, shuffle=False, seed=seed)
  return list(dataset.as_numpy_iterator())


@pytest.fixture
def folder(tmp_path, write_rows):
  write_rows(tmp_path / "train.jsonl", [{"text": text} for text in TEXTS])
  return tmp_path


def test_every_token_stands_once_and_in_order(folder):
  task = prepare.prepare(c4.PREFIX_LM, vocabulary="bytes", data_dir=str(folder))
  rows = rows_of(task)
  vocabulary = seqio.ByteVocabulary()
  ids = [
    i
    for row in rows
    for part in (row["inputs"], row["targets"][:-1])
    for i in part.tolist()
  ]
  # 'x' has nothing to continue, and so has the last letter of a document that
  # is one longer than its pieces.
  text = vocabulary.decode(ids)
  assert text == TEXTS[0][:40] + "es" + TEXTS[1]
  assert len(TEXTS[0]) % 10 == 2
  for row in rows:
    assert 1 <= len(row["inputs"]) <= 6
    assert 2 <= len(row["targets"]) <= 5
    assert row["targets"][-1] == 1


def test_cuts_depend_on_the_seed_alone(folder):
  task = c4.register(data_dir=folder, vocabulary="bytes")
  cuts = [
    [len(row["inputs"]) for row in rows_of(task, seed=seed)]
    for seed in (0, 0, 1, 2)
  ]
  assert cuts[0] == cuts[1]
  assert len({tuple(cut) for cut in cuts}) > 1


def test_a_cut_may_be_anywhere_that_fits():
  piece = tf.data.Dataset.from_tensors({"targets": np.arange(2, 8)}).repeat(200)
  with seqio.utils.map_seed_manager(0):
    found = c4.cut_in_two(piece, {"inputs": 4, "targets": 5})
  places = {len(row["inputs"]) for row in found.as_numpy_iterator()}
  assert places == {2, 3, 4}


def test_lengths_of_t5_without_others(folder):
  task = c4.register(data_dir=folder, vocabulary="bytes")
  assert len(rows_of(task, lengths=None)) == 2


def test_a_folder_with_neither(tmp_path):
  with pytest.raises(DataError, match=r"found neither\. Give the folder"):
    c4.register(data_dir=tmp_path, vocabulary="bytes")


def test_the_files_of_tfds(shared_data):
  folder = shared_data("c4/maxtext_c4_en_minimal")
  task = c4.register(data_dir=folder, vocabulary="bytes")
  assert set(task.splits) == {"train", "validation"}
  lengths = {"inputs": 64, "targets": 64}
  dataset = task.get_dataset(lengths, "validation", shuffle=False, seed=0)
  for row in dataset.take(5).as_numpy_iterator():
    assert len(row["inputs"]) <= 64
    assert len(row["targets"]) <= 64
