"""T0's mixture: its tasks and caps, over small files."""

import csv

import pytest
import seqio

from peft_jax.tasks import prepare, promptsource, t0_mixture
from peft_jax.tasks.sources import DataError
from peft_jax.tasks.t0_mixture import DATASETS, Dataset
from peft_jax.tasks.templates import Template, TemplateError

# Templates of one kind for every data set.
TEMPLATES = """templates:
  1: !Template
    name: say & tell
    jinja: 'Say: {{text}} ||| {{answer}}'
  2: !Template
    name: pick
    jinja: 'Pick {{text}} ||| {{answer}}'
    answer_choices: one ||| two
"""
LENGTHS = {"inputs": 32, "targets": 8}


@pytest.fixture
def folders(tmp_path, write_rows):
  """A row and templates for each data set; MRPC has three."""
  for number, dataset in enumerate(DATASETS):
    folder = tmp_path / "templates" / dataset.folder
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "templates.yaml").write_text(TEMPLATES)
    rows = [{"text": f"row {number}", "answer": "two"}]
    if dataset.subset == "mrpc":
      rows = [{"text": f"row {n}", "answer": a} for n, a in enumerate(ANSWERS)]
    write_rows(tmp_path / "data" / dataset.folder / "train.jsonl", rows)
  return {
    "vocabulary": "bytes",
    "data_dir": str(tmp_path / "data"),
    "templates": str(tmp_path / "templates"),
  }


ANSWERS = ("two", "", "three")


def rows_of(name, **kwargs):
  task = seqio.get_mixture_or_task(name)
  dataset = task.get_dataset(None, "train", **{"shuffle": False, **kwargs})
  return list(dataset.as_numpy_iterator())


def texts(row):
  return [
    row[f"{name}_pretokenized"].decode() for name in ("inputs", "targets")
  ]


def test_the_mixture_of_one_data_set(folders):
  mixture = t0_mixture.register("t0_glue_mrpc", **folders)
  rates = {task.name: mixture.get_rate(task) for task in mixture.tasks}
  assert rates == {"t0_glue_mrpc_pick": 3, "t0_glue_mrpc_say_tell": 3}
  rows = rows_of("t0_glue_mrpc_pick")
  # The row without a target is left out.
  assert [texts(row) for row in rows] == [
    ["Pick row 0", "two"],
    ["Pick row 2", "three"],
  ]
  assert [int(row["idx"]) for row in rows] == [0, 2]
  assert [int(row["label"]) for row in rows] == [1, 0]
  assert rows[0]["choices_pretokenized"].tolist() == [b"one", b"two"]
  assert rows[1]["choices_pretokenized"].tolist() == [b"three"]
  dataset = mixture.get_dataset(LENGTHS, "train", seed=0, num_epochs=None)
  drawn = list(dataset.take(20).as_numpy_iterator())
  # Both of its tasks, one "Pick ...", the other "Say: ...".
  assert len({int(row["inputs"][0]) for row in drawn}) == 2
  (free, _) = rows_of("t0_glue_mrpc_say_tell")
  assert free["choices_pretokenized"].tolist() == [b"two"]
  assert free["label"] == 0


def test_shuffling_reaches_all_rows(folders, write_rows, tmp_path):
  rows = [{"text": f"{n:03}", "answer": "one"} for n in range(100)]
  write_rows(tmp_path / "data" / "glue" / "mrpc" / "train.jsonl", rows)
  t0_mixture.register("t0_glue_mrpc", **folders)
  source = seqio.TaskRegistry.get("t0_glue_mrpc_pick").source
  order = [
    int(row["idx"])
    for row in source.get_dataset("train", True, 1).as_numpy_iterator()
  ]
  assert sorted(order) == list(range(100))
  assert order != list(range(100))
  again = source.get_dataset("train", shuffle=True, seed=1)
  assert [int(row["idx"]) for row in again.as_numpy_iterator()] == order


def test_only_the_first_rows_are_used(folders, monkeypatch):
  monkeypatch.setattr(t0_mixture, "MAX_ROWS", 4)
  mixture = t0_mixture.register("t0_glue_mrpc", **folders)
  assert {mixture.get_rate(task) for task in mixture.tasks} == {2}
  assert [int(row["idx"]) for row in rows_of("t0_glue_mrpc_say_tell")] == [0]


def test_the_whole_mixture(folders):
  mixture = prepare.prepare(
    "t0_mixture",
    vocabulary="bytes",
    data_dir=folders["data_dir"],
    few_shot_settings={"templates": folders["templates"]},
  )
  assert len(mixture.tasks) == 2 * 38
  rates = {task.name: mixture.get_rate(task) for task in mixture.tasks}
  assert rates["t0_glue_mrpc_pick"] == 3 and rates["t0_trec_pick"] == 1


def test_what_is_missing(folders, tmp_path):
  (tmp_path / "data" / "trec" / "train.jsonl").unlink()
  (tmp_path / "data" / "glue" / "qqp" / "train.jsonl").unlink()
  with pytest.raises(DataError, match=r"for 38 .* none for 2: glue/qqp, trec"):
    t0_mixture.register(**folders)
  assert "t0_mixture" not in seqio.MixtureRegistry.names()
  with pytest.raises(
    DataError, match=r"TFDS has .* none for 28: kilt_tasks/hot"
  ):
    t0_mixture.register(**{**folders, "data_dir": ""})
  with pytest.raises(TemplateError, match="Pass --templates DIR"):
    t0_mixture.register(**{**folders, "templates": ""})
  with pytest.raises(DataError, match="expected one of t0_mixture, t0_glue_mr"):
    t0_mixture.register("t0_none", **folders)


def test_rows_that_the_templates_do_not_fit(folders, tmp_path, write_rows):
  path = tmp_path / "data" / "glue" / "mrpc" / "train.jsonl"
  write_rows(path, [{"text": "a"}])
  with pytest.raises(TemplateError, match="answer missing"):
    t0_mixture.register("t0_glue_mrpc", **folders)
  path.write_text("\n")
  with pytest.raises(DataError, match="found an empty file"):
    t0_mixture.register("t0_glue_mrpc", **folders)


def test_what_a_template_makes_nothing_of():
  for jinja in ("{{a}}", "{{a}} |||", "||| {{a}}"):
    template = Template(name="a", jinja=jinja)
    assert t0_mixture.prompt({"a": "x"}, template=template, idx=0) is None


def test_caps():
  assert Dataset("", "", 3_600_000).cap(9) == 55_555
  assert Dataset("", "", 3_668).cap(7) == 3_668


def test_tfew_leaves_out_24_tasks():
  assert len(t0_mixture._LEFT_OUT) == 24


def test_the_table_is_tfews(shared_data):
  with shared_data("tfew/datasets.csv").open() as file:
    rows = [r for r in csv.DictReader(file) if r["do_train"] == "BASE"]
  assert [(d.name, d.subset, d.num_train) for d in DATASETS] == [
    (r["HF_name"], r["subset"], int(r["train_size"])) for r in rows
  ]


def test_promptsources_templates(shared_data):
  """The tasks of PromptSource's present templates, none of them left out."""
  import tensorflow_datasets as tfds

  folder = shared_data("promptsource/templates")
  names, total = set(), 0
  for dataset in DATASETS:
    found = promptsource.read(
      dataset.name, subset=dataset.subset, folder=folder
    )
    names |= {dataset.task_name(template.name) for template in found}
    total += len(found)
    assert dataset.cap(len(found)) * len(found) <= t0_mixture.MAX_ROWS
    if dataset.tfds:
      # TFDS's rows have the fields that the templates read.
      features = tfds.builder(dataset.tfds, try_gcs=False).info.features
      for template in found:
        template.check_fields(dict.fromkeys(features))
  assert len(names) == total == 313
  assert not names & t0_mixture._LEFT_OUT
