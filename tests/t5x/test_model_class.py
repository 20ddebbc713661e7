"""T5X's own model classes with every method: loss, scores, decoding."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import methods, tiny

from peft_jax import Adapted, Rule, partition, places

pytestmark = pytest.mark.t5x

# Those that act on decoding in ways of their own; `exhaustive` has the others.
DECODED = ("lora", "prompt", "prefix", "deep_prompt", "all_together")
GATED = ("unipelt",)


def decode_greedily():
  from t5x import decoding

  return functools.partial(decoding.temperature_sample, temperature=0.0)


def model_of(method, network=None, decode_fn=None):
  import seqio
  from t5x import models

  from peft_jax.t5x import optimizer

  network = network or tiny.t5x()
  module = Adapted(network, methods.rules(method, network))
  vocabulary = seqio.PassThroughVocabulary(tiny.SIZES["vocab_size"], eos_id=1)
  return models.EncoderDecoderModel(
    module=module,
    input_vocabulary=vocabulary,
    output_vocabulary=vocabulary,
    optimizer_def=optimizer.adafactor(module, learning_rate=1e-3),
    decode_fn=decode_fn or decode_greedily(),
  )


def shapes_of_batch():
  return {k: v.shape for k, v in tiny.batch().items()}


@pytest.mark.parametrize(
  "method", [name for name in methods.METHODS if name != "fish_mask"]
)
def test_state_loss_scores_and_decoding_trace(method):
  """As T5X calls them; the numbers are those of tests/contract."""
  from t5x import partitioning, utils

  model, batch = model_of(method), tiny.batch()
  initializer = utils.TrainStateInitializer(
    optimizer_def=model.optimizer_def,
    init_fn=model.get_initial_variables,
    input_shapes=shapes_of_batch(),
    partitioner=partitioning.PjitPartitioner(num_partitions=1),
  )
  state = initializer.global_train_state_shape
  params = state.params
  gradient = jax.grad(lambda p: model.loss_fn(p, batch, None)[0])
  after = jax.eval_shape(
    lambda state: state.apply_gradient(
      gradient(state.params), learning_rate=1e-3
    ),
    state,
  )
  assert jax.tree.structure(after) == jax.tree.structure(state)
  assert tiny.spec(after.params.unfreeze()) == tiny.spec(params.unfreeze())
  trained, _ = partition.divide(
    partition.split(params, model.module)[1], model.module
  )
  owners = {
    path.rsplit("/", 1)[0]
    for path in tiny.spec(after.state_dict()["state"]["param_states"])
  }
  assert owners == set(tiny.spec(trained))
  scores = jax.eval_shape(model.score_batch, params, batch)
  assert scores.shape == (4,)
  if method in GATED:
    return
  tokens = jax.eval_shape(model.predict_batch, params, batch)
  assert tokens.shape == (4, 5)


def answers(model, params, batch):
  return np.asarray(jax.jit(model.predict_batch)(params, batch))


def assert_greedy(model, params, batch, found):
  """Asserts that every token is the likeliest behind those before it."""
  logits = tiny.logits(model.module)(
    params,
    batch
    | {
      "decoder_input_tokens": jnp.pad(found, ((0, 0), (1, 0)))[:, :-1],
      "decoder_target_tokens": jnp.ones_like(found),
    },
  )
  likeliest = np.asarray(jnp.argmax(logits, axis=-1))
  ended = np.cumsum(found == 1, axis=1) - (found == 1)
  np.testing.assert_array_equal(
    np.where(ended, 0, likeliest), np.where(ended, 0, found)
  )


@pytest.mark.parametrize(
  "method",
  [
    pytest.param(name, marks=() if name in DECODED else pytest.mark.exhaustive)
    for name in methods.METHODS
    if name not in GATED
  ],
)
def test_decoding_is_greedy_over_the_adapted_network(method):
  model, batch = model_of(method), tiny.batch()
  params = adapted_params(model.module)
  found = answers(model, params, batch)
  assert_greedy(model, params, batch, found)


def adapted_params(module):
  """Returns parameters whose adapter is not the identity."""
  frozen, adapter = partition.split(tiny.params(module), module)
  return partition.join(frozen, tiny.randomize(adapter))


@pytest.mark.parametrize("method", ["prefix", "ia3"])
def test_scanned_network_decodes(method):
  model = model_of(method, tiny.t5x_scanned())
  batch, params = tiny.batch(), adapted_params(model.module)
  assert_greedy(model, params, batch, answers(model, params, batch))


def test_beam_search_scores_equal_score_batch():
  from t5x import decoding

  search = functools.partial(decoding.beam_search, alpha=0.0)
  model, batch = model_of("prefix", decode_fn=search), tiny.batch()
  params = adapted_params(model.module)
  tokens, aux = jax.jit(
    lambda params, batch: model.predict_batch_with_aux(
      params, batch, num_decodes=3, return_all_decodes=True
    )
  )(params, batch)
  for beam in range(3):
    targets = tokens[:, beam]
    ended = jnp.cumsum(targets == 1, axis=1) - (targets == 1)
    scores = jax.jit(model.score_batch)(
      params,
      batch
      | {
        "decoder_input_tokens": jnp.pad(targets, ((0, 0), (1, 0)))[:, :-1],
        "decoder_target_tokens": targets,
        "decoder_loss_weights": (ended == 0).astype(jnp.float32),
      },
    )
    real = np.asarray(aux["scores"][:, beam]) > -1e6  # a beam that ended
    assert real.any()
    tiny.assert_close(aux["scores"][:, beam][real], scores[real], atol=1e-4)


def test_packed_rows_score_as_apart():
  """Two texts in one row with a prefix; a prompt refuses."""
  model = model_of("prefix")
  params, batch = adapted_params(model.module), tiny.batch(padded=False)
  batch = {name: value[:2] for name, value in batch.items()}
  apart = jax.jit(model.score_batch)(params, batch)
  packed = {name: jnp.reshape(x, (1, -1)) for name, x in batch.items()}
  for side, length in (("encoder", 7), ("decoder", 5)):
    packed[f"{side}_segment_ids"] = jnp.repeat(jnp.array([[1, 2]]), length, 1)
    packed[f"{side}_positions"] = jnp.tile(jnp.arange(length), 2)[None]
  together = jax.jit(model.score_batch)(params, packed)
  tiny.assert_close(together[0], jnp.sum(apart), atol=1e-4)
  refused = model_of("prompt")
  with pytest.raises(places.TargetError, match="Turn packing off"):
    jax.eval_shape(refused.score_batch, tiny.shapes(refused.module), packed)


def test_a_prompt_has_no_room_in_the_decoder_only_example():
  with pytest.raises(places.TargetError, match="no room for one"):
    model = decoder_only_model([Rule("first_stack", methods.PROMPT)])
    jax.eval_shape(
      lambda key: model.get_initial_variables(
        key, {"decoder_input_tokens": (3, 8)}
      ),
      jax.random.key(0),
    )


def decoder_only_model(rules):
  import seqio
  from t5x import models
  from t5x.examples.decoder_only import network

  from peft_jax.t5x import optimizer

  sizes = {k: v for k, v in tiny.SIZES.items() if "layers" not in k}
  config = network.TransformerConfig(
    **sizes,
    num_layers=2,
    mlp_activations=("gelu", "linear"),
    dropout_rate=0.0,
  )
  module = Adapted(network.DecoderWrapper(config), rules)
  vocabulary = seqio.PassThroughVocabulary(tiny.SIZES["vocab_size"], eos_id=1)
  return models.DecoderOnlyModel(
    module=module,
    vocabulary=vocabulary,
    optimizer_def=optimizer.adafactor(module, learning_rate=1e-3),
    decode_fn=decode_greedily(),
  )


@pytest.mark.parametrize("method", ["ia3", "lora", "prefix_direct"])
def test_decoder_only_example(method):
  model = decoder_only_model(methods.METHODS[method])
  rng = np.random.default_rng(0)
  tokens = rng.integers(2, 32, (3, 8), dtype=np.int32)
  asked = np.zeros((3, 8), np.int32)
  for row, length in enumerate((3, 4, 2)):
    asked[row, : length + 1] = 1
  shifted = np.pad(tokens, ((0, 0), (1, 0)))[:, :-1]
  batch = {
    "decoder_input_tokens": jnp.asarray(shifted),
    "decoder_target_tokens": jnp.asarray(tokens),
    "decoder_loss_weights": jnp.ones((3, 8)),
    "decoder_causal_attention": jnp.asarray(asked),
  }
  variables = jax.jit(
    lambda key: model.get_initial_variables(
      key, {"decoder_input_tokens": (3, 8)}
    )
  )(jax.random.key(0))
  params = variables["params"].unfreeze()
  frozen, adapter = partition.split(params, model.module)
  params = partition.join(frozen, tiny.randomize(adapter))
  assert jax.jit(model.score_batch)(params, batch).shape == (3,)
  found = np.asarray(jax.jit(model.predict_batch)(params, batch))
  forward = jax.jit(
    lambda text: model.module.apply(
      {"params": params}, text, jnp.ones_like(text), enable_dropout=False
    )
  )
  # What follows the question, each token the likeliest behind those before.
  for row in range(3):
    start = int(asked[row].sum()) - 1
    text = np.zeros(8, np.int32)
    text[: start + 1] = shifted[row, : start + 1]
    for step in range(8 - start - 1):
      token = int(jnp.argmax(forward(text[None])[0, start + step]))
      assert found[row, step] == token
      if token == 1:
        break
      text[start + step + 1] = token
