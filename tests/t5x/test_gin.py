"""T5X's gin files: parsed by T5X's parser, in any order, with any adapter."""

import itertools

import gin
import pytest

from peft_jax import networks
from peft_jax.inject import Adapted
from peft_jax.optim import optimizers
from peft_jax.train import config

pytestmark = pytest.mark.t5x

MODELS = [name for name in config.names_of("models") if name[:3] == "t5x"]
RUNS = [name for name in config.names_of("runs") if name[:3] == "t5x"]
FILES = ("runs/t5x_finetune", "models/t5x_t5_1_1_base", "adapters/lora")


def test_order_of_files_does_not_matter(jobs):
  found = []
  for files in itertools.permutations(FILES):
    jobs.parse("train", *files)
    found.append(config.settings())
  assert all(one == found[0] for one in found)


@pytest.mark.parametrize("name", config.names_of("adapters"))
def test_every_adapter_is_one_flag(jobs, name):
  jobs.parse("train", FILES[0], "models/t5x_tiny", f"adapters/{name}")
  module = macro("MODULE")
  assert isinstance(module, Adapted)
  assert module.rules


def test_loraplus_reaches_the_optimizer(jobs):
  jobs.parse("train", FILES[0], "models/t5x_tiny", "adapters/lora_plus")
  assert gin.get_configurable(optimizers.lora_plus_ratio)() == 16.0


@pytest.mark.parametrize("name", [m for m in MODELS if m != "t5x"])
def test_every_model_file_names_its_network_and_checkpoint(jobs, name):
  from peft_jax.t5x import published

  jobs.parse("train", FILES[0], f"models/{name}", "adapters/ia3")
  model = gin.query_parameter("%MODEL_NAME")
  found = published.get(model)
  network = macro("MODULE").network
  size = networks.CONFIGS[found.network]
  assert network.config.emb_dim == size.emb_dim
  assert network.config.mlp_dim == size.mlp_dim
  assert getattr(network, "scan_layers", False) == ("xl" in name)
  if name != "t5x_tiny":
    assert found.checkpoint.startswith("gs://t5-data/pretrained_models/t5x/")
    assert found.checkpoint.split("/")[-2] == model


@pytest.mark.parametrize("name", [r for r in RUNS if r != "t5x_finetune"])
def test_other_runs_parse(jobs, name):
  script = name.removeprefix("t5x_")
  if script == "export":
    pytest.importorskip("tensorflow_serving")
    script = "export_lib"
  jobs.parse(script, f"runs/{name}", "models/t5x_tiny", "adapters/prefix")


def macro(name):
  """Returns the value of a macro."""
  with gin.unlock_config():
    gin.parse_config(
      "from __gin__ import dynamic_registration\n"
      "from peft_jax.train import config\n"
      f"config.Adapters.rules = %{name}\n"
    )
  return gin.get_configurable(config.Adapters)().rules
