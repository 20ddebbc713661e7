"""Several adapters answer as one: the same ids as one after another."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import methods, recompute, tiny

from peft_jax import (
  IA3,
  Adapted,
  LoRA,
  Rule,
  decoding,
  ensemble,
  manifest,
  partition,
)
from peft_jax.ensemble import EnsembleError

NETWORKS = {"encoder_decoder": tiny.t5, "decoder_only": tiny.decoder_only}
COUNT, LENGTH = 3, 6
EXHAUSTIVE = pytest.mark.exhaustive
INPUTS = np.random.default_rng(3).integers(2, 32, (4, 7), dtype=np.int32)


def members(network, method):
  """Returns the model, its backbone, and adapters of different noise."""
  model = Adapted(network, methods.rules(method, network))
  frozen, adapter = partition.split(tiny.params(model), model)
  return model, frozen, [tiny.randomize(adapter, seed=s) for s in range(COUNT)]


def asked(network):
  """Returns inputs of which two rows are padded, as the network has them."""
  inputs = INPUTS.copy()
  inputs[1, 5:] = inputs[2, 3:] = 0
  if not tiny.is_decoder_only(network):
    return {"inputs": jnp.asarray(inputs)}
  return {
    "inputs": jnp.asarray(inputs),
    "inputs_mask": jnp.asarray(inputs > 0, jnp.int32),
  }


def answerer(model, search, **options):
  def answer(frozen, adapter, inputs):
    found = search(
      model,
      partition.join(frozen, adapter),
      **inputs,
      max_decode_length=LENGTH,
      **options,
    )
    return found[0] if isinstance(found, tuple) else found

  return answer


SEARCHES = {
  "greedy": functools.partial(decoding.greedy),
  "sample": functools.partial(decoding.sample, key=jax.random.key(7)),
  "beam": functools.partial(decoding.beam_search, num_beams=2),
}
OTHERS = ("dora", "prefix", "top_layer", "compacter", "unipelt", "fish_mask")
PAIRS = [
  ("encoder_decoder", "prompt", "greedy"),
  ("encoder_decoder", "prompt", "sample"),
  ("encoder_decoder", "prompt", "beam"),
  ("encoder_decoder", "lora", "greedy"),
  ("decoder_only", "prompt", "greedy"),
  *(
    pytest.param("encoder_decoder", name, "greedy", marks=EXHAUSTIVE)
    for name in OTHERS
  ),
  pytest.param("decoder_only", "lora+ia3", "greedy", marks=EXHAUSTIVE),
  pytest.param("decoder_only", "prompt", "beam", marks=EXHAUSTIVE),
]


@pytest.mark.parametrize(("kind", "method", "search"), PAIRS)
def test_answers_are_those_of_separate_runs(kind, method, search):
  network = NETWORKS[kind]()
  model, frozen, adapters = members(network, method)
  answer = answerer(model, SEARCHES[search])
  inputs = asked(network)
  one = jax.jit(answer)
  separate = [np.asarray(one(frozen, a, inputs)) for a in adapters]
  together = jax.jit(ensemble.each(answer))(
    frozen, ensemble.stack(adapters), inputs
  )
  np.testing.assert_array_equal(together, np.stack(separate))
  # They do differ: otherwise nothing is compared.
  assert len({rows.tobytes() for rows in separate}) == COUNT


def loops(jaxpr):
  """Yields every while loop of a program."""
  for equation in jaxpr.eqns:
    if equation.primitive.name == "while":
      yield equation
    for inner in jax.tree.leaves(list(equation.params.values())):
      inner = getattr(inner, "jaxpr", inner)
      if hasattr(inner, "eqns"):
        yield from loops(inner)


def test_one_condition_ends_the_loop_of_all_adapters():
  """With one per adapter, every step would copy each cache to choose."""
  network = tiny.t5()
  model, frozen, adapters = members(network, "prompt")
  program = jax.make_jaxpr(ensemble.each(answerer(model, decoding.greedy)))(
    frozen, ensemble.stack(adapters), asked(network)
  )
  [loop] = loops(program.jaxpr)
  [condition] = loop.params["cond_jaxpr"].out_avals
  assert condition.shape == ()


@pytest.mark.parametrize("kind", NETWORKS)
def test_probability_is_that_of_every_token(kind):
  """Against the logits of the whole text, read at once and token by token."""
  network = NETWORKS[kind]()
  model, frozen, [adapter, *_] = members(network, "prompt")
  params = partition.join(frozen, adapter)
  inputs = asked(network)
  rng = np.random.default_rng(0)
  answers = rng.integers(2, 32, (4, 2, LENGTH), dtype=np.int32)
  answers[0, 0, 2:] = [1, 0, 0, 0]  # ends early; the rest has no end
  answers[3, 1, 0] = 1
  found = jax.jit(
    lambda params: decoding.log_probabilities(
      model, params, **inputs, answers=jnp.asarray(answers)
    )
  )(params)
  for choice in range(2):
    ids = answers[:, choice]
    if kind == "decoder_only":
      logits = recompute.text(
        model,
        params,
        inputs["inputs"],
        inputs["inputs_mask"],
        jnp.asarray(ids),
      )
    else:
      shifted = np.pad(ids, ((0, 0), (1, 0)))[:, :-1]
      batch = {
        "encoder_input_tokens": inputs["inputs"],
        "decoder_input_tokens": jnp.asarray(shifted),
        # None of them is padding here, whatever its id.
        "decoder_target_tokens": jnp.ones_like(jnp.asarray(ids)),
      }
      logits = tiny.logits(model)(params, batch)
    logits = np.asarray(logits, np.float64)
    chances = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    for row in range(4):
      end = np.flatnonzero(ids[row] == 1)
      length = end[0] + 1 if len(end) else LENGTH
      wanted = sum(chances[row, t, ids[row, t]] for t in range(length))
      assert found[row, choice] == pytest.approx(wanted, abs=2e-5)


def test_ties_are_of_the_first_adapter():
  assert ensemble.majority(["b", "a", "a", "b"]) == 0
  assert ensemble.majority(["c", "a", "b", "b", "a"]) == 1
  assert ensemble.majority(["c", "b", "a"]) == 0


def test_votes_over_choices_against_numpy():
  scores = np.random.default_rng(0).uniform(0, 3, (5, 20, 4))
  scores[:, 3, 2:] = np.inf  # an example with two choices
  for example in range(20):
    best = [int(np.argmin(scores[n, example])) for n in range(5)]
    counts = [best.count(c) for c in best]
    wanted = best[counts.index(max(counts))]
    assert ensemble.choose(scores, "majority")[example] == wanted
    exponents = np.exp(-scores[:, example])
    shares = exponents / exponents.sum(-1, keepdims=True)
    wanted = shares.mean(0).argmax()
    assert ensemble.choose(scores, "probability")[example] == wanted


def test_an_adapter_that_answered_otherwise_counts_in_the_mean():
  ids = np.array([[5, 1], [6, 1], [6, 1]])
  chances = np.array([[0.9, 0.05, 0.05], [0.6, 0.3, 0.3], [0.6, 0.3, 0.3]])
  winner, chance = ensemble.likeliest(ids, ["a", "b", "b"], chances)
  assert winner == 0 and chance == pytest.approx(0.7)
  assert ensemble.majority(["a", "b", "b"]) == 1


def test_trees_that_differ_do_not_stack():
  one = {"key": {"ia3": {"scaling": jnp.ones(3)}}}
  two = {"key": {"ia3": {"scaling": jnp.ones(4)}}}
  with pytest.raises(EnsembleError, match=r"in adapter 1 .*key/ia3/scaling"):
    ensemble.stack([one, two])
  with pytest.raises(EnsembleError, match="two adapters or more, found 1"):
    ensemble.stack([one])


def described(value=1.0, rules=None, **fields):
  given = {
    "model": {"config": {"emb_dim": 3}},
    "backbone": {"fingerprint": "abc"},
    "training": {"task": "rte", "task_feature_lengths": {"inputs": 5}},
  } | fields
  leaves = {"key": {"ia3": {"scaling": np.full(3, value, np.float32)}}}
  return manifest.make(leaves, rules or [Rule("key", IA3())], **given)


@pytest.mark.parametrize(
  ("other", "message"),
  [
    (described(1.0), "the same leaves in one and two"),
    (described(2.0, [Rule("value", IA3())]), "the rules of one in two"),
    (
      described(2.0, backbone={"fingerprint": "abd"}),
      "the backbone of one in two, found another",
    ),
    (described(2.0, training={"task": "cb"}), "the task of one in two"),
    (
      described(2.0, training={"task_feature_lengths": {"inputs": 6}}),
      "the task_feature_lengths of one in two",
    ),
    (described(2.0, model={"config": {"emb_dim": 4}}), "the network of one"),
  ],
)
def test_adapters_that_may_not_answer_together(other, message):
  with pytest.raises(EnsembleError, match=message):
    ensemble.check_alike({"one": described(), "two": other})
  ensemble.check_alike({"one": described(), "two": described(2.0)})


def test_where_leaves_started_may_differ():
  rules = [
    [Rule("key", LoRA(rank=2, initializer=name))] for name in ("gemma", "tfew")
  ]
  one, two = described(1.0, rules[0]), described(2.0, rules[1])
  ensemble.check_alike({"one": one, "two": two})
  with pytest.raises(manifest.ManifestError, match="Set initializer=gemma"):
    manifest.check_rules(one, rules[1])
  other = described(2.0, [Rule("key", LoRA(rank=3, initializer="gemma"))])
  with pytest.raises(EnsembleError, match="rank=2 given, the adapter has"):
    ensemble.check_alike({"one": one, "two": other})


def test_an_unknown_vote():
  with pytest.raises(EnsembleError, match="expected a vote of"):
    ensemble.choose(np.zeros((2, 1, 2)), "mean")
