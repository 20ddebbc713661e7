"""Tiny networks, batches and parameters, compiled once for all tests."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from peft_jax import layout, networks, optim, start
from peft_jax.train.forward import network_inputs
from peft_jax.train.step import init_state, make_train_step

# No two sizes are equal, and H*K differs from D: a swapped axis shows. The
# tests' time is spent compiling, so layers are few.
SIZES = {
  "vocab_size": 32,
  "emb_dim": 16,
  "num_heads": 2,
  "head_dim": 6,
  "mlp_dim": 20,
  "num_encoder_layers": 1,
  "num_decoder_layers": 2,
}


def t5(**overrides):
  """Returns our T5 of one encoder and two decoder layers."""
  return networks.EncoderDecoder(
    networks.TransformerConfig(**(SIZES | overrides))
  )


def t5x(**overrides):
  """Returns T5X's own network of the same sizes."""
  from t5x.examples.t5 import network

  options = {"mlp_activations": ("gelu", "linear"), "dropout_rate": 0.0}
  return network.Transformer(
    network.T5Config(**(SIZES | options | overrides)),
  )


def t5x_scanned(**overrides):
  """Returns T5X's scalable_t5, scanned and rematerialised."""
  from t5x.examples.scalable_t5 import network

  options = {
    "mlp_activations": ("gelu", "linear"),
    "dropout_rate": 0.0,
    "remat_policy": "full",
  }
  return network.Transformer(
    network.T5Config(**(SIZES | options | overrides)),
  )


def decoder_only(**overrides):
  """Returns a LLaMA of two layers: rotary, grouped queries."""
  options = {
    "num_encoder_layers": 0,
    "num_kv_heads": 1,
    "attention_scale": 0.0,
    "positions": "rotary",
    "mlp_activations": ("silu", "linear"),
  }
  config = networks.TransformerConfig(**(SIZES | options | overrides))
  return networks.from_config(config)


def is_decoder_only(network):
  """Whether the network, or the adapted one, has no encoder."""
  return getattr(network.config, "num_encoder_layers", 1) == 0


def batch(network=None, *, rows=4, inputs=7, targets=5, padded=True, seed=0):
  """Returns a batch of random tokens, its rows of different lengths."""
  if network is not None and is_decoder_only(network):
    return _text_batch(rows, inputs, padded, seed)
  rng = np.random.default_rng(seed)
  high = SIZES["vocab_size"]
  encoder = rng.integers(2, high, (rows, inputs), dtype=np.int32)
  target = rng.integers(2, high, (rows, targets), dtype=np.int32)
  if padded:
    for row in range(rows):
      encoder[row, inputs - row % 3 :] = 0
      target[row, targets - row % 2 :] = 0
  shifted = np.concatenate([np.zeros((rows, 1), np.int32), target[:, :-1]], 1)
  return {
    "encoder_input_tokens": jnp.asarray(encoder),
    "decoder_input_tokens": jnp.asarray(shifted),
    "decoder_target_tokens": jnp.asarray(target),
    "decoder_loss_weights": jnp.asarray(target > 0, jnp.float32),
  }


def _text_batch(rows, length, padded, seed):
  """Returns a decoder-only network's batch, padded on either side."""
  rng = np.random.default_rng(seed)
  tokens = rng.integers(2, SIZES["vocab_size"], (rows, length), dtype=np.int32)
  real = np.ones((rows, length), np.int32)
  if padded:
    real[1, length - 2 :] = 0
    real[2, :1] = 0
  targets = np.concatenate([tokens[:, 1:], tokens[:, :1]], 1)
  return {
    "decoder_input_tokens": jnp.asarray(tokens),
    "decoder_target_tokens": jnp.asarray(targets),
    "decoder_segment_ids": jnp.asarray(real),
    "decoder_loss_weights": jnp.asarray(real, jnp.float32),
  }


def question(network, tokens, answer):
  """Returns a batch that repeats tokens [B, 1] and asks for an answer [B, 1].

  What follows the answer is not asked for.
  """
  rows = tokens.shape[0]
  repeated = jnp.broadcast_to(tokens, (rows, 7))
  if is_decoder_only(network):
    last = jnp.zeros((rows, 7)).at[:, -1].set(1.0)
    return {
      "decoder_input_tokens": repeated,
      "decoder_target_tokens": jnp.broadcast_to(answer, (rows, 7)),
      "decoder_segment_ids": jnp.ones((rows, 7), jnp.int32),
      "decoder_loss_weights": last,
    }
  answers = jnp.broadcast_to(answer, (rows, 5))
  return {
    "encoder_input_tokens": repeated,
    "decoder_input_tokens": jnp.pad(answers, ((0, 0), (1, 0)))[:, :-1],
    "decoder_target_tokens": answers,
    "decoder_loss_weights": jnp.zeros((rows, 5)).at[:, 0].set(1.0),
  }


def _init(model, key):
  inputs = network_inputs(batch(model))
  return model.init(key, **inputs, enable_dropout=False)


@functools.cache
def variables(model):
  """Returns the shapes of all that `init` makes, computing nothing."""
  return jax.eval_shape(lambda key: _init(model, key), jax.random.key(0))


def shapes(model):
  """Returns the tree of parameters as shapes."""
  return variables(model)["params"]


@functools.cache
def initial(model, pattern):
  """Returns path -> value of the leaves that `init` makes, those that match.

  Only these are compiled: XLA leaves out the forward pass and all other draws,
  which would take ten seconds.
  """

  def chosen(key):
    flat = flatten_dict(_init(model, key)["params"], sep="/")
    return {path: x for path, x in flat.items() if re.fullmatch(pattern, path)}

  return jax.jit(chosen)(jax.random.key(0))


@functools.cache
def unstarted(model):
  """Returns parameters: a drawn backbone, and adapters as `init` makes them.

  The backbone's values depend on a leaf's path alone, so that they are the same
  with and without adapters, scanned or not, and in T5X's network.
  """
  rules = getattr(model, "rules", ())
  names = "|".join(rule.name for rule in rules)
  adapters = {}
  if rules:
    adapters = initial(model, f".*/({names})/[^/]+|({names})_shared/.*")
  flat = {}
  for path, leaf in flatten_dict(shapes(model), sep="/").items():
    if path in adapters:
      flat[path] = adapters[path]
    else:
      rows = [_draw(p, shape) for p, shape in layout.rows_of(path, leaf)]
      axis = layout.stack_axis(path)
      flat[path] = rows[0] if axis is None else jnp.stack(rows, axis)
  return unflatten_dict(flat, sep="/")


@functools.cache
def params(model):
  """Returns `unstarted` parameters, started from the backbone."""
  if not hasattr(model, "rules"):
    return unstarted(model)
  return start.from_backbone(unstarted(model), model, jax.random.key(0))


def _draw(path, shape):
  rng = np.random.default_rng(list(path.encode()))
  noise = rng.standard_normal(shape).astype(np.float32)
  match path.rsplit("/", 1)[-1]:
    case "scale":
      noise = 1 + noise / 10
    case "kernel":
      noise = noise / np.float32(np.sqrt(shape[0]))
  return jnp.asarray(noise)


@functools.cache
def taught(network, *, updates=300):
  """Returns a backbone that answers with the token its input repeats.

  A random backbone hides its input from the answer, so that a method which acts
  on the input alone would have nothing to learn with.
  """
  tx = optim.adamw(learning_rate=1e-2)
  step = make_train_step(network, tx, dropout=False)

  def update(state, key):
    tokens = jax.random.randint(key, (16, 1), 2, SIZES["vocab_size"])
    return step(state, {}, question(network, tokens, tokens))

  @jax.jit
  def train(params):
    state = init_state(params, tx, jax.random.key(0))
    keys = jax.random.split(jax.random.key(1), updates)
    state, metrics = jax.lax.scan(update, state, keys)
    return state.adapter, metrics["loss"][-1]

  taught, loss = train(params(network))
  assert loss < 1.0, loss
  return taught


@functools.cache
def logits(model):
  """Returns the compiled function (params, batch) -> logits."""

  def forward(params, batch):
    return model.apply(
      {"params": params}, **network_inputs(batch), enable_dropout=False
    )

  return jax.jit(forward)


def randomize(tree, *, scale=0.3, seed=1):
  """Returns the tree with noise added, so that no adapter is the identity.

  The noise depends on the leaf's path alone, whatever else is in the tree.
  """

  def noisy(path, leaf):
    name = jax.tree_util.keystr(path)
    rng = np.random.default_rng([seed, *name.encode()])
    noise = scale * rng.standard_normal(leaf.shape)
    return leaf + jnp.asarray(noise, leaf.dtype)

  return jax.tree_util.tree_map_with_path(noisy, tree)


def spec(tree):
  """Returns path -> (shape, dtype name), to compare whole trees at once."""
  return {
    path: (tuple(leaf.shape), np.dtype(leaf.dtype).name)
    for path, leaf in flatten_dict(tree, sep="/").items()
  }


def assert_same(found, expected):
  """Asserts that two trees have the same paths and the same bytes."""
  found, expected = (
    flatten_dict(found, sep="/"),
    flatten_dict(expected, sep="/"),
  )
  assert found.keys() == expected.keys()
  for path, leaf in found.items():
    assert leaf.dtype == expected[path].dtype, path
    np.testing.assert_array_equal(
      np.asarray(leaf), np.asarray(expected[path]), err_msg=path
    )


def assert_close(found, expected, *, atol=1e-5):
  """Asserts logits equal to `atol` times their own scale (at least 1)."""
  found, expected = np.asarray(found), np.asarray(expected)
  scale = max(1.0, float(np.abs(expected).max()))
  np.testing.assert_allclose(found, expected, rtol=0, atol=atol * scale)
