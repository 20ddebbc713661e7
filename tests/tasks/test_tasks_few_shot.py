"""T-Few's few-shot tasks: rows, samples, templates, the tasks made of them."""

import collections
import json

import numpy as np
import pytest
import seqio

from peft_jax.tasks import (
  few_shot,
  few_shot_sampling,
  prepare,
  prompting,
  promptsource,
)
from peft_jax.tasks.few_shot_data import DATA, SEEDS
from peft_jax.tasks.sources import DataError
from peft_jax.tasks.templates import Template, TemplateError

SAMPLES = "tfew/data/few_shot"
FEW_GLUE = "superglue/FewGLUE_32dev"

# One row of each data set in its official form, and what Hugging Face has.
ROWS = {
  "rte": (
    {"premise": "A.", "hypothesis": "B.", "label": "not_entailment", "idx": 5},
    {"premise": "A.", "hypothesis": "B.", "label": 1, "idx": 5},
  ),
  "cb": (
    {"premise": "A.", "hypothesis": "b", "label": "neutral", "idx": 5},
    {"premise": "A.", "hypothesis": "b", "label": 2, "idx": 5},
  ),
  "copa": (
    {
      "premise": "A.",
      "choice1": "B.",
      "choice2": "C.",
      "question": "cause",
      "label": 1,
      "idx": 5,
    },
    {"question": "cause", "choice1": "B.", "label": 1, "idx": 5},
  ),
  "wic": (
    {
      "word": "go",
      "sentence1": "Go on.",
      "sentence2": "A go.",
      "start1": 0,
      "label": False,
      "idx": 5,
    },
    {"word": "go", "start1": 0, "label": 0, "idx": 5},
  ),
  "wsc": (
    {
      "text": "The cat saw it .",
      "target": {
        "span1_index": 0,
        "span1_text": "the Cat.",
        "span2_index": 3,
        "span2_text": "It",
      },
      "label": True,
      "idx": 5,
    },
    # In the text it is lower case.
    {"span1_index": 0, "span2_text": "it", "label": 1, "idx": 5},
  ),
  "anli_r1": (
    {"uid": "u", "context": "A.", "hypothesis": "B.", "label": "c"},
    {"premise": "A.", "hypothesis": "B.", "label": 2, "idx": 0},
  ),
  "winogrande": (
    {
      "qID": "q",
      "sentence": "A _ fell.",
      "option1": "cup",
      "option2": "cat",
      "answer": "2",
    },
    {"option1": "cup", "answer": "2", "label": 1, "idx": 0},
  ),
  "hellaswag": (
    {
      "ind": 3,
      "activity_label": "Swimming",
      "ctx_a": "A man",
      "ctx_b": "he",
      "ctx": "A man he",
      "endings": ["swims.", "sings.", "reads.", "eats."],
      "label": 3,
    },
    {"ctx": "A man he", "ctx_b": "he", "label": 3, "idx": 0},
  ),
  "storycloze": (
    {
      "story_id": "s",
      **{f"input_sentence_{n}": f"It was {n}." for n in range(1, 5)},
      "sentence_quiz1": "No.",
      "sentence_quiz2": "Yes.",
      "answer_right_ending": 2,
    },
    {"sentence_quiz1": "No.", "label": 1, "idx": 0},
  ),
}
ROWS |= {f"anli_r{n}": ROWS["anli_r1"] for n in (2, 3)}


@pytest.fixture
def folder(tmp_path, write_rows):
  """All data sets, three rows a split."""
  for data in DATA.values():
    for names in data.files.values():
      rows = [
        {
          **ROWS[data.name][0],
          **({"idx": i} if "idx" in ROWS[data.name][0] else {}),
        }
        for i in range(3)
      ]
      write_rows(tmp_path / data.name / data.folders[0] / names[0], rows)
  return tmp_path


def register(name, **kwargs):
  return few_shot.register(
    name, **{"vocabulary": "bytes", "shots": 2, **kwargs}
  )


def rows_of(task, split="train"):
  dataset = task.get_dataset(None, split, shuffle=False)
  return list(dataset.as_numpy_iterator())


@pytest.mark.parametrize("name", DATA)
def test_rows_become_hugging_faces(name, tmp_path, write_rows):
  official, expected = ROWS[name]
  (row,) = DATA[name].read(write_rows(tmp_path / "a.jsonl", [official]))
  assert {key: row[key] for key in expected} == expected
  # What has that form is left as it is.
  (again,) = DATA[name].read(write_rows(tmp_path / "b.jsonl", [row]))
  assert again == row
  with pytest.raises(DataError, match=rf"a.jsonl:2: expected a row of {name}"):
    DATA[name].read(write_rows(tmp_path / "a.jsonl", [official, {"no": 1}]))


def test_labels_that_are_wrong_or_missing(tmp_path, write_rows):
  row = {"premise": "A.", "hypothesis": "B.", "idx": 0}
  path = tmp_path / "a.jsonl"
  assert DATA["rte"].read(write_rows(path, [row]))[0]["label"] == -1
  for label in ("neutral", 2, [1]):
    with pytest.raises(DataError, match=r"a\.jsonl:1"):
      DATA["rte"].read(write_rows(path, [{**row, "label": label}]))
  with pytest.raises(DataError, match="premise is 7, which is no text"):
    DATA["rte"].read(write_rows(path, [{**row, "premise": 7}]))
  copa = {**ROWS["copa"][0], "question": "why"}
  with pytest.raises(DataError, match="question 'why'"):
    DATA["copa"].read(write_rows(path, [copa]))


def test_rows_of_other_forms(tmp_path, write_rows):
  suite = {"ind": 1, "query": "Swim: A man", "choices": ["a", "b"], "gold": 1}
  path = write_rows(tmp_path / "a.jsonl", [suite])
  (row,) = DATA["hellaswag"].read(path)
  assert (row["ctx"], row["ctx_b"], row["label"]) == ("A man", "", 1)
  with pytest.raises(DataError, match="query without an activity"):
    DATA["hellaswag"].read(write_rows(path, [{**suite, "query": "A man"}]))
  tfds = {"sentence": "_", "option1": "a", "option2": "b", "label": 1}
  (row,) = DATA["winogrande"].read(write_rows(path, [tfds]))
  assert (row["answer"], row["label"]) == ("2", 1)


@pytest.mark.parametrize("name", DATA)
def test_every_task_builds_from_files(name, folder):
  task = register(f"tfew_{name}", data_dir=str(folder / name))
  templates = promptsource.read(
    DATA[name].templates[0], subset=DATA[name].templates[1]
  )
  rows = rows_of(task)
  # Every row once for each template.
  assert len(rows) == 2 * len(templates)
  assert {row["template"].decode() for row in rows} == {
    template.name for template in templates
  }
  label = ROWS[name][1]["label"]
  for row in [*rows, *rows_of(task, "validation")]:
    assert row["label"] == label
    choices = row["choices_pretokenized"].tolist()
    assert choices[label] == row["targets_pretokenized"]
    assert row["inputs_pretokenized"] and all(choices)
  assert len(rows_of(task, "validation")) == 3


def test_shuffling_keeps_the_rows(folder):
  task = register("tfew_rte", data_dir=str(folder / "rte"), shots=0)
  dataset = task.get_dataset(None, "train", shuffle=True, seed=1)
  rows = list(dataset.as_numpy_iterator())
  assert sorted(int(row["idx"]) for row in rows) == sorted([0, 1, 2] * 4)


def test_unlabelled_rows(folder, write_rows):
  bare = {k: v for k, v in ROWS["rte"][0].items() if k != "label"}
  write_rows(folder / "rte" / "RTE" / "test.jsonl", [bare])
  task = register("tfew_rte", data_dir=str(folder / "rte"))
  (row,) = rows_of(task, "test")
  assert (row["label"], row["targets_pretokenized"]) == (-1, b"<unk>")


def test_files_of_a_folder(folder, tmp_path):
  register("tfew_rte", data_dir=str(folder / "rte" / "RTE"))
  with pytest.raises(
    DataError, match=r"expected one of test.jsonl, train.json"
  ):
    register("tfew_rte", data_dir=str(tmp_path / "nowhere"))
  with pytest.raises(DataError, match=r"at least 4 training rows.* found 3"):
    register("tfew_rte", data_dir=str(folder / "rte"), shots=4)
  with pytest.raises(DataError, match="expected one of the tasks tfew_rte"):
    register("tfew_none")
  with pytest.raises(DataError, match="expected --data_dir with the files"):
    register("tfew_storycloze")
  with pytest.raises(DataError, match="from 0 to 2"):
    few_shot_sampling.sample([1], shots=1, seed=-1)


def test_samples_of_tfews_files(folder, tmp_path, write_rows):
  samples = tmp_path / "few_shot"
  path = samples / "rte" / "2_shot" / "7_seed.jsonl"
  row = ROWS["rte"][1]
  write_rows(path, [{**row, "idx": i} for i in (8, 4)])
  given = {"data_dir": str(folder / "rte"), "files": str(samples)}
  task = register("tfew_rte", **given, seed=7)
  assert [int(r["idx"]) for r in rows_of(task)] == [8] * 4 + [4] * 4
  with pytest.raises(DataError, match=r"T-Few's sample .*8_seed.jsonl"):
    register("tfew_rte", **given, seed=8)
  write_rows(path, [row])
  with pytest.raises(DataError, match="expected 2 rows, found 1"):
    register("tfew_rte", **given, seed=7)


def test_the_sample_is_numpys_shuffle_of_a_list():
  rows = [{"idx": i} for i in range(50)]
  np.random.seed(32)
  expected = list(rows)
  np.random.shuffle(expected)  # what T-Few's code does
  assert few_shot_sampling.sample(rows, shots=9, seed=32) == expected[:9]
  assert sorted(SEEDS) == [0, 1, 32, 42, 1024]


# The first `idx` of T-Few's files of seed 1024.
PUBLISHED = {
  "rte": [907, 103, 1308],
  "cb": [202, 131, 106],
  "copa": [114, 218, 372],
  "wic": [4909, 1744, 2968],
  "wsc": [159, 209, 63],
  "anli_r1": [2661, 7199, 7414],
  "anli_r2": [27489, 10537, 38241],
  "anli_r3": [94747, 88636, 41401],
  "winogrande": [8457, 16551, 1135],
  "hellaswag": [18801, 28147, 34778],
  "storycloze": [356, 143, 131],
}


@pytest.mark.parametrize("name", DATA)
def test_the_samples_begin_as_tfews(name):
  rows = range(DATA[name].sizes["train"])
  drawn = few_shot_sampling.sample(rows, shots=3, seed=1024)
  assert drawn == PUBLISHED[name]


def ask(name, **kwargs):
  fields = {
    "jinja": name + " {{text}} ||| {{answer_choices[label]}}",
    "answer_choices": "no ||| yes",
    "original_task": True,
  }
  return Template(name=name, **{**fields, **kwargs})


def test_the_choice_of_templates():
  found = [ask(name) for name in "dbca"] + [ask("0", original_task=False)]
  rows = [{"text": "t", "label": 1, "idx": i} for i in range(200)]

  def names(choice, **kwargs):
    prompts = prompting.prompts(rows, templates=found, choice=choice, **kwargs)
    return [prompt["template"] for prompt in prompts]

  assert names("all")[:5] == [*"abcda"] and len(names("all")) == 800
  assert names("c") == ["c"] * 200
  assert names(0) == ["0"] * 200
  drawn = names("random", seed=3)
  # In the row's `idx` and the seed, and in nothing else.
  assert drawn == names("random", seed=3) != names("random", seed=4)
  rows.reverse()
  assert names("random", seed=3) == drawn[::-1]
  counts = collections.Counter(drawn)
  assert set(counts) == {*"abcd"} and min(counts.values()) > 30
  assert set(names("random", first=2)) == {"a", "b"}
  with pytest.raises(TemplateError, match="found 'e'"):
    names("e")
  del found[:4]
  with pytest.raises(TemplateError, match="for the original task, found none"):
    names("random")


def test_templates_for_some_rows_only():
  some = ask(
    "a", jinja="{% if label %}{{text}} ||| {{answer_choices[1]}}{% endif %}"
  )
  rows = [{"text": "t", "label": i % 2, "idx": i} for i in range(20)]
  for choice, number in (("random", 20), ("all", 30)):
    prompts = prompting.prompts(rows, templates=[some, ask("b")], choice=choice)
    names = [(p["template"], p["label"]) for p in prompts]
    assert len(names) == number and ("a", 0) not in names
  with pytest.raises(
    TemplateError, match="row with idx 0, found none among 'a'"
  ):
    list(prompting.prompts(rows, templates=[some], choice="a"))


def test_the_label_is_the_targets_place():
  rows = [{"text": "t", "label": 1, "idx": 0}]
  turned = ask("a", jinja="{{text}} ||| {{answer_choices[1 - label]}}")
  (prompt,) = prompting.prompts(rows, templates=[turned], choice="a")
  assert (prompt["label"], prompt["targets"]) == (0, "no")
  same = ask("a", answer_choices="yes ||| yes")
  (prompt,) = prompting.prompts(rows, templates=[same], choice="a")
  assert prompt["label"] == 1
  for wrong, found in (
    (ask("a", jinja="{{text}} {{label}} ||| maybe"), "found 'maybe'"),
    (ask("a", jinja="{{text}} ||| x", answer_choices=None), "without"),
    (ask("a", jinja="{{texts}} ||| x"), "texts missing"),
  ):
    with pytest.raises(TemplateError, match=found):
      list(prompting.prompts(rows, templates=[wrong], choice="a"))


def test_prepare_knows_the_tasks(folder):
  task = prepare.prepare(
    "tfew_rte",
    vocabulary="bytes",
    data_dir=str(folder / "rte"),
    few_shot_settings={"shots": 1, "train_template": "follows"},
  )
  assert [row["template"] for row in rows_of(task)] == [b"follows"]
  with pytest.raises(DataError, match=r"Nearest: .*tfew_rte"):
    prepare.prepare("tfew_rt", vocabulary="bytes")


def test_rows_of_tfds(monkeypatch):
  """In the official order, whatever the order they are stored in."""
  import tensorflow as tf
  import tensorflow_datasets as tfds

  def load(name, split):
    assert (name, split) == ("super_glue/rte:1.0.2", "train")
    return tf.data.Dataset.from_tensor_slices(
      {
        "premise": ["c", "a", "b"],
        "hypothesis": ["C", "A", "B"],
        "label": np.array([0, -1, 1]),
        "idx": np.array([2, 0, 1], np.int32),
      }
    )

  monkeypatch.setattr(tfds, "load", load)
  task = register("tfew_rte", shots=0, train_template="follows")
  rows = rows_of(task)
  assert [int(row["idx"]) for row in rows] == [0, 1, 2]
  assert [int(row["label"]) for row in rows] == [-1, 1, 0]
  assert rows[1]["inputs_pretokenized"].startswith(b"Text: b\nClaim: B")


@pytest.mark.parametrize("name", DATA)
def test_tfds_has_the_rows(name):
  import tensorflow_datasets as tfds

  for dataset, _ in DATA[name].tfds.values():
    builder = tfds.builder(dataset, try_gcs=False)
    row = {}
    for field, feature in builder.info.features.items():
      row[field] = 0 if feature.np_dtype in (np.int32, np.int64) else "cause"
    if "endings" in row:
      row["endings"] = ["a", "b"]
    converted = DATA[name].row(row, number=0, place=dataset)
    for template in promptsource.read(
      DATA[name].templates[0], subset=DATA[name].templates[1]
    ):
      template.check_fields(converted)


# What follows reads the real files.


@pytest.mark.parametrize("name", DATA)
def test_published_samples_are_reproduced(name, shared_data):
  """Their `idx` is the position in a training set of the published size."""
  data = DATA[name]
  folder = shared_data(SAMPLES)
  paths = sorted((folder / data.published).glob("*_shot/*_seed.jsonl"))
  if not paths:
    pytest.skip(f"needs T-Few's samples of {name}, which are not here")
  seeds = {int(path.name.split("_")[0]) for path in paths}
  assert set(SEEDS) <= seeds <= {*SEEDS, 100}
  for seed in seeds:
    rows = few_shot_sampling.read_published(
      data, folder=str(folder), shots=data.shots, seed=seed
    )
    drawn = few_shot_sampling.sample(
      range(data.sizes["train"]), shots=data.shots, seed=seed
    )
    assert [row["idx"] for row in rows] == drawn


@pytest.mark.parametrize("name", ["rte", "cb"])
def test_published_files_are_reproduced_from_the_train_sets(name, shared_data):
  """Every field of every row, as Hugging Face has it."""
  train = shared_data(f"superglue/few_shot_learning/{name}/train.jsonl")
  rows = DATA[name].read(train)
  assert len(rows) == DATA[name].sizes["train"]
  folder = shared_data(f"{SAMPLES}/{name}/32_shot")
  for path in sorted(folder.glob("*_seed.jsonl")):
    seed = int(path.name.split("_")[0])
    published = [json.loads(line) for line in path.read_text().splitlines()]
    assert few_shot_sampling.sample(rows, shots=32, seed=seed) == published


@pytest.mark.parametrize("name", ["rte", "cb", "copa", "wic", "wsc"])
def test_official_rows_are_those_of_tfew(name, shared_data):
  """Where FewGLUE's official rows are in a sample, in every field."""
  data = DATA[name]
  published = {}
  for path in (shared_data(SAMPLES) / data.published).glob("*/*.jsonl"):
    for line in path.read_text().splitlines():
      row = json.loads(line)
      published[row["idx"]] = row
  folder = shared_data(f"{FEW_GLUE}/{data.folders[0]}")
  official = [
    row
    for file in ("train.jsonl", "dev32.jsonl")
    for row in data.read(folder / file)
    if row["idx"] in published
  ]
  assert official
  for row in official:
    wanted = published[row["idx"]]
    assert {key: row[key] for key in wanted} == wanted


@pytest.mark.parametrize("name", ["rte", "cb", "copa", "wic", "wsc"])
@pytest.mark.parametrize("own", [True, False], ids=["own", "promptsource"])
def test_real_rows_in_words(name, own, shared_data):
  """T-Few's tasks over real files, with its samples and its templates."""
  data = DATA[name]
  task = register(
    data.task_name,
    data_dir=str(shared_data(f"{FEW_GLUE}/{data.folders[0]}")),
    files=str(shared_data(SAMPLES)),
    shots=None,
    templates="" if own else str(shared_data("promptsource/templates")),
  )
  validation = rows_of(task, "validation")
  assert len(validation) == data.sizes["validation"]
  assert [int(row["idx"]) for row in validation] == list(range(len(validation)))
  train = rows_of(task)
  counts = {"rte": 10, "cb": 15, "copa": 8, "wic": 10, "wsc": 10}
  templates = promptsource.read("super_glue", subset=data.templates[1])
  assert len(train) == 32 * (len(templates) if own else counts[name])
  for row in [*train, *validation]:
    choices = row["choices_pretokenized"].tolist()
    assert choices[row["label"]] == row["targets_pretokenized"]


@pytest.mark.parametrize("own", [True, False], ids=["own", "promptsource"])
def test_real_rows_of_hellaswag(own, shared_data):
  task = register(
    "tfew_hellaswag",
    data_dir=str(shared_data("heldout")),
    files=str(shared_data(SAMPLES)),
    shots=None,
    templates="" if own else str(shared_data("promptsource/templates")),
  )
  assert len(rows_of(task, "validation")) == 1_000
  assert len(rows_of(task)) == 20 * (3 if own else 4)


@pytest.mark.parametrize("own", [True, False], ids=["own", "promptsource"])
def test_real_rows_of_winogrande(own, shared_data, tmp_path, write_rows):
  data = DATA["winogrande"]
  samples = shared_data(SAMPLES)
  shared_data(f"{SAMPLES}/winogrande")
  write_rows(tmp_path / "dev.jsonl", [ROWS["winogrande"][0]])
  task = register(
    "tfew_winogrande",
    data_dir=str(tmp_path),
    files=str(samples),
    shots=None,
    templates="" if own else str(shared_data("promptsource/templates")),
  )
  assert len(rows_of(task)) == data.shots * (3 if own else 5)


def test_every_superglue_template_renders_on_real_rows(shared_data):
  """Those of the other tasks too, with rows in Hugging Face's form."""
  templates = shared_data("promptsource/templates")
  folder = shared_data(FEW_GLUE)
  rows = {
    data.templates[1]: data.read(folder / data.folders[0] / "train.jsonl")
    for data in DATA.values()
    if data.templates[0] == "super_glue"
  }
  rows |= {subset: [] for subset in ("boolq", "multirc", "record")}
  for row in read(folder / "BoolQ" / "train.jsonl"):
    rows["boolq"].append({**row, "label": int(row["label"])})
  for row in read(folder / "MultiRC" / "train.jsonl"):
    paragraph = row["passage"]["text"]
    rows["multirc"] += [
      {
        "paragraph": paragraph,
        "question": question["question"],
        "answer": answer["text"],
        "label": answer["label"],
      }
      for question in row["passage"]["questions"]
      for answer in question["answers"]
    ]
  for row in read(folder / "ReCoRD" / "train.jsonl"):
    text = row["passage"]["text"]
    entities = [
      text[e["start"] : e["end"] + 1] for e in row["passage"]["entities"]
    ]
    rows["record"] += [
      {
        "passage": text,
        "query": query["query"],
        "entities": sorted(set(entities)),
        "answers": sorted({answer["text"] for answer in query["answers"]}),
      }
      for query in row["qas"]
    ]
  pair = {"label": 1, "idx": 0}
  rows["axb"] = [{"sentence1": "A.", "sentence2": "B.", **pair}]
  rows["axg"] = [{"premise": "A.", "hypothesis": "B.", **pair}]
  subsets = [
    s for d, s in promptsource.list_datasets(templates) if d == "super_glue"
  ]
  assert sorted(subsets) == sorted(rows)
  for subset in subsets:
    for template in promptsource.read(
      "super_glue", subset=subset, folder=templates
    ):
      template.check_fields(rows[subset][0])
      found = [template.render(row) for row in rows[subset]]
      meant = [rendered for rendered in found if rendered is not None]
      # COPA's four for causes or for effects are for a part of the rows.
      assert meant, template.name
      assert len(meant) == len(found) or subset == "copa", template.name
      assert all(r.inputs and r.target for r in meant), template.name


def read(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def test_names_are_of_tasks():
  assert len(few_shot.NAMES) == 11
  assert not set(few_shot.NAMES) & set(seqio.TaskRegistry.names())
