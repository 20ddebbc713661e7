"""Tasks over a user's own files, end to end through SeqIO."""

import numpy as np
import pytest
import seqio

from peft_jax.tasks import jsonl, metrics
from peft_jax.tasks.sources import DataError
from peft_jax.tasks.vocabularies import VocabularyError

CHOICES = ("no", "yes")
ROWS = [
  {"inputs": "is ice cold?", "targets": "yes"},
  {"inputs": "is fire cold?", "targets": "no", "note": "ignored"},
  {"inputs": "is snow cold?", "targets": "yes"},
]
LENGTHS = {"inputs": 16, "targets": 5}


@pytest.fixture
def files(tmp_path, write_rows):
  return {
    "train": write_rows(tmp_path / "train.jsonl", ROWS),
    "test": write_rows(tmp_path / "test.jsonl", [{"inputs": "is it?"}]),
  }


def register(files, **kwargs):
  return jsonl.register(
    **{"name": "own", "files": files, "vocabulary": "bytes", **kwargs}
  )


def rows_of(split, lengths=None, **kwargs):
  task = seqio.get_mixture_or_task("own")
  dataset = task.get_dataset(lengths, split, shuffle=False, **kwargs)
  return list(dataset.as_numpy_iterator())


@pytest.mark.parametrize("choices", [None, CHOICES])
def test_the_rows_end_to_end(files, choices):
  register(files, answer_choices=choices)
  rows = rows_of("train")
  vocabulary = seqio.ByteVocabulary()
  for row, given in zip(rows, ROWS, strict=True):
    for name in ("inputs", "targets"):
      assert row[f"{name}_pretokenized"].decode() == given[name]
      assert row[name].tolist() == [*vocabulary.encode(given[name]), 1]
  assert [int(row["idx"]) for row in rows] == [0, 1, 2]


def test_what_is_too_long_is_cut_and_still_ends(files):
  register(files)
  row = rows_of("train", {"inputs": 4, "targets": 2})[0]
  assert [row["inputs"].size, row["targets"].size] == [4, 2]
  assert [row["inputs"][-1], row["targets"][-1]] == [1, 1]


def test_the_feature_converter_takes_them(files):
  register(files, answer_choices=CHOICES)
  dataset = seqio.get_dataset(
    "own",
    task_feature_lengths=LENGTHS,
    dataset_split="train",
    feature_converter=seqio.EncDecFeatureConverter(pack=False),
  )
  batch = next(dataset.batch(3).as_numpy_iterator())
  assert {name: value.shape for name, value in batch.items()} == {
    "encoder_input_tokens": (3, 16),
    "decoder_target_tokens": (3, 5),
    "decoder_input_tokens": (3, 5),
    "decoder_loss_weights": (3, 5),
  }
  np.testing.assert_array_equal(batch["decoder_input_tokens"][:, 0], 0)
  np.testing.assert_array_equal(
    batch["decoder_loss_weights"].sum(axis=1),
    (batch["decoder_target_tokens"] > 0).sum(axis=1),
  )


@pytest.mark.parametrize("choices", [None, CHOICES])
def test_a_test_split_without_targets(files, choices):
  register(files, answer_choices=choices)
  assert rows_of("test")[0]["targets_pretokenized"] == b"<unk>"


def test_only_the_test_split_may_lack_targets(files):
  with pytest.raises(DataError, match=r"test.jsonl:1: .*: targets missing"):
    register({"validation": files["test"]})


def test_a_target_outside_the_answer_choices(files, tmp_path, write_rows):
  rows = [*ROWS, {"inputs": "is steam cold?", "targets": "No"}]
  path = write_rows(tmp_path / "more.jsonl", rows)
  with pytest.raises(DataError) as caught:
    register({**files, "validation": path}, answer_choices=CHOICES)
  assert str(caught.value) == (
    f'{path}:4: field "targets": expected one of "no", "yes", found "No".'
    " Correct the row."
  )
  assert "own" not in seqio.TaskRegistry.names()


def test_a_failed_registration_keeps_the_earlier_task(files):
  task = register(files)
  with pytest.raises(DataError):
    register({"train": "/nowhere/train.jsonl"})
  with pytest.raises(VocabularyError):
    register(files, vocabulary="/nowhere/spiece.model")
  assert seqio.get_mixture_or_task("own") is task


def test_registering_again_replaces(files):
  register(files)
  register({"train": files["train"]})
  assert seqio.get_mixture_or_task("own").splits == ("train",)


@pytest.mark.parametrize(
  "choices", ["yes", [], ["yes"], ["yes", "yes"], ["yes", ""], [0, 1]]
)
def test_bad_answer_choices(files, choices):
  with pytest.raises(DataError, match="two or more different texts, found"):
    register(files, answer_choices=choices)


def test_no_files():
  with pytest.raises(DataError, match="at least one split, found none"):
    register({})


def test_the_name_of_a_mixture(files):
  register(files)
  seqio.MixtureRegistry.add("both", [("own", 1)])
  with pytest.raises(DataError, match="'both': expected a name of its own"):
    register(files, name="both")


def test_the_metric_follows_the_answer_choices(files):
  free = register(files)
  assert free.metric_fns == [metrics.exact_match]
  chosen = register(files, answer_choices=CHOICES)
  assert chosen.metric_fns == [metrics.accuracy]


def test_shards_of_a_task_are_a_partition(files):
  register(files)
  shards = [rows_of("train", shard_info=seqio.ShardInfo(i, 2)) for i in (0, 1)]
  assert [[int(r["idx"]) for r in rows] for rows in shards] == [[0, 2], [1]]


OWN = [
  {"inputs": "2 + 2?", "targets": "four", "choices": ["three", "four"]},
  {"inputs": "sky?", "targets": "blue", "choices": ["blue", "red", "green"]},
]


def test_the_choices_of_each_row(tmp_path, write_rows):
  path = write_rows(tmp_path / "train.jsonl", OWN)
  task = register({"train": path})
  vocabulary = seqio.ByteVocabulary()
  for row, given in zip(rows_of("train"), OWN, strict=True):
    texts = [text.decode() for text in row["choices_pretokenized"]]
    assert texts == given["choices"]
    ids = [i for t in given["choices"] for i in [*vocabulary.encode(t), 1]]
    assert row["choices"].tolist() == ids
    assert texts[int(row["label"])] == given["targets"]
  assert task.metric_fns == [metrics.accuracy]


def test_choices_survive_a_mixture(tmp_path, write_rows):
  register({"train": write_rows(tmp_path / "train.jsonl", OWN)})
  seqio.MixtureRegistry.add("mixed", [("own", 1)])
  mixture = seqio.get_mixture_or_task("mixed")
  dataset = mixture.get_dataset(
    None,
    "train",
    shuffle=False,
    num_epochs=1,
    passthrough_features=["choices", "label"],
  )
  rows = list(dataset.as_numpy_iterator())
  assert [int(row["label"]) for row in rows] == [1, 0]
  assert sum(row["choices"].tolist().count(1) for row in rows) == 5


def test_fixed_choices_are_features_too(files):
  register(files, answer_choices=CHOICES)
  for row, given in zip(rows_of("train"), ROWS, strict=True):
    assert CHOICES[int(row["label"])] == given["targets"]
    assert row["choices_pretokenized"].tolist() == [
      choice.encode() for choice in CHOICES
    ]
  assert rows_of("test")[0]["label"].item() == -1


@pytest.mark.parametrize(
  "row, message",
  [
    ({"choices": ["a", "b"], "targets": "c"}, "a target that is one of"),
    ({"choices": ["a", "a"], "targets": "a"}, "two or more different texts"),
    (
      {"choices": ["a", 1], "targets": "a"},
      "expected a list of texts, found 1",
    ),
    ({"choices": "ab", "targets": "a"}, "expected an array, found"),
    ({"targets": "a"}, "choices missing or null"),
  ],
)
def test_bad_choices_of_a_row(tmp_path, write_rows, row, message):
  rows = [*OWN, {"inputs": "?", **row}]
  path = write_rows(tmp_path / "train.jsonl", rows)
  with pytest.raises(DataError, match=message) as caught:
    register({"train": path})
  assert str(caught.value).startswith(f"{path}:3: ")
