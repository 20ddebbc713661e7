"""Greedy decoding and beam search over a key-value cache.

Axis letters: B batch, N beams, T decoder length, S encoder length, V
vocabulary, H heads, K head dim.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

Array = jax.Array


class _Loop(NamedTuple):
  index: Array  # [] int32, position that is being decided
  tokens: Array  # [B, T] ids decided so far, 0 behind them
  current: Array  # [B] input of the next step
  finished: Array  # [B] bool
  cache: Any


class _Pool(NamedTuple):
  tokens: Array  # [B, N, T] ids, 0 behind them
  scores: Array  # [B, N] float32, best first, -inf where no sequence is


class _Search(NamedTuple):
  index: Array  # [] int32, position that is being decided
  live: _Pool  # sequences that go on; scores are sums of log probabilities
  finished: _Pool  # sequences that ended; scores have the length penalty
  current: Array  # [B * N] input of the next step
  cache: Any  # of B * N rows


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

  Raises:
    ValueError: if `max_decode_length` is less than 1.
  """
  _check_positive("max_decode_length", max_decode_length)
  batch = encoder_input_tokens.shape[0]
  step = _stepper(model, params, encoder_input_tokens, max_decode_length)

  def running(loop: _Loop) -> Array:
    return (loop.index < max_decode_length) & ~jnp.all(loop.finished)

  def advance(loop: _Loop) -> _Loop:
    logits, cache = step(loop.cache, loop.current)
    best = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    best = jnp.where(loop.finished, 0, best)
    return _Loop(
      index=loop.index + 1,
      tokens=loop.tokens.at[:, loop.index].set(best),
      current=best,
      finished=loop.finished | (best == eos_id),
      cache=cache,
    )

  start = _Loop(
    index=jnp.int32(0),
    tokens=jnp.zeros((batch, max_decode_length), jnp.int32),
    current=jnp.zeros((batch,), jnp.int32),
    finished=jnp.zeros((batch,), bool),
    cache=make_cache(model, params, encoder_input_tokens, max_decode_length),
  )
  return jax.lax.while_loop(running, advance, start).tokens


def beam_search(
  model: Any,
  params: Any,
  encoder_input_tokens: Array,
  *,
  max_decode_length: int,
  num_beams: int = 4,
  length_penalty: float = 0.6,
  eos_id: int = 1,
) -> tuple[Array, Array]:
  """Returns the best continuations found by keeping `num_beams` at each step.

  A sequence's score is its log probability / ((5 + length) / 6) **
  length_penalty (Wu et al. 2016, arXiv 1609.08144), its end counted. A row
  stops when no live beam could still beat the worst of `num_beams` finished
  ones, even if it ended at the most favourable length with probability 1;
  Hugging Face compares at the present length unless told
  `early_stopping="never"`, and divides by length ** length_penalty. An end
  counts where it is among the `num_beams` best candidates, as with Hugging
  Face, so that one beam without length penalty is greedy decoding; T5X takes
  ends among twice as many.

  Example:
    >>> from peft_jax import networks
    >>> network = networks.create("tiny", num_encoder_layers=1,
    ...   num_decoder_layers=1)
    >>> x = jnp.ones((2, 4), jnp.int32)
    >>> params = network.init(jax.random.key(0), x, x, x)["params"]
    >>> tokens, scores = beam_search(network, params, x, max_decode_length=3)
    >>> tokens.shape, scores.shape
    ((2, 4, 3), (2, 4))

  Args:
    model: network or network with adapters.
    params: its parameters.
    encoder_input_tokens: [B, S] ids.
    max_decode_length: T.
    num_beams: N.
    length_penalty: 0 compares plain log probabilities, more favours longer
      sequences (T5X: 0.6).
    eos_id: id that ends a sequence; it is kept in the result.

  Returns:
    Ids [B, N, T] int32, best first, 0 behind the end, and scores [B, N]
    float32. Where fewer than N have ended, the best of those that have not
    fill up, scored at length T; where there are none either, ids are 0 and the
    score is -inf.

  Raises:
    ValueError: if `num_beams` or `max_decode_length` is less than 1.
  """
  _check_positive("num_beams", num_beams)
  _check_positive("max_decode_length", max_decode_length)
  batch = encoder_input_tokens.shape[0]
  # Encoded once per example, not once per beam.
  cache = make_cache(model, params, encoder_input_tokens, max_decode_length)
  rows = jnp.repeat(encoder_input_tokens, num_beams, axis=0)
  step = _stepper(model, params, rows, max_decode_length)
  lengths = jnp.arange(1, max_decode_length + 1, dtype=jnp.float32)
  penalties = ((5 + lengths) / 6) ** length_penalty

  def running(search: _Search) -> Array:
    # Log probabilities only fall, and the largest divisor flatters them most.
    attainable = search.live.scores[:, 0] / jnp.max(penalties)
    hopeful = attainable > search.finished.scores[:, -1]
    return (search.index < max_decode_length) & jnp.any(hopeful)

  def advance(search: _Search) -> _Search:
    logits, cache = step(search.cache, search.current)
    pool, beams = _candidates(search, logits)
    added = pool.tokens[:, :, search.index]
    ended = added == eos_id
    counts = ended & (jnp.arange(ended.shape[1])[None] < num_beams)
    scores = pool.scores / penalties[search.index]
    # Those found earlier stand in front: they win a tie, so a row that could
    # have stopped is not changed by the steps that other rows still need.
    finished = _Pool(
      jnp.concatenate([search.finished.tokens, pool.tokens], axis=1),
      jnp.concatenate(
        [search.finished.scores, jnp.where(counts, scores, -jnp.inf)], axis=1
      ),
    )
    live, order = _best(
      pool._replace(scores=jnp.where(ended, -jnp.inf, pool.scores)), num_beams
    )
    return _Search(
      index=search.index + 1,
      live=live,
      finished=_best(finished, num_beams)[0],
      current=_pick(added, order).reshape(-1),
      cache=_reorder(cache, _pick(beams, order)),
    )

  nothing = _Pool(
    jnp.zeros((batch, num_beams, max_decode_length), jnp.int32),
    jnp.full((batch, num_beams), -jnp.inf, jnp.float32),
  )
  start = _Search(
    index=jnp.int32(0),
    # One beam: several would all say the same.
    live=nothing._replace(scores=nothing.scores.at[:, 0].set(0)),
    finished=nothing,
    current=jnp.zeros((batch * num_beams,), jnp.int32),
    cache=_repeat(cache, num_beams),
  )
  end = jax.lax.while_loop(running, advance, start)
  unended = end.live._replace(scores=end.live.scores / penalties[-1])
  return _filled(end.finished, unended)


def _check_positive(name: str, value: int) -> None:
  if value < 1:
    raise ValueError(f"expected {name} of at least 1, found {value}.")


def _stepper(
  model: Any, params: Any, encoder_input_tokens: Array, length: int
) -> Callable[[Any, Array], tuple[Array, Any]]:
  """Returns the function (cache, ids [B]) -> next logits [B, V], cache."""

  def step(cache: Any, ids: Array) -> tuple[Array, Any]:
    logits, cache = decode_step(
      model, params, cache, encoder_input_tokens, ids[:, None], length
    )
    return logits[:, 0], cache

  return step


def _candidates(search: _Search, logits: Array) -> tuple[_Pool, Array]:
  """Returns the best continuations by one token, and their beams [B, 2N].

  Twice as many as beams: each beam can end in one way only, so N of them go on.

  Args:
    search: where the search stands.
    logits: [B * N, V] of the next token.
  """
  batch, num_beams = search.live.scores.shape
  vocab = logits.shape[-1]
  log_probs = jax.nn.log_softmax(logits.astype(jnp.float32))
  totals = search.live.scores.reshape(-1, 1) + log_probs
  scores, chosen = jax.lax.top_k(
    totals.reshape(batch, -1), num_beams * min(2, vocab)
  )
  beams, added = jnp.divmod(chosen, vocab)
  tokens = _pick(search.live.tokens, beams).at[:, :, search.index].set(added)
  return _Pool(tokens, scores), beams


def _best(pool: _Pool, count: int) -> tuple[_Pool, Array]:
  """Returns the `count` best, best first, and their places [B, count]."""
  scores, order = jax.lax.top_k(pool.scores, count)
  return _Pool(_pick(pool.tokens, order), scores), order


def _filled(finished: _Pool, unended: _Pool) -> tuple[Array, Array]:
  """Returns ids and scores, best first, with the unended in empty places."""
  empty = jnp.isneginf(finished.scores)
  # The first empty place takes the best, the next one the second best.
  order = jnp.maximum(jnp.cumsum(empty, axis=1) - 1, 0)
  tokens = jnp.where(
    empty[..., None], _pick(unended.tokens, order), finished.tokens
  )
  scores = jnp.where(empty, _pick(unended.scores, order), finished.scores)
  best, _ = _best(_Pool(tokens, scores), scores.shape[1])
  absent = jnp.isneginf(best.scores)
  return jnp.where(absent[..., None], 0, best.tokens), best.scores


def _pick(x: Array, places: Array) -> Array:
  """Takes places [B, M] of x [B, N, ...] -> [B, M, ...]."""
  places = places.reshape(places.shape + (1,) * (x.ndim - 2))
  return jnp.take_along_axis(x, places, axis=1)


def _repeat(cache: Any, num_beams: int) -> Any:
  """Repeats each row of a cache; keys and values are [..., B, S, H, K]."""
  return jax.tree.map(
    lambda x: jnp.repeat(x, num_beams, axis=-4) if x.ndim >= 4 else x, cache
  )


def _reorder(cache: Any, beams: Array) -> Any:
  """Takes the beams [B, N] of each example from a cache of B * N rows.

  Keys and values without an index beside them do not grow: they belong to the
  encoder, are alike for all beams of an example and stay where they are.
  """

  def take(x: Array) -> Array:
    # Examples apart from beams: the gather never crosses the batch axis, which
    # may be spread over devices.
    lead, tail = x.shape[:-4], x.shape[-3:]
    places = beams.reshape((1,) * len(lead) + beams.shape + (1, 1, 1))
    grouped = x.reshape(lead + beams.shape + tail)
    return jnp.take_along_axis(grouped, places, axis=-4).reshape(x.shape)

  flat = flatten_dict(cache)
  return unflatten_dict(
    {
      path: take(x)
      if x.ndim >= 4 and (*path[:-1], "cache_index") in flat
      else x
      for path, x in flat.items()
    }
  )
