"""The layers against plain numpy and Python."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from peft_jax.networks import attention, layers, positions

RNG = np.random.default_rng(0)


def draw(*shape):
  return RNG.standard_normal(shape).astype(np.float32)


def bucket(distance, *, bidirectional, num_buckets, max_distance):
  """T5's bucket of key - query, in whole numbers (arXiv 1910.10683, 2.1).

  In each direction half of the buckets hold one distance; the others grow so
  that bucket exact + k starts at exact * (max / exact) ** (k / others).
  """
  first = 0
  if bidirectional:
    num_buckets //= 2
    first = num_buckets if distance > 0 else 0
    past = abs(distance)
  else:
    past = max(0, -distance)
  exact = num_buckets // 2
  others = num_buckets - exact
  if past < exact:
    return first + past
  k = 0
  # past >= exact * (max / exact) ** ((k + 1) / others), both to that power.
  while k + 1 < others and (
    past**others * exact ** (k + 1) >= exact**others * max_distance ** (k + 1)
  ):
    k += 1
  return first + exact + k


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("num_buckets", "max_distance"), [(32, 128), (8, 20)])
def test_relative_buckets(bidirectional, num_buckets, max_distance):
  options = {
    "bidirectional": bidirectional,
    "num_buckets": num_buckets,
    "max_distance": max_distance,
  }
  distances = np.arange(-600, 601)
  found = positions.relative_position_buckets(distances, **options)
  expected = [bucket(int(d), **options) for d in distances]
  np.testing.assert_array_equal(found, expected)
  assert set(found) == set(range(num_buckets)) - (
    # Zero is a past distance: the first bucket of the future is unused.
    {num_buckets // 2} if bidirectional else set()
  )


@pytest.mark.parametrize("bidirectional", [True, False])
def test_position_biases(bidirectional):
  """Also beyond the largest distance, and from an offset."""
  module = positions.RelativePositionBiases(
    num_heads=3, bidirectional=bidirectional, num_buckets=8, max_distance=20
  )
  table = draw(3, 8)
  variables = {"params": {"rel_embedding": table}}
  whole = np.asarray(module.apply(variables, 50, 50))
  assert whole.shape == (1, 3, 50, 50)
  for query, key in [(0, 0), (3, 10), (10, 3), (49, 0), (0, 49), (30, 29)]:
    row = bucket(
      key - query, bidirectional=bidirectional, num_buckets=8, max_distance=20
    )
    np.testing.assert_array_equal(whole[0, :, query, key], table[:, row])
  part = module.apply(variables, 2, 50, 30)
  np.testing.assert_array_equal(part, whole[:, :, 30:32])


def test_dense_general_joins_axes():
  kernel, x = draw(12, 20), draw(2, 3, 3, 4)
  module = layers.DenseGeneral(features=(4, 5), axis=(-2, -1))
  found = module.apply({"params": {"kernel": kernel}}, x)
  expected = x.reshape(6, 12) @ kernel
  assert found.shape == (2, 3, 4, 5)
  np.testing.assert_allclose(found.reshape(6, 20), expected, rtol=1e-5)


def test_layer_norm_has_no_mean():
  x, scale = draw(2, 3, 8) + 2, draw(8)
  found = layers.LayerNorm().apply({"params": {"scale": scale}}, x)
  expected = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * scale
  np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_layer_norm_of_bfloat16_is_computed_in_float32():
  x = jnp.asarray(draw(2, 3, 64) * 100 + 1000, jnp.bfloat16)
  variables = {"params": {"scale": np.ones(64, np.float32)}}
  found = layers.LayerNorm(dtype=jnp.bfloat16).apply(variables, x)
  assert found.dtype == jnp.bfloat16
  exact = np.asarray(x, np.float64)
  exact = exact / np.sqrt((exact**2).mean(-1, keepdims=True))
  np.testing.assert_allclose(np.asarray(found, np.float64), exact, rtol=2**-8)


def test_embed_looks_up_and_attends():
  table = draw(7, 4)
  module, variables = layers.Embed(7, 4), {"params": {"embedding": table}}
  tokens = np.array([[0, 6], [3, 3]], np.int32)
  np.testing.assert_array_equal(module.apply(variables, tokens), table[tokens])
  x = draw(2, 3, 4)
  np.testing.assert_allclose(
    module.apply(variables, x, method=module.attend), x @ table.T, rtol=1e-5
  )


@pytest.mark.parametrize("activations", [("gelu", "linear"), ("relu",)])
def test_mlp(activations):
  gated = len(activations) == 2
  kernels = [draw(4, 6) for _ in activations]
  wo, x = draw(6, 4), draw(2, 3, 4)
  names = ["wi_0", "wi_1"] if gated else ["wi"]
  params = {n: {"kernel": k} for n, k in zip(names, kernels, strict=True)}
  params["wo"] = {"kernel": wo}
  module = layers.MlpBlock(6, activations)
  found = module.apply({"params": params}, x)
  if gated:
    # The approximation by tanh, as T5 1.1 was trained with.
    y = x @ kernels[0]
    y = y / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (y + 0.044715 * y**3)))
    hidden = y * (x @ kernels[1])
  else:
    hidden = np.maximum(x @ kernels[0], 0)
  np.testing.assert_allclose(found, hidden @ wo, rtol=1e-4, atol=1e-5)


def test_an_unknown_activation_is_named():
  with pytest.raises(ValueError, match="'linear', found 'gelo'"):
    layers.activation_function("gelo")


def attention_by_hand(params, x, kv, mask, bias, heads, size):
  project = lambda name, y: (y @ params[name]["kernel"]).reshape(
    *y.shape[:2], heads, size
  )
  query, key, value = (
    project("query", x),
    project("key", kv),
    project("value", kv),
  )
  # No division by sqrt(K): T5's initialiser has it.
  logits = np.einsum("bthk,bshk->bhts", query, key) + bias
  logits = np.where(mask, logits, -np.inf)
  weights = np.exp(logits - logits.max(-1, keepdims=True))
  weights /= weights.sum(-1, keepdims=True)
  context = np.einsum("bhts,bshk->bthk", weights, value)
  return context.reshape(*x.shape[:2], -1) @ params["out"]["kernel"]


def test_attention():
  heads, size = 2, 3
  module = attention.Attention(num_heads=heads, head_dim=size)
  x, kv, bias = draw(2, 4, 5), draw(2, 6, 5), draw(1, heads, 4, 6)
  mask = RNG.random((2, 1, 4, 6)) > 0.4
  mask[..., 0] = True
  params = {n: {"kernel": draw(5, 6)} for n in ("query", "key", "value")}
  params["out"] = {"kernel": draw(6, 5)}
  found = module.apply({"params": params}, x, kv, mask, bias)
  expected = attention_by_hand(params, x, kv, mask, bias, heads, size)
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_attention_to_nothing_is_finite():
  """Rows of padding attend to nothing; they must not spoil the others."""
  module = attention.Attention(num_heads=2, head_dim=3)
  x, mask = draw(1, 4, 5), np.zeros((1, 1, 4, 4), bool)
  variables = {"params": module.init(jax.random.key(0), x, x)["params"]}
  assert np.isfinite(module.apply(variables, x, x, mask)).all()


def test_query_starts_smaller_by_the_root_of_the_head_size():
  module = attention.Attention(num_heads=8, head_dim=16)
  params = module.init(jax.random.key(0), *[jnp.ones((1, 1, 64))] * 2)["params"]
  std = {name: np.std(p["kernel"]) for name, p in params.items()}
  assert std["key"] == pytest.approx(1 / 8, rel=0.05)
  assert std["query"] == pytest.approx(1 / 8 / 4, rel=0.05)


def test_attention_dropout_is_of_the_weights():
  """Shared along the queries, as T5X's; off where deterministic."""
  module = attention.Attention(num_heads=2, head_dim=3, dropout_rate=0.5)
  x = draw(1, 4, 5)
  variables = {"params": module.init(jax.random.key(0), x, x)["params"]}
  plain = attention.Attention(num_heads=2, head_dim=3).apply(variables, x, x)
  np.testing.assert_array_equal(module.apply(variables, x, x), plain)
  rngs = {"dropout": jax.random.key(1)}
  dropped = module.apply(variables, x, x, deterministic=False, rngs=rngs)
  assert np.abs(dropped - plain).max() > 1e-3


def test_masks():
  a = np.array([[True, False]])
  b = np.array([[1, 2, 1]])
  pair = attention.attention_mask(a, np.array([[True, True, False]]))
  assert pair.tolist() == [[[[True, True, False], [False] * 3]]]
  same = attention.attention_mask(b, b, jnp.equal)
  assert same[0, 0].astype(int).tolist() == [[1, 0, 1], [0, 1, 0], [1, 0, 1]]
  assert attention.combine_masks([None, None]) is None
  assert attention.combine_masks([None, pair]) is pair
  both = attention.combine_masks([pair, None, jnp.zeros_like(pair)])
  assert not both.any()
