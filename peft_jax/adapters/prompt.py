"""Prompt tuning: learned vectors in front of the input (arXiv 2104.08691)."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from peft_jax.adapters.base import (
  Adapter,
  Array,
  Position,
  Site,
  check_choice,
  check_least,
  check_positive,
  parameter,
  uniform,
)

Start = Literal["uniform", "vocabulary", "words", "file"]
EMBEDDING = "token_embedder/embedding"


class Prompt(Adapter):
  """Puts P learned vectors in front of the encoder's embedded tokens.

  They join before the input dropout, and every input token and every decoder
  position may attend to them.

  Example:
    >>> from peft_jax import Rule
    >>> rule = Rule("encoder", Prompt(length=100, initializer="vocabulary"))
    >>> labels = Rule("encoder",
    ...   Prompt(length=100, initializer="words", words=((1465,), (2841, 7))))

  Parameters: `prompt` [P, D]. With `encoder_size` [P, D] is what a small
  network makes of `prompt`: `hidden` [D, M], `hidden_bias` [M], `out` [M, D],
  `out_bias` [D]; export drops the network.

  Attributes:
    length: P, default 100 (section 2.1).
    initializer: 'uniform' in [-scale, scale]; 'vocabulary', embeddings of
      distinct tokens drawn from the first `population` ids; 'words', the mean
      embedding of each of `words` in turn, and the vocabulary for the rest;
      'file', an array [P, D] that numpy reads. Default 'vocabulary'.
    scale: of 'uniform', default 0.5 (section 3.2).
    population: ids that 'vocabulary' draws from, the commonest ones; default
      5000 (section 3.2); 0: all.
    first: first id that 'vocabulary' may draw; default 3, past pad, end and
      unknown.
    words: token ids of each class label or word of a text.
    path: of the array of 'file'.
    encoder_size: M of the prompt's own network (P-tuning, arXiv 2103.10385); 0:
      none.

  Raises:
    ValueError: for a value out of range, a word without ids, or more words
      than P.
  """

  start_fields: ClassVar[frozenset[str]] = frozenset(
    {"initializer", "scale", "population", "first", "words", "path"}
  )

  _: dataclasses.KW_ONLY
  length: int = 100
  initializer: Start = "vocabulary"
  scale: float = 0.5
  population: int = 5000
  first: int = 3
  words: tuple[tuple[int, ...], ...] = ()
  path: str = ""
  encoder_size: int = 0

  def __post_init__(self) -> None:
    # A manifest's JSON has lists.
    words = tuple(tuple(word) for word in self.words)
    object.__setattr__(self, "words", words)
    check_positive(length=self.length, scale=self.scale)
    check_choice(
      ("uniform", "vocabulary", "words", "file"), initializer=self.initializer
    )
    check_least(0, first=self.first, population=self.population)
    if self.words and self.initializer != "words":
      raise ValueError(
        f"expected words with initializer='words' only, found them with"
        f" {self.initializer!r}, which does not use them."
      )
    needs = {"words": self.words, "file": self.path}
    if not needs.get(self.initializer, True):
      field = {"words": "words", "file": "path"}[self.initializer]
      raise ValueError(
        f"expected {field} with initializer={self.initializer!r}, found none."
      )
    for word in self.words:
      if not word or min(word) < 0:
        raise ValueError(
          f"expected every word to have token ids of 0 or more, found {word}."
        )
    if len(self.words) > self.length:
      raise ValueError(
        f"expected at most length={self.length} words, found"
        f" {len(self.words)}. Use a longer prompt or fewer words."
      )
    super().__post_init__()

  @property
  def fills_slots(self) -> bool:
    return True

  @property
  def position(self) -> Position:
    return "stack"

  @property
  def reads_backbone(self) -> bool:
    return self.initializer != "uniform"

  @property
  def reparametrized(self) -> bool:
    """Whether a network makes the prompt, which export drops."""
    return self.encoder_size > 0

  @nn.compact
  def __call__(self, site: Site) -> Array:
    """Returns the prompt [P, D]."""
    size = site.input_size
    draw = nn.initializers.constant(jnp.nan)
    if self.initializer == "uniform":
      draw = uniform(self.scale)
    prompt = parameter("prompt", draw, (self.length, size), ("prompt", "embed"))
    if not self.encoder_size:
      return prompt
    fan = nn.initializers.lecun_normal()
    mid, zeros = self.encoder_size, nn.initializers.zeros
    return _encode(
      {
        "prompt": prompt,
        "hidden": parameter(
          "hidden", fan, (size, mid), ("embed", "bottleneck")
        ),
        "hidden_bias": parameter("hidden_bias", zeros, (mid,), ("bottleneck",)),
        "out": parameter("out", fan, (mid, size), ("bottleneck", "embed")),
        "out_bias": parameter("out_bias", zeros, (size,), ("embed",)),
      }
    )

  def start(
    self,
    leaves: dict[str, Array],
    path: str,
    backbone: Mapping[str, Array],
    key: Array,
  ) -> dict[str, Array]:
    """Takes the vectors from the backbone's embeddings, or from a file.

    Raises:
      ValueError: for a file of another shape, or ids outside the vocabulary.
    """
    del path
    table = backbone[EMBEDDING]
    shape = (self.length, table.shape[1])
    if self.first >= table.shape[0]:
      raise ValueError(
        f"expected first < {table.shape[0]}, the size of the vocabulary, found"
        f" first={self.first}."
      )
    if self.initializer == "file":
      return leaves | {"prompt": jnp.asarray(self._read(shape))}
    rows = sampled(table, self.length, self.first, self.population, key)
    if self.words:
      rows = rows.at[: len(self.words)].set(self._means(table))
    return leaves | {"prompt": rows}

  def _means(self, table: Array) -> Array:
    """Returns the mean embedding of every word, [words, D]."""
    highest = max(max(word) for word in self.words)
    if highest >= table.shape[0]:
      raise ValueError(
        f"expected ids of words below {table.shape[0]}, found {highest}: they"
        " are of another vocabulary."
      )
    means = [
      jnp.mean(jnp.take(table, np.array(word), axis=0), axis=0)
      for word in self.words
    ]
    return jnp.stack(means).astype(jnp.float32)

  def _read(self, shape: tuple[int, int]) -> np.ndarray:
    array = np.load(Path(self.path))
    if array.shape != shape:
      raise ValueError(
        f"expected a prompt of shape {shape} in {self.path}, found"
        f" {array.shape}. Set length={array.shape[0]} or use another backbone."
      )
    return array.astype(np.float32)

  def flatten(
    self, leaves: dict[str, Array], shared: dict[str, Array]
  ) -> dict[str, Array]:
    """Returns the leaves of `plain`: the network's result in its place."""
    del shared
    return {"prompt": _encode(leaves)}

  def plain(self) -> "Prompt":
    """Returns the same prompt without its network."""
    return self.clone(encoder_size=0, initializer="uniform", words=(), path="")


def sampled(
  table: Array, length: int, first: int, population: int, key: Array
) -> Array:
  """Returns embeddings [P, D] of distinct tokens, where there are enough.

  Args:
    table: [V, D] embeddings.
    length: P.
    first: first id that may be drawn.
    population: number of ids to draw from; 0: all.
    key: for the draw.
  """
  end = table.shape[0]
  if population:
    end = min(end, first + population)
  ids = jax.random.choice(
    key, end - first, (length,), replace=length > end - first
  )
  return jnp.take(table, first + ids, axis=0).astype(jnp.float32)


def _encode(leaves: dict[str, Array]) -> Array:
  """Returns prompt + network(prompt), [P, D]."""
  row = lambda name: leaves[name][None, :]
  hidden = jnp.tanh(leaves["prompt"] @ leaves["hidden"] + row("hidden_bias"))
  return leaves["prompt"] + hidden @ leaves["out"] + row("out_bias")
