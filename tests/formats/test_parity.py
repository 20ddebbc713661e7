"""Backbones and adapters of Hugging Face compute here what they do there.

Tiny models are in the repository (`fixtures/make_hugging_face.py`); larger ones
lie beside the checkout and are skipped where they are absent. In float32 both
round, by as much as weights are sharp; in float64 they agree to 1e-9
(`fixtures/make_float64.py`), which no other formula would.
"""

import functools
import json
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from helpers import tiny

from peft_jax import Adapted, decoding
from peft_jax.formats import hugging_face, peft, safetensors_io

SMALL = pathlib.Path(__file__).parents[1] / "fixtures" / "hugging_face"
# Other fixtures of `make_parity_fixtures.py` (another seed, other sizes) may be
# named in the place of those beside the checkout.
LARGE = pathlib.Path(
  os.environ.get("PARITY")
  or pathlib.Path(__file__).parents[2].parent / "shared/data/parity"
)
NAMES = sorted(path.name for path in SMALL.iterdir())
LARGE_NAMES = (
  *("t5_v1_1", "t5_v1_1_wide_heads", "t5_v1_0", "bart"),
  *("gpt2", "gptj", "bloom", "llama"),
)
# Sharp attention turns rounding into differences. Under adapters, logits of
# Hugging Face's in float32 and float64 are up to 2.4e-4 and 9.9e-4 apart in
# these, and in float32 on two processors 6.8e-4. In float64 all agree.
SHARP = {"t5_v1_1": 1e-3, "t5_v1_1_wide_heads": 5e-3}
# Divided by the embedding's scale, sqrt(12), and kept in float32.
ROUNDED = {"small/bart/prompt": 1e-7}
PENALTIES = {"beam_1": 1.0, "beam_2": 0.5}


def folder_of(name):
  where, _, name = name.partition("/")
  folder = {"small": SMALL, "large": LARGE}[where] / name
  if not folder.exists():
    pytest.skip(f"needs {folder}, which is not part of the repository")
  return folder


def adapters_of(folder, prefix):
  if not folder.exists():
    return []
  return [
    f"{prefix}/{path.parent.parent.name}/{path.parent.name}"
    for path in sorted(folder.glob("*/*/adapter_config.json"))
  ]


ADAPTERS = adapters_of(SMALL, "small") + adapters_of(LARGE, "large")
EXACT = [
  f"{where}/{path.parent.name}/{method}"
  for where, root in (("small", SMALL), ("large", LARGE))
  for path in sorted(root.glob("*/float64.npz"))
  for method in np.load(path)
]
MODELS = [f"small/{name}" for name in NAMES]
MODELS += [f"large/{name}" for name in LARGE_NAMES]


def call(golden):
  """Returns what a network is called with, and where tokens are real."""
  ids = jnp.asarray(golden["input_ids"].astype(np.int32))
  mask = golden["attention_mask"] > 0
  if "decoder_input_ids" not in golden:
    segments = jnp.asarray(mask.astype(np.int32))
    return {"decoder_input_tokens": ids, "decoder_segment_ids": segments}, mask
  decoder = jnp.asarray(golden["decoder_input_ids"].astype(np.int32))
  # Any id that is no padding: it only says which targets are real.
  inputs = {
    "encoder_input_tokens": ids,
    "decoder_input_tokens": decoder,
    "decoder_target_tokens": jnp.full_like(decoder, 5),
  }
  return inputs, np.ones(decoder.shape, bool)


@functools.cache
def opened(folder, **options):
  """Returns the network of a folder and its parameters, which none changes."""
  network = hugging_face.network(folder, **options)
  dtype = network.config.dtype
  return network, hugging_face.load(folder, network, dtype=dtype)


def adapted(folder, method, network, params):
  """Returns the model and its parameters under an adapter, and the adapter."""
  found = peft.read(folder / method, folder, network)
  own = jax.tree.map(lambda x: x.astype(network.config.dtype), found.adapter)
  both = unflatten_dict(flatten_dict(params) | flatten_dict(own))
  return Adapted(network, found.rules), both, found


def logits(model, params, golden):
  inputs, real = call(golden)
  found = jax.jit(lambda params: model.apply({"params": params}, **inputs))
  return np.asarray(found(params))[real], real


def assert_near(found, expected, folder, method="none"):
  tolerance = SHARP.get(folder.name, 1e-4) if LARGE in folder.parents else 2e-5
  if f"large/{folder.name}/{method}" in EXACT:
    # Two float32 programs are about as far apart as each is from the truth.
    exact = np.load(folder / "float64.npz")[method]
    tolerance = max(tolerance, 5 * np.abs(expected - exact).max())
  assert np.abs(found - expected).max() <= tolerance


@pytest.mark.parametrize("name", MODELS)
def test_logits(name):
  folder = folder_of(name)
  golden = np.load(folder / "golden.npz")
  network, params = opened(folder)
  found, real = logits(network, params, golden)
  assert_near(found, golden["logits"][real], folder)


@pytest.mark.parametrize("name", MODELS)
def test_scanned_and_greedy(name):
  """One compiled layer, rematerialised, and its cached generation."""
  folder = folder_of(name)
  golden = np.load(folder / "golden.npz")
  network, params = opened(folder, scan_layers=True, remat="full")
  found, real = logits(network, params, golden)
  assert_near(found, golden["logits"][real], folder)
  expected = golden["greedy"]
  if LARGE in folder.parents:  # there, the input or the start is in front
    seq2seq = "decoder_input_ids" in golden
    expected = expected[0, 1 if seq2seq else golden["input_ids"].shape[1] :]
  row = jnp.asarray(golden["input_ids"][:1].astype(np.int32))
  ids = jax.jit(
    lambda params: decoding.greedy(
      network, params, row, max_decode_length=len(expected), eos_id=-1
    )
  )(params)
  assert ids[0].tolist() == expected.tolist()


@pytest.mark.parametrize("name", NAMES)
def test_beam_search(name):
  folder = SMALL / name
  golden = np.load(folder / "golden.npz")
  network, params = opened(folder)
  row = jnp.asarray(golden["input_ids"][:1])
  for key, penalty in PENALTIES.items():
    tokens, _ = jax.jit(
      lambda params, penalty=penalty: decoding.beam_search(
        network,
        params,
        row,
        max_decode_length=5,
        length_penalty=penalty,
        formula="hugging_face",
      )
    )(params)
    expected = golden[key].tolist()
    assert tokens[0, 0, : len(expected)].tolist() == expected


@pytest.mark.parametrize("name", ADAPTERS)
def test_adapters(name):
  where, arch, method = name.split("/")
  folder = folder_of(f"{where}/{arch}")
  golden = np.load(folder / "golden.npz")
  expected = np.load(folder / method / "golden.npz")
  network, params = opened(folder)
  model, params, found = adapted(folder, method, network, params)
  inputs, _ = call(golden)
  init = lambda key: model.init(key, **inputs)["params"]
  assert tiny.spec(params) == tiny.spec(jax.eval_shape(init, jax.random.key(0)))
  values, real = logits(model, params, golden)
  # Hugging Face gives logits of the prompt too.
  wanted = expected["logits"][:, -real.shape[1] :][real]
  assert_near(values, wanted, folder, method)
  trained = sum(x.size for x in jax.tree.leaves(found.adapter))
  assert found.file_parameters == expected["trainable"]
  assert (trained != found.file_parameters) == any(
    f"{trained:,} here" in note for note in found.notes
  )


@pytest.mark.parametrize("name", EXACT)
def test_float64(name):
  where, arch, method = name.split("/")
  folder = folder_of(f"{where}/{arch}")
  golden = np.load(folder / "golden.npz")
  expected = np.load(folder / "float64.npz")[method]
  with jax.enable_x64(True):
    network, params = opened(folder, dtype=jnp.float64)
    model = network
    if method != "none":
      model, params, _ = adapted(folder, method, network, params)
    # Not compiled: the models share the operations, which are compiled once.
    inputs, real = call(golden)
    found = np.asarray(model.apply({"params": params}, **inputs))[real]
  assert found.dtype == expected.dtype == np.float64
  tolerance = ROUNDED.get(name, 1e-9)
  assert np.abs(found - expected).max() <= tolerance


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scan", [False, True])
def test_written_bit_by_bit(name, scan, tmp_path):
  folder = SMALL / name
  options = {"scan_layers": True, "remat": "full"} if scan else {}
  network, params = opened(folder, **options)
  hugging_face.save(tmp_path / "out", params, network, like=folder)
  configs = [path / "config.json" for path in (tmp_path / "out", folder)]
  assert configs[0].read_bytes() == configs[1].read_bytes()
  # The header's order and padding are the writer's own.
  old = safetensors_io.open_directory(folder)
  new = safetensors_io.open_directory(tmp_path / "out")
  assert old.keys() == new.keys()
  for key in old:
    assert old[key].dtype == new[key].dtype
    assert old[key].tobytes() == new[key].tobytes(), key


def test_the_configurations_of_the_fixtures_are_said():
  """The fixtures hold what the networks have branches for."""
  kinds = {
    json.loads((SMALL / name / "config.json").read_text())["model_type"]
    for name in NAMES
  }
  assert {"t5", "umt5", "bart", "gpt2", "gptj", "bloom"} <= kinds
  assert {"llama", "mistral", "qwen2", "qwen3"} <= kinds
