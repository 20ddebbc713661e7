"""Runs T5X's own loops in this process: importing them takes ten seconds."""

import json
import pathlib
import sys

import gin
import jax
import numpy as np
import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
WORDS = ("up", "down", "left", "right", "in", "out", "near", "far")

# A network of one layer per stack on eight rows.
NETWORK = [
  "t5x.networks.create.num_encoder_layers = 1",
  "t5x.networks.create.num_decoder_layers = 1",
  "t5x.networks.create.emb_dim = 16",
  "t5x.networks.create.num_heads = 2",
  "t5x.networks.create.head_dim = 8",
  "t5x.networks.create.mlp_dim = 32",
]
SMALL = [
  *NETWORK,
  "INITIAL_CHECKPOINT_PATH = 'random'",
  "MIXTURE_OR_TASK_NAME = 'words'",
  "TASK_FEATURE_LENGTHS = {'inputs': 12, 'targets': 8}",
]
TRAINING = [
  "BATCH_SIZE = 8",
  "EVAL_BATCH_SIZE = 8",
  "TRAIN_STEPS = 6",
  "WARMUP_STEPS = 1",
  "LOG_PERIOD = 1",
  "CHECKPOINT_PERIOD = 6",
  "EVAL_PERIOD = 0",
  "LEARNING_RATE = 0.05",
  "DROPOUT_RATE = 0.1",
]


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
  folder = tmp_path_factory.mktemp("data")
  rows = [{"inputs": f"say {word}", "targets": word} for word in WORDS]
  text = "".join(json.dumps(row) + "\n" for row in rows)
  for split in ("train", "validation"):
    (folder / f"{split}.jsonl").write_text(text)
  return folder


class Jobs:
  """Starts T5X's scripts as its command line does."""

  def __init__(self, monkeypatch, data_dir):
    self._patch, self._data_dir = monkeypatch, data_dir

  def parse(self, script, *files, bindings=()):
    """Parses gin files, in this order, for one of T5X's scripts."""
    import importlib

    from t5x import gin_utils

    gin.clear_config()
    # Our own parser, in other tests, has put its folders there.
    gin.config._LOCATION_PREFIXES[:] = [""]
    module = importlib.import_module(f"t5x.{script}")
    name = {"eval": "evaluate", "export_lib": "save"}.get(script, script)
    function = getattr(module, name)
    main = sys.modules["__main__"]
    self._patch.setattr(main, name, function, raising=False)
    gin_utils.parse_gin_flags(
      [str(REPOSITORY)],
      [f"gin_configs/{file}.gin" for file in files],
      [*bindings],
      finalize_config=False,
    )
    return gin.get_configurable(function)

  def train(self, model_dir, *bindings, adapter="lora"):
    return self.parse(
      "train",
      "runs/t5x_finetune",
      "models/t5x_tiny",
      f"adapters/{adapter}",
      bindings=[
        *SMALL,
        *TRAINING,
        f"DATA_DIR = {str(self._data_dir)!r}",
        f"MODEL_DIR = {str(model_dir)!r}",
        *bindings,
      ],
    )()

  def use(self, script, checkpoint, to, *bindings, adapter="lora"):
    """Evaluates or infers."""
    places = {"eval": "EVAL_OUTPUT_DIR", "infer": "INFER_OUTPUT_DIR"}
    return self.parse(
      script,
      "models/t5x_tiny",
      f"runs/t5x_{script}",
      f"adapters/{adapter}",
      bindings=[
        *SMALL,
        "EVAL_BATCH_SIZE = 8",
        f"DATA_DIR = {str(self._data_dir)!r}",
        f"CHECKPOINT_PATH = {str(checkpoint)!r}",
        f"{places[script]} = {str(to)!r}",
        *bindings,
      ],
    )()


class Devices:
  """How many of the fake devices T5X uses; compiling for eight takes long."""

  count = 1

  @classmethod
  def mesh(cls, num_partitions, *_):
    devices = np.array(jax.devices()[: cls.count])
    return jax.sharding.Mesh(
      devices.reshape(-1, num_partitions), ("data", "model")
    )


@pytest.fixture(autouse=True)
def random_numbers():
  """T5X chooses other random numbers for all when it is given no seed."""
  yield
  jax.config.update("jax_default_prng_impl", "threefry2x32")


@pytest.fixture(scope="module")
def devices():
  from t5x import partitioning

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(partitioning, "default_mesh", Devices.mesh)
    yield Devices


@pytest.fixture(scope="module")
def jobs(data_dir, devices):
  """T5X's scripts."""
  del devices
  # T5X promotes; its metrics do so in threads, which see these settings only.
  jax.config.update("jax_numpy_dtype_promotion", "standard")
  jax.config.update("jax_numpy_rank_promotion", "allow")
  with pytest.MonkeyPatch.context() as patch:
    yield Jobs(patch, data_dir)
  jax.config.update("jax_numpy_dtype_promotion", "strict")
  jax.config.update("jax_numpy_rank_promotion", "raise")
  gin.clear_config()
