"""The maths of the methods against numpy, written from the papers' formulas.

IA3 and plain LoRA are in test_adapters. Numpy computes in float64, and `call`
compares the leaves that a test gives with those that the method makes.
"""

import dataclasses
import math
import types
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from hypothesis import given
from hypothesis import strategies as st

from peft_jax import (
  IA3,
  Adapted,
  BitFit,
  Bottleneck,
  Compacter,
  DeepPrompt,
  DoRA,
  EmbeddingLoRA,
  FishMask,
  IntrinsicSAID,
  LoRA,
  LowRankAdapter,
  PiSSA,
  Prefix,
  Prompt,
  Rule,
  Unfreeze,
  VeRA,
  optim,
  start,
)
from peft_jax.adapters import Site, fish_mask, intrinsic_said
from peft_jax.networks.attention import Attention
from peft_jax.rules import TargetError, resolve

# The attention output: two input axes, one output axis. A query: the reverse.
AXES = {"input_axis": "embed", "output_axis": "joined_kv"}
OUT = Site(inputs=(2, 6), outputs=(16,), **AXES)
QUERY = Site(inputs=(16,), outputs=(2, 6), **AXES)
LARGE = Site(inputs=(300,), outputs=(300,), **AXES)
SITES = pytest.mark.parametrize("site", [OUT, QUERY], ids=["out", "query"])
KEY = jax.random.key(0)


def draw(*shape, seed=0):
  noise = np.random.default_rng(seed).standard_normal(shape)
  return noise.astype(np.float32)


def drawn(**shapes):
  leaves = enumerate(shapes.items(), 1)
  return {name: draw(*shape, seed=i) for i, (name, shape) in leaves}


def device(tree):
  return jax.tree.map(jnp.asarray, tree)


def projected(site):
  """Returns x, y = x @ kernel, the kernel, and the site that has it."""
  x = draw(2, 3, *site.inputs, seed=100)
  kernel = draw(site.input_size, site.output_size, seed=101)
  y = (x.reshape(2, 3, -1) @ kernel).reshape(2, 3, *site.outputs)
  return x, y, kernel, dataclasses.replace(site, kernel=jnp.asarray(kernel))


def flat(x):
  return np.asarray(x, np.float64).reshape(2, 3, -1)


def wide(leaves):
  """Returns the leaves as float64, to be read as attributes."""
  leaves = {name: np.asarray(x, np.float64) for name, x in leaves.items()}
  return types.SimpleNamespace(**leaves)


def init(adapter, site, x, y):
  return adapter.init(KEY, *device((x, y)), site, True)["params"]


def call(adapter, leaves, site, x, y):
  """Returns the new y, or the new x if y is None: [2, 3, joined]."""
  made = jax.eval_shape(lambda: init(adapter, site, x, y))
  shapes = lambda tree: {name: leaf.shape for name, leaf in tree.items()}
  assert shapes(made) == shapes(leaves)
  assert {leaf.dtype for leaf in made.values()} == {np.dtype("float32")}
  params = {"params": device(leaves)}
  found = adapter.apply(params, *device((x, y)), site, True)
  assert found.shape == (x if y is None else y).shape
  return flat(found)


def begun(adapter, site):
  """Returns the leaves as they start beside the kernel of `projected`."""
  x, y, kernel, site = projected(site)
  empty = init(adapter, site, x, y)
  params = {"key": {"kernel": kernel, "it": empty}}
  model = Adapted(None, [Rule("key", adapter, name="it")])
  return empty, start.from_backbone(params, model, KEY)["key"]["it"]


def close(found, expected, tolerance=1e-5):
  """Asserts equality to `tolerance` times the expected values' scale."""
  found = np.asarray(found)
  assert found.shape == expected.shape
  scale = max(1.0, np.abs(expected).max())
  np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * scale)


def made(leaf):
  """Returns a `Leaf` as its initialiser draws it."""
  return np.asarray(leaf.initializer(KEY, leaf.shape, jnp.dtype(leaf.dtype)))


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


def gelu(x):
  return x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


# Methods beside a kernel


@SITES
def test_gated_lora_has_a_sigmoid_per_token(site):
  adapter = LoRA(rank=3, gated=True)
  n, m = site.input_size, site.output_size
  leaves = drawn(a=(n, 3), b=(3, m), gate=(n, 1))
  x, y, _, _ = projected(site)
  p = wide(leaves)
  added = flat(x) @ p.a @ p.b * sigmoid(flat(x) @ p.gate)
  close(call(adapter, leaves, site, x, y), flat(y) + added)
  assert not adapter.mergeable


@SITES
@pytest.mark.parametrize("stabilized", [False, True])
def test_dora_gives_columns_a_magnitude_and_a_direction(site, stabilized):
  adapter = DoRA(rank=4, alpha=6, rank_stabilized=stabilized)
  x, y, kernel, site = projected(site)
  n, m = kernel.shape
  leaves = drawn(a=(n, 4), b=(4, m), magnitude=(m,))
  p = wide(leaves)
  v = kernel + (6 / 2 if stabilized else 6 / 4) * p.a @ p.b
  w = p.magnitude * v / np.sqrt((v**2).sum(axis=0))
  close(call(adapter, leaves, site, x, y), flat(x) @ w)
  close(adapter.fold(kernel, leaves), w)
  empty, started = begun(adapter, site)
  assert np.isnan(empty["magnitude"]).all()
  close(started["magnitude"], np.sqrt((kernel**2).sum(axis=0)))
  close(call(adapter, started, site, x, y), flat(y))


def test_doras_gradient_does_not_flow_through_the_norm():
  adapter = DoRA(rank=2, alpha=3)
  x, y, kernel, site = projected(OUT)
  leaves = drawn(a=(12, 2), b=(2, 16), magnitude=(16,))
  weights = draw(2, 3, 16, seed=9)

  def loss(p):
    found = adapter.apply({"params": p}, *device((x, y)), site, True)
    return jnp.sum(found * weights)

  def moved(p):
    return kernel + 1.5 * p["a"] @ p["b"]

  def value(p, held):
    norm = np.sqrt((moved(held) ** 2).sum(axis=0))
    return ((flat(x) @ moved(p) * p["magnitude"] / norm) * weights).sum()

  def difference(name, held=None):
    result = np.zeros(leaves[name].shape)
    for index in np.ndindex(result.shape):
      for step in (1e-4, -1e-4):
        p = {k: np.array(leaf, np.float64) for k, leaf in leaves.items()}
        p[name][index] += step
        result[index] += value(p, held or p) / (2 * step)
    return result

  found = jax.grad(loss)(device(leaves))
  for name in leaves:
    close(found[name], difference(name, held=leaves), 1e-4)
  full = difference("a")
  assert np.abs(full - found["a"]).max() > 0.1 * np.abs(full).max()


@SITES
def test_vera_scales_between_and_after_random_matrices(site):
  adapter = VeRA(rank=5, seed=3)
  leaves = drawn(d=(5,), b=(site.output_size,))
  x, y, kernel, _ = projected(site)
  left, right = map(np.asarray, adapter.matrices(*kernel.shape))
  p = wide(leaves)
  expected = flat(y) + (((flat(x) @ left) * p.d) @ right) * p.b
  close(call(adapter, leaves, site, x, y), expected)
  close(flat(x) @ adapter.fold(kernel, leaves), expected)
  d = init(adapter.clone(d_initial=0.3), site, x, y)["d"]
  np.testing.assert_array_equal(d, np.float32([0.3] * 5))


def test_veras_matrices_are_kaiming_uniform_and_of_their_seed():
  left, right = map(np.asarray, VeRA(rank=50).matrices(200, 300))
  for matrix, shape in ((left, (200, 50)), (right, (50, 300))):
    bound = math.sqrt(6 / shape[0])
    assert matrix.shape == shape
    assert 0.99 * bound < np.abs(matrix).max() <= bound
    assert matrix.std() == pytest.approx(bound / math.sqrt(3), rel=0.03)
  np.testing.assert_array_equal(VeRA(rank=50).matrices(200, 300)[0], left)
  other, _ = VeRA(rank=50, seed=1).matrices(200, 300)
  assert np.abs(other - left).max() > 0.1


@SITES
def test_pissa_trains_the_principal_part(site):
  adapter = PiSSA(rank=3)
  x, y, kernel, _ = projected(site)
  empty, started = begun(adapter, site)
  assert all(np.isnan(leaf).all() for leaf in empty.values())
  u, s, v = np.linalg.svd(kernel.astype(np.float64), full_matrices=False)
  best = (u[:, :3] * s[:3]) @ v[:3]
  p = wide(started)
  close(p.a @ p.b, best)
  # The singular values are shared out evenly.
  close(p.a.T @ p.a, np.diag(s[:3]))
  close(p.b @ p.b.T, np.diag(s[:3]))
  close(call(adapter, started, site, x, y), flat(y))
  moved = started | drawn(a=p.a.shape, b=p.b.shape)
  q = wide(moved)
  expected = flat(x) @ (kernel - best + q.a @ q.b)
  close(call(adapter, moved, site, x, y), expected)
  close(flat(x) @ adapter.fold(kernel, moved), expected)
  assert adapter.constants == {"a_start", "b_start"}
  with pytest.raises(ValueError, match=r"rank <= 12, .*, found rank=13"):
    init(PiSSA(rank=13), site, x, y)


# Biases and bottlenecks


@SITES
def test_bitfit_adds_a_bias(site):
  leaves = drawn(bias=(site.output_size,))
  x, y, _, _ = projected(site)
  expected = y.reshape(2, 3, -1) + leaves["bias"]
  np.testing.assert_array_equal(call(BitFit(), leaves, site, x, y), expected)


@SITES
@pytest.mark.parametrize("placement", ["after", "before", "parallel"])
@pytest.mark.parametrize(
  "options",
  [
    {"scaling": 2.5},
    {"use_bias": False, "gated": True, "activation": "tanh"},
    {"scaling": "learned", "layer_norm": True, "gated": True},
  ],
)
def test_bottleneck(site, placement, options):
  adapter = Bottleneck(size=5, placement=placement, **options)
  x, y, _, _ = projected(site)
  y = None if placement == "before" else y
  raw = flat(y if placement == "after" else x)
  base = flat(x if y is None else y)
  n, m = raw.shape[-1], base.shape[-1]
  shapes = {"down": (n, 5), "up": (5, m)}
  if options.get("use_bias", True):
    shapes |= {"down_bias": (5,), "up_bias": (m,)}
  if options.get("scaling") == "learned":
    shapes["scaling"] = (1,)
  if options.get("layer_norm"):
    shapes["norm_scale"] = (n,)
  if options.get("gated"):
    shapes["gate"] = (n, 1)
  leaves = drawn(**shapes)
  p = wide({"down_bias": 0, "up_bias": 0} | leaves)
  z = raw
  if options.get("layer_norm"):
    z = z / np.sqrt((z**2).mean(-1, keepdims=True) + 1e-6) * p.norm_scale
  act = np.tanh if "activation" in options else lambda x: np.maximum(x, 0)
  f = act(z @ p.down + p.down_bias) @ p.up + p.up_bias
  s = options.get("scaling", 1.0)
  f = f * (p.scaling[0] if s == "learned" else s)
  if options.get("gated"):
    f = f * sigmoid(raw @ p.gate)
  close(call(adapter, leaves, site, x, y), base + f)


@pytest.mark.parametrize(
  ("initializer", "down", "up", "bound"),
  [
    # A normal truncated at two deviations has 0.8796 of its deviation.
    ("houlsby", 0.008796, 0.008796, 0.02),
    ("bert", 0.02, 0.02, math.inf),
    ("identity", math.sqrt(2 / 300), 0.0, math.sqrt(6 / 300)),
  ],
)
def test_bottleneck_initializers(initializer, down, up, bound):
  adapter = Bottleneck(size=40, initializer=initializer, scaling="learned")
  leaves = init(adapter, LARGE, *np.zeros((2, 1, 1, 300), np.float32))
  for name, std in (("down", down), ("up", up)):
    assert np.std(leaves[name]) == pytest.approx(std, rel=0.03)
    assert np.abs(np.mean(leaves[name])) <= std / 20
    assert np.abs(leaves[name]).max() <= bound * 1.00001
  assert not np.any(leaves["down_bias"]) and not np.any(leaves["up_bias"])
  np.testing.assert_array_equal(leaves["scaling"], [1.0])


@SITES
def test_compacter_multiplies_by_sums_of_kronecker_products(site):
  n, r, size, m = 2, 3, 8, site.output_size
  adapter = Compacter(size=size, division=n, phm_rank=r)
  down = {"down_s": (n, m // n, r), "down_t": (n, r, size // n)}
  up = {"up_s": (n, size // n, r), "up_t": (n, r, m // n)}
  leaves = drawn(**down, **up, down_bias=(size,), up_bias=(m,))
  rules = {"down_rule": draw(n, n, n, seed=7), "up_rule": draw(n, n, n, seed=8)}
  shared = dataclasses.replace(site, shared=device(rules))
  x, y, _, _ = projected(site)
  p = wide(leaves | rules)
  matrix = lambda rule, s, t: sum(map(np.kron, rule, s @ t))
  hidden = flat(y) @ matrix(p.down_rule, p.down_s, p.down_t) + p.down_bias
  added = gelu(hidden) @ matrix(p.up_rule, p.up_s, p.up_t) + p.up_bias
  close(call(adapter, leaves, shared, x, y), flat(y) + added)
  with pytest.raises(ValueError, match=rf"site's {m} features, .*division=24"):
    init(Compacter(size=24, division=24), site, x, y)
  drawn_rules = Compacter(size=16, division=16).shared_leaves(site)
  assert drawn_rules.keys() == rules.keys()
  for leaf in drawn_rules.values():
    assert leaf.shape == (16, 16, 16)
    assert made(leaf).std() == pytest.approx(0.1, rel=0.05)


@SITES
def test_low_rank_adapter(site):
  m = site.output_size
  down = {"down_left": (m, 2), "down_right": (2, 5), "down_bias": (5,)}
  up = {"up_left": (5, 2), "up_right": (2, m), "up_bias": (m,)}
  leaves = drawn(**down, **up)
  x, y, _, _ = projected(site)
  p = wide(leaves)
  hidden = gelu(flat(y) @ (p.down_left @ p.down_right) + p.down_bias)
  expected = flat(y) + hidden @ (p.up_left @ p.up_right) + p.up_bias
  adapter = LowRankAdapter(size=5, rank=2, activation="gelu")
  close(call(adapter, leaves, site, x, y), expected)


# Prompts


TABLE = draw(40, 16, seed=50)


def started(adapter, key=0):
  """Returns the prompt [P, D] that starts beside `TABLE`."""
  empty = adapter.init(jax.random.key(1), QUERY)["params"]
  assert np.isnan(empty["prompt"]).all() == adapter.reads_backbone
  embedder = {"embedding": TABLE}
  params = {"token_embedder": embedder, "encoder": {"prompt": dict(empty)}}
  model = Adapted(None, [Rule("encoder", adapter)])
  found = start.from_backbone(params, model, jax.random.key(key))
  assert found["encoder"]["prompt"].keys() == empty.keys()
  prompt = np.asarray(found["encoder"]["prompt"]["prompt"])
  assert prompt.shape == (adapter.length, 16) and prompt.dtype == np.float32
  return prompt


def ids_of(rows):
  same = np.all(rows[:, None] == TABLE[None], axis=-1)
  assert same.any(axis=1).all(), "a row is none of the table's"
  return same.argmax(axis=1).tolist()


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_uniform_prompts(scale):
  prompt = started(Prompt(length=200, initializer="uniform", scale=scale))
  deep = DeepPrompt(length=200, scale=scale)
  leaves = init(deep, QUERY, np.zeros((1, 200, 16), np.float32), None)
  for found in (prompt, np.asarray(leaves["prompt"])):
    assert found.shape == (200, 16)
    assert 0.99 * scale < np.abs(found).max() <= scale
    assert found.std() == pytest.approx(scale / math.sqrt(3), rel=0.03)
    assert abs(found.mean()) < scale / 20


@pytest.mark.parametrize(
  ("first", "population", "end"), [(3, 10, 13), (30, 5000, 40), (3, 0, 40)]
)
def test_vocabulary_prompts_are_of_distinct_tokens(first, population, end):
  adapter = Prompt(length=end - first, first=first, population=population)
  # As many as there are: each of them once, in a drawn order.
  found = ids_of(started(adapter))
  assert sorted(found) == list(range(first, end)) != found
  draws = [ids_of(started(adapter.clone(length=5), key)) for key in range(3)]
  assert all(len(set(ids)) == 5 for ids in draws)
  assert draws[0] != draws[1] != draws[2]
  assert set(draws[0]) <= set(range(first, end))
  more = ids_of(started(adapter.clone(length=60)))
  assert set(more) <= set(range(first, end))


def test_prompts_of_words_are_their_mean_embeddings():
  words = ((7,), (2, 9, 9, 31), (0, 39))
  adapter = Prompt(
    length=6, initializer="words", words=words, first=10, population=4
  )
  found = started(adapter)
  close(found[:3], np.stack([TABLE[list(word)].mean(axis=0) for word in words]))
  rest = set(ids_of(found[3:]))
  assert len(rest) == 3 and rest <= {10, 11, 12, 13}
  with pytest.raises(ValueError, match="expected first < 40"):
    started(Prompt(length=4, first=40))
  with pytest.raises(ValueError, match="ids of words below 40, found 40"):
    started(adapter.clone(words=((1,), (3, 40))))


def test_a_prompt_from_a_file(tmp_path):
  path = tmp_path / "prompt.npy"
  values = np.random.default_rng(0).standard_normal((4, 16))
  np.save(path, values)
  adapter = Prompt(length=4, initializer="file", path=str(path))
  np.testing.assert_array_equal(started(adapter), values.astype(np.float32))
  message = r"shape \(3, 16\) in .*npy, found \(4, 16\). Set length=4"
  with pytest.raises(ValueError, match=message):
    started(adapter.clone(length=3))


def test_a_network_makes_the_prompt():
  adapter = Prompt(length=4, encoder_size=5, initializer="words", words=((1,),))
  network = {"hidden": (16, 5), "hidden_bias": (5,), "out": (5, 16)}
  leaves = device(drawn(prompt=(4, 16), **network, out_bias=(16,)))
  p = wide(leaves)
  hidden = np.tanh(p.prompt @ p.hidden + p.hidden_bias)
  expected = p.prompt + hidden @ p.out + p.out_bias
  close(adapter.apply({"params": leaves}, QUERY), expected)
  flattened = {"params": adapter.flatten(leaves, {})}
  close(adapter.plain().apply(flattened, QUERY), expected)
  assert ids_of(started(adapter)[:1]) == [1]


@pytest.mark.parametrize("combine", ["replace", "add"])
def test_deep_prompts_take_the_first_slots(combine):
  leaves, x = drawn(prompt=(2, 16)), draw(2, 3, 16)
  expected = x.copy()
  expected[:, :2] = leaves["prompt"] + (x[:, :2] if combine == "add" else 0)
  adapter = DeepPrompt(length=2, combine=combine)
  close(call(adapter, leaves, QUERY, x, None), expected, 1e-7)


# Prefixes


class Network(nn.Module):
  """An attention and nothing else."""

  @nn.compact
  def __call__(self, x, keys, mask, bias):
    return Attention(2, 6, name="attention")(x, keys, mask, bias)


def prefix_leaves(size, gated):
  """Returns own and shared leaves, and keys and values [P, H, K] of them."""
  own, shared = drawn(key=(4, 12), value=(4, 12)), {}
  key, value = own["key"], own["value"]
  if size:
    own = drawn(out=(size, 24), out_bias=(24,))
    shared = drawn(embedding=(4, 16), hidden=(16, size), hidden_bias=(size,))
    p = wide(own | shared)
    hidden = np.tanh(p.embedding @ p.hidden + p.hidden_bias)
    key, value = np.split(hidden @ p.out + p.out_bias, 2, axis=1)
  if gated:
    own["gate"] = draw(16, 1, seed=30) / 4
  return *device((own, shared)), key.reshape(4, 2, 6), value.reshape(4, 2, 6)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("size", [0, 5])
def test_a_prefix_is_direct_or_made_by_a_network(size, gated):
  adapter = Prefix(length=4, hidden_size=size, gated=gated)
  own, shared, key, value = prefix_leaves(size, gated)
  site, x = dataclasses.replace(QUERY, shared=shared), draw(2, 3, 16)
  found = adapter.apply({"params": own}, jnp.asarray(x), site)
  close(found[0], key)
  close(found[1], value)
  assert (found[2] is not None) == gated
  if gated:
    gates = np.log(sigmoid(x @ own["gate"]))  # [2, 3, 1]
    close(found[2], np.tile(gates, 4)[:, None])
  if size:
    flattened = adapter.flatten(own, shared)
    assert flattened.keys() == {"key", "value"} | own.keys() & {"gate"}
    again = adapter.plain().apply({"params": flattened}, jnp.asarray(x), QUERY)
    jax.tree.map(np.testing.assert_array_equal, again, found)


def test_a_direct_prefix_is_drawn_from_a_normal_of_its_scale():
  adapter = Prefix(length=200, hidden_size=0, scale=0.5)
  leaves = adapter.init(KEY, jnp.zeros((1, 1, 16)), QUERY)["params"]
  for name in ("key", "value"):
    assert np.std(leaves[name]) == pytest.approx(0.5, rel=0.05)
  assert np.any(leaves["key"] != leaves["value"])


@pytest.mark.parametrize(
  ("size", "gated", "uses"),
  [
    (0, False, ""),
    (0, False, "mask and bias"),
    (0, True, "mask"),
    (0, True, "bias"),
    (5, True, "mask and bias"),
  ],
)
def test_attention_over_a_prefix(size, gated, uses):
  adapter = Prefix(length=4, hidden_size=size, gated=gated)
  own, shared, key, value = prefix_leaves(size, gated)
  names = ("query", "key", "value")
  w = {name: draw(16, 12, seed=40 + i) / 4 for i, name in enumerate(names)}
  w["out"] = draw(12, 16, seed=43)
  params = {name: {"kernel": jnp.asarray(x)} for name, x in w.items()}
  params = {"attention": params | {"prefix": own}}
  if size:
    params["prefix_shared"] = {"attention_attention": shared}
  x, keys = draw(2, 3, 16), draw(2, 5, 16, seed=1)
  mask = np.random.default_rng(2).random((2, 1, 3, 5)) < 0.6
  mask[0, 0, 0] = False  # here only the prefix is left
  mask = mask if "mask" in uses else None
  bias = draw(1, 2, 3, 5, seed=3) if "bias" in uses else None
  model = Adapted(Network(), [Rule(".*attention", adapter)])
  found = model.apply({"params": params}, *device((x, keys, mask, bias)))
  # Softmax over [prefix; keys]: a gate multiplies the prefix's exponentials.
  context = np.zeros((2, 3, 12))
  for b, t, h in np.ndindex(2, 3, 2):
    part = slice(6 * h, 6 * h + 6)
    query = x[b, t] @ w["query"][:, part]
    logits = keys[b] @ w["key"][:, part] @ query
    weights = np.exp(logits + (0 if bias is None else bias[0, h, t]))
    weights = weights * (1 if mask is None else mask[b, 0, t])
    gate = sigmoid(x[b, t] @ own["gate"]) if gated else 1
    prefix = np.exp(key[:, h] @ query) * gate
    summed = prefix @ value[:, h] + weights @ (keys[b] @ w["value"][:, part])
    context[b, t, part] = summed / (prefix.sum() + weights.sum())
  close(found, context @ w["out"])


# Embeddings, and methods that act on leaves


def test_lora_on_the_embeddings():
  adapter = EmbeddingLoRA(rank=4, alpha=6, rank_stabilized=True)
  leaves = drawn(a=(40, 4), b=(4, 16))
  p = wide(leaves)
  table = TABLE + 6 / 2 * p.a @ p.b
  tokens, x = np.array([[3, 39, 3], [0, 1, 17]]), draw(2, 3, 16)
  leaves = device(leaves)
  embedded = TABLE[tokens] + adapter.embed(leaves, jnp.asarray(tokens))
  close(embedded, table[tokens])
  close(x @ TABLE.T + adapter.attend(leaves, jnp.asarray(x)), x @ table.T)
  close(adapter.fold(TABLE, leaves), table)
  initial = adapter.shared_leaves(Site(inputs=(40,), outputs=(500,), **AXES))
  np.testing.assert_array_equal(made(initial["a"]), np.zeros((40, 4)))
  assert made(initial["b"]).shape == (4, 500)
  assert made(initial["b"]).std() == pytest.approx(1.0, rel=0.05)


def test_a_fish_mask_starts_on_the_first_entries():
  leaves = FishMask(keep=0.55).own_leaves({"b": (2, 3), "a": (4,)})
  assert {name: made(leaf).tolist() for name, leaf in leaves.items()} == {
    "values": [0.0] * 6,
    "leaf": [0, 0, 0, 0, 1, 1],
    "offset": [0, 1, 2, 3, 0, 1],
  }
  assert leaves["values"].dtype == "float32"
  assert leaves["leaf"].dtype == leaves["offset"].dtype == "int32"
  assert FishMask(keep=1.0).count({"a": (3, 2), "b": ()}) == 7
  assert FishMask(keep=0.001).count({"a": (3, 2)}) == 1


def test_a_fish_mask_adds_its_values_to_its_entries():
  rows = drawn(z=(3, 4), a=(5,), m=(2, 2, 2))
  expected = {name: x.copy() for name, x in rows.items()}
  expected["a"][4] += 0.5
  expected["m"][1, 0, 1] -= 2
  expected["z"][2, 3] += 7
  own = {"values": np.float32([7, 0.5, -2])}
  own |= {"leaf": np.array([2, 0, 1]), "offset": np.array([11, 4, 5])}
  found = FishMask().transform(device(rows), device(own))
  jax.tree.map(np.testing.assert_array_equal, found, expected)


@given(
  st.dictionaries(
    st.sampled_from("abcd"),
    st.lists(st.integers(0, 3), min_size=1, max_size=12),
    min_size=1,
  ),
  st.data(),
)
def test_a_fish_mask_chooses_the_largest_and_of_equals_the_first(found, data):
  paths = sorted(found)
  every = [(-x, p, i) for p in paths for i, x in enumerate(found[p])]
  k = data.draw(st.integers(1, len(every)))
  best = sorted((path, offset) for _, path, offset in sorted(every)[:k])
  chosen = fish_mask.choose({p: np.float32(x) for p, x in found.items()}, k)
  assert chosen["leaf"].dtype == chosen["offset"].dtype == np.int32
  places = zip(chosen["leaf"], chosen["offset"], strict=True)
  assert [(paths[leaf], offset) for leaf, offset in places] == best


def test_fisher_is_the_mean_squared_gradient():
  leaves = drawn(w=(4, 3), c=(3,))
  w, c = leaves["w"], leaves["c"]
  batches = [(draw(4, seed=s), draw(3, seed=s + 50)) for s in range(2, 7)]

  def loss(leaves, batch):
    error = batch[0] @ leaves["w"] + leaves["c"] - batch[1]
    return jnp.sum(error**2) / 2

  found = fish_mask.fisher(loss, device(leaves), batches)
  errors = [(x, x @ w + c - target) for x, target in batches]
  close(found["w"], np.mean([np.outer(x, e) ** 2 for x, e in errors], axis=0))
  close(found["c"], np.mean([e**2 for _, e in errors], axis=0))
  with pytest.raises(ValueError, match="expected at least one batch"):
    fish_mask.fisher(loss, leaves, [])


def sylvester(size):
  if size == 1:
    return np.ones((1, 1))
  return np.kron([[1, 1], [1, -1]], sylvester(size // 2))


@pytest.mark.parametrize("size", [1, 2, 16, 512])
def test_hadamard_is_sylvesters_matrix(size):
  x = draw(size)
  expected = sylvester(size) @ x / math.sqrt(size)
  close(intrinsic_said.hadamard(jnp.asarray(x)), expected)


@pytest.mark.parametrize("size", [1, 8, 2048])
def test_permuted_is_jaxs_permutation_and_its_gradient_the_way_back(size):
  """One round of sorting for 8 numbers, two for 2048."""
  key, x, change = jax.random.key_data(KEY), draw(size), draw(size)
  order = np.asarray(jax.random.permutation(KEY, size))
  found, back = jax.vjp(
    lambda x: intrinsic_said.permuted(key, x), jnp.asarray(x)
  )
  expected = np.zeros_like(change)
  expected[order] = change
  np.testing.assert_array_equal(found, np.asarray(x, found.dtype)[order])
  np.testing.assert_array_equal(
    back(jnp.asarray(change, found.dtype))[0], expected.astype(found.dtype)
  )


def test_fastfood_is_linear_and_of_blocks_h_g_p_h_b():
  """Of theta's unit vectors it is the matrix; H undoes its first factor."""
  keys = jax.random.split(KEY, 2)
  project = jax.jit(lambda theta: intrinsic_said.fastfood(theta, keys))
  blocks = np.stack([project(unit) for unit in jnp.eye(16)], axis=2)
  theta = draw(16)
  close(project(jnp.asarray(theta)), blocks @ theta)
  h = sylvester(16)
  for block in blocks:
    rotated = h @ block  # G P H B, of entries +-g
    close(np.abs(rotated), np.tile(np.abs(rotated[:, :1]), 16))
    signs = np.sign(rotated)
    # Without the signs of G and of B the rows are H's in another order.
    rows = [tuple(row * signs[0] * row[0] * signs[0, 0]) for row in signs]
    assert sorted(rows) == sorted(map(tuple, h)) and rows != [*map(tuple, h)]
  assert np.abs(blocks[0] - blocks[1]).max() > 0.1


@pytest.mark.parametrize("dimension", [1, 100])
def test_fastfood_keeps_the_mean_square(dimension):
  theta = 3 * draw(dimension) + 1
  width = {1: 1, 100: 128}[dimension]
  keys = jax.random.split(KEY, 100_000 // width)
  found = jax.jit(intrinsic_said.fastfood)(theta, keys)
  assert found.shape == (len(keys), width)
  square = (theta**2).mean()
  assert np.mean(found**2) == pytest.approx(square, rel=0.1)
  assert abs(np.mean(found)) < 0.02 * np.sqrt(square)


def test_intrinsic_said_adds_a_scaled_projection_to_every_leaf():
  rows = device(drawn(z=(3, 4), a=(12,), m=(12,)))

  def change(theta, scaling, *, seed=0, rows=rows):
    adapter = IntrinsicSAID(dimension=6, seed=seed)
    own = {"theta": theta, "scaling": np.float32(scaling)}
    moved = jax.jit(adapter.transform)(rows, own)
    return {name: np.ravel(moved[name] - x) for name, x in rows.items()}

  theta, other = draw(6), draw(6, seed=9)
  once = change(theta, [1, 1, 1])
  scaled = change(theta, [2, -3, 0])  # of a, m and z
  double = change(2 * theta - other, [1, 1, 1])
  second = change(other, [1, 1, 1])
  for name, factor in (("a", 2), ("m", -3), ("z", 0)):
    close(scaled[name], factor * once[name])
    close(double[name], 2 * once[name] - second[name])
  assert np.abs(once["a"] - once["m"]).max() > 0.1  # projections of their own
  still = change(0 * theta, [1, 1, 1])
  assert not any(np.any(x) for x in still.values())
  seeded = change(theta, [1, 1, 1], seed=1)
  assert np.abs(seeded["a"] - once["a"]).max() > 0.1
  # A leaf's projection does not depend on the others.
  alone = change(theta, [1], rows={"m": rows["m"]})
  close(alone["m"], once["m"], 1e-6)
  # Saved adapters stand on these keys: a leaf's name, then split in order.
  name = jax.random.fold_in(jax.random.key(0), zlib.crc32(b"m"))
  keys = jax.random.split(name, 2)
  expected = intrinsic_said.fastfood(jnp.asarray(theta), keys)
  close(once["m"], expected.reshape(-1)[:12], 1e-6)
  own = IntrinsicSAID(dimension=6).own_leaves({"a": (3,), "b": (2, 2)})
  assert made(own["theta"]).tolist() == [0.0] * 6
  assert made(own["scaling"]).tolist() == [1.0] * 2


def test_a_subspace_is_one_program_however_many_leaves():
  def equations(leaves):
    rows = {f"leaf_{i}": jnp.zeros((3, 4)) for i in range(leaves)}
    own = {"theta": jnp.zeros(6), "scaling": jnp.zeros(leaves)}
    found = jax.make_jaxpr(IntrinsicSAID(dimension=6).transform)(rows, own)
    return len(found.eqns)

  # Of a leaf alone are its part, its scaling and its sum: nothing random.
  assert equations(8) - equations(7) == equations(3) - equations(2) < 10


def test_unfreeze_is_the_parameters_themselves():
  assert Unfreeze().position == "backbone" and Unfreeze().mergeable
  model = Adapted(None, [Rule("encoder/norm/scale", Unfreeze())])
  owner = model.rules[0], "encoder/norm/scale", ""
  assert model.rule_of("encoder/norm/scale") == owner
  assert model.rule_of("decoder/norm/scale") is None


# What goes with the methods


def test_lora_plus_speeds_up_the_second_factor():
  params = {
    "query": {"lora": drawn(a=(3,), b=(3,))},
    "key": {"vera": drawn(d=(2,), b=(2,))},
    "value": {"dora": drawn(a=(2,), b=(2,), magnitude=(2,))},
  }
  params, twin = device(params), optim.adamw(learning_rate=0.1)
  tx = optim.lora_plus(twin, ratio=8.0)
  state, twin_state = tx.init(params), twin.init(params)
  for grads in (jax.tree.map(jnp.sin, params), jax.tree.map(jnp.cos, params)):
    updates, state = tx.update(grads, state, params)
    expected, twin_state = twin.update(grads, twin_state, params)
    expected["query"]["lora"]["b"] *= 8
    expected["value"]["dora"]["b"] *= 8
    jax.tree.map(np.testing.assert_array_equal, updates, expected)
  for ratio in (0, -1.0, math.nan):
    with pytest.raises(ValueError, match="ratio: expected a number above 0"):
      optim.lora_plus(twin, ratio=ratio)
  with pytest.raises(ValueError, match="factors a and b side by side, found"):
    tx.init({"key": params["key"]})


def test_targets_that_depend_on_the_network():
  depths = {"encoder": 12, "decoder": 10}
  rule = resolve(Rule("top_layers:2", Unfreeze()), depths)
  for stack, depth in depths.items():
    for layer in range(depth):
      path = f"{stack}/layers_{layer}/mlp/wo/kernel"
      assert rule.matches(path) == (layer >= depth - 2)
    assert not rule.matches(f"{stack}/{stack}_norm/scale")
  for k in (0, 11):
    with pytest.raises(
      TargetError, match=f"1 to 10 top layers, found 'top_layers:{k}'"
    ):
      resolve(Rule(f"top_layers:{k}", Unfreeze()), depths)
  only = {"encoder": 0, "decoder": 3}
  for stacks, first in ((depths, "encoder"), (only, "decoder")):
    prompt = Rule("first_stack", Prompt())
    assert resolve(prompt, stacks).pattern == first
    deep = resolve(Rule("first_stack_layers", DeepPrompt()), stacks)
    assert deep.matches(f"{first}/layers_2")
  plain = Rule("kv", IA3())
  assert resolve(plain, depths) is plain


POSITIVE = {
  DoRA: ("rank", "alpha"),
  VeRA: ("rank", "d_initial"),
  PiSSA: ("rank",),
  Bottleneck: ("size",),
  Compacter: ("size", "division", "phm_rank"),
  LowRankAdapter: ("size", "rank"),
  Prompt: ("length", "scale"),
  DeepPrompt: ("length", "scale"),
  Prefix: ("length", "scale"),
  EmbeddingLoRA: ("rank", "alpha"),
  IntrinsicSAID: ("dimension",),
}


@pytest.mark.parametrize("method", POSITIVE)
def test_refuses_settings_that_are_not_positive(method):
  for name in POSITIVE[method]:
    for value in (0, -1):
      message = f"expected {name} > 0, found {name}={value}"
      with pytest.raises(ValueError, match=message):
        method(**{name: value})


@pytest.mark.parametrize(
  ("method", "settings", "message"),
  [
    (DoRA, {"dropout_rate": 1}, "expected 0 <= dropout_rate < 1, found 1"),
    (DoRA, {"initializer": "svd"}, "initializer to be one of .*found 'svd'"),
    (VeRA, {"dropout_rate": -1}, "<= dropout_rate < 1, found -1"),
    (Bottleneck, {"placement": "in"}, r"\['after', .*found 'in'"),
    (Bottleneck, {"initializer": "x"}, r"\['bert', .*found 'x'"),
    (Bottleneck, {"dropout_rate": 1}, "<= dropout_rate < 1, found 1"),
    (Bottleneck, {"scaling": "x"}, r"scaling .*\['learned'\], found 'x'"),
    (Bottleneck, {"activation": "x"}, "'relu', .*found 'x'"),
    (Compacter, {"size": 10}, "divide size, found size=10 and division=4"),
    (Compacter, {"activation": "x"}, "'relu', .*found 'x'"),
    (LowRankAdapter, {"activation": "x"}, "'relu', .*found 'x'"),
    (Prompt, {"initializer": "x"}, r"\['file', .*found 'x'"),
    (Prompt, {"initializer": "words"}, "words with .*'words', found none"),
    (Prompt, {"initializer": "file"}, "path with .*'file', found none"),
    (
      Prompt,
      {"length": 1, "words": ((1,), (2,)), "initializer": "words"},
      "length=1 words, found 2",
    ),
    (
      Prompt,
      {"words": ((1,), ()), "initializer": "words"},
      r"ids of 0 or more, found \(\)",
    ),
    (
      Prompt,
      {"words": ((1, -1),), "initializer": "words"},
      r"ids of 0 or more, found \(1, -1\)",
    ),
    (Prompt, {"words": ((1,),)}, "initializer='words' only, found them with"),
    (Prompt, {"first": -1}, "expected first >= 0, found first=-1"),
    (Prompt, {"population": -1}, "expected population >= 0"),
    (DeepPrompt, {"combine": "x"}, r"\['add', 'replace'\], found 'x'"),
    (Prefix, {"hidden_size": -1}, "expected hidden_size >= 0, found -1"),
    (FishMask, {"keep": 0}, "expected 0 < keep <= 1, found keep=0"),
    (FishMask, {"keep": 1.5}, "expected 0 < keep <= 1, found keep=1.5"),
  ],
)
def test_refuses_bad_settings(method, settings, message):
  with pytest.raises(ValueError, match=message):
    method(**settings)
