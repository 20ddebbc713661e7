"""Decoding as evaluation does it: how, and the compiled function."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from peft_jax import decoding, partition, sharding

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
