"""SuperGLUE tasks over official files, and their registration over TFDS."""

import collections
import importlib

import numpy as np
import pytest
import seqio
import tensorflow as tf
import tensorflow_datasets as tfds

from peft_jax.tasks import superglue, vocabularies
from peft_jax.tasks.sources import DataError

RTE = [
  {
    "premise": "Rain fell in Lund.",
    "hypothesis": "Lund was dry.",
    "label": "not_entailment",
    "idx": 40,
  },
  {
    "premise": "Ada wrote to Bo.",
    "hypothesis": "Bo got mail.",
    "label": "entailment",
    "idx": 41,
  },
]
BOOLQ = [
  {"question": "is it old", "passage": "It is new.", "idx": 0, "label": False},
  {"question": "is it new", "passage": "It is new.", "idx": 1, "label": True},
  {"question": "is it", "passage": "It is.", "idx": 2, "label": True},
]
LENGTHS = {"inputs": 64, "targets": 16}
FEW_GLUE = "superglue/FewGLUE_32dev"
T5_FILE = "tokenizers/t5_cc_all.32000.sentencepiece.model"


@pytest.fixture
def data_dir(tmp_path, write_rows):
  for folder, rows in (("RTE", RTE), ("BoolQ", BOOLQ)):
    write_rows(tmp_path / folder / "train.jsonl", rows)
    write_rows(tmp_path / folder / "val.jsonl", rows)
    # FewGLUE has this one too; it is not read.
    write_rows(tmp_path / folder / "dev32.jsonl", ["not JSON"])
  return tmp_path


def rows_of(name, split="validation", lengths=None, **kwargs):
  task = seqio.get_mixture_or_task(name)
  dataset = task.get_dataset(lengths, split, shuffle=False, **kwargs)
  return list(dataset.as_numpy_iterator())


def texts(rows):
  return [
    (r["inputs_pretokenized"].decode(), r["targets_pretokenized"].decode())
    for r in rows
  ]


def rates_of(mixture):
  return {task.name: mixture.get_rate(task) for task in mixture.tasks}


def test_the_text_is_t5s(data_dir):
  superglue.register(data_dir=data_dir, vocabulary="bytes")
  rte, boolq = rows_of("superglue_rte"), rows_of("superglue_boolq")
  assert texts(rte) == [
    (
      "rte hypothesis: Lund was dry. premise: Rain fell in Lund.",
      "not_entailment",
    ),
    ("rte hypothesis: Bo got mail. premise: Ada wrote to Bo.", "entailment"),
  ]
  assert texts(boolq) == [
    ("boolq passage: It is new. question: is it old", "False"),
    ("boolq passage: It is new. question: is it new", "True"),
    ("boolq passage: It is. question: is it", "True"),
  ]
  assert [int(row["idx"]) for row in rte] == [40, 41]
  encoded = seqio.ByteVocabulary().encode("entailment")
  assert rte[1]["targets"].tolist() == [*encoded, 1]


def test_features_and_vocabulary_of_the_tasks(data_dir):
  superglue.register(data_dir=data_dir, vocabulary="bytes")
  for spec in superglue.SPECS.values():
    task = seqio.TaskRegistry.get(spec.task_name)
    assert list(task.output_features) == ["inputs", "targets"]
    for feature in task.output_features.values():
      assert feature.add_eos
      assert feature.vocabulary == seqio.ByteVocabulary()


def test_a_test_split_without_labels(data_dir, write_rows):
  bare = [{k: v for k, v in row.items() if k != "label"} for row in RTE]
  write_rows(data_dir / "RTE" / "test.jsonl", bare)
  superglue.register(data_dir=data_dir, vocabulary="bytes")
  rte = seqio.TaskRegistry.get("superglue_rte")
  assert set(rte.splits) == {"train", "validation", "test"}
  rows = rows_of("superglue_rte", "test")
  assert [target for _, target in texts(rows)] == ["<unk>", "<unk>"]
  boolq = seqio.TaskRegistry.get("superglue_boolq")
  assert set(boolq.splits) == {"train", "validation"}


def test_the_feature_converter_takes_the_mixture(data_dir):
  superglue.register(data_dir=data_dir, vocabulary="bytes")
  dataset = seqio.get_dataset(
    superglue.MIXTURE,
    task_feature_lengths=LENGTHS,
    dataset_split="train",
    shuffle=True,
    seed=0,
    num_epochs=1,
    feature_converter=seqio.EncDecFeatureConverter(pack=False),
  )
  batch = next(dataset.batch(2).as_numpy_iterator())
  assert batch["encoder_input_tokens"].shape == (2, 64)
  assert batch["decoder_target_tokens"].shape == (2, 16)


def test_the_mixture_draws_in_proportion(data_dir):
  superglue.register(data_dir=data_dir, vocabulary="bytes")
  mixture = seqio.get_mixture_or_task(superglue.MIXTURE)
  assert rates_of(mixture) == {"superglue_rte": 2.0, "superglue_boolq": 3.0}
  dataset = mixture.get_dataset(
    LENGTHS, "train", seed=0, copy_pretokenized=True
  )
  drawn = collections.Counter(
    row["inputs_pretokenized"].split()[0]
    for row in dataset.take(1000).as_numpy_iterator()
  )
  assert drawn[b"boolq"] / 1000 == pytest.approx(3 / 5, abs=0.06)


def test_the_mixture_has_the_tasks_registered_last(data_dir):
  superglue.register(data_dir=data_dir, vocabulary="bytes")
  mixture = seqio.MixtureRegistry.get(superglue.MIXTURE)
  for task in mixture.tasks:
    assert task is seqio.TaskRegistry.get(task.name)


def test_some_of_the_tasks(data_dir):
  (data_dir / "BoolQ" / "train.jsonl").unlink()
  superglue.register(data_dir=data_dir, vocabulary="bytes", tasks=["rte"])
  assert len(rows_of("superglue_rte")) == 2
  # It would mix two vocabularies.
  assert superglue.MIXTURE not in seqio.MixtureRegistry.names()
  with pytest.raises(DataError, match="tasks rte, boolq, found 'wic'"):
    superglue.register(tasks=["wic"])


def test_import_registers_tfds_tasks_and_opens_nothing(monkeypatch):
  def refuse(*args, **kwargs):
    raise AssertionError(f"opened {args} {kwargs}")

  for module, name in ((tf.io.gfile, "GFile"), (tfds, "builder")):
    monkeypatch.setattr(module, name, refuse)
  importlib.reload(superglue)
  for name in ("rte", "boolq"):
    task = seqio.TaskRegistry.get(f"superglue_{name}")
    assert task.source.tfds_dataset.name == f"super_glue/{name}:1.0.2"
    assert set(task.splits) == {"train", "validation", "test"}
    assert task.supports_caching
    vocabulary = task.output_features["inputs"].vocabulary
    assert vocabulary.sentencepiece_model_file == vocabularies.T5_MODEL
  mixture = seqio.MixtureRegistry.get(superglue.MIXTURE)
  assert rates_of(mixture) == {
    "superglue_rte": 2490.0,
    "superglue_boolq": 9427.0,
  }


@pytest.mark.parametrize("spec", superglue.SPECS.values(), ids=lambda s: s.name)
def test_the_specs_agree_with_tfds(spec):
  config = tfds.text.super_glue.SuperGlue.builder_configs[spec.name]
  assert list(spec.labels) == list(config.label_classes)
  assert set(spec.text_fields) == set(config.features)
  assert str(config.version) == "1.0.2"
  # T5 writes the fields in the order of their names.
  assert list(spec.text_fields) == sorted(spec.text_fields)


def test_tfds_rows_and_official_rows_give_the_same_tokens(data_dir):
  """TFDS's own row, made by hand: nothing is downloaded in a test."""
  superglue.register(vocabulary="bytes")
  over_tfds = seqio.TaskRegistry.get("superglue_boolq")
  superglue.register(data_dir=data_dir, vocabulary="bytes")
  official = rows_of("superglue_boolq")[1]
  row = {
    "question": "is it new",
    "passage": "It is new.",
    "idx": tf.constant(1, tf.int32),
    "label": tf.constant(1, tf.int64),
  }
  dataset = tf.data.Dataset.from_tensors(row)
  dataset = over_tfds.preprocess_precache(dataset)
  dataset = over_tfds.preprocess_postcache(dataset, sequence_length=None)
  made = next(dataset.as_numpy_iterator())
  assert made.keys() == official.keys()
  for name in made:
    np.testing.assert_array_equal(made[name], official[name])


def test_a_local_task_never_reads_a_cache_of_another_source(data_dir):
  superglue.register(data_dir=data_dir, vocabulary="bytes")
  assert not seqio.TaskRegistry.get("superglue_rte").supports_caching


@pytest.mark.parametrize(
  ("folder", "label", "message"),
  [
    ("RTE", "entailed", '"entailment", "not_entailment", found "entailed"'),
    ("RTE", True, '"entailment", "not_entailment", found true'),
    # TFDS and the official files have booleans; a text here is another data
    # set's file.
    ("BoolQ", "True", 'one of false, true, found "True"'),
    ("BoolQ", 1, "one of false, true, found 1"),
    ("BoolQ", None, "label missing or null"),
  ],
)
def test_a_wrong_label(data_dir, write_rows, folder, label, message):
  path = data_dir / folder / "val.jsonl"
  first, *_ = RTE if folder == "RTE" else BOOLQ
  write_rows(path, [first, {**first, "label": label}])
  with pytest.raises(DataError) as caught:
    superglue.register(data_dir=data_dir, vocabulary="bytes")
  assert str(caught.value).startswith(f"{path}:2: ")
  assert message in str(caught.value)


@pytest.mark.parametrize("name", ["train.jsonl", "val.jsonl"])
def test_a_missing_file(data_dir, name):
  path = data_dir / "BoolQ" / name
  path.unlink()
  before = seqio.TaskRegistry.get("superglue_rte")
  with pytest.raises(DataError, match=f"expected the file {path}, found none"):
    superglue.register(data_dir=data_dir, vocabulary="bytes")
  assert seqio.TaskRegistry.get("superglue_rte") is before


def decoded(text):
  """Returns what a model decodes: tokens, EOS, padding."""
  tokens = [*seqio.ByteVocabulary().encode(text), 1]
  return np.pad(tokens, (0, LENGTHS["targets"] - len(tokens)))


def evaluate(answers, split):
  """Returns SeqIO's own evaluation of a model that gives `answers` on RTE."""
  evaluator = seqio.Evaluator(
    "superglue_rte",
    feature_converter=seqio.EncDecFeatureConverter(pack=False),
    eval_split=split,
    sequence_length=LENGTHS,
  )

  def predict(dataset, model_feature_shapes=None):
    del model_feature_shapes
    indices = [int(index) for index, _ in dataset.as_numpy_iterator()]
    # Hosts give their examples in any order; the index puts them right.
    return [(i, decoded(answers[i])) for i in reversed(indices)]

  metrics, _ = evaluator.evaluate(compute_metrics=True, predict_fn=predict)
  return metrics.result()["superglue_rte"]


def test_the_metric_through_seqios_evaluator(data_dir, write_rows):
  bare = [{k: v for k, v in row.items() if k != "label"} for row in RTE]
  write_rows(data_dir / "RTE" / "test.jsonl", bare)
  superglue.register(data_dir=data_dir, vocabulary="bytes")
  right, wrong = RTE[0]["label"], "so so"
  assert evaluate([right, RTE[1]["label"]], "validation") == {"accuracy": 100.0}
  assert evaluate([right, wrong], "validation") == {"accuracy": 50.0}
  # SeqIO makes every error of a metric a ValueError with the same text.
  with pytest.raises(ValueError, match="found 2 of 2 without one"):
    evaluate([right, wrong], "test")


@pytest.mark.parametrize(
  ("name", "examples", "first_label"),
  [("rte", 277, "not_entailment"), ("boolq", 3270, "False")],
)
def test_the_real_validation_sets(shared_data, name, examples, first_label):
  superglue.register(
    data_dir=shared_data(FEW_GLUE), vocabulary=shared_data(T5_FILE)
  )
  task = seqio.get_mixture_or_task(f"superglue_{name}")
  assert task.num_input_examples("validation") == examples
  assert task.num_input_examples("train") == 32
  assert "test" not in task.splits
  rows = rows_of(task.name, lengths={"inputs": 512, "targets": 8})
  assert len({int(row["idx"]) for row in rows}) == len(rows) == examples
  assert texts(rows)[0][1] == first_label
  vocabulary = task.output_features["inputs"].vocabulary
  for row in rows:
    target = row["targets_pretokenized"].decode()
    assert row["targets"].tolist() == [*vocabulary.encode(target), 1]
    assert row["inputs"][-1] == 1 and row["inputs"].size <= 512
