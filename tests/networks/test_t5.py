"""The T5 network: one function, however it is run, packed or padded."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny

from peft_jax import layout, networks

PARAMS = functools.partial(tiny.params, tiny.t5())


def test_tree_of_t5_1_1():
  """T5X's names and shapes: D=16, H*K=12, F=20, V=32, two heads."""
  attention = lambda path: {
    f"{path}/query/kernel": (16, 12),
    f"{path}/key/kernel": (16, 12),
    f"{path}/value/kernel": (16, 12),
    f"{path}/out/kernel": (12, 16),
  }
  mlp = lambda path: {
    f"{path}/mlp/wi_0/kernel": (16, 20),
    f"{path}/mlp/wi_1/kernel": (16, 20),
    f"{path}/mlp/wo/kernel": (20, 16),
    f"{path}/pre_mlp_layer_norm/scale": (16,),
  }
  expected = {
    "token_embedder/embedding": (32, 16),
    "encoder/relpos_bias/rel_embedding": (2, 32),
    "encoder/layers_0/pre_attention_layer_norm/scale": (16,),
    **attention("encoder/layers_0/attention"),
    **mlp("encoder/layers_0"),
    "encoder/encoder_norm/scale": (16,),
    "decoder/relpos_bias/rel_embedding": (2, 32),
    "decoder/decoder_norm/scale": (16,),
    "decoder/logits_dense/kernel": (16, 32),
  }
  for layer in ("decoder/layers_0", "decoder/layers_1"):
    expected |= {
      f"{layer}/pre_self_attention_layer_norm/scale": (16,),
      **attention(f"{layer}/self_attention"),
      f"{layer}/pre_cross_attention_layer_norm/scale": (16,),
      **attention(f"{layer}/encoder_decoder_attention"),
      **mlp(layer),
    }
  found = tiny.spec(tiny.shapes(tiny.t5()))
  assert found == {path: (s, "float32") for path, s in expected.items()}
  # Parameters are float32 whatever the activations are.
  half = tiny.spec(tiny.shapes(tiny.t5(dtype=jnp.bfloat16)))
  assert half == found


def test_tree_of_t5_1_0():
  """Ungated, and the embedding is the output layer."""
  network = tiny.t5(mlp_activations=("relu",), logits_via_embedding=True)
  found = tiny.spec(tiny.shapes(network)).keys()
  gated = tiny.spec(tiny.shapes(tiny.t5())).keys()
  expected = {p.replace("wi_0", "wi") for p in gated if "wi_1" not in p}
  assert found == expected - {"decoder/logits_dense/kernel"}


def test_tied_logits_are_scaled():
  """By 1 / sqrt(D), as the table has unit variance and no layer of its own."""
  tied, untied = tiny.t5(logits_via_embedding=True), tiny.t5()
  params = tiny.params(untied)
  found = tiny.logits(tied)(tiny.params(tied), tiny.batch())
  embedding = params["token_embedder"]["embedding"]
  params = params | {
    "decoder": params["decoder"] | {"logits_dense": {"kernel": embedding.T / 4}}
  }
  expected = tiny.logits(untied)(params, tiny.batch())
  tiny.assert_close(found, expected)


@functools.cache
def value_and_grads(**options):
  """Returns logits and the gradient of a function of them, per layer."""
  network = tiny.t5(num_decoder_layers=1, **options)
  params = tiny.params(network)

  def objective(params, batch):
    logits = network.apply(
      {"params": params}, **tiny.network_inputs(batch), enable_dropout=False
    )
    weights = jnp.sin(jnp.arange(logits.size, dtype=jnp.float32))
    return jnp.sum(logits * weights.reshape(logits.shape)), logits

  grads, logits = jax.jit(jax.grad(objective, has_aux=True))(
    params, tiny.batch()
  )
  return logits, layout.to_layers(grads)


@pytest.mark.parametrize(
  "options",
  [
    {"remat": "full"},
    {"scan_layers": True, "remat": "minimal"},
    {"scan_layers": True, "remat": "full"},
  ],
  ids=str,
)
def test_scan_and_remat_change_nothing(options):
  logits, grads = value_and_grads(**options)
  expected, expected_grads = value_and_grads()
  tiny.assert_close(logits, expected)
  assert tiny.spec(grads) == tiny.spec(expected_grads)
  jax.tree.map(tiny.assert_close, grads, expected_grads)
  assert all(np.any(g) for g in jax.tree.leaves(grads))


def test_remat_saves_memory_that_is_asked_for():
  """The policies differ in what the backward pass keeps."""
  kept = {}
  for remat in networks.config.REMAT_POLICIES:
    network = tiny.t5(remat=remat)
    params = tiny.shapes(network)
    call = lambda params, network=network: jnp.sum(
      network.apply({"params": params}, **tiny.network_inputs(tiny.batch()))
    )
    text = str(jax.make_jaxpr(jax.grad(call))(params))
    kept[remat] = ("checkpoint" in text or "remat" in text), len(text)
  assert not kept["none"][0]
  assert kept["minimal"][0]
  assert kept["full"][0]
  # Recomputing everything makes the longest program.
  assert kept["full"][1] > kept["minimal"][1] > kept["none"][1]


def pack(batch):
  """Packs rows 0 and 1 into one row, and row 2 alone into a second."""
  lengths = lambda tokens: (np.asarray(tokens) > 0).sum(1)
  inputs, targets = (
    batch["encoder_input_tokens"],
    batch["decoder_target_tokens"],
  )
  places, packed = [], {}
  for prefix, tokens in (("encoder", inputs), ("decoder", targets)):
    ends = lengths(tokens)
    total = 2 * tokens.shape[1]
    segments = np.zeros((2, total), np.int32)
    where = []
    for row, (line, segment) in enumerate([(0, 1), (0, 2), (1, 1)]):
      start = int((segments[line] > 0).sum())
      segments[line, start : start + ends[row]] = segment
      where.append((line, start, int(ends[row])))
    packed[f"{prefix}_segment_ids"] = jnp.asarray(segments)
    for name in batch:
      if name.startswith(prefix) and name.endswith("tokens"):
        new = np.zeros((2, total), np.int32)
        for row, (line, start, length) in enumerate(where):
          new[line, start : start + length] = batch[name][row, :length]
        packed[name] = jnp.asarray(new)
    places = where
  return packed, places


@pytest.mark.parametrize("scanned", [False, True])
def test_packed_equals_unpacked(scanned):
  network = tiny.t5(scan_layers=scanned)
  params = tiny.params(network)
  batch = tiny.batch(rows=3)
  expected = tiny.logits(network)(params, batch)
  packed, places = pack(batch)
  found = tiny.logits(network)(params, packed)
  for row, (line, start, length) in enumerate(places):
    tiny.assert_close(
      found[line, start : start + length], expected[row, :length]
    )
  # Without segments the two examples see one another.
  together = {k: v for k, v in packed.items() if "segment" not in k}
  mixed = tiny.logits(network)(params, together)
  assert np.abs(mixed[0] - found[0]).max() > 1e-2


def test_padding_changes_nothing():
  network, params = tiny.t5(), PARAMS()
  batch = tiny.batch()
  expected = tiny.logits(network)(params, batch)
  padded = {name: jnp.pad(x, ((0, 2), (0, 3))) for name, x in batch.items()}
  found = tiny.logits(network)(params, padded)[:4, :5]
  real = np.asarray(batch["decoder_target_tokens"]) > 0
  tiny.assert_close(found[real], expected[real])
  assert np.isfinite(tiny.logits(network)(params, padded)).all()


def test_later_tokens_do_not_change_earlier_logits():
  network, params, batch = tiny.t5(), PARAMS(), tiny.batch(padded=False)
  expected = tiny.logits(network)(params, batch)
  tokens = batch["decoder_input_tokens"]
  changed = batch | {"decoder_input_tokens": tokens.at[:, 3].add(1)}
  found = tiny.logits(network)(params, changed)
  np.testing.assert_array_equal(found[:, :3], expected[:, :3])
  assert np.all(np.abs(found - expected)[:, 3].max(-1) > 1e-4)


def test_dropout():
  """On with the flag and a key; the key decides; off it needs no key."""
  network, params = tiny.t5(dropout_rate=0.5), PARAMS()
  inputs = tiny.network_inputs(tiny.batch())

  @functools.partial(jax.jit, static_argnums=1)
  def call(key, enable):
    rngs = {} if key is None else {"dropout": key}
    return network.apply(
      {"params": params}, **inputs, enable_dropout=enable, rngs=rngs
    )

  plain = tiny.logits(tiny.t5())(params, tiny.batch())
  tiny.assert_close(call(None, False), plain)
  first = call(jax.random.key(0), True)
  np.testing.assert_array_equal(call(jax.random.key(0), True), first)
  assert np.abs(first - plain).max() > 1e-2
  assert np.abs(call(jax.random.key(1), True) - first).max() > 1e-2
  with pytest.raises(Exception, match="dropout"):
    call(None, True)


def test_dropout_differs_between_scanned_layers():
  """Two layers alike, fed with one key: alike only if they share its draw."""
  network = tiny.t5(scan_layers=True, dropout_rate=0.5, num_encoder_layers=2)
  params = tiny.params(network)
  inputs = tiny.network_inputs(tiny.batch())
  text = str(
    jax.make_jaxpr(
      lambda key: network.apply(
        {"params": params},
        inputs["encoder_input_tokens"],
        enable_dropout=True,
        rngs={"dropout": key},
        method=network.encode,
      )
    )(jax.random.key(0))
  )
  # The scan is given one key per layer.
  assert "random_split[shape=(2,)]" in text


def test_bfloat16_logits_are_float32_and_near():
  params = PARAMS()
  found = tiny.logits(tiny.t5(dtype=jnp.bfloat16))(params, tiny.batch())
  expected = tiny.logits(tiny.t5())(params, tiny.batch())
  assert found.dtype == jnp.float32
  tiny.assert_close(found, expected, atol=0.05)
  assert np.abs(found - expected).max() > 1e-4


def test_refuses_float64_where_jax_would_compute_in_float32():
  with pytest.raises(ValueError, match=r"dtype float64.*JAX_ENABLE_X64=1"):
    tiny.t5(dtype=jnp.float64)


def test_refuses_float16():
  for dtype in (jnp.float16, np.float16, "float16"):
    with pytest.raises(ValueError, match=r"found float16.*Use bfloat16"):
      tiny.t5(dtype=dtype)


def test_refuses_an_unknown_remat():
  with pytest.raises(ValueError, match=r"'minimal', 'full'.*found 'half'"):
    tiny.t5(remat="half")


def cache_shapes(network, **options):
  """Traces the call that makes a cache of three positions."""
  ids = jnp.ones((1, 3), jnp.int32)
  call = lambda params: network.apply(
    {"params": params}, ids, ids, ids, decode=True, mutable=["cache"], **options
  )
  return jax.eval_shape(call, tiny.shapes(network))[1]


def test_refuses_a_packed_batch_in_decoding():
  segments = jnp.ones((1, 3), jnp.int32)
  with pytest.raises(ValueError, match="expected no encoder_segment_ids"):
    cache_shapes(tiny.t5(), encoder_segment_ids=segments)


def test_extending_the_cache_needs_its_length():
  network = tiny.t5()
  ids, encoded = jnp.ones((1, 3), jnp.int32), jnp.ones((1, 3, 16))
  call = lambda variables: network.apply(
    variables,
    encoded,
    ids,
    ids[:, :1],
    ids[:, :1],
    decode=True,
    mutable=["cache"],
    method=network.decode,
  )
  variables = {"params": tiny.shapes(network), **cache_shapes(network)}
  with pytest.raises(ValueError, match="expected max_decode_length"):
    jax.eval_shape(call, variables)
