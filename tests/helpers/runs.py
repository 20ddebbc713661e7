"""Small runs of the trainer: their settings, their data, what they leave."""

import contextlib
import json
from pathlib import Path

import jax
import pytest

from peft_jax import sharding

ROWS = [
  {"inputs": f"say {word}", "targets": word}
  for word in ("up", "down", "left", "right")
]
NETWORK = [
  "networks.create.num_encoder_layers = 1",
  "networks.create.num_decoder_layers = 1",
  "networks.create.emb_dim = 16",
  "networks.create.num_heads = 2",
  "networks.create.head_dim = 8",
  "networks.create.mlp_dim = 32",
]
SMALL = [
  *NETWORK,
  "BACKBONE = 'random'",
  "MIXTURE_OR_TASK_NAME = 'words'",
  "TASK_FEATURE_LENGTHS = {'inputs': 12, 'targets': 8}",
  "BATCH_SIZE = 8",
  "EVAL_BATCH_SIZE = 8",
  "TRAIN_STEPS = 6",
  "WARMUP_STEPS = 1",
  "LOG_PERIOD = 1",
  "CHECKPOINT_PERIOD = 2",
  "LEARNING_RATE = 0.05",
]


def write_rows(folder: Path, rows=ROWS) -> Path:
  folder.mkdir(exist_ok=True)
  text = "".join(json.dumps(row) + "\n" for row in rows)
  for split in ("train", "validation"):
    (folder / f"{split}.jsonl").write_text(text)
  return folder


@contextlib.contextmanager
def one_device():
  """Trains on one of the fake devices: compiling for eight takes long."""
  real = sharding.make_mesh
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(
      sharding,
      "make_mesh",
      lambda **sizes: real(**sizes, devices=jax.devices()[:1]),
    )
    yield


def losses(model_dir):
  lines = (Path(model_dir) / "metrics.jsonl").read_text().splitlines()
  rows = [json.loads(line) for line in lines]
  return {r["step"]: r["loss"] for r in rows if r["kind"] == "train"}
