"""`peft-jax import`, and what it wrote is used."""

import json
import pathlib

import jax
import numpy as np
import pytest
from flax import serialization
from helpers import tiny

from peft_jax import backbone, cli, manifest, networks
from peft_jax.formats import hugging_face, tfew, torch_file
from peft_jax.train import bring, checkpoints, opened
from peft_jax.train.config import ConfigError

SMALL = pathlib.Path(__file__).parents[1] / "fixtures" / "hugging_face"


def test_backbone_of_hugging_face(tmp_path, capsys):
  to = tmp_path / "backbone"
  status = cli.main(["import", str(SMALL / "llama"), "--from=hf", f"--to={to}"])
  assert status == 0
  assert "a DecoderOnly of" in capsys.readouterr().out
  network = backbone.network(to)
  assert network == hugging_face.network(SMALL / "llama")
  found = backbone.restore(to, hugging_face.shapes(network))
  tiny.assert_same(found, hugging_face.load(SMALL / "llama", network))


def test_backbone_of_t5x(tmp_path, monkeypatch):
  network = tiny.t5()
  monkeypatch.setitem(networks.CONFIGS, "mine", network.config)
  params = jax.tree.map(np.asarray, tiny.params(network))
  path = tmp_path / "model"
  path.write_bytes(serialization.msgpack_serialize({"target": params}))
  to = str(tmp_path / "to")
  [line] = bring.bring("t5x", str(path), to, "mine")
  assert "mine of" in line
  tiny.assert_same(backbone.restore(to, params), params)
  with pytest.raises(ConfigError, match="--model with the NAME of its size"):
    list(bring.bring("t5x", str(path), str(tmp_path / "other")))


def test_adapter_of_peft_answers(tmp_path):
  to = tmp_path / "adapter"
  lines = list(
    bring.bring(
      "peft", str(SMALL / "bloom/lora"), str(to), f"hf:{SMALL / 'bloom'}"
    )
  )
  assert lines[0].startswith(f"{to}: lora, ")
  assert "three modules" in lines[1]
  assert manifest.read(to).backbone["source"] == f"hf:{SMALL / 'bloom'}"
  found = opened.open_adapter(to)
  assert found.model.rules[0].adapter.rank == 2
  with pytest.raises(manifest.ManifestError, match="no gin text"):
    opened.open_adapter(to, bindings=["TRAIN_STEPS = 1"])
  with pytest.raises(ConfigError, match="--model with the hf:DIR"):
    list(bring.bring("peft", "x", "y"))


def test_vectors_of_tfew_merge_and_are_trained_on(tmp_path, capsys):
  network = networks.create("tiny")
  vectors = {
    name: np.full((size, 1), 0.5, np.float32)
    for name, size in tfew.names(network).values()
  }
  torch_file.write(tmp_path / "x.pt", vectors)
  to, merged = str(tmp_path / "adapter"), str(tmp_path / "merged")
  source = ["import", str(tmp_path / "x.pt"), "--from=tfew", "--model=tiny"]
  assert cli.main([*source, f"--to={to}"]) == 0
  assert "3,840 parameters" in capsys.readouterr().out
  status = cli.main(["merge", to, f"--to={merged}", "--gin.BACKBONE='tiny'"])
  assert status == 0, capsys.readouterr().err
  # T-Few's pretrained vectors are where its few-shot runs begin.
  status = cli.main(
    [
      *("train", "--model=tiny", "--adapter=ia3", "--task=quickstart"),
      *(f"--warm_start={to}", f"--model_dir={tmp_path / 'run'}"),
      *("--gin.TRAIN_STEPS=1", "--gin.WARMUP_STEPS=1"),
      *("--gin.MAX_EVAL_EXAMPLES=8", "--gin.EVAL_FROZEN=False"),
      "--gin.LEARNING_RATE=0.0",
    ]
  )
  assert status == 0, capsys.readouterr().err
  _, leaves = checkpoints.load_adapter(tmp_path / "run")
  assert all((x == 0.5).all() for x in jax.tree.leaves(leaves))


def test_prompt_of_google(tmp_path, capsys):
  rows = np.arange(5 * 128, dtype=np.float64).reshape(5, 128)
  source = tmp_path / "encoder.prompt.prompt.prompt"
  with open(source, "wb") as file:
    np.save(file, rows)
  to, argv = tmp_path / "adapter", ["--from=prompt", "--model=tiny"]
  assert cli.main(["import", str(source), f"--to={to}", *argv]) == 0
  model = opened.open_adapter(to, bindings=["BACKBONE = 'tiny'"])
  [leaf] = jax.tree.leaves(model.adapter)
  np.testing.assert_array_equal(leaf, rows)
  capsys.readouterr()
  for content, message in (
    (rows[:, 1:], "expected a prompt [P, 128] for this network"),
    (None, "expected a prompt as numpy saves it"),
  ):
    source.write_bytes(b"")
    if content is not None:
      with open(source, "wb") as file:
        np.save(file, content)
    argv = ["import", str(source), "--from=prompt", "--model=tiny"]
    assert cli.main([*argv, f"--to={tmp_path / 'other'}"]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_train_a_model_of_hugging_face(tmp_path):
  """From its folder to an adapter that answers, on the command line."""
  data = tmp_path / "data"
  data.mkdir()
  rows = [{"inputs": "a", "targets": "b"}, {"inputs": "c", "targets": "d"}]
  text = "\n".join(map(json.dumps, rows))
  for split in ("train", "validation"):
    (data / f"{split}.jsonl").write_text(text)
  # Bytes need more rows than the fixtures have.
  network = tiny.decoder_only(vocab_size=384)
  backbone.save(
    tmp_path / "model",
    tiny.params(network),
    model=backbone.describe(network, "mine"),
  )
  run = tmp_path / "run"
  status = cli.main(
    [
      "train",
      f"--model={tmp_path / 'model'}",
      "--vocabulary=bytes",
      "--adapter=lora",
      "--task=letters",
      f"--data_dir={data}",
      f"--model_dir={run}",
      "--gin.TRAIN_STEPS=2",
      "--gin.WARMUP_STEPS=1",
      "--gin.BATCH_SIZE=8",
      "--gin.EVAL_BATCH_SIZE=8",
      "--gin.PREFIX_LM=True",
      "--gin.TASK_FEATURE_LENGTHS={'inputs': 4, 'targets': 4}",
    ]
  )
  assert status == 0
  (tmp_path / "rows.jsonl").write_text(text)
  status = cli.main(
    [
      "infer",
      str(run),
      f"--input={tmp_path / 'rows.jsonl'}",
      f"--output={tmp_path / 'out.jsonl'}",
    ]
  )
  assert status == 0
  answers = (tmp_path / "out.jsonl").read_text().splitlines()
  assert "prediction" in json.loads(answers[0])
