"""Greedy decoding, sampling and beam search over a key-value cache.

An encoder-decoder answers its input; a decoder-only network continues it.

Axis letters: B batch, N beams, T new tokens, S input length, V vocabulary, H
heads, K head dim.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap

from peft_jax import trees

Array = jax.Array
Ids = int | Sequence[int]
Formula = Literal["t5x", "hugging_face"]
_Step = Callable[[Any, Array], tuple[Array, Any]]


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
  inputs: Array,
  *,
  max_decode_length: int,
  inputs_mask: Array | None = None,
  eos_id: Ids = 1,
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
    inputs: [B, S] ids: of the encoder, or what a decoder-only network is to
      continue.
    max_decode_length: T.
    inputs_mask: [B, S] of a decoder-only network's inputs, 0 is padding, on
      whichever side; default all 1. An encoder-decoder knows its padding by id.
    eos_id: ids that end a row; they are kept in the result.

  Raises:
    ValueError: if `max_decode_length` is less than 1, or an encoder-decoder is
      given a mask.
  """

  def choose(logits: Array, index: Array) -> Array:
    del index
    return jnp.argmax(logits, axis=-1)

  cache, first = _begin(model, params, inputs, inputs_mask, max_decode_length)
  step = stepper(model, params, inputs, max_decode_length)
  return _generate(step, cache, first, choose, max_decode_length, eos_id)


def sample(
  model: Any,
  params: Any,
  inputs: Array,
  key: Array,
  *,
  max_decode_length: int,
  inputs_mask: Array | None = None,
  temperature: float = 1.0,
  top_k: int = 0,
  top_p: float = 1.0,
  rows: Array | None = None,
  eos_id: Ids = 1,
) -> Array:
  """Returns continuations that are drawn token by token, [B, T] ids.

  What is drawn for a row depends on the key, its place in the batch and its own
  text, and not on the rows beside it.

  Example:
    >>> from peft_jax import networks
    >>> network = networks.create("tiny", num_encoder_layers=1,
    ...   num_decoder_layers=1)
    >>> x = jnp.ones((2, 4), jnp.int32)
    >>> params = network.init(jax.random.key(0), x, x, x)["params"]
    >>> key = jax.random.key(1)
    >>> sample(network, params, x, key, max_decode_length=3, top_k=8).shape
    (2, 3)

  Args:
    model: network or network with adapters.
    params: its parameters.
    inputs: [B, S] ids, as in `greedy`.
    key: of the draw.
    max_decode_length: T.
    inputs_mask: [B, S], as in `greedy`.
    temperature: divides the logits; below 1 sharpens.
    top_k: draws from so many likeliest tokens; 0: from all. Ties with the last
      of them stay, as with Hugging Face.
    top_p: draws from the fewest likeliest tokens that have this probability
      together, and at least one (arXiv 1904.09751).
    rows: [B] int32, a number of each row, by which it draws: the same in
      whatever batch it is. Default: its place in this one.
    eos_id: ids that end a row; they are kept in the result.

  Raises:
    ValueError: for a value out of range; as `greedy`.
  """
  _check_positive("temperature", temperature, least=1e-6)
  _check_positive("top_k", top_k, least=0)
  if not 0 < top_p <= 1:
    raise ValueError(f"expected top_p in (0, 1], found {top_p}.")

  def choose(logits: Array, index: Array) -> Array:
    kept = _likely(logits / temperature, top_k, top_p)
    drawn = jax.random.fold_in(key, index)
    # One key per row: a row of a larger batch draws the same.
    numbers = jnp.arange(logits.shape[0]) if rows is None else rows
    keys = jax.vmap(functools.partial(jax.random.fold_in, drawn))(numbers)
    return jax.vmap(jax.random.categorical)(keys, kept)

  cache, first = _begin(model, params, inputs, inputs_mask, max_decode_length)
  step = stepper(model, params, inputs, max_decode_length)
  return _generate(step, cache, first, choose, max_decode_length, eos_id)


def _likely(logits: Array, top_k: int, top_p: float) -> Array:
  """Returns logits [B, V] with all but the likely ones at -inf."""
  if 0 < top_k < logits.shape[-1]:
    least = jax.lax.top_k(logits, top_k)[0][:, -1:]
    logits = jnp.where(logits < least, -jnp.inf, logits)
  if top_p < 1:
    ordered = jnp.sort(logits, axis=-1, descending=True)
    chances = jax.nn.softmax(ordered)
    # A token is kept while those before it have not reached top_p.
    kept = jnp.cumsum(chances, axis=-1) - chances < top_p
    least = jnp.min(jnp.where(kept, ordered, jnp.inf), axis=-1, keepdims=True)
    logits = jnp.where(logits < least, -jnp.inf, logits)
  return logits


def _generate(
  step: _Step,
  cache: Any,
  current: Array,
  choose: Callable[[Array, Array], Array],
  max_decode_length: int,
  eos_id: Ids,
) -> Array:
  """Returns [B, T] ids; `choose` takes logits [B, V] and t to ids [B]."""
  batch = current.shape[0]

  def running(loop: _Loop) -> Array:
    return (loop.index < max_decode_length) & _any(~loop.finished)

  def advance(loop: _Loop) -> _Loop:
    logits, cache = step(loop.cache, loop.current)
    best = choose(logits, loop.index).astype(jnp.int32)
    best = jnp.where(loop.finished, 0, best)
    return _Loop(
      index=loop.index + 1,
      tokens=loop.tokens.at[:, loop.index].set(best),
      current=best,
      finished=loop.finished | _is_end(best, eos_id),
      cache=cache,
    )

  start = _Loop(
    index=jnp.int32(0),
    tokens=jnp.zeros((batch, max_decode_length), jnp.int32),
    current=current,
    finished=jnp.zeros((batch,), bool),
    cache=cache,
  )
  return jax.lax.while_loop(running, advance, start).tokens


@custom_vmap
def _any(flags: Array) -> Array:
  """Whether any flag is set, of whatever `jax.vmap` runs side by side.

  Rows that have ended do not change any more, so all may wait for the last. A
  condition of each would make XLA copy every cache in every step, to choose
  between the old and the new one.
  """
  return jnp.any(flags)


@_any.def_vmap
def _any_of_all(
  axis_size: int, in_batched: list[bool], flags: Array
) -> tuple[Array, bool]:
  del axis_size, in_batched
  return _any(flags), False


def _is_end(ids: Array, eos_id: Ids) -> Array:
  ends = (eos_id,) if isinstance(eos_id, int) else tuple(eos_id)
  found = jnp.zeros(ids.shape, bool)
  for end in ends:
    found = found | (ids == end)
  return found


def _begin(
  model: Any,
  params: Any,
  inputs: Array,
  inputs_mask: Array | None,
  length: int,
) -> tuple[Any, Array]:
  """Returns the cache and the first step's input [B].

  Raises:
    ValueError: if an encoder-decoder is given a mask.
  """
  _check_positive("max_decode_length", length)
  if _is_decoder_only(model):
    return prefill(model, params, inputs, inputs_mask, length)
  if inputs_mask is not None:
    raise ValueError(
      "expected no inputs_mask with an encoder-decoder, found one: it knows"
      " padding by its id. Pad with the network's pad_id."
    )
  cache = make_cache(model, params, inputs, length)
  start_id = _config(model, "start_id", 0)
  return cache, jnp.full((inputs.shape[0],), start_id, jnp.int32)


def _is_decoder_only(model: Any) -> bool:
  return _config(model, "num_encoder_layers", 1) == 0


def _config(model: Any, field: str, default: int) -> int:
  """A field of the network's configuration; T5X's has not all of ours."""
  return getattr(getattr(model, "config", None), field, default)


def prefill(
  model: Any,
  params: Any,
  inputs: Array,
  inputs_mask: Array | None,
  length: int,
) -> tuple[Any, Array]:
  """Reads all but each row's last token into the cache of a decoder-only.

  Args:
    model: network or network with adapters.
    params: its parameters.
    inputs: [B, S] ids.
    inputs_mask: [B, S], 0 is padding; None: all 1.
    length: number of tokens that the cache holds besides.

  Returns:
    The cache and the last token of every row, [B], the next step's input.
  """
  rows, width = inputs.shape
  mask = inputs_mask
  if mask is None:
    mask = jnp.ones(inputs.shape, jnp.int32)
  _, variables = model.apply(
    {"params": params},
    jnp.ones((rows, width + length), jnp.int32),
    decode=True,
    mutable=["cache"],
  )
  last = width - 1 - jnp.argmax(mask[:, ::-1] > 0, axis=1)
  _, variables = model.apply(
    {"params": params, "cache": variables["cache"]},
    inputs,
    decoder_segment_ids=mask.at[jnp.arange(rows), last].set(0),
    decode=True,
    prefill=True,
    mutable=["cache"],
  )
  ids = jnp.take_along_axis(inputs, last[:, None], axis=1)[:, 0]
  return variables["cache"], ids.astype(jnp.int32)


def beam_search(
  model: Any,
  params: Any,
  inputs: Array,
  *,
  max_decode_length: int,
  inputs_mask: Array | None = None,
  num_beams: int = 4,
  length_penalty: float = 0.6,
  formula: Formula = "t5x",
  eos_id: Ids = 1,
) -> tuple[Array, Array]:
  """Returns the best continuations found by keeping `num_beams` at each step.

  With 't5x' a sequence's score is its log probability / ((5 + length) / 6) **
  length_penalty (Wu et al. 2016, arXiv 1609.08144), its end counted, and a row
  stops when no live beam could still beat the worst of `num_beams` finished
  ones, even if it ended at the most favourable length with probability 1. With
  'hugging_face' it is divided by length ** length_penalty, and a row stops
  when that could not happen at the present length. An end
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
    inputs: [B, S] ids, as in `greedy`.
    max_decode_length: T.
    inputs_mask: [B, S], as in `greedy`.
    num_beams: N.
    length_penalty: 0 compares plain log probabilities, more favours longer
      sequences (T5X: 0.6; Hugging Face: 1).
    formula: whose length penalty and end.
    eos_id: ids that end a sequence; they are kept in the result.

  Returns:
    Ids [B, N, T] int32, best first, 0 behind the end, and scores [B, N]
    float32. Where fewer than N have ended, the best of those that have not
    fill up, scored at length T; where there are none either, ids are 0 and the
    score is -inf.

  Raises:
    ValueError: if `num_beams` or `max_decode_length` is less than 1, or the
      formula is unknown; as `greedy`.
  """
  _check_positive("num_beams", num_beams)
  batch = inputs.shape[0]
  # Read once per example, not once per beam.
  cache, first = _begin(model, params, inputs, inputs_mask, max_decode_length)
  rows = jnp.repeat(inputs, num_beams, axis=0)
  step = stepper(model, params, rows, max_decode_length)
  penalties = _penalties(formula, max_decode_length, length_penalty)

  def running(search: _Search) -> Array:
    # Log probabilities only fall, and the largest divisor flatters them most.
    divisor = jnp.max(penalties)
    if formula == "hugging_face":
      divisor = penalties[jnp.maximum(search.index, 1) - 1]
    attainable = search.live.scores[:, 0] / divisor
    hopeful = attainable > search.finished.scores[:, -1]
    return (search.index < max_decode_length) & _any(hopeful)

  def advance(search: _Search) -> _Search:
    logits, cache = step(search.cache, search.current)
    pool, beams = _candidates(search, logits)
    added = pool.tokens[:, :, search.index]
    ended = _is_end(added, eos_id)
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
    current=jnp.repeat(first, num_beams),
    cache=_repeat(cache, num_beams),
  )
  end = jax.lax.while_loop(running, advance, start)
  unended = end.live._replace(scores=end.live.scores / penalties[-1])
  return _filled(end.finished, unended)


def _penalties(formula: str, length: int, power: float) -> Array:
  """Returns what the score of every length is divided by, [T]."""
  lengths = jnp.arange(1, length + 1, dtype=jnp.float32)
  match formula:
    case "t5x":
      return ((5 + lengths) / 6) ** power
    case "hugging_face":
      return lengths**power
  raise ValueError(
    f"expected formula to be 't5x' or 'hugging_face', found {formula!r}."
  )


def _check_positive(name: str, value: float, least: float = 1) -> None:
  if value < least:
    raise ValueError(f"expected {name} of at least {least}, found {value}.")


def log_probabilities(
  model: Any,
  params: Any,
  inputs: Array,
  answers: Array,
  *,
  inputs_mask: Array | None = None,
  eos_id: Ids = 1,
) -> Array:
  """Returns the log probability of given answers, [B, C] float32.

  The input is read once for all of its answers. What an answer has behind its
  end does not count; one without an end counts as far as it goes.

  Example:
    >>> from peft_jax import networks
    >>> network = networks.create("tiny", num_encoder_layers=1,
    ...   num_decoder_layers=1)
    >>> x = jnp.ones((2, 4), jnp.int32)
    >>> params = network.init(jax.random.key(0), x, x, x)["params"]
    >>> answers = jnp.array([[[5, 1, 0], [7, 5, 1]]] * 2)
    >>> log_probabilities(network, params, x, answers).shape
    (2, 2)

  Args:
    model: network or network with adapters.
    params: its parameters.
    inputs: [B, S] ids, as in `greedy`.
    answers: [B, C, T] ids.
    inputs_mask: [B, S], as in `greedy`.
    eos_id: ids that end an answer; they are part of it.
  """
  _, count, length = answers.shape
  cache, first = _begin(model, params, inputs, inputs_mask, length)
  ids = answers.reshape(-1, length)
  start = jnp.repeat(first, count)[:, None]
  asked = jnp.concatenate([start, ids[:, :-1]], axis=1)
  logits = _reader(model, params, jnp.repeat(inputs, count, axis=0), length)(
    _repeat(cache, count), asked
  )
  chances = jax.nn.log_softmax(logits.astype(jnp.float32))
  chances = jnp.take_along_axis(chances, ids[..., None], axis=-1)[..., 0]
  ends = _is_end(ids, eos_id).astype(jnp.int32)
  counts = jnp.cumsum(ends, axis=1) - ends == 0
  total = jnp.sum(jnp.where(counts, chances, 0.0), axis=1)
  return total.reshape(answers.shape[:2])


def _reader(
  model: Any, params: Any, inputs: Array, length: int
) -> Callable[[Any, Array], Array]:
  """Returns the function (cache, ids [B, T]) -> next logits [B, T, V]."""
  if not _is_decoder_only(model):
    return lambda cache, ids: decode_step(
      model, params, cache, inputs, ids, length
    )[0]
  return lambda cache, ids: model.apply(
    {"params": params, "cache": cache}, ids, decode=True, mutable=["cache"]
  )[0]


def stepper(model: Any, params: Any, inputs: Array, length: int) -> _Step:
  """Returns the function (cache, ids [B]) -> next logits [B, V], cache."""

  def answer(cache: Any, ids: Array) -> tuple[Array, Any]:
    logits, cache = decode_step(
      model, params, cache, inputs, ids[:, None], length
    )
    return logits[:, 0], cache

  def go_on(cache: Any, ids: Array) -> tuple[Array, Any]:
    logits, variables = model.apply(
      {"params": params, "cache": cache},
      ids[:, None],
      decode=True,
      mutable=["cache"],
    )
    return logits[:, 0], variables["cache"]

  return go_on if _is_decoder_only(model) else answer


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
  """Repeats each row of a cache.

  Keys and values are [..., B, S, H, K], the segments of all slots [B, S].
  """

  def repeat(x: Array) -> Array:
    if x.ndim >= 4:
      return jnp.repeat(x, num_beams, axis=-4)
    return jnp.repeat(x, num_beams, axis=0) if x.ndim == 2 else x

  return jax.tree.map(repeat, cache)


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

  flat = trees.flatten(cache)

  def grows(path: str) -> bool:
    module = path.rpartition("/")[0]
    return flat[path].ndim >= 4 and f"{module}/cache_index" in flat

  return trees.unflatten(
    {path: take(x) if grows(path) else x for path, x in flat.items()}
  )
