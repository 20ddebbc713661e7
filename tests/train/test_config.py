"""gin files and bindings become one Config; every error says what to do."""

import itertools
import pathlib
import re

import pytest
from helpers import tiny

from peft_jax import backbone
from peft_jax.adapters import LoRA
from peft_jax.train import config

BASE = ["runs/train.gin", "models/tiny.gin", "adapters/lora.gin"]
HUGGING_FACE = pathlib.Path(__file__).parents[1] / "fixtures/hugging_face"
REQUIRED = ["MODEL_DIR = 'x'", "MIXTURE_OR_TASK_NAME = 'quickstart'"]


def all_files(*kinds):
  return [
    f"{kind}/{name}.gin" for kind in kinds for name in config.names_of(kind)
  ]


def own_files(kind):
  """The others are T5X's: see tests/t5x/test_gin.py."""
  return [name for name in all_files(kind) if "/t5x" not in name]


def test_bindings_win_over_files():
  found = config.resolve(BASE, [*REQUIRED, "lora/LoRA.rank = 16"]).config
  assert found.adapters[0].adapter.rank == 16
  assert isinstance(found.adapters[0].adapter, LoRA)


@pytest.mark.parametrize("files", list(itertools.permutations(BASE)))
def test_order_of_files_does_not_matter(files):
  assert (
    config.resolve(files, REQUIRED).settings
    == config.resolve(BASE, REQUIRED).settings
  )


def test_the_gin_text_of_a_run_resolves_to_the_same_run(tmp_path):
  first = config.resolve(BASE, REQUIRED)
  path = tmp_path / "config.gin"
  path.write_text(first.gin_text)
  assert config.resolve([str(path)]).settings == first.settings


@pytest.mark.parametrize("name", all_files("adapters"))
def test_every_adapter_file_resolves(name):
  files = ["runs/train.gin", "models/tiny.gin", name]
  assert config.resolve(files, REQUIRED).config.adapters
  assert config.read_adapters(name)


@pytest.mark.parametrize("name", own_files("models"))
def test_every_model_file_resolves(name, tmp_path):
  files = ["runs/train.gin", "adapters/ia3.gin", name]
  bindings = list(REQUIRED)
  if name == "models/hugging_face.gin":
    bindings.append(f"MODEL_NAME = 'hf:{HUGGING_FACE / 't5_v1_1'}'")
  if name == "models/llama_7b.gin":
    bindings.append("VOCABULARY = 'bytes'")
  if name == "models/directory.gin":
    network = tiny.t5()
    backbone.save(
      tmp_path / "model",
      tiny.params(network),
      model=backbone.describe(network, "mine"),
    )
    bindings += [f"MODEL_NAME = '{tmp_path / 'model'}'", "VOCABULARY = 'bytes'"]
  assert config.resolve(files, bindings).config.network


@pytest.mark.parametrize("name", all_files("recipes"))
def test_every_recipe_resolves_alone(name):
  assert config.resolve([name], ["MODEL_DIR = 'x'"]).config.train_steps > 0


@pytest.mark.parametrize(
  "name", all_files("adapters", "models", "recipes", "runs")
)
def test_every_file_says_its_command_and_what_to_expect(name):
  head = (config.gin_directory() / name).read_text().split("\n\n")[0]
  assert "# command:" in head
  assert "# expected:" in head


def test_no_macro_is_set_by_two_kinds_of_files():
  # Recipes compose the others on purpose and come before them.
  owners = {}
  for kind in ("adapters", "models", "runs"):
    for name in config.names_of(kind):
      text = (config.gin_directory() / kind / f"{name}.gin").read_text()
      for macro in re.findall(r"(?m)^([A-Z_]+) = ", text):
        assert owners.setdefault(macro, kind) == kind, macro


def test_unbound_macros_are_named_with_the_flag_that_sets_them():
  with pytest.raises(config.ConfigError, match="--adapter NAME"):
    config.resolve(["runs/train.gin"])


def test_unknown_gin_file_shows_the_nearest():
  with pytest.raises(config.ConfigError, match=r"Nearest.*adapters/lora\.gin"):
    config.resolve(["adapters/lorra.gin"])


def test_unknown_parameter_is_named():
  with pytest.raises(config.ConfigError, match="rnk"):
    config.resolve(BASE, [*REQUIRED, "lora/LoRA.rnk = 16"])


def test_value_that_does_not_fit_is_explained():
  with pytest.raises(config.ConfigError, match="expected rank > 0, found"):
    config.resolve(BASE, [*REQUIRED, "lora/LoRA.rank = 0"])


@pytest.mark.parametrize(
  ("binding", "message"),
  [
    ("TRAIN_STEPS = 0", "total_steps|train_steps"),
    ("BATCH_SIZE = 0", "expected batch_size >= 1, found 0"),
    ("TASK_FEATURE_LENGTHS = {'inputs': 4}", "inputs and targets"),
    ("MODEL_DIR = ''", "expected a folder for the run"),
  ],
)
def test_bad_settings_are_refused(binding, message):
  with pytest.raises(config.ConfigError, match=message):
    config.resolve(BASE, [*REQUIRED, binding])


def test_search_paths_come_first(tmp_path):
  (tmp_path / "adapters").mkdir()
  own = tmp_path / "adapters" / "lora.gin"
  text = (config.gin_directory() / "adapters/lora.gin").read_text()
  own.write_text(text.replace("rank = 8", "rank = 3"))
  found = config.resolve(BASE, REQUIRED, [str(tmp_path)]).config
  assert found.adapters[0].adapter.rank == 3


def test_a_backbone_dtype_that_t5_cannot_have():
  with pytest.raises(config.ConfigError, match=r"BACKBONE_DTYPE.*'float16'"):
    config.resolve(
      ["recipes/quickstart.gin"],
      ["MODEL_DIR = 'x'", "BACKBONE_DTYPE = 'float16'"],
    )
