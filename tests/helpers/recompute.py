"""Logits with a cache, and the same computed anew, to compare."""

import functools

import jax
import jax.numpy as jnp
from helpers import tiny

from peft_jax import decoding


@functools.cache
def stepwise(model, style):
  """Returns the compiled function (params, batch) -> logits, token by token."""

  def ours(params, inputs, length):
    cache = decoding.make_cache(model, params, inputs, length)
    return cache, lambda cache, token: decoding.decode_step(
      model, params, cache, inputs, token, length
    )

  def t5x(params, inputs, length):
    """As T5X's models.py calls the network: `encoded` at every step."""
    blank = jnp.ones((inputs.shape[0], length), jnp.int32)
    _, variables = model.apply(
      {"params": params},
      jnp.ones_like(inputs),
      blank,
      blank,
      decode=True,
      enable_dropout=False,
      mutable=["cache"],
    )
    encoded = model.apply(
      {"params": params}, inputs, enable_dropout=False, method=model.encode
    )

    def advance(cache, token):
      logits, variables = model.apply(
        {"params": params, "cache": cache},
        encoded,
        inputs,
        token,
        token,
        enable_dropout=False,
        decode=True,
        max_decode_length=length,
        mutable=["cache"],
        method=model.decode,
      )
      return logits, variables["cache"]

    return variables["cache"], advance

  def run(params, batch):
    tokens = batch["decoder_input_tokens"]
    inputs = batch["encoder_input_tokens"]
    cache, advance = {"ours": ours, "t5x": t5x}[style](
      params, inputs, tokens.shape[1]
    )

    def body(cache, token):
      logits, cache = advance(cache, token[:, None])
      return cache, logits[:, 0]

    _, logits = jax.lax.scan(body, cache, tokens.T)
    return jnp.swapaxes(logits, 0, 1)

  return jax.jit(run)


def text(model, params, inputs, mask, following):
  """Returns logits [B, N, V] that predict tokens [B, N] behind the inputs."""
  tokens = jnp.concatenate([inputs, following], axis=1)
  real = jnp.concatenate([mask, jnp.ones_like(following)], axis=1)
  logits = tiny.logits(model)(
    params,
    {
      "decoder_input_tokens": tokens,
      "decoder_target_tokens": tokens,
      "decoder_segment_ids": real,
      "decoder_loss_weights": jnp.ones(tokens.shape),
    },
  )
  width = inputs.shape[1]
  last = width - 1 - jnp.argmax(mask[:, ::-1], axis=1)
  first = jnp.take_along_axis(logits, last[:, None, None], axis=1)
  return jnp.concatenate([first, logits[:, width:-1]], axis=1)


@functools.cache
def cached_text(model):
  """Returns the compiled function (params, inputs, mask, following) -> logits.

  What `text` returns, but read at once and then token by token.
  """

  def run(params, inputs, mask, following):
    length = following.shape[1]
    cache, current = decoding.prefill(model, params, inputs, mask, length)
    step = decoding.stepper(model, params, inputs, length)

    def body(carry, token):
      cache, current = carry
      logits, cache = step(cache, current)
      return (cache, token), logits

    _, logits = jax.lax.scan(body, (cache, current), following.T)
    return jnp.swapaxes(logits, 0, 1)

  return jax.jit(run)
