"""A run in a bucket: no path may fall back to a folder called `gs:`."""

import json
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from etils import epath

from peft_jax import backbone, checkpoint, cli, orbax_io, sharding
from peft_jax.formats import t5x
from peft_jax.train import checkpoints

ARGV = [
  *("train", "--model=tiny", "--adapter=ia3", "--task=words"),
  *("--backbone=random", "--model_dir=fake://bucket/run"),
  "--gin.networks.create.num_encoder_layers=1",
  "--gin.networks.create.num_decoder_layers=1",
  "--gin.networks.create.emb_dim=16",
  "--gin.networks.create.num_heads=2",
  "--gin.networks.create.head_dim=8",
  "--gin.networks.create.mlp_dim=32",
  "--gin.TASK_FEATURE_LENGTHS={'inputs': 12, 'targets': 8}",
  "--gin.EVAL_FROZEN=False",
  *("--gin.BATCH_SIZE=4", "--gin.EVAL_BATCH_SIZE=4", "--gin.LOG_PERIOD=1"),
]


class Local(type(epath.Path("/"))):
  """A path that takes a bucket's for one of a folder, made or made again.

  From Python 3.12 on, what epath was asked for reaches `__init__` as well.
  """

  def __init__(self, *parts):
    if sys.version_info >= (3, 12):
      super().__init__(*map(Bucket.place, parts))


class Bucket:
  """Stands for `gs://`: paths that only epath understands."""

  root = Path()

  def __new__(cls, path):
    return Local(cls.place(path))

  @classmethod
  def place(cls, part):
    text = str(part)
    if not text.startswith("fake://"):
      return part
    return str(cls.root / text.removeprefix("fake://"))


@pytest.fixture
def bucket(tmp_path, monkeypatch):
  """A bucket that is a folder, and an empty working directory."""
  epath.register_path_cls("fake://")(Bucket)
  monkeypatch.setattr(Bucket, "root", tmp_path / "buckets")
  (tmp_path / "here").mkdir()
  monkeypatch.chdir(tmp_path / "here")
  real = sharding.make_mesh
  one = jax.devices()[:1]
  monkeypatch.setattr(
    sharding, "make_mesh", lambda **sizes: real(**sizes, devices=one)
  )
  return tmp_path / "buckets/bucket"


def test_a_run_in_a_bucket_ends_resumes_and_exports(bucket, tmp_path, capsys):
  rows = [{"inputs": f"say {w}", "targets": w} for w in ("up", "down")] * 2
  (tmp_path / "data").mkdir()
  for split in ("train", "validation"):
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "data" / f"{split}.jsonl").write_text(text)
  argv = [*ARGV, f"--data_dir={tmp_path / 'data'}"]
  argv += ["--gin.TRAIN_STEPS=1", "--gin.WARMUP_STEPS=1"]
  assert cli.main(argv) == 0
  assert checkpoints.steps_of("fake://bucket/run") == [1]
  assert (bucket / "run/summary.json").is_file()
  assert (bucket / "run/metrics.jsonl").is_file()
  capsys.readouterr()
  assert cli.main(["check", *argv[1:]]) == 0
  assert "fake://bucket/run: resumes" in capsys.readouterr().out
  assert cli.main([*argv, "--gin.BATCH_SIZE=2"]) == 1
  assert "expected the settings of the run in" in capsys.readouterr().err
  assert cli.main(["export", "fake://bucket/run", "--to=adapter"]) == 0
  assert [p.name for p in Path().iterdir()] == ["adapter"]


def test_a_bucket_is_not_a_folder_of_this_machine(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert str(orbax_io.locate("gs://b/run") / "x") == "gs://b/run/x"
  assert orbax_io.locate("run") == tmp_path / "run"
  leaf = {"a": np.zeros(2, np.float32)}
  for save in (
    lambda: checkpoint.save("gs://b/x", leaf, [], model={}, backbone={}),
    lambda: backbone.save("gs://b/x", leaf, model={}),
  ):
    with pytest.raises(
      ValueError, match="folder of this machine, found gs://b"
    ):
      save()
  assert not list(tmp_path.iterdir())


def test_zarr_of_t5x_is_read_from_where_it_lies():
  # As T5X's own checkpoints.py writes the specification of a bucket.
  assert t5x._kvstore("gs://b/checkpoint_1/target.k") == {
    "driver": "gcs",
    "bucket": "b",
    "path": "checkpoint_1/target.k",
  }
  assert t5x._kvstore("/a/b") == {"driver": "file", "path": "/a/b"}
