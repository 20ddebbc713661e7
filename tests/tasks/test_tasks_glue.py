"""MRPC and QQP over GLUE's files and over TFDS, and the transfer."""

import pytest
import seqio
import tensorflow as tf
import tensorflow_datasets as tfds

from peft_jax.tasks import glue, prepare
from peft_jax.tasks.sources import DataError

MRPC = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n"
QQP = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"


@pytest.fixture
def data_dir(tmp_path):
  for folder, text, test in (
    (
      "MRPC",
      # As Microsoft's file: a byte order mark, and quotation marks are letters.
      "\ufeff" + MRPC + '1\t1\t2\t"Ann ran.\tAnn did run.\n0\t3\t4\tOne\tTwo\n',
      "index\t#1 ID\t#2 ID\t#1 String\t#2 String\n0\t1\t2\tUp\tDown\n",
    ),
    (
      "QQP",
      # QQP has rows that end too early.
      QQP + "0\t1\t2\tWho?\tWho is it?\t1\n9\t9\t9\tWhat\n1\t3\t4\tA?\tB?\t0\n",
      "id\tquestion1\tquestion2\n0\tC?\tD?\n",
    ),
  ):
    (tmp_path / folder).mkdir()
    for file in ("train", "dev"):
      (tmp_path / folder / f"{file}.tsv").write_text(text)
    (tmp_path / folder / "test.tsv").write_text(test)
  return tmp_path


def texts(name, split="validation"):
  task = seqio.get_mixture_or_task(name)
  return [
    (row["inputs_pretokenized"].decode(), row["targets_pretokenized"].decode())
    for row in task.get_dataset(None, split, shuffle=False).as_numpy_iterator()
  ]


def test_the_text_is_t5s(data_dir):
  glue.register(data_dir=data_dir, vocabulary="bytes")
  assert texts("glue_mrpc") == [
    ('mrpc sentence1: "Ann ran. sentence2: Ann did run.', "equivalent"),
    ("mrpc sentence1: One sentence2: Two", "not_equivalent"),
  ]
  assert texts("glue_qqp", "train") == [
    ("qqp question1: Who? question2: Who is it?", "duplicate"),
    ("qqp question1: A? question2: B?", "not_duplicate"),
  ]
  assert texts("glue_mrpc", "test") == [
    ("mrpc sentence1: Up sentence2: Down", "<unk>")
  ]
  assert texts("glue_qqp", "test") == [
    ("qqp question1: C? question2: D?", "<unk>")
  ]


def test_the_transfer_answers_in_the_words_it_was_trained_with(data_dir):
  glue.register(data_dir=data_dir, vocabulary="bytes")
  assert texts("glue_mrpc_from_qqp") == [
    ('mrpc sentence1: "Ann ran. sentence2: Ann did run.', "duplicate"),
    ("mrpc sentence1: One sentence2: Two", "not_duplicate"),
  ]
  mixture = seqio.MixtureRegistry.get("glue_qqp_to_mrpc")
  splits = {task.name: set(task.splits) for task in mixture.tasks}
  assert splits == {
    "glue_qqp": {"train", "validation", "test"},
    "glue_mrpc_from_qqp": {"validation"},
  }
  [metric] = seqio.TaskRegistry.get("glue_mrpc_from_qqp").predict_metric_fns
  answers = ["duplicate", "duplicate"]
  found = metric(["duplicate", "not_duplicate"], answers)
  assert found["f1"] == pytest.approx(200 / 3)
  assert found["accuracy"] == 50.0


def test_rows_of_json(tmp_path, write_rows):
  rows = [{"question1": "A?", "question2": "B?", "label": 1}]
  for split in ("train", "validation"):
    write_rows(tmp_path / "QQP" / f"{split}.jsonl", rows)
  glue.register(data_dir=tmp_path, vocabulary="bytes", names=["glue_qqp"])
  assert texts("glue_qqp") == [("qqp question1: A? question2: B?", "duplicate")]
  write_rows(tmp_path / "QQP" / "validation.jsonl", [{**rows[0], "label": 2}])
  with pytest.raises(DataError, match="expected one of 0, 1, found 2"):
    glue.register(data_dir=tmp_path, vocabulary="bytes", names=["glue_qqp"])


@pytest.mark.parametrize(
  "spec", glue.SPECS.values(), ids=lambda spec: spec.name
)
def test_the_specs_agree_with_tfds(spec):
  config = tfds.text.glue.Glue.builder_configs[spec.name]
  assert spec.labels == tuple(config.label_classes)
  assert list(spec.columns) == sorted(config.text_features)
  assert "1.0.0" in map(str, config.supported_versions)


def test_rows_of_tfds_give_the_same_text(data_dir):
  glue.register(vocabulary="bytes")
  task = seqio.TaskRegistry.get("glue_qqp")
  assert task.source.tfds_dataset.name == "glue/qqp:1.0.0"
  row = {"question1": "A?", "question2": "B?", "label": 0, "idx": 3}
  dataset = task.preprocess_precache(tf.data.Dataset.from_tensors(row))
  made = next(dataset.as_numpy_iterator())
  assert made["inputs_pretokenized"] == b"qqp question1: A? question2: B?"
  assert made["targets_pretokenized"] == b"not_duplicate"


@pytest.mark.parametrize(
  ("line", "message"),
  [
    ("maybe\t1\t2\tA\tB\n", 'expected one of 0, 1, found "maybe"'),
    ("1\t1\t2\tA\tB\tC\n", "expected 5 values between tabs, found 6"),
  ],
)
def test_a_wrong_line_of_a_tsv(data_dir, line, message):
  path = data_dir / "MRPC" / "dev.tsv"
  path.write_text(MRPC + "1\t1\t2\tA\tB\n" + line)
  with pytest.raises(DataError, match=message) as caught:
    glue.register(data_dir=data_dir, vocabulary="bytes", names=["glue_mrpc"])
  assert str(caught.value).startswith(f"{path}:3: ")


def test_names(data_dir):
  with pytest.raises(
    DataError, match=r"expected names of glue_mrpc, .* glue_x"
  ):
    glue.register(names=["glue_x"])
  with pytest.raises(DataError, match="Nearest: glue_mrpc"):
    prepare.prepare("glue_mrp", vocabulary="bytes")
  # Of the transfer alone MRPC's training rows are not asked for.
  (data_dir / "MRPC" / "train.tsv").unlink()
  name = "glue_qqp_to_mrpc"
  found = prepare.prepare(name, vocabulary="bytes", data_dir=str(data_dir))
  assert found.name == name
