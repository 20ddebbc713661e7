"""Our T5, with and without adapters, gives Hugging Face's logits.

A small set of models is in the repository (`fixtures/make_t5_small.py`), larger
ones, and adapters of Hugging Face PEFT, lie beside the checkout and are skipped
where they are absent.
"""

import functools
import json
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from peft_jax import IA3, Adapted, LoRA, Rule, decoding, join, networks, split
from peft_jax.networks import layers

FIXTURE = pathlib.Path(__file__).parents[1] / "fixtures" / "t5_small.npz"
LARGE = ("t5_v1_1", "t5_v1_0", "t5_v1_1_wide_heads")

ATTENTIONS = {
  ("encoder", "SelfAttention"): "attention",
  ("decoder", "SelfAttention"): "self_attention",
  ("decoder", "EncDecAttention"): "encoder_decoder_attention",
}
PROJECTIONS = {"q": "query", "k": "key", "v": "value", "o": "out"}
# The norm in front of sub-layer i.
NORMS = {
  "encoder": ("attention", "mlp"),
  "decoder": ("self_attention", "cross_attention", "mlp"),
}
AROUND = {
  "shared": "token_embedder/embedding",
  "lm_head": "decoder/logits_dense/kernel",
}


def site(name):
  """Returns the path of ours for the module of a weight's name."""
  stack, block, part, rest = re.fullmatch(
    r"(encoder|decoder)\.block\.(\d+)\.layer\.(\d+)\.(.+)", name
  ).groups()
  path = f"{stack}/layers_{block}"
  if rest == "layer_norm":
    return f"{path}/pre_{NORMS[stack][int(part)]}_layer_norm"
  parent, module = rest.split(".")
  if parent == "DenseReluDense":
    return f"{path}/mlp/{module}"
  if module == "relative_attention_bias":
    return f"{stack}/relpos_bias"
  return f"{path}/{ATTENTIONS[stack, parent]}/{PROJECTIONS[module]}"


def leaf(name, value):
  """Returns path and value of one weight; PyTorch's matrices are transposed."""
  name = name.removesuffix(".weight")
  if name in AROUND:
    return AROUND[name], value if name == "shared" else value.T
  if name.endswith("final_layer_norm"):
    stack = name.split(".")[0]
    return f"{stack}/{stack}_norm/scale", value
  path = site(name)
  if path.endswith("norm"):
    return f"{path}/scale", value
  if path.endswith("relpos_bias"):
    return f"{path}/rel_embedding", value.T
  return f"{path}/kernel", value.T


def convert(weights, *, scaled=True):
  """Returns our tree of Hugging Face's weights.

  A T5 1.1 saved without an output layer has the embedding there, but unlike T5
  1.0 does not scale it: to us it is an output layer of its own.
  """
  flat = dict(leaf(name, value) for name, value in weights.items())
  assert len(flat) == len(weights)
  if "lm_head.weight" not in weights and not scaled:
    flat[AROUND["lm_head"]] = weights["shared.weight"].T
  return unflatten_dict({k: jnp.asarray(v) for k, v in flat.items()}, sep="/")


def network_for(params):
  """Returns the network whose sizes are those of the tree."""
  flat = flatten_dict(params, sep="/")
  heads, _ = flat["encoder/relpos_bias/rel_embedding"].shape
  query = flat["encoder/layers_0/attention/query/kernel"]
  hidden = flat["encoder/layers_0/mlp/wo/kernel"]
  vocabulary, width = flat["token_embedder/embedding"].shape
  depth = lambda stack: sum("layers_" in name for name in params[stack])
  gated = "encoder/layers_0/mlp/wi_0/kernel" in flat
  return networks.T5(
    networks.T5Config(
      vocab_size=vocabulary,
      emb_dim=width,
      num_heads=heads,
      head_dim=query.shape[1] // heads,
      mlp_dim=hidden.shape[0],
      num_encoder_layers=depth("encoder"),
      num_decoder_layers=depth("decoder"),
      mlp_activations=("gelu", "linear") if gated else ("relu",),
      logits_via_embedding="logits_dense" not in params["decoder"],
    )
  )


def read_safetensors(path):
  """Returns name -> array: 8 bytes of length, JSON, then the raw bytes."""
  content = path.read_bytes()
  start = 8 + int.from_bytes(content[:8], "little")
  header = json.loads(content[8:start])
  header.pop("__metadata__", None)
  found = {}
  for name, entry in header.items():
    assert entry["dtype"] == "F32"
    begin, end = (start + offset for offset in entry["data_offsets"])
    values = np.frombuffer(content[begin:end], "<f4")
    found[name] = values.reshape(entry["shape"])
  return found


def logits(model, params, golden):
  """Returns the logits; the fixtures' decoder inputs have no padding."""
  tokens = jnp.asarray(golden["decoder_input_ids"], jnp.int32)
  call = jax.jit(
    lambda params: model.apply(
      {"params": params},
      jnp.asarray(golden["input_ids"], jnp.int32),
      tokens,
      jnp.ones_like(tokens),
    )
  )
  return np.asarray(call(params))


def greedy(model, params, golden, steps):
  inputs = jnp.asarray(golden["input_ids"][:1], jnp.int32)
  call = functools.partial(
    decoding.greedy, model, max_decode_length=steps, eos_id=-1
  )
  return np.asarray(jax.jit(call)(params, inputs))[0]


# The models of the repository.


@functools.cache
def small(form):
  """Returns (network, parameters, golden) of one form."""
  with np.load(FIXTURE) as file:
    golden = {
      name.split("/")[1]: file[name]
      for name in file.files
      if name.startswith(form)
    }
  weights, start = {}, 0
  for entry in golden["names"]:
    name, shape = entry.split(" ")
    shape = tuple(map(int, shape.split(",")))
    size = int(np.prod(shape))
    weights[name] = golden["weights"][start : start + size].reshape(shape)
    start += size
  assert start == len(golden["weights"])
  params = convert(weights)
  return network_for(params), params, golden


@pytest.mark.parametrize("form", ["v1_1", "v1_0"])
def test_small(form):
  network, params, golden = small(form)
  found = logits(network, params, golden)
  np.testing.assert_allclose(found, golden["logits"], rtol=0, atol=1e-4)
  continuation = greedy(network, params, golden, len(golden["greedy"]))
  np.testing.assert_array_equal(continuation, golden["greedy"])
  assert len(set(continuation)) > 2  # else it would show little


def test_small_fixture_is_small():
  assert FIXTURE.stat().st_size < 50_000


# The models beside the checkout.


@functools.cache
def load(folder):
  """Returns (parameters, golden) of a Hugging Face folder."""
  config = json.loads((folder / "config.json").read_text())
  # Their position buckets are not T5's 32 up to 128; see `buckets`.
  assert config["relative_attention_num_buckets"] == 8
  assert config["relative_attention_max_distance"] == 20
  weights = read_safetensors(folder / "model.safetensors")
  with np.load(folder / "golden.npz") as file:
    params = convert(weights, scaled=config["scale_decoder_outputs"])
    return params, dict(file)


def assert_near(found, expected):
  """Asserts logits equal to 1e-4 on average, and to 1e-3 everywhere.

  Weights of deviation 0.3 make attention sharp, which carries rounding on: the
  logits that Hugging Face gives in float32 and in float64 are up to 3.1e-4
  apart, so that no other order of sums can be asked to stay within 1e-4.
  """
  difference = np.abs(found - expected)
  assert difference.mean() < 1e-4
  assert difference.max() < 1e-3


@pytest.fixture
def buckets(monkeypatch):
  """Gives the network the buckets of these models; T5Config has no field."""
  biases = functools.partial(
    layers.RelativePositionBiases, num_buckets=8, max_distance=20
  )
  monkeypatch.setattr(layers, "RelativePositionBiases", biases)


@pytest.fixture(params=LARGE)
def folder(request, shared_data, buckets):
  return shared_data(f"parity/{request.param}")


def test_large(folder):
  params, golden = load(folder)
  network = network_for(params)
  assert_near(logits(network, params, golden), golden["logits"])
  # The first token is the start token, which ours leaves out.
  expected = golden["greedy"][0, 1:]
  continuation = greedy(network, params, golden, len(expected))
  np.testing.assert_array_equal(continuation, expected)


def adapted(folder, method, network):
  """Returns our model and adapter leaves of a Hugging Face PEFT folder."""
  config = json.loads((folder / method / "adapter_config.json").read_text())
  weights = read_safetensors(folder / method / "adapter_model.safetensors")
  by_side, leaves = {"input": set(), "output": set()}, {}
  for name, value in weights.items():
    name = name.removeprefix("base_model.model.").removesuffix(".weight")
    module, kind = name.rsplit(".", 1)
    path = site(module)
    if kind == "ia3_l":
      leaves[f"{path}/ia3/scaling"] = value.ravel()
      is_input = module.split(".")[-1] in config["feedforward_modules"]
      by_side["input" if is_input else "output"].add(path)
    else:
      leaves[f"{path}/lora/{kind[-1].lower()}"] = value.T
      by_side["output"].add(path)
  if method == "lora":
    adapters = {"output": LoRA(rank=config["r"], alpha=config["lora_alpha"])}
  else:
    adapters = {side: IA3(side=side) for side in by_side}
  rules = [
    Rule("|".join(sorted(by_side[side])), adapter)
    for side, adapter in adapters.items()
    if by_side[side]
  ]
  leaves = {path: jnp.asarray(value) for path, value in leaves.items()}
  return Adapted(network, rules), unflatten_dict(leaves, sep="/")


@pytest.mark.parametrize("method", ["ia3", "lora"])
def test_adapters_of_hugging_face(folder, method):
  """The same numbers from the same vectors and matrices, at the same sites."""
  params, _ = load(folder)
  with np.load(folder / "golden.npz") as file:
    golden = dict(file)
  with np.load(folder / method / "golden.npz") as file:
    expected, trainable = file["logits"], int(file["trainable"])
  model, adapter = adapted(folder, method, network_for(params))
  assert sum(x.size for x in jax.tree.leaves(adapter)) == trainable
  together = join(params, adapter)
  assert jax.tree.structure(split(together, model)[1]) == (
    jax.tree.structure(adapter)
  )
  found = logits(model, together, golden)
  assert_near(found, expected)
  assert np.abs(found - golden["logits"]).max() > 1e-2
