"""The maths of one step, on a network small enough to write down."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from peft_jax import IA3, Adapted, LoRA, Rule, join, losses, split
from peft_jax.train import forward
from peft_jax.train import step as steps
from peft_jax.train.objective import LanguageModel

V, D = 5, 4


class Bag(nn.Module):
  """Looks a token up and projects it: logits = embedding[token] @ kernel."""

  @nn.compact
  def __call__(
    self, decoder_input_tokens, decoder_target_tokens, enable_dropout=False
  ):
    del decoder_target_tokens
    x = nn.Embed(V, D, name="embed")(decoder_input_tokens)
    x = nn.Dropout(0.5)(x, deterministic=not enable_dropout)
    return nn.Dense(V, use_bias=False, name="head")(x)


MODEL = Adapted(Bag(), [Rule("head", IA3(side="input"))])
RNG = np.random.default_rng(0)
TOKENS = RNG.integers(0, V, (4, 3)).astype(np.int32)
TARGETS = RNG.integers(1, V, (4, 3)).astype(np.int32)
WEIGHTS = np.array([[1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 1, 1]], np.float32)
BATCH = {
  "decoder_input_tokens": TOKENS,
  "decoder_target_tokens": TARGETS,
  "decoder_loss_weights": WEIGHTS,
}


def start(model=MODEL):
  params = model.init(jax.random.key(0), TOKENS, TARGETS)["params"]
  return split(params, model)


def step(tx, *, batch=BATCH, model=MODEL, count=1, **options):
  frozen, adapter = start(model)
  options = {"dropout": False} | options
  call = jax.jit(steps.make_train_step(model, tx, **options))
  state = steps.init_state(adapter, tx, jax.random.key(0))
  for _ in range(count):
    state, metrics = call(state, frozen, batch)
  return state, metrics


def reference():
  """Returns loss, accuracy and the gradient of `scaling`, in float64."""
  frozen, _ = start()
  x = np.asarray(frozen["embed"]["embedding"], np.float64)[TOKENS]
  kernel = np.asarray(frozen["head"]["kernel"], np.float64)
  logits = x @ kernel
  p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  real = WEIGHTS / WEIGHTS.sum()
  target = np.eye(V)[TARGETS]
  loss = -(np.log(p) * target).sum(-1)
  gradient = (real[..., None] * ((p - target) @ kernel.T) * x).sum((0, 1))
  right = logits.argmax(-1) == TARGETS
  return (loss * real).sum(), (right * real).sum(), gradient


def scaling(state):
  return np.asarray(state.adapter["head"]["ia3"]["scaling"])


@pytest.mark.parametrize("micro_batches", [1, 2, 4])
def test_one_step(micro_batches):
  loss, accuracy, gradient = reference()
  state, metrics = step(optax.sgd(0.5), micro_batches=micro_batches)
  assert metrics["loss"] == pytest.approx(loss, rel=1e-5)
  assert metrics["accuracy"] == pytest.approx(accuracy, rel=1e-5)
  assert metrics["tokens"] == 9
  norm = np.linalg.norm(gradient)
  assert metrics["gradient_norm"] == pytest.approx(norm, rel=1e-5)
  np.testing.assert_allclose(scaling(state), 1 - 0.5 * gradient, rtol=1e-5)
  assert int(state.step) == 1


def test_normalization_none_is_the_sum():
  """As T5X with LOSS_NORMALIZING_FACTOR=None; the loss reported is a mean."""
  _, _, gradient = reference()
  state, metrics = step(
    optax.sgd(0.5), objective=LanguageModel(normalization="none")
  )
  np.testing.assert_allclose(scaling(state), 1 - 4.5 * gradient, rtol=1e-5)
  assert metrics["loss"] == pytest.approx(reference()[0], rel=1e-5)


def test_a_batch_of_padding_changes_nothing():
  batch = BATCH | {"decoder_loss_weights": np.zeros_like(WEIGHTS)}
  state, metrics = step(optax.sgd(0.5), batch=batch)
  np.testing.assert_array_equal(scaling(state), np.ones(D))
  assert all(np.all(np.isfinite(x)) for x in metrics.values())
  assert metrics["unreached"].tolist() == [True]


def test_integer_weights_are_weights():
  """Feature converters of SeqIO give int32."""
  batch = BATCH | {"decoder_loss_weights": WEIGHTS.astype(np.int32)}
  _, metrics = step(optax.sgd(0.5), batch=batch)
  assert metrics["loss"] == pytest.approx(reference()[0], rel=1e-5)


def test_metrics_are_scalars_but_one():
  _, metrics = step(optax.sgd(0.5))
  spec = {name: (x.shape, x.dtype.name) for name, x in metrics.items()}
  assert spec == {
    "loss": ((), "float32"),
    "accuracy": ((), "float32"),
    "tokens": ((), "float32"),
    "gradient_norm": ((), "float32"),
    "unreached": ((1,), "bool"),
  }


def test_unreached_names_leaves_without_a_gradient():
  """LoRA's `a` while `b` is zero; in the order of the tree's leaves."""
  model = Adapted(Bag(), [Rule("head", LoRA(rank=2))])
  for count, expected in ((1, [True, False]), (2, [False, False])):
    state, metrics = step(optax.sgd(0.5), model=model, count=count)
    assert sorted(state.adapter["head"]["lora"]) == ["a", "b"]
    assert metrics["unreached"].tolist() == expected


def test_dropout_differs_by_step_and_is_repeatable():
  still = optax.set_to_zero()  # so that only dropout tells steps apart
  losses = [
    float(step(still, dropout=True, count=count)[1]["loss"])
    for count in (1, 1, 2)
  ]
  assert losses[0] == losses[1] != losses[2]
  assert losses[0] != pytest.approx(reference()[0], rel=1e-3)


def test_dropout_differs_by_micro_batch():
  """Two halves of equal rows: with one key for both their losses would be."""
  rows = lambda x: np.concatenate([x[:1], x[:1]])
  batch = {name: rows(x) for name, x in BATCH.items()}
  still = optax.set_to_zero()
  _, metrics = step(still, batch=batch, dropout=True, micro_batches=2)
  halves = []
  frozen, adapter = start()
  for index in range(2):
    rng = jax.random.fold_in(jax.random.key(0), 0)
    logits = MODEL.apply(
      {"params": join(frozen, adapter)},
      TOKENS[:1],
      TARGETS[:1],
      enable_dropout=True,
      rngs={"dropout": jax.random.fold_in(rng, index)},
    )
    loss, tokens = losses.language_model(logits, TARGETS[:1], WEIGHTS[:1])
    halves.append(float(loss) / float(tokens))
  assert halves[0] != halves[1]
  assert metrics["loss"] == pytest.approx(np.mean(halves), rel=1e-5)


def test_network_inputs_leave_out_the_rest():
  batch = {"encoder_input_tokens": 1, "decoder_loss_weights": 2, "idx": 3}
  assert forward.network_inputs(batch) == {"encoder_input_tokens": 1}


def test_frozen_leaves_are_not_differentiated():
  """Their gradient would cost memory and time: nothing may compute it."""
  frozen, adapter = start()
  tx = optax.sgd(0.5)
  call = steps.make_train_step(MODEL, tx, dropout=False)
  state = steps.init_state(adapter, tx, jax.random.key(0))
  with_ints = jax.tree.map(lambda x: jnp.round(x).astype(jnp.int32), frozen)
  with_ints["embed"] = frozen["embed"]
  # An integer leaf cannot be differentiated, so this would raise.
  with jax.numpy_dtype_promotion("standard"):
    call(state, with_ints, BATCH)
