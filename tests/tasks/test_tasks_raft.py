"""RAFT: rows, inputs, what is cut, folds, and its metric."""

import itertools
import json
import re

import numpy as np
import pytest
from helpers.raft_files import make, row

from peft_jax.tasks import prepare, raft, raft_spec
from peft_jax.tasks.metrics import MetricError
from peft_jax.tasks.raft_spec import SPECS
from peft_jax.tasks.sources import DataError

# arXiv 2109.14076 and the files of https://github.com/oughtinc/raft-submission,
# one prediction for each test row.
NUM_TEST = {
  "ade_corpus_v2": 5000,
  "banking_77": 5000,
  "neurips_impact_statement_risks": 150,
  "one_stop_english": 518,
  "overruling": 2350,
  "semiconductor_org_types": 449,
  "systematic_review_inclusion": 2244,
  "tai_safety_research": 1639,
  "terms_of_service": 5000,
  "tweet_eval_hate": 2966,
  "twitter_complaints": 3399,
}
REVIEW = "systematic_review_inclusion"
RISKS = "neurips_impact_statement_risks"
RISKS_COLUMNS = ("Paper title", "Paper link", "Impact statement")


def examples(task, split="train", length=None):
  lengths = None if length is None else {"inputs": length, "targets": 64}
  dataset = task.get_dataset(lengths, split, shuffle=False)
  return list(dataset.as_numpy_iterator())


def text_of(example):
  return bytes(int(i) - 3 for i in example["inputs"] if i > 2).decode()


def test_an_input_has_instruction_labels_fields_and_ending(tmp_path):
  make(tmp_path, RISKS, RISKS_COLUMNS)
  task = raft.register(RISKS, data_dir=tmp_path, vocabulary="bytes")
  found = examples(task, "validation")
  instruction = SPECS[RISKS].instruction
  text = (
    f"{instruction} Possible labels: doesn't mention a harmful application,"
    " mentions a harmful application\nImpact statement: Impact statement of 0\n"
    "Paper title: Paper title of 0\nLabel:"
  )
  assert found[0]["inputs_pretokenized"].decode() == text
  assert text_of(found[0]) == text
  assert found[0]["inputs"][-1] == 1  # EOS
  assert [e["targets_pretokenized"].decode() for e in found[:3]] == [
    "doesn't mention a harmful application",
    "mentions a harmful application",
    "doesn't mention a harmful application",
  ]
  assert [int(e["label"]) for e in found[:3]] == [0, 1, 0]
  assert found[0]["choices_pretokenized"].tolist() == [
    label.encode() for label in SPECS[RISKS].labels
  ]
  assert "fields" not in found[0]


@pytest.mark.parametrize(
  ("labels", "listed"),
  [
    ("comma", "Do it. Possible labels: not overruling, overruling"),
    (
      "numbered",
      "Do it.\nPossible labels:\n1. not overruling\n2. overruling",
    ),
    ("none", "Do it."),
  ],
)
def test_labels_are_listed_as_asked(tmp_path, labels, listed):
  make(tmp_path, "overruling", ("Sentence",))
  path = tmp_path / "overruling" / "task.json"
  path.write_text(json.dumps({"description": " Do it. "}))
  task = prepare.prepare(
    "raft_overruling",
    vocabulary="bytes",
    data_dir=str(tmp_path),
    raft_settings={"labels": labels},
  )
  text = f"{listed}\nSentence: Sentence of 3\nLabel:"
  assert text_of(examples(task, "validation")[3]) == text


def test_instructions_are_those_asked_for(tmp_path):
  spec = SPECS["overruling"]
  folder = tmp_path / spec.name
  folder.mkdir()
  assert raft.read_instruction(spec, str(folder), "") == spec.instruction
  (folder / "task.json").write_text('{"description": ""}')
  assert raft.read_instruction(spec, str(folder), "") == spec.instruction
  (folder / "task.json").write_text('{"description": "Theirs."}')
  assert raft.read_instruction(spec, str(folder), "") == "Theirs."
  settings = tmp_path / "settings.jsonl"
  settings.write_text('{"overruling": ["Sentence"]}\n{"overruling": "Few."}\n')
  assert raft.read_instruction(spec, str(folder), str(settings)) == "Few."
  settings.write_text('{"overruling": ["Sentence"]}\n{"other": "Few."}\n')
  with pytest.raises(DataError, match=r"expected two lines.*KeyError"):
    raft.read_instruction(spec, str(folder), str(settings))
  with pytest.raises(DataError, match=r"Correct config\.Raft"):
    raft.read_instruction(spec, str(folder), str(tmp_path / "none.jsonl"))
  (folder / "task.json").write_text("[")
  with pytest.raises(DataError, match="expected one JSON object"):
    raft.read_instruction(spec, str(folder), "")


def test_fields_in_the_order_of_the_file_as_t_fews_code_has_them(tmp_path):
  make(tmp_path, RISKS, RISKS_COLUMNS)
  task = raft.register(
    RISKS,
    data_dir=tmp_path,
    vocabulary="bytes",
    field_order="columns",
    labels="none",
  )
  assert text_of(examples(task, "validation")[0]).endswith(
    "\nPaper title: Paper title of 0\nImpact statement: Impact statement of 0\n"
    "Label:"
  )


def test_empty_fields_are_left_out(tmp_path):
  columns = ("Title", "Abstract", "Authors", "Journal")
  test = [
    row(columns, 50, Abstract=" ") | {"ID": 50},
    row(columns, 51, Title="", Abstract="", Journal="") | {"ID": 51},
  ]
  make(tmp_path, REVIEW, columns, test=test)
  task = raft.register(
    REVIEW, data_dir=tmp_path, vocabulary="bytes", labels="none"
  )
  first, second = map(text_of, examples(task, "test"))
  assert first == (
    f"{SPECS[REVIEW].instruction}\nTitle: Title of 50\nJournal: Journal of 50\n"
    "Label:"
  )
  assert second == f"{SPECS[REVIEW].instruction}\nLabel:"


def test_the_longest_field_is_cut_and_nothing_else(tmp_path):
  columns = ("Title", "Abstract", "Authors", "Journal")
  long = row(columns, 50, Abstract="0123456789" * 50) | {"ID": 50}
  make(tmp_path, REVIEW, columns, test=[long])
  task = raft.register(REVIEW, data_dir=tmp_path, vocabulary="bytes")
  whole = examples(task, "test")[0]
  assert len(whole["inputs"]) > 600
  for length in (300, 301, 450):
    found = examples(task, "test", length)[0]
    assert len(found["inputs"]) == length
    assert found["inputs"][-1] == 1
    text = text_of(found)
    head = raft_spec.heading(
      SPECS[REVIEW].instruction, labels=SPECS[REVIEW].labels, listed="comma"
    )
    match = re.fullmatch(
      rf"{re.escape(head)}\nTitle: Title of 50\nAbstract: (\d+)"
      r"\nJournal: Journal of 50\nLabel:",
      text,
    )
    assert match, text
    assert ("0123456789" * 50).startswith(match[1])
    assert found["inputs_pretokenized"] == whole["inputs_pretokenized"]
  # What fits is as it was.
  uncut = examples(task, "test", len(whole["inputs"]))[0]["inputs"]
  np.testing.assert_array_equal(uncut, whole["inputs"])


@pytest.mark.parametrize("seed", range(20))
def test_kept_tokens_against_a_level_found_by_trying(seed):
  rng = np.random.default_rng(seed)
  lengths = rng.integers(0, 30, rng.integers(1, 6))
  room = int(rng.integers(0, 80))
  kept = np.array(raft_spec.kept_tokens(lengths.tolist(), room))
  assert kept.sum() == min(room, lengths.sum())
  assert (kept <= lengths).all()
  level = max(
    n for n in range(31) if np.minimum(lengths, n).sum() <= room or n == 0
  )
  assert (kept >= np.minimum(lengths, level)).all()
  assert (kept <= np.minimum(lengths, level + 1)).all()


def test_a_length_that_the_labels_do_not_fit_in_is_refused(tmp_path):
  make(tmp_path, "banking_77", ("Query",))
  task = raft.register("banking_77", data_dir=tmp_path, vocabulary="bytes")
  with pytest.raises(DataError, match=r"found 512\. Raise"):
    examples(task, length=512)
  needed = 1 + len(
    raft_spec.heading(
      SPECS["banking_77"].instruction,
      labels=SPECS["banking_77"].labels,
      listed="comma",
    )
    + "\nLabel:"
  )
  assert len(examples(task, length=needed)[0]["inputs"]) == needed
  with pytest.raises(DataError, match=f"at least {needed} tokens"):
    examples(task, length=needed - 1)


def test_banking_labels_can_be_clean(tmp_path):
  make(tmp_path, "banking_77", ("Query",))
  task = raft.register(
    "banking_77",
    data_dir=tmp_path,
    vocabulary="bytes",
    labels="none",
    clean_labels=True,
    validation_start=None,
  )
  found = examples(task)[3]
  assert found["targets_pretokenized"] == b"apple pay or google pay"
  assert len(found["choices_pretokenized"]) == 77
  assert found["choices_pretokenized"][3] == b"apple pay or google pay"


@pytest.mark.parametrize("start", [0, 10, 20, 30, 40])
def test_a_fold_holds_out_ten_rows(tmp_path, start):
  make(tmp_path, "overruling", ("Sentence",))
  task = raft.register(
    "overruling", data_dir=tmp_path, vocabulary="bytes", validation_start=start
  )
  held_out = [int(e["idx"]) for e in examples(task, "validation")]
  assert held_out == list(range(start, start + 10))
  train = [int(e["idx"]) for e in examples(task)]
  assert train == [n for n in range(50) if n not in held_out]
  assert task.source.num_input_examples("train") == 40


def test_without_a_fold_all_rows_train(tmp_path):
  make(tmp_path, "overruling", ("Sentence",))
  task = raft.register(
    "overruling", data_dir=tmp_path, vocabulary="bytes", validation_start=None
  )
  assert set(task.splits) == {"train", "test"}
  assert len(examples(task)) == 50
  found = examples(task, "test")
  assert [int(e["idx"]) for e in found] == [50, 51, 52]
  assert [int(e["label"]) for e in found] == [-1] * 3
  assert {e["targets_pretokenized"] for e in found} == {b"<unk>"}


def test_shuffling_depends_on_the_seed_alone(tmp_path):
  make(tmp_path, "overruling", ("Sentence",))
  task = raft.register("overruling", data_dir=tmp_path, vocabulary="bytes")

  def order(seed):
    rows = task.get_dataset(None, "train", shuffle=True, seed=seed)
    return [int(e["idx"]) for e in rows.as_numpy_iterator()]

  assert order(1) == order(1) != order(2)
  assert sorted(order(2)) == list(range(10, 50))


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    ({"labels": "newline"}, "labels to be one of .*found 'newline'"),
    ({"field_order": "any"}, "field_order to be one of"),
    ({"validation_start": 5}, "validation_start to be one of .*found 5"),
    ({"clean_labels": True}, "expected clean_labels with banking_77 alone"),
    ({"data_dir": ""}, "Pass --data_dir"),
    ({"data_dir": "/nowhere"}, "expected the file /nowhere/overruling/train"),
  ],
)
def test_settings_that_are_none(tmp_path, settings, message):
  make(tmp_path, "overruling", ("Sentence",))
  with pytest.raises(DataError, match=message):
    raft.register(
      "overruling", **({"data_dir": tmp_path, "vocabulary": "bytes"} | settings)
    )


def test_unknown_tasks_are_named(tmp_path):
  with pytest.raises(DataError, match=r"found 'medical_subdomain'.*Name one"):
    prepare.prepare(
      "raft_medical_subdomain", vocabulary="bytes", data_dir=str(tmp_path)
    )


@pytest.mark.parametrize(
  ("content", "message"),
  [
    ("Sentence,Label\na,overruling\n", "found Sentence, Label: ID missing"),
    ("", "expected the columns Sentence, Label, ID, found none"),
    ("Sentence,Label,ID\na,b,c,1\n", ":2: expected 3 values, found more"),
    ("Sentence,Label,ID\na,b\n", ":2: expected 3 values, found more or fewer"),
    ("Sentence,Label,ID\na,b,x\n", "whole number of its own as ID, found 'x'"),
    ("Sentence,Label,ID\na,b,1\na,b,1\n", ":3: expected a whole number of its"),
    ("Sentence,Label,ID\na,overruling,1\n", "expected 50 rows, found 1"),
    (b"Sentence,Label,ID\n\xff,b,1\n", "expected UTF-8 text, found the byte"),
  ],
)
def test_files_that_are_not_rafts(tmp_path, content, message):
  path = tmp_path / "overruling" / "train.csv"
  path.parent.mkdir()
  path.write_bytes(content if isinstance(content, bytes) else content.encode())
  with pytest.raises(DataError, match=message):
    raft.register("overruling", data_dir=tmp_path, vocabulary="bytes")


def test_a_label_of_another_task_is_refused(tmp_path):
  train = [{"Sentence": "a", "Label": "complaint", "ID": n} for n in range(50)]
  make(tmp_path, "overruling", ("Sentence",), train=train)
  with pytest.raises(DataError, match="found 'complaint' at ID 0"):
    raft.register("overruling", data_dir=tmp_path, vocabulary="bytes")


def test_macro_f1_by_hand():
  targets = ["a", "a", "a", "a", "b", "b", "c", "c"]
  answers = ["a", "a", "a", "b", "b", "c", "c", "a"]
  # a: 2*3/(4+4), b: 2*1/(2+2), c: 2*1/(2+2)
  found = raft.macro_f1(targets, answers)
  assert found["macro_f1"] == pytest.approx(100 * (0.75 + 0.5 + 0.5) / 3)
  assert found["accuracy"] == pytest.approx(62.5)
  # A class that is answered and never asked for counts, with 0.
  found = raft.macro_f1(["a", "a"], ["a", "d"])
  assert found["macro_f1"] == pytest.approx(100 * (2 / 3 + 0) / 2)
  # The majority class alone.
  found = raft.macro_f1(["a"] * 9 + ["b"], ["a"] * 10)
  assert found["macro_f1"] == pytest.approx(100 * (18 / 19 + 0) / 2)


def test_macro_f1_of_no_labels_and_of_some():
  assert raft.macro_f1(["<unk>"] * 2, ["a", "b"]) == {}
  with pytest.raises(MetricError, match="found 1 of 2 without one"):
    raft.macro_f1(["<unk>", "a"], ["a", "b"])
  with pytest.raises(MetricError, match="expected at least one example"):
    raft.macro_f1([], [])


def test_specs_have_rafts_tasks_and_sizes():
  assert {spec.name: spec.num_test for spec in SPECS.values()} == NUM_TEST
  assert [len(SPECS[name].labels) for name in sorted(SPECS)] == [
    2,
    77,
    2,
    3,
    2,
    3,
    2,
    2,
    2,
    2,
    2,
  ]


@pytest.mark.parametrize("name", SPECS)
def test_specs_agree_with_the_real_files(name, shared_data):
  spec, folder = SPECS[name], shared_data("raft") / name
  fields = json.loads(
    shared_data("tfew/raft_prompt_construction_settings.jsonl")
    .read_text()
    .splitlines()[0]
  )
  assert list(spec.fields) == fields[name]
  task = json.loads((folder / "task.json").read_text())
  assert list(spec.labels) == task["label_columns"]["Label"]
  rows = raft.read(str(folder), spec)
  assert [len(rows[split]) for split in ("train", "test")] == [
    50,
    NUM_TEST[name],
  ]
  assert [int(r["ID"]) for r in rows["test"]] == list(spec.test_ids)


@pytest.mark.parametrize("name", SPECS)
def test_real_rows_under_t5s_vocabulary(name, shared_data):
  """With T-Few's instructions an input is what T-Few puts together."""
  settings = shared_data("tfew/raft_prompt_construction_settings.jsonl")
  task = prepare.prepare(
    f"raft_{name}",
    vocabulary=str(
      shared_data("tokenizers/t5_cc_all.32000.sentencepiece.model")
    ),
    data_dir=str(shared_data("raft")),
    raft_settings={
      "instructions": str(settings),
      "clean_labels": name == "banking_77",
      "validation_start": None,
    },
  )
  encode = task.output_features["inputs"].vocabulary.encode
  # Terms of service have an instruction of 594 tokens.
  length = 640 if name == "terms_of_service" else 512
  first = json.loads(settings.read_text().splitlines()[1])[name].strip()
  labels = SPECS[name].label_texts(clean=name == "banking_77")
  head = encode(f"{first} Possible labels: {', '.join(labels)}")
  rows = raft.read(str(shared_data("raft") / name), SPECS[name])["train"]
  cut = 0
  for example, raw in zip(examples(task, length=length), rows, strict=True):
    ids = example["inputs"].tolist()
    # As the original: each piece tokenised by itself, one behind the other.
    fields = [
      f"{field}: {raw[field].strip()}"
      for field in SPECS[name].fields
      if raw[field].strip()
    ]
    pieces = [*fields[:-1], f"{fields[-1]}\nLabel:"]
    whole = [*head, *itertools.chain(*map(encode, pieces)), 1]
    if len(whole) <= length:
      assert ids == whole
    else:
      cut += 1
      assert len(ids) == length
      assert ids[: len(head)] == head
      assert ids[-3:] == [*encode("Label:"), 1]
    assert raw["Label"].replace("_", " ") == (
      example["targets_pretokenized"].decode().replace("_", " ")
    )
  long = (RISKS, REVIEW, "one_stop_english", "tai_safety_research")
  assert (cut > 0) == (name in (*long, "terms_of_service"))
