"""The JSON-lines source: what it reads, and what it says of bad files."""

import copy
import itertools
import re

import numpy as np
import pytest
import seqio

from peft_jax.tasks import sources
from peft_jax.tasks.sources import DataError, JsonLinesSource, Label

FIELDS = {
  "text": str,
  "label": Label(values=("bad", "good")),
  "idx": int,
}
GOOD = [
  {"text": f"row {i}", "label": ("bad", "good")[i % 2], "idx": i, "more": [i]}
  for i in range(10)
]


@pytest.fixture
def source(tmp_path, write_rows):
  return make(write_rows(tmp_path / "train.jsonl", GOOD))


def make(path, **kwargs):
  return JsonLinesSource(split_to_path={"train": path}, fields=FIELDS, **kwargs)


def ids(dataset):
  return [int(row["idx"]) for row in dataset.as_numpy_iterator()]


def error_of(path, **kwargs):
  with pytest.raises(DataError) as caught:
    make(path, **kwargs)
  return str(caught.value)


def test_reads_every_row_in_the_order_of_the_file(source):
  rows = list(source.get_dataset("train").as_numpy_iterator())
  assert [row["text"] for row in rows] == [r["text"].encode() for r in GOOD]
  assert [int(row["label"]) for row in rows] == [0, 1] * 5
  assert ids(source.get_dataset("train")) == list(range(10))
  assert set(rows[0]) == set(FIELDS)
  assert source.num_input_examples("train") == 10
  assert source.splits == ("train",)


def test_types_of_the_features(tmp_path, write_rows):
  path = write_rows(tmp_path / "x.jsonl", [{"s": "é", "f": 1, "b": True}])
  source = JsonLinesSource(
    split_to_path={"train": path}, fields={"s": str, "f": float, "b": bool}
  )
  row = next(source.get_dataset("train").as_numpy_iterator())
  assert row["s"].decode() == "é"
  assert (row["f"].dtype, row["b"].dtype) == (np.float32, np.bool_)


def test_accepts_the_line_ends_and_mark_of_windows(tmp_path):
  path = tmp_path / "train.jsonl"
  path.write_bytes(
    b'\xef\xbb\xbf{"text": "a", "label": "bad", "idx": 0}\r\n\r\n'
  )
  assert make(path).num_input_examples("train") == 1


@pytest.mark.parametrize("num_shards", [1, 2, 3, 7, 12])
@pytest.mark.parametrize("seed", [None, 5])
def test_shards_are_a_partition(source, num_shards, seed):
  shards = [
    ids(
      source.get_dataset(
        "train",
        shuffle=seed is not None,
        seed=seed,
        shard_info=seqio.ShardInfo(index=i, num_shards=num_shards),
      )
    )
    for i in range(num_shards)
  ]
  assert sorted(itertools.chain(*shards)) == list(range(10))
  assert max(map(len, shards)) - min(map(len, shards)) <= 1


def test_shards_do_not_overlap_without_a_seed(source):
  shards = [
    ids(source.get_dataset("train", True, None, seqio.ShardInfo(i, 3)))
    for i in range(3)
  ]
  assert sorted(itertools.chain(*shards)) == list(range(10))


def test_shuffling_depends_on_the_seed_alone(source):
  orders = [ids(source.get_dataset("train", True, seed)) for seed in (1, 1, 2)]
  assert orders[0] == orders[1] != orders[2]
  assert sorted(orders[0]) == list(range(10)) != orders[0]


def test_row_number(tmp_path, write_rows):
  path = write_rows(tmp_path / "x.jsonl", [{"t": "a"}, {"t": "b"}])
  source = JsonLinesSource(
    split_to_path={"train": path}, fields={"t": str}, row_number="row"
  )
  second = source.get_dataset("train", shard_info=seqio.ShardInfo(1, 2))
  assert [int(r["row"]) for r in second.as_numpy_iterator()] == [1]


def test_can_be_copied(source):
  # gin copies what it is given.
  assert ids(copy.deepcopy(source).get_dataset("train")) == list(range(10))


def test_defaults_hold_for_their_split_only(tmp_path, write_rows):
  bare = [{"text": "a", "idx": 0}, {"text": "b", "idx": 1, "label": None}]
  train = write_rows(tmp_path / "train.jsonl", GOOD)
  test = write_rows(tmp_path / "test.jsonl", bare)
  defaults = {"test": {"label": sources.NO_LABEL}}
  source = JsonLinesSource(
    split_to_path={"train": train, "test": test},
    fields=FIELDS,
    defaults=defaults,
  )
  rows = source.get_dataset("test").as_numpy_iterator()
  assert [int(row["label"]) for row in rows] == [-1, -1]
  assert "'label'" not in error_of(test, defaults=defaults)
  assert (
    f"{test}:1: expected the fields text, label, idx, found text, idx:"
    in (error_of(test, defaults=defaults))
  )


@pytest.mark.parametrize(
  ("line", "message"),
  [
    ('{"text": "a"', 'expected a JSON object, found {"text": "a" (Expect'),
    ("[1]", "expected a JSON object, found an array"),
    ("true", "expected a JSON object, found true or false"),
    ("", "expected a JSON object, found an empty line"),
    ("{}", "expected the fields text, label, idx, found none: text, label"),
    ({"text": "a", "idx": 1}, "found text, idx: label missing or null. Add"),
    (
      {"text": "a", "label": None, "idx": 1},
      "found text, idx: label missing or null. Add",
    ),
    (
      {"text": "a", "label": "Good", "idx": 1},
      'field "label": expected one of "bad", "good", found "Good". Correct',
    ),
    (
      {"text": "a", "label": 1, "idx": 1},
      'field "label": expected one of "bad", "good", found 1. Correct',
    ),
    (
      {"text": 3, "label": "bad", "idx": 1},
      'field "text": expected a string, found 3. Correct',
    ),
    (
      {"text": "a", "label": "bad", "idx": True},
      'field "idx": expected an integer, found true. Correct',
    ),
    (
      '{"text": "\\ud800", "label": "bad", "idx": 1}',
      'field "text": expected text, found half of a surrogate pair',
    ),
  ],
)
def test_a_bad_row_is_named_by_file_and_line(
  tmp_path, write_rows, line, message
):
  path = write_rows(tmp_path / "train.jsonl", [*GOOD[:3], line, *GOOD[3:]])
  error = error_of(path)
  assert error.startswith(f"{path}:4: ")
  assert message in error


def test_a_line_that_is_not_utf8(tmp_path):
  path = tmp_path / "train.jsonl"
  path.write_bytes(b'{"text": "caf\xe9"}\n')
  assert error_of(path) == (
    f"{path}:1: expected UTF-8 text, found the byte 0xe9 at column 14. Save the"
    " file as UTF-8."
  )


def test_a_long_line_is_cut_in_the_message(tmp_path, write_rows):
  path = write_rows(tmp_path / "train.jsonl", ["x" * 10_000])
  assert len(error_of(path)) < len(str(path)) + 300


@pytest.mark.parametrize("text", ["", "\n", " \n\n"])
def test_an_empty_file(tmp_path, text):
  path = tmp_path / "train.jsonl"
  path.write_text(text)
  assert f"{path}: expected one JSON object on each line, found an empty" in (
    error_of(path)
  )


def test_a_missing_file_says_what_the_folder_holds(tmp_path, write_rows):
  write_rows(tmp_path / "RTE" / "val.jsonl", GOOD)
  error = error_of(tmp_path / "RTE" / "train.jsonl")
  assert f"expected the file {tmp_path}/RTE/train.jsonl, found none" in error
  assert f"the folder {tmp_path}/RTE holds val.jsonl." in error


def test_a_missing_folder_says_what_the_one_above_holds(tmp_path, write_rows):
  write_rows(tmp_path / "rte" / "train.jsonl", GOOD)
  error = error_of(tmp_path / "RTE" / "train.jsonl")
  assert re.search(rf"the folder {tmp_path} holds rte/?\. Give", error)


def test_a_folder_in_the_place_of_a_file(tmp_path):
  assert f"the folder {tmp_path} holds nothing. Give" in error_of(tmp_path)


def test_an_unknown_split(source):
  for ask in (source.get_dataset, source.num_input_examples):
    with pytest.raises(DataError, match='the splits train, found "dev"'):
      ask("dev")


@pytest.mark.parametrize("value", [1, 1.0, "True", None, "true"])
def test_a_label_is_matched_with_its_type(value):
  label = Label(values=(False, True))
  assert label.position(True) == 1
  assert label.position(value) is None
