"""How answers are found, and the compiled functions that find them."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from peft_jax import choices, decoding, partition, sharding
from peft_jax.train.forward import choice_logits

Inputs = Mapping[str, jax.Array]
# [B] the rows' numbers among all that are answered, by which they draw.
ROWS = "rows"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decoding:
  """How answers are found; the default is greedy.

  Attributes:
    num_beams: sequences of a beam search; 1: none.
    length_penalty: of the beam search, T5X's formula (default 0.6, its own).
    temperature: of sampling; 0: none.
    top_k: of sampling, see `decoding.sample`.
    top_p: of sampling, see `decoding.sample`.
    seed: of sampling.
  """

  num_beams: int = 1
  length_penalty: float = 0.6
  temperature: float = 0.0
  top_k: int = 0
  top_p: float = 1.0
  seed: int = 0

  def __post_init__(self) -> None:
    if self.num_beams < 1 or self.temperature < 0:
      raise ValueError(
        "expected num_beams >= 1 and temperature >= 0, found"
        f" {self.num_beams} and {self.temperature}."
      )
    if self.num_beams > 1 and self.temperature:
      raise ValueError(
        f"expected beam search or sampling, found {self.num_beams} beams and"
        f" temperature {self.temperature}. Leave one of them out."
      )
    if (self.top_k or self.top_p != 1.0) and not self.temperature:
      raise ValueError(
        f"expected a temperature with top_k {self.top_k} and top_p"
        f" {self.top_p}, which say what to draw from, found none. Pass a"
        " temperature, 1.0 for the model's own."
      )


def make_predict(
  model: Any,
  *,
  mesh: Mesh,
  max_decode_length: int,
  eos_id: int,
  how: Decoding | None = None,
) -> Callable[[Any, Any, Inputs], jax.Array]:
  """Returns the compiled (frozen, adapter, inputs) -> ids [B, T].

  Args:
    model: network with adapters, or a network with an empty adapter.
    mesh: the mesh the parameters are on.
    max_decode_length: number of tokens to decode.
    eos_id: id that ends an answer.
    how: default greedy.
  """
  how = how or Decoding()
  ends: dict[str, Any] = {
    "max_decode_length": max_decode_length,
    "eos_id": eos_id,
  }

  @functools.partial(jax.jit, out_shardings=sharding.replicated(mesh))
  def predict(frozen: Any, adapter: Any, inputs: Inputs) -> jax.Array:
    params = partition.join(frozen, adapter)
    asked = {name: x for name, x in inputs.items() if name != ROWS}
    if how.num_beams > 1:
      found, _ = decoding.beam_search(
        model,
        params,
        **asked,
        **ends,
        num_beams=how.num_beams,
        length_penalty=how.length_penalty,
      )
      return found[:, 0]
    if how.temperature:
      return decoding.sample(
        model,
        params,
        **asked,
        **ends,
        key=jax.random.key(how.seed),
        temperature=how.temperature,
        top_k=how.top_k,
        top_p=how.top_p,
        rows=inputs[ROWS],
      )
    return decoding.greedy(model, params, **asked, **ends)

  return predict


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ranking:
  """The answer is the choice with the best score, the first of equals.

  Attributes:
    length_norm: exponent of the length that a choice's negative log-probability
      is divided by: 1 is a mean over tokens (T-Few's), 0 the sum (T0's).
    calibrated: takes away what each choice scores without the input, see
      `choices.calibrated`.
    choices_per_chunk: choices of an example that are scored at a time, to save
      memory; 0: all.
  """

  length_norm: float = 1.0
  calibrated: bool = False
  choices_per_chunk: int = 0

  def __post_init__(self) -> None:
    if self.choices_per_chunk < 0:
      raise ValueError(
        f"expected choices_per_chunk >= 0, found {self.choices_per_chunk}."
      )


Answering = Decoding | Ranking


def make_rank(
  model: Any, *, mesh: Mesh, how: Ranking | None = None
) -> Callable[[Any, Any, Inputs], jax.Array]:
  """Returns the compiled (frozen, adapter, batch) -> scores [B, C].

  The batch is one of answer choices, see `features.Features.choices`; the
  lowest score is the best.

  Args:
    model: network with adapters, or a network with an empty adapter.
    mesh: the mesh the parameters are on.
    how: default T-Few's.
  """
  how = how or Ranking()

  def score(params: Any, batch: Inputs) -> jax.Array:
    logits = choice_logits(model, params, batch, enable_dropout=False)
    return choices.scores(
      logits,
      batch["decoder_target_tokens"],
      batch["decoder_loss_weights"],
      length_norm=how.length_norm,
    )

  @functools.partial(jax.jit, out_shardings=sharding.replicated(mesh))
  def rank(frozen: Any, adapter: Any, batch: Inputs) -> jax.Array:
    params = partition.join(frozen, adapter)
    count = batch["decoder_target_tokens"].shape[1]
    size = how.choices_per_chunk or count
    rows = {k: x for k, x in batch.items() if k.startswith("decoder_")}
    rest = {k: x for k, x in batch.items() if k not in rows}
    chunks = {k: _chunks(x, size) for k, x in rows.items()}
    # [chunks, B, choices of a chunk]
    found = jax.lax.map(lambda chunk: score(params, rest | chunk), chunks)
    found = jnp.moveaxis(found, 0, 1)
    return found.reshape(found.shape[0], -1)[:, :count]

  return rank


def _chunks(x: jax.Array, size: int) -> jax.Array:
  """x: [B, C, T] -> [C / size, B, size, T], filled up with absent choices."""
  missing = -x.shape[1] % size
  x = jnp.pad(x, [(0, 0), (0, missing), (0, 0)])
  x = x.reshape(x.shape[0], -1, size, x.shape[-1])
  return jnp.moveaxis(x, 1, 0)
