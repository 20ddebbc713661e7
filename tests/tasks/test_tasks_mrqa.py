"""SQuAD and MRQA's other domains over MRQA's files and over TFDS."""

import gzip
import json

import pytest
import seqio
import tensorflow as tf

from peft_jax.tasks import mrqa, prepare
from peft_jax.tasks.sources import DataError

ROWS = [
  {"header": {"dataset": "own", "split": "dev"}},
  {
    "context": "Lund is old (very).  ",
    "context_tokens": [["Lund", 0]],
    "qas": [
      {
        "qid": "q1",
        "question": "How old is Lund? ",
        "question_tokens": [],
        "detected_answers": [],
        "answers": ["very", "(very)"],
      },
      {"qid": "q2", "question": "What is old?", "answers": ["Lund"]},
    ],
  },
]


def write(path, rows=ROWS):
  path.parent.mkdir(parents=True, exist_ok=True)
  text = "".join(json.dumps(row) + "\n" for row in rows)
  path.write_bytes(gzip.compress(text.encode()))
  return path


@pytest.fixture
def data_dir(tmp_path):
  write(tmp_path / "train" / "SQuAD.jsonl.gz")
  for file in ("SQuAD", *mrqa.OUT_OF_DOMAIN.values()):
    write(tmp_path / "dev" / f"{file}.jsonl.gz")
  return tmp_path


def rows_of(name, split="validation"):
  task = seqio.get_mixture_or_task(name)
  return list(task.get_dataset(None, split, shuffle=False).as_numpy_iterator())


def test_the_text_is_t5s(data_dir):
  mrqa.register(data_dir=data_dir, vocabulary="bytes")
  first, second = rows_of("mrqa_race")
  # A space on both sides of every mark, and never two.
  assert first["inputs_pretokenized"].decode() == (
    "question: How old is Lund ? context: Lund is old ( very ) . "
  )
  assert first["targets_pretokenized"] == b"very"
  assert first["answers"].tolist() == [b"very", b" ( very ) "]
  assert second["targets_pretokenized"] == b"Lund"
  assert second["id"] == b"q2"


def test_squad_alone_is_trained_on(data_dir):
  mrqa.register(data_dir=data_dir, vocabulary="bytes")
  mixture = seqio.MixtureRegistry.get(mrqa.MIXTURE)
  assert {task.name for task in mixture.tasks} == set(mrqa.TASKS)
  assert len(mrqa.TASKS) == 7
  for task in mixture.tasks:
    wanted = {"validation", "train"} if task.name == "squad" else {"validation"}
    assert set(task.splits) == wanted
  lengths = {"inputs": 128, "targets": 8}
  dataset = mixture.get_dataset(lengths, "train", num_epochs=1, seed=0)
  assert len(list(dataset.as_numpy_iterator())) == 2


def test_the_metric_takes_the_best_answer(data_dir):
  mrqa.register(data_dir=data_dir, vocabulary="bytes")
  task = seqio.TaskRegistry.get("mrqa_drop")
  rows = rows_of("mrqa_drop")
  targets = [
    task.postprocess_fn(
      row["targets_pretokenized"].decode(), example=row, is_target=True
    )
    for row in rows
  ]
  assert targets == [["very", " ( very ) "], ["Lund"]]
  [metric] = task.predict_metric_fns
  answers = [
    task.postprocess_fn(text, example=rows[0]) for text in ("Very", "x")
  ]
  assert metric(targets, answers) == {"f1": 50.0, "exact_match": 50.0}


def test_the_names_agree_with_tfds():
  from tensorflow_datasets.text.mrqa import mrqa as of_tfds

  mrqa.register(vocabulary="bytes")
  configs = of_tfds.MRQA.builder_configs
  for name, file in mrqa.OUT_OF_DOMAIN.items():
    url = configs[name].data_urls["test"]
    # BioASQ's own site has no file name.
    assert url.endswith(f"/{file}.jsonl.gz") or name == "bio_asq"
    source = seqio.TaskRegistry.get(f"mrqa_{name}").source
    assert source.tfds_dataset.name == f"mrqa/{name}:1.0.0"
  assert str(of_tfds.MRQA.VERSION) == "1.0.0"
  source = seqio.TaskRegistry.get("squad").source
  assert source.tfds_dataset.name == "squad/v1.1:3.0.0"


def test_rows_of_tfds_give_the_same_text(data_dir):
  mrqa.register(data_dir=data_dir, vocabulary="bytes")
  wanted = rows_of("squad")[0]
  mrqa.register(vocabulary="bytes")
  asked = {"question": "How old is Lund?", "context": "Lund is old (very)."}
  answers = ["very", "(very)"]
  for name, row in (
    ("squad", {"id": "q1", "answers": {"text": answers}}),
    ("mrqa_race", {"qid": "q1", "answers": answers}),
  ):
    task = seqio.TaskRegistry.get(name)
    dataset = tf.data.Dataset.from_tensors({**asked, **row})
    made = next(task.preprocess_precache(dataset).as_numpy_iterator())
    for feature in ("inputs_pretokenized", "targets_pretokenized", "id"):
      assert made[feature] == wanted[feature]
    assert made["answers"].tolist() == wanted["answers"].tolist()


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"answers": []}, 'field "answers": expected one or more, found none'),
    ({"question": 1}, 'field "question": expected a string, found 1'),
    ({"answers": [1]}, "expected a list of texts, found 1 in it"),
  ],
)
def test_a_wrong_row(data_dir, change, message):
  wrong = {**ROWS[1], "qas": [{**ROWS[1]["qas"][0], **change}]}
  path = write(data_dir / "dev" / "RACE.jsonl.gz", [ROWS[0], wrong])
  with pytest.raises(DataError, match=message) as caught:
    mrqa.register(data_dir=data_dir, vocabulary="bytes", names=["mrqa_race"])
  assert str(caught.value).startswith(f"{path}:2: ")


def test_a_damaged_file_and_one_without_rows(data_dir):
  path = data_dir / "dev" / "RACE.jsonl.gz"
  path.write_bytes(path.read_bytes()[:-9])
  with pytest.raises(DataError, match="expected a whole gzip file"):
    mrqa.register(data_dir=data_dir, vocabulary="bytes", names=["mrqa_race"])
  write(path, ROWS[:1])
  with pytest.raises(DataError, match="on each line, found none of use"):
    mrqa.register(data_dir=data_dir, vocabulary="bytes", names=["mrqa_race"])


def test_names(data_dir):
  with pytest.raises(DataError, match=r"expected names of squad, .* mrqa_x\."):
    mrqa.register(names=["mrqa_x"])
  with pytest.raises(DataError, match=r"Nearest: .*squad_to_mrqa"):
    prepare.prepare("squad_to_mrq", vocabulary="bytes")
  found = prepare.prepare(
    "mrqa_duo_rc", vocabulary="bytes", data_dir=str(data_dir)
  )
  assert found.num_input_examples("validation") == 2
