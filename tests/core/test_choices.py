"""T-Few's losses and ranking against numpy, and against its own code."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny
from hypothesis import given
from hypothesis import strategies as st

from peft_jax import choices
from peft_jax.formats import hugging_face


def drawn(seed, choice_counts):
  """Returns logits, targets, real, labels; counts differ by example.

  Of one shape, so that all is compiled once.
  """
  rng = np.random.default_rng(seed)
  batch, length = len(choice_counts), 4
  real = np.zeros((batch, 5, length), np.int32)
  for row, count in enumerate(choice_counts):
    for choice in range(count):
      real[row, choice, : rng.integers(1, length + 1)] = 1
  logits = 2 * rng.standard_normal((*real.shape, 7)).astype(np.float32)
  targets = rng.integers(0, 7, real.shape).astype(np.int32)
  labels = np.array([rng.integers(count) for count in choice_counts], np.int32)
  return logits, targets, real, labels


@functools.cache
def all_losses(formula, length_norm):
  """Returns the compiled function (logits, targets, real, labels) -> losses."""

  def function(logits, targets, real, labels):
    return choices.losses(
      logits,
      targets,
      labels,
      choices.weigh(real, labels, formula=formula),
      length_norm=length_norm,
      formula=formula,
    )

  return jax.jit(function)


def reference(logits, targets, real, labels, formula, length_norm):
  """The same in loops, float64."""
  logits = logits.astype(np.float64)
  log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  log_p = np.take_along_axis(log_p, targets[..., None], -1)[..., 0]
  lm, unlikely, ln, predictions = [], [], [], []
  idle = 0
  for row, label in enumerate(labels):
    present = [c for c in range(real.shape[1]) if real[row, c].any()]
    tokens = {c: log_p[row, c][real[row, c] > 0] for c in present}
    beta = {c: t.sum() / len(t) ** length_norm for c, t in tokens.items()}
    predictions.append(max(present, key=lambda c: (beta[c], -c)))
    total = np.log(sum(np.exp(b) for b in beta.values()))
    ln.append(total - beta[label])
    lm.append(-tokens[label])
    others = [t for c, t in tokens.items() if c != label]
    unlikely.append(np.concatenate([*others, np.zeros(0)]))
    idle += len(present) * real.shape[2] - len(unlikely[-1])
  if formula == "paper":
    wrong = [-np.log(1 - np.exp(t)) for t in unlikely]
    means = [w.mean() if len(w) else 0.0 for w in wrong]
    return np.mean([x.mean() for x in lm]), np.mean(means), np.mean(ln)
  tokens = np.concatenate(unlikely)
  wrong = -np.log(1 - np.exp(tokens) + 0.01).sum() - idle * np.log(1.01)
  wrong = wrong / len(tokens) if len(tokens) else -idle * np.log(1.01)
  return np.concatenate(lm).mean(), wrong, np.mean(ln)


@pytest.mark.parametrize("formula", ["paper", "tfew_code"])
@given(
  seed=st.integers(0, 2**16),
  counts=st.tuples(*[st.integers(1, 5)] * 3),
  length_norm=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_losses_against_numpy(formula, seed, counts, length_norm):
  logits, targets, real, labels = drawn(seed, counts)
  found = all_losses(formula, length_norm)(logits, targets, real, labels)
  expected = reference(logits, targets, real, labels, formula, length_norm)
  np.testing.assert_allclose(found, expected, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("formula", ["paper", "tfew_code"])
def test_losses_in_float64_are_numpys(formula):
  """What is left is the rounding of the weights, which are float32."""
  for seed in range(20):
    counts = np.random.default_rng(seed).integers(1, 6, 3)
    logits, *rest = drawn(seed, counts)
    with jax.enable_x64(True):
      found = all_losses(formula, 1.0)(logits.astype(np.float64), *rest)
      assert {loss.dtype.name for loss in found} == {"float64"}
    expected = reference(logits, *rest, formula, 1.0)
    np.testing.assert_allclose(found, expected, rtol=2e-7)


@pytest.mark.parametrize("length_norm", [0.0, 1.0])
def test_ranking_against_numpy(length_norm):
  logits, targets, real, _ = drawn(3, [2, 5, 3, 4])
  found = choices.scores(logits, targets, real, length_norm=length_norm)
  log_p = np.asarray(jax.nn.log_softmax(logits), np.float64)
  log_p = np.take_along_axis(log_p, targets[..., None], -1)[..., 0]
  sums, lengths = (log_p * real).sum(-1), real.sum(-1)
  expected = -sums / np.maximum(lengths, 1) ** length_norm
  expected = np.where(lengths > 0, expected, np.inf)
  np.testing.assert_allclose(found, expected, rtol=1e-6)
  np.testing.assert_array_equal(choices.predict(found), expected.argmin(-1))
  # What the choices score anyway is taken away, but for those that are absent.
  prior = np.arange(20, dtype=np.float32).reshape(4, 5)
  np.testing.assert_allclose(
    choices.calibrated(found, prior), expected - prior, rtol=1e-6, atol=1e-6
  )


def test_of_equal_choices_the_first_is_taken():
  assert choices.predict(jnp.array([[2.0, 1.0, 1.0]])).tolist() == [1]


@pytest.mark.parametrize("formula", ["paper", "tfew_code"])
def test_micro_batches_add_up(formula):
  logits, targets, real, labels = drawn(5, [3, 2, 4, 2])
  weights = choices.weigh(jnp.asarray(real), labels, formula=formula)
  whole = choices.losses(logits, targets, labels, weights, formula=formula)
  parts = [
    choices.losses(
      logits[rows],
      targets[rows],
      labels[rows],
      jax.tree.map(lambda x, rows=rows: x[rows], weights),
      formula=formula,
    )
    for rows in (slice(0, 1), slice(1, 4))
  ]
  np.testing.assert_allclose(np.sum(parts, axis=0), whole, rtol=1e-6)


@pytest.mark.parametrize("formula", ["paper", "tfew_code"])
def test_what_stands_at_padding_does_not_matter(formula):
  logits, targets, real, labels = drawn(6, [2, 3])
  weights = choices.weigh(jnp.asarray(real), labels, formula=formula)

  def total(logits):
    return sum(
      choices.losses(logits, targets, labels, weights, formula=formula)
    )

  changed = np.where(real[..., None] > 0, logits, 30.0).astype(np.float32)
  np.testing.assert_allclose(total(changed), total(logits), rtol=1e-6)
  gradient = np.asarray(jax.grad(total)(jnp.asarray(changed)))
  assert np.isfinite(gradient).all()
  assert not gradient[real == 0].any()


def test_a_certain_wrong_choice_costs_a_finite_loss():
  logits = jnp.array([[[[0.0, 0.0]], [[100.0, 0.0]]]])
  targets, labels = jnp.zeros((1, 2, 1), jnp.int32), jnp.array([0])
  weights = choices.weigh(jnp.ones((1, 2, 1)), labels)
  found = choices.losses(logits, targets, labels, weights)
  assert 16 < found.unlikelihood < 17  # 24 log 2
  code = choices.losses(logits, targets, labels, weights, formula="tfew_code")
  np.testing.assert_allclose(code.unlikelihood, -np.log(0.01), rtol=1e-5)


def test_an_unknown_formula_is_refused():
  with pytest.raises(ValueError, match="expected formula 'paper' or"):
    choices.weigh(jnp.ones((1, 2, 1)), jnp.array([0]), formula="tfew")


def test_equals_the_original_code(shared_data):
  """Its losses and predictions on a Hugging Face model, which we read."""
  folder = shared_data("parity/t5_v1_1")
  golden = np.load(folder / "tfew_losses.npz")
  network = hugging_face.network(folder)
  params = hugging_face.load(folder, network)
  inputs, targets = golden["input_ids"], golden["answer_choices_ids"]
  labels = golden["labels"].astype(np.int32)
  batch, count, _ = targets.shape
  flat = targets.reshape(batch * count, -1)
  logits = tiny.logits(network)(
    params,
    {
      "encoder_input_tokens": jnp.repeat(inputs.astype("i4"), count, axis=0),
      "decoder_input_tokens": jnp.pad(flat, ((0, 0), (1, 0)))[:, :-1],
      # It masks nothing in the decoder.
      "decoder_target_tokens": jnp.ones_like(flat),
    },
  ).reshape(*targets.shape, -1)
  for length_norm in (0, 1):
    expected = {
      name.partition("/")[2]: golden[name]
      for name in golden
      if name.startswith(f"length_norm_{length_norm}/")
    }
    found = choices.losses(
      logits,
      targets,
      labels,
      choices.weigh(targets, labels, formula="tfew_code"),
      length_norm=length_norm,
      formula="tfew_code",
    )
    np.testing.assert_allclose(
      found,
      [expected[name] for name in ("lm_loss", "unlikely_loss", "mc_loss")],
      atol=1e-5,
    )
    ranked = choices.scores(logits, targets, targets, length_norm=length_norm)
    np.testing.assert_array_equal(
      choices.predict(ranked), expected["predict_prediction"]
    )
    rows = np.arange(batch)
    np.testing.assert_allclose(
      ranked[rows, labels], expected["predict_log.score_gt"], rtol=1e-5
    )
