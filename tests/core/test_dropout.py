"""Adapters drop only where the call enables dropout, scanned or not."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny

from peft_jax import Adapted, LoRA, Rule

RULES = (Rule("encoder/.*query", LoRA(rank=2, dropout_rate=0.5)),)


@functools.cache
def encode(scanned):
  """Returns the compiled function (params, rng) -> encoded, per flag."""
  model = Adapted(tiny.t5(scan_layers=scanned, num_encoder_layers=2), RULES)
  params = tiny.randomize(tiny.params(model))
  tokens = tiny.batch()["encoder_input_tokens"]

  @functools.partial(jax.jit, static_argnums=1)
  def call(rng, enable_dropout):
    return model.apply(
      {"params": params},
      tokens,
      enable_dropout=enable_dropout,
      rngs={} if rng is None else {"dropout": rng},
      method=model.encode,
    )

  return call


@pytest.mark.parametrize("scanned", [False, True])
def test_dropout_follows_the_flag(scanned):
  call = encode(scanned)
  plain = call(None, False)
  # A key alone does not turn dropout on.
  np.testing.assert_array_equal(call(jax.random.key(0), False), plain)
  dropped = call(jax.random.key(0), True)
  assert np.abs(dropped - plain).max() > 1e-3
  np.testing.assert_array_equal(call(jax.random.key(0), True), dropped)
  assert np.abs(call(jax.random.key(1), True) - dropped).max() > 1e-3


def test_networks_without_the_flag_drop_when_given_a_key():
  """A network that is not T5 has no `enable_dropout` to ask."""
  from flax import linen as nn

  class Other(nn.Module):
    @nn.compact
    def __call__(self, x):
      return nn.Dense(3, name="dense")(x)

  x = jnp.ones((1, 8))
  model = Adapted(Other(), [Rule("dense", LoRA(rank=2, dropout_rate=0.5))])
  params = tiny.randomize(model.init(jax.random.key(0), x)["params"])
  call = lambda **kwargs: model.apply({"params": params}, x, **kwargs)
  plain = call()
  dropped = call(rngs={"dropout": jax.random.key(0)})
  assert np.abs(dropped - plain).max() > 1e-3
