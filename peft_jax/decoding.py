"""Greedy decoding over a key-value cache."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array


class _Loop(NamedTuple):
  index: Array  # [] int32, position that is being decided
  tokens: Array  # [B, T] ids decided so far, 0 behind them
  current: Array  # [B, 1] input of the next step
  finished: Array  # [B] bool
  cache: Any


def make_cache(
  model: Any, params: Any, encoder_input_tokens: Array, length: int
) -> Any:
  """Encodes the input and returns a cache for `length` decoder positions.

  The cross-attention's keys and values are in it, so later steps need neither
  the encoder's output nor the key and value projections of the encoder.

  Args:
    model: network or network with adapters.
    params: its parameters.
    encoder_input_tokens: [B, S] ids.
    length: number of decoder positions.
  """
  encoded = model.apply(
    {"params": params}, encoder_input_tokens, method=model.encode
  )
  blank = jnp.ones((encoder_input_tokens.shape[0], length), jnp.int32)
  _, variables = model.apply(
    {"params": params},
    encoded,
    encoder_input_tokens,
    blank,
    blank,
    decode=True,
    cache_encoded=True,
    mutable=["cache"],
    method=model.decode,
  )
  return variables["cache"]


def decode_step(
  model: Any,
  params: Any,
  cache: Any,
  encoder_input_tokens: Array,
  tokens: Array,
  length: int,
) -> tuple[Array, Any]:
  """Returns logits [B, T, V] of the next T tokens [B, T], and the cache.

  Args:
    model: network or network with adapters.
    params: its parameters.
    cache: from `make_cache` or an earlier step.
    encoder_input_tokens: [B, S] ids, for the padding mask.
    tokens: [B, T] ids of the next positions.
    length: the length that the cache was made with.
  """
  logits, variables = model.apply(
    {"params": params, "cache": cache},
    None,
    encoder_input_tokens,
    tokens,
    tokens,
    decode=True,
    max_decode_length=length,
    mutable=["cache"],
    method=model.decode,
  )
  return logits, variables["cache"]


def greedy(
  model: Any,
  params: Any,
  encoder_input_tokens: Array,
  *,
  max_decode_length: int,
  eos_id: int = 1,
) -> Array:
  """Returns the most likely continuation, token by token, [B, T] ids.

  Stops early when every row has ended; 0 stands behind the end.

  Example:
    >>> from peft_jax import networks
    >>> network = networks.create("tiny", num_encoder_layers=1,
    ...   num_decoder_layers=1)
    >>> x = jnp.ones((2, 4), jnp.int32)
    >>> params = network.init(jax.random.key(0), x, x, x)["params"]
    >>> greedy(network, params, x, max_decode_length=3).shape
    (2, 3)

  Args:
    model: network or network with adapters.
    params: its parameters.
    encoder_input_tokens: [B, S] ids.
    max_decode_length: T.
    eos_id: id that ends a row; it is kept in the result.
  """
  batch = encoder_input_tokens.shape[0]
  cache = make_cache(model, params, encoder_input_tokens, max_decode_length)

  def running(loop: _Loop) -> Array:
    return (loop.index < max_decode_length) & ~jnp.all(loop.finished)

  def advance(loop: _Loop) -> _Loop:
    logits, cache = decode_step(
      model,
      params,
      loop.cache,
      encoder_input_tokens,
      loop.current,
      max_decode_length,
    )
    best = jnp.argmax(logits[:, 0], axis=-1).astype(jnp.int32)
    best = jnp.where(loop.finished, 0, best)
    return _Loop(
      index=loop.index + 1,
      tokens=loop.tokens.at[:, loop.index].set(best),
      current=best[:, None],
      finished=loop.finished | (best == eos_id),
      cache=cache,
    )

  start = _Loop(
    index=jnp.int32(0),
    tokens=jnp.zeros((batch, max_decode_length), jnp.int32),
    current=jnp.zeros((batch, 1), jnp.int32),
    finished=jnp.zeros((batch,), bool),
    cache=cache,
  )
  return jax.lax.while_loop(running, advance, start).tokens
