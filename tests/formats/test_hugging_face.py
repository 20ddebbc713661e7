"""Hugging Face's directories: what is refused, and how."""

import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny

from peft_jax import layout, sharding
from peft_jax.formats import (
  architectures,
  hugging_face,
  peft,
  safetensors_io,
  torch_file,
)
from peft_jax.formats.architectures import ArchitectureError
from peft_jax.formats.safetensors_io import FormatError

SMALL = pathlib.Path(__file__).parents[1] / "fixtures" / "hugging_face"


@pytest.fixture
def copy(tmp_path):
  """Returns a function that copies a fixture and changes its tensors."""

  def change(name, tensors=lambda tensors: tensors, **config):
    folder = tmp_path / name
    shutil.copytree(SMALL / name, folder)
    old = safetensors_io.open_directory(SMALL / name)
    new = tensors({key: np.array(old[key]) for key in old})
    safetensors_io.write(folder / "model.safetensors", new)
    values = json.loads((folder / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps(values))
    return folder

  return change


def without(name):
  return lambda tensors: {k: v for k, v in tensors.items() if k != name}


def loaded(folder):
  return hugging_face.load(folder, hugging_face.network(folder))


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (without("transformer.ln_f.bias"), "1 of them missing: transformer.ln_f"),
    (
      lambda t: t | {"odd": np.ones(1)},
      "1 that the network does not have: odd",
    ),
    (
      lambda t: t | {"transformer.ln_f.bias": np.ones(7, np.float32)},
      r"transformer.ln_f.bias of shape \(12,\), found \(7,\)",
    ),
  ],
)
def test_tensors_of_another_model(copy, change, message):
  with pytest.raises(FormatError, match=message):
    loaded(copy("gpt2", change))


def test_no_config(tmp_path):
  with pytest.raises(FormatError, match=r"with config.json, found none"):
    hugging_face.network(tmp_path)


@pytest.mark.parametrize(
  ("name", "config", "message"),
  [
    ("gpt2", {"model_type": "opt"}, "model_type of .* found 'opt'"),
    ("gpt2", {"activation_function": "mish"}, "activation of .* 'mish'"),
    ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights=True"),
    ("bart", {"decoder_ffn_dim": 9}, "feed-forward blocks, found 14 and 9"),
    ("bart", {"decoder_attention_heads": 4}, "heads in the decoder"),
    ("bart", {"normalize_before": True}, "normalize_before=False"),
    (
      "qwen3",
      {"layer_types": ["full_attention", "sliding_attention"]},
      "one kind of attention",
    ),
    (
      "llama",
      {"rope_parameters": {"rope_type": "dynamic"}},
      "type default, linear, llama3 or yarn, found 'dynamic'",
    ),
  ],
)
def test_configurations_that_cannot_be(copy, name, config, message):
  with pytest.raises(ArchitectureError, match=message):
    hugging_face.network(copy(name, **config))


def test_files_of_the_bare_model(copy):
  """GPT-2's and BLOOM's own files leave `transformer.` out."""
  folder = copy(
    "gpt2",
    lambda t: (
      {k.removeprefix("transformer."): v for k, v in t.items()}
      | {"h.0.attn.bias": np.ones((1, 1, 4, 4))}
    ),
  )
  tiny.assert_same(loaded(folder), loaded(SMALL / "gpt2"))


def test_said_tied_but_is_not(copy):
  """Newer configurations of T5 1.1 say tied whatever the tensors are."""
  head = {"lm_head.weight": np.ones((24, 12), np.float32)}
  folder = copy("t5_v1_1", lambda t: t | head, tie_word_embeddings=True)
  assert not hugging_face.network(folder).config.logits_via_embedding
  assert loaded(folder)["decoder"]["logits_dense"]["kernel"].shape == (12, 24)
  tied = copy(
    "t5_v1_0", lambda t: t | {"lm_head.weight": t["shared.weight"].copy()}
  )
  assert hugging_face.network(tied).config.logits_via_embedding
  tiny.assert_same(loaded(tied), loaded(SMALL / "t5_v1_0"))


@pytest.mark.parametrize("name", ["bloom", "t5_v1_1"])
def test_sharded_and_in_bfloat16(name):
  network = hugging_face.network(SMALL / name, scan_layers=True)
  mesh = sharding.make_mesh(data=2, model=1, devices=jax.devices()[:2])
  blank = np.ones((1, 2), np.int32)
  init = lambda key: network.init(key, blank, blank, blank)
  variables = jax.eval_shape(init, jax.random.key(0))
  places = sharding.shardings(
    variables["params"], variables["params_axes"], mesh
  )
  found = hugging_face.load(
    SMALL / name, network, dtype=jnp.bfloat16, shardings=places
  )
  jax.tree.map(lambda x, place: (x.sharding == place) or 1 / 0, found, places)
  plain = loaded(SMALL / name)
  expected = jax.tree.map(
    lambda x: np.asarray(x).astype(jnp.bfloat16), layout.like(plain, found)
  )
  tiny.assert_same(found, expected)


def test_written_elsewhere_only(tmp_path):
  network = hugging_face.network(SMALL / "gpt2")
  params = loaded(SMALL / "gpt2")
  (tmp_path / "mine").write_text("")
  with pytest.raises(FormatError, match="Nothing was written"):
    hugging_face.save(tmp_path, params, network, like=SMALL / "gpt2")
  del params["decoder"]["decoder_norm"]
  with pytest.raises(FormatError, match="2 that the network does not have"):
    hugging_face.save(tmp_path / "new", params, network, like=SMALL / "gpt2")
  assert not (tmp_path / "new").exists()


@pytest.fixture
def adapter(tmp_path):
  """Returns a function that copies an adapter and changes it."""

  def change(name, tensors=lambda tensors: tensors, **config):
    folder = tmp_path / "adapter"
    shutil.copytree(SMALL / name, folder)
    old = safetensors_io.Tensors([folder / peft.TENSORS])
    new = tensors({key: np.array(old[key]) for key in old})
    safetensors_io.write(folder / peft.TENSORS, new)
    values = json.loads((folder / peft.CONFIG).read_text()) | config
    (folder / peft.CONFIG).write_text(json.dumps(values))
    base = SMALL / name.split("/")[0]
    return peft.read(folder, base, hugging_face.network(base))

  return change


def renamed(old, new):
  return lambda t: {key.replace(old, new): value for key, value in t.items()}


@pytest.mark.parametrize(
  ("name", "change", "config", "message"),
  [
    ("gptj/lora", None, {"peft_type": "OFT"}, "peft_type .* found 'OFT'"),
    ("gptj/lora", None, {"modules_to_save": ["x"]}, "without modules_to_save"),
    ("gptj/lora", renamed("h.0.", "h.9."), {}, "found transformer.h.9.attn"),
    ("gptj/lora", renamed("lora_B", "lora_C"), {}, "found base_model.*lora_C"),
    (
      "gptj/lora",
      lambda t: {k: v for k, v in t.items() if "lora_B" not in k},
      {},
      r"expected lora_A.weight and lora_B.weight",
    ),
    (
      "gptj/prompt",
      lambda t: {"prompt_embeddings": t["prompt_embeddings"][:, 1:]},
      {},
      r"prompt of shape \(3, 12\), found \(3, 11\)",
    ),
    (
      "gptj/prefix",
      lambda t: {"prompt_embeddings": t["prompt_embeddings"][:, 1:]},
      {},
      r"prefix of shape \(3, 48\), found \(3, 47\)",
    ),
    ("gptj/prefix", renamed("embeddings", "x"), {}, "expected one tensor"),
  ],
)
def test_adapters_that_are_refused(adapter, name, change, config, message):
  with pytest.raises(FormatError, match=message):
    adapter(name, change or (lambda tensors: tensors), **config)


def test_no_adapter(tmp_path):
  base = SMALL / "gptj"
  network = hugging_face.network(base)
  with pytest.raises(FormatError, match=r"found no adapter_config\.json"):
    peft.read(tmp_path, base, network)
  (tmp_path / "adapter_config.json").write_text("{}")
  with pytest.raises(
    FormatError, match=r"or adapter_model.bin in .*, found no"
  ):
    peft.read(tmp_path, base, network)


def test_an_adapter_of_torch_save(tmp_path):
  base = SMALL / "gptj"
  network, folder = hugging_face.network(base), tmp_path / "lora"
  expected = peft.read(base / "lora", base, network)
  shutil.copytree(base / "lora", folder)
  tensors = safetensors_io.Tensors([folder / peft.TENSORS])
  torch_file.write(
    folder / peft.OLD_TENSORS, {k: np.array(tensors[k]) for k in tensors}
  )
  (folder / peft.TENSORS).unlink()
  found = peft.read(folder, base, network)
  assert found.rules == expected.rules
  tiny.assert_same(found.adapter, expected.adapter)


def bottleneck(tmp_path, name, module, down, up, **config):
  """Writes LLM-Adapters' format; down and up are (inputs, outputs)."""
  folder = tmp_path / "bottleneck"
  folder.mkdir()
  prefix = f"base_model.model.transformer.h.0.{module}"
  rng = np.random.default_rng(0)
  arrays = {
    f"{prefix}.adapter_down.weight": rng.random((2, down), np.float32),
    f"{prefix}.adapter_up.weight": rng.random((up, 2), np.float32),
  }
  safetensors_io.write(folder / peft.TENSORS, arrays)
  (folder / peft.CONFIG).write_text(
    json.dumps({"peft_type": "BOTTLENECK", "scaling": 0.5} | config)
  )
  base = SMALL / name
  return peft.read(folder, base, hugging_face.network(base))


def test_bottlenecks(tmp_path):
  found = bottleneck(tmp_path, "gptj", "mlp.fc_in", 12, 12)
  [rule] = found.rules
  assert rule.pattern == "decoder/layers_(0)/mlp/wi"
  assert rule.adapter.placement == "before"
  assert rule.adapter.scaling == 0.5
  assert rule.adapter.activation == "tanh"


@pytest.mark.parametrize(
  ("name", "module", "down", "up", "message"),
  [
    ("gptj", "mlp.fc_in", 9, 12, "from 12 to 12 at .*fc_in, found .* 9 to 12"),
    ("bloom", "self_attention.query_key_value", 12, 36, "cannot be divided"),
  ],
)
def test_bottlenecks_that_are_refused(
  tmp_path, name, module, down, up, message
):
  with pytest.raises(FormatError, match=message):
    bottleneck(tmp_path, name, module, down, up)


def test_a_place_for_everything():
  """A network with leaves that the architecture does not know is refused."""
  other = hugging_face.network(SMALL / "gptj")
  with pytest.raises(FormatError, match="have a place for decoder/layers_0"):
    hugging_face.load(SMALL / "llama", other)


def test_defaults_are_those_of_the_configuration():
  found = architectures.network_config(
    {
      "model_type": "llama",
      "vocab_size": 9,
      "hidden_size": 8,
      "num_attention_heads": 2,
      "intermediate_size": 4,
      "num_hidden_layers": 1,
      "hidden_act": "silu",
      "rms_norm_eps": 1e-5,
      "rope_theta": 7.0,
      "rope_scaling": {"type": "linear", "factor": 2.0},
    },
    scan_layers=True,
  )
  assert found.kv_heads == 2
  assert found.head_dim == 4
  assert found.rotary.theta == 7.0
  assert found.rotary.scaling == "linear"
  assert found.scan_layers


def test_places_that_cannot_be_written_to(tmp_path):
  (tmp_path / "mine.txt").write_text("mine")
  for place, message in (
    (tmp_path, "expected a new or empty directory, found .*mine.txt"),
    ("gs://bucket/model", "expected a folder of this machine, found gs://"),
  ):
    with pytest.raises(FormatError, match=message):
      hugging_face.save(place, {}, None, like=tmp_path)
  assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
