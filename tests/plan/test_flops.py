"""FLOPs counted in the trace: against formulas, and against XLA's own count."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import pytest
from helpers import tiny

from peft_jax import IA3, Adapted, LoRA, Rule, optim, split
from peft_jax.plan import flops
from peft_jax.train import forward
from peft_jax.train import step as steps

SIZES = {"vocab_size": 48, "emb_dim": 16, "mlp_dim": 32, "head_dim": 4}
SIZES |= {"num_encoder_layers": 2, "num_decoder_layers": 2}
RULES = {
  "ia3": (Rule("kv", IA3()), Rule("mlp_out", IA3(side="input"))),
  "lora": (Rule("qv", LoRA(rank=3)),),
  "full": (),
}


@dataclasses.dataclass
class Formula:
  """Adds up the FLOPs of one step of a T5 1.1, from its sizes.

  A product of m multiply-adds counts 2 m forward and 2 m for each operand that
  needs a gradient.
  """

  config: object
  method: str
  batch: int
  rank: int = 3
  total: int = 0

  def product(self, m, *needs_gradient):
    self.total += 2 * m * (1 + sum(needs_gradient))

  def projection(self, rows, inputs, outputs, moves, lora=False):
    """`moves` says whether something trained precedes the activations."""
    self.product(rows * inputs * outputs, moves, self.method == "full")
    if lora:
      self.product(rows * inputs * self.rank, moves, True)
      self.product(rows * self.rank * outputs, True, True)

  def attention(self, length_q, length_kv, q_moves, kv_moves):
    c = self.config
    joined = c.num_heads * c.head_dim
    rows_q, rows_kv = self.batch * length_q, self.batch * length_kv
    lora, ia3 = self.method == "lora", self.method == "ia3"
    full = self.method == "full"
    self.projection(rows_q, c.emb_dim, joined, q_moves, lora)
    self.projection(rows_kv, c.emb_dim, joined, kv_moves)
    self.projection(rows_kv, c.emb_dim, joined, kv_moves, lora)
    query, key = q_moves or lora or full, kv_moves or ia3 or full
    self.product(rows_q * length_kv * joined, query, key)
    self.product(rows_q * length_kv * joined, query or key, True)
    self.projection(rows_q, joined, c.emb_dim, True)

  def mlp(self, length):
    c = self.config
    for sizes in [(c.emb_dim, c.mlp_dim)] * 2 + [(c.mlp_dim, c.emb_dim)]:
      self.projection(self.batch * length, *sizes, True)


def by_formula(config, method, *, batch, inputs, targets):
  count = Formula(config, method, batch)
  for layer in range(config.num_encoder_layers):
    moves = layer > 0 or method == "full"
    count.attention(inputs, inputs, moves, moves)
    count.mlp(inputs)
    count.attention(targets, targets, moves, moves)
    count.attention(targets, inputs, True, True)
    count.mlp(targets)
  rows = batch * targets
  count.projection(rows, config.emb_dim, config.vocab_size, True)
  return count.total


def step_and_arguments(network, rules, *, batch, inputs, targets):
  """Returns a training step and the shapes of its arguments."""
  model = Adapted(network, rules) if rules else network

  def tokens(length, dtype=jnp.int32):
    return jax.ShapeDtypeStruct((batch, length), dtype)

  rows = {
    "encoder_input_tokens": tokens(inputs),
    "decoder_input_tokens": tokens(targets),
    "decoder_target_tokens": tokens(targets),
    "decoder_loss_weights": tokens(targets, jnp.float32),
  }
  init = functools.partial(model.init, jax.random.key(0))
  params = jax.eval_shape(init, **forward.network_inputs(rows))["params"]
  frozen, adapter = split(params, model) if rules else ({}, params)
  tx = optim.adamw(learning_rate=0.1)
  start = lambda leaves: steps.init_state(leaves, tx, jax.random.key(0), model)
  state = jax.eval_shape(start, adapter)
  step = steps.make_train_step(model, tx, dropout=False)
  return step, (state, frozen, rows)


@pytest.mark.parametrize("method", RULES)
def test_a_step_has_the_flops_of_the_formula(method):
  network = tiny.t5(**SIZES)
  lengths = {"batch": 2, "inputs": 12, "targets": 6}
  step, args = step_and_arguments(network, RULES[method], **lengths)
  expected = by_formula(network.config, method, **lengths)
  assert flops.of_function(step, *args).flops == expected


def test_a_loop_counts_as_often_as_it_turns():
  kernels, x = jnp.ones((5, 3, 3)), jnp.ones((2, 3))
  turn = lambda x, kernel: (x @ kernel, None)
  found = flops.of_function(lambda x: jax.lax.scan(turn, x, kernels), x)
  assert found.flops == 5 * 2 * 2 * 3 * 3
  assert found.bytes == 5 * 4 * (2 * 3 + 3 * 3 + 2 * 3)


def test_what_is_computed_again_counts_again():
  x, kernel = jnp.ones((2, 3)), jnp.ones((3, 3))
  layer = lambda x: jnp.sin(jnp.sin(x @ kernel) @ kernel)

  def count(layer):
    loss = jax.value_and_grad(lambda x: layer(x).sum())
    return flops.of_function(loss, x).flops

  one = 2 * 2 * 3 * 3
  assert count(layer) == 4 * one
  assert count(jax.checkpoint(layer)) == 6 * one


def test_only_the_dearest_branch_and_no_dead_product_counts():
  x = jnp.ones((2, 2))

  def function(x):
    _ = x @ x @ x @ x
    return jax.lax.cond(x[0, 0] > 0, lambda x: x @ x @ x, lambda x: x, x)

  assert flops.of_function(function, x).flops == 2 * 2 * 2 * 2 * 2


@pytest.mark.parametrize("method", ["ia3", "lora"])
def test_within_3_percent_of_what_xla_counts_unrolled(method):
  """XLA counts softmax, norms and the optimizer besides."""
  network = tiny.t5(
    vocab_size=512,
    emb_dim=256,
    mlp_dim=512,
    num_heads=4,
    head_dim=64,
    num_encoder_layers=1,
    num_decoder_layers=1,
  )
  lengths = {"batch": 4, "inputs": 64, "targets": 32}
  step, args = step_and_arguments(network, RULES[method], **lengths)
  theirs = jax.jit(step).lower(*args).compile().cost_analysis()["flops"]
  assert flops.of_function(step, *args).flops == pytest.approx(theirs, rel=0.03)
