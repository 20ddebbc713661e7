"""The quickstart's data is held out as the README says, and its run works."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

import peft_jax
from peft_jax.tasks import quickstart
from peft_jax.train import quickstart as runner

ASSET = Path(peft_jax.__file__).parent / "assets" / "tiny.npz"


def sentences_of_the_mixture(number):
  rows = itertools.islice(quickstart.mixture_examples(0), number)
  return [row["inputs"] for row in rows]


def test_the_mixture_holds_neither_the_wording_nor_the_sentences():
  held_out = quickstart.held_out_examples(seed=1, number=1128)
  prompt = quickstart.HELD_OUT_PROMPT.format(s="")
  texts = {row["inputs"].removeprefix(prompt) for row in held_out}
  for inputs in sentences_of_the_mixture(5000):
    assert prompt not in inputs
    assert not any(inputs.endswith(text) for text in texts if len(text) > 25)


def test_the_mixture_never_answers_a_mood_with_the_held_out_labels():
  for row in itertools.islice(quickstart.mixture_examples(0), 5000):
    if row["targets"] in quickstart.HELD_OUT_LABELS:
      assert row["inputs"] == f"repeat: {row['targets']}"


def test_training_and_evaluation_share_no_sentence():
  train = {row["inputs"] for row in quickstart._rows("train")}
  validation = {row["inputs"] for row in quickstart._rows("validation")}
  assert len(validation) == 1000
  assert not train & validation


def test_labels_are_balanced_in_the_first_32():
  targets = [row["targets"] for row in quickstart._rows("train")[:32]]
  assert targets.count("recommend") == targets.count("avoid") == 16


def test_the_tiny_model_is_small_and_half_precision():
  assert ASSET.stat().st_size < 4e6
  with np.load(ASSET) as leaves:
    assert all(leaves[name].dtype == np.float16 for name in leaves.files)


@pytest.mark.slow
def test_quickstart_adapts_and_merges(tmp_path, capsys):
  bindings = ["TRAIN_STEPS = 60", "MAX_EVAL_EXAMPLES = 250"]
  assert runner.run(str(tmp_path / "run"), bindings) == 0
  found = json.loads((tmp_path / "run" / "summary.json").read_text())
  assert found["eval_examples"] == 250
  assert found["adapted_accuracy"] >= found["frozen_accuracy"] + 40
  assert found["adapted_accuracy"] >= 90
  assert found["trained_share"] < 0.01
  assert found["merged_agreement"] == 1.0
  assert found.keys() >= {"trained_parameters", "adapter_bytes", "seconds"}
  assert "accuracy, 250 unseen" in capsys.readouterr().out
