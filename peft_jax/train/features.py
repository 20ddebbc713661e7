"""From a task's tokens to what a network is called with.

An encoder-decoder reads the inputs and is asked for the targets. A decoder-only
network reads both as one text: begin, inputs, targets, end.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

import numpy as np
import seqio
import tensorflow as tf

from peft_jax.tasks.preprocessors import CHOICES, LABEL
from peft_jax.tasks.sources import DataError
from peft_jax.train.config import Config, ConfigError
from peft_jax.train.objective import AnswerChoices

Dataset = tf.data.Dataset
LossOn = Literal["targets", "all"]

_TEXT = ("decoder_input_tokens", "decoder_target_tokens")


class Features(Protocol):
  """Turns a dataset of `inputs` and `targets` into a network's features."""

  def train(self, dataset: Dataset, lengths: Mapping[str, int]) -> Dataset:
    """Returns rows of one length, for training."""
    ...

  def inputs(
    self, examples: Sequence[Mapping[str, Any]], lengths: Mapping[str, int]
  ) -> dict[str, np.ndarray]:
    """Returns what `decoding` continues or answers, all [N, S]."""
    ...

  def choices(
    self,
    examples: Sequence[Mapping[str, Any]],
    lengths: Mapping[str, int],
    *,
    width: int = 0,
  ) -> dict[str, np.ndarray]:
    """Returns the features of examples with their answer choices.

    Args:
      examples: with `inputs`, `choices` and perhaps `label`.
      lengths: feature -> tokens; a choice is as long as `targets` may be.
      width: C, examples with fewer choices are filled up; default: as many as
        one of these has.

    Returns:
      `decoder_*` features [N, C, T]; `labels` [N], -1 where not known;
      `encoder_input_tokens` [N, S] of an encoder-decoder.
    """
    ...


def of(config: Config, task: Any) -> Features:
  """Returns the features of a run's network, see `for_network`."""
  vocabulary = task.output_features["targets"].vocabulary
  return for_network(config, vocabulary)


def for_network(config: Config, vocabulary: seqio.Vocabulary) -> Features:
  """Returns the features of a run's network.

  Args:
    config: the run's.
    vocabulary: of inputs and targets.

  Raises:
    ConfigError: for settings of decoder-only networks with another.
  """
  network = config.network.config
  one_text = config.pack or config.loss_on != "targets"
  if one_text and isinstance(config.objective, AnswerChoices):
    raise ConfigError(
      "expected PACK = False and LOSS_ON = 'targets' with a loss over answer"
      f" choices, found {config.pack} and {config.loss_on!r}."
    )
  if getattr(network, "num_encoder_layers", 1):
    if config.loss_on != "targets" or config.prefix_lm:
      raise ConfigError(
        "expected LOSS_ON = 'targets' and PREFIX_LM = False with an encoder-"
        f"decoder, found {config.loss_on!r} and {config.prefix_lm}."
      )
    return EncoderDecoder(
      pack=config.pack,
      end=end_id(vocabulary),
      cut=config.allow_cut_targets,
    )
  return Text(
    begin=begin_id(vocabulary),
    end=end_id(vocabulary),
    loss_on=config.loss_on,
    prefix_lm=config.prefix_lm,
    pack=config.pack,
    cut=config.allow_cut_targets,
  )


def begin_id(vocabulary: seqio.Vocabulary) -> int:
  """Returns the id that a text begins with: begin, or end if there is none."""
  try:
    begin = vocabulary.bos_id
  except NotImplementedError:
    begin = None
  if begin is None or begin < 0:
    begin = vocabulary.eos_id
  return int(begin or 0)


def end_id(vocabulary: seqio.Vocabulary) -> int:
  """Returns the id that ends an answer.

  Raises:
    ConfigError: if the vocabulary has none: answers would never end.
  """
  if vocabulary.eos_id is None:
    raise ConfigError(
      "expected a vocabulary with an end-of-sequence id, found none in"
      f" {type(vocabulary).__name__}. Name the token in its configuration."
    )
  return int(vocabulary.eos_id)


def split_choices(ids: np.ndarray, end: int) -> list[list[int]]:
  """Returns the ids of each choice, its end included.

  Example:
    >>> split_choices(np.array([7, 1, 8, 9, 1]), end=1)
    [[7, 1], [8, 9, 1]]

  Args:
    ids: of all choices, one after the other; see `preprocessors.tokenize`.
    end: the id that ends each.
  """
  stops = np.flatnonzero(ids == end) + 1
  return [part.tolist() for part in np.split(ids, stops)[:-1]]


def most_choices(examples: Sequence[Mapping[str, Any]], end: int) -> int:
  """Returns the largest number of choices that one of the examples has.

  Raises:
    DataError: if one has none.
  """
  for example in examples:
    if CHOICES not in example:
      raise DataError(
        "expected examples with answer choices, found one without. Use a task"
        " that has them: SuperGLUE's, or own files with ANSWER_CHOICES or with"
        " 'choices' in every row."
      )
  return max(int(np.sum(example[CHOICES] == end)) for example in examples)


def longest_choice(example: Mapping[str, Any], end: int) -> int:
  """Returns the tokens of an example's longest choice, its end included.

  Example:
    >>> longest_choice({"choices": [7, 1, 8, 9, 1]}, end=1)
    3
  """
  return max(map(len, split_choices(np.asarray(example[CHOICES]), end)))


def _choices_of(
  example: Mapping[str, Any], end: int, width: int, longest: int, cut: bool
) -> list[list[int]]:
  """Returns an example's choices, checked against what a batch holds."""
  found = split_choices(np.asarray(example[CHOICES]), end)
  if len(found) > width:
    raise DataError(
      f"expected at most {width} answer choices, found {len(found)}. Set"
      f" MAX_CHOICES = {len(found)}."
    )
  length = max(map(len, found))
  if length > longest and not cut:
    raise DataError(
      f"expected answer choices of at most {longest} tokens, found one of"
      f" {length}. Set TASK_FEATURE_LENGTHS['targets'] to {length}, or"
      " ALLOW_CUT_TARGETS = True."
    )
  # As SeqIO and T-Few cut a target: it keeps its end.
  return [
    ids if len(ids) <= longest else [*ids[: longest - 1], end] for ids in found
  ]


def _labels(examples: Sequence[Mapping[str, Any]]) -> np.ndarray:
  return np.array([int(e.get(LABEL, -1)) for e in examples], np.int32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderDecoder:
  """As SeqIO has it.

  Attributes:
    pack: whether several examples share a row in training.
    end: id that ends an answer choice.
    cut: whether an answer choice that is too long is cut, or an error.
  """

  pack: bool = False
  end: int = 1
  cut: bool = False

  def train(self, dataset: Dataset, lengths: Mapping[str, int]) -> Dataset:
    """Returns rows of `encoder_*` and `decoder_*` features."""
    converter = seqio.EncDecFeatureConverter(pack=self.pack)
    return converter(dataset, dict(lengths))

  def inputs(
    self, examples: Sequence[Mapping[str, Any]], lengths: Mapping[str, int]
  ) -> dict[str, np.ndarray]:
    """Returns `inputs` [N, S], padded with 0."""
    tokens = np.zeros((len(examples), lengths["inputs"]), np.int32)
    for row, example in enumerate(examples):
      ids = np.asarray(example["inputs"])[: lengths["inputs"]]
      tokens[row, : len(ids)] = ids
    return {"inputs": tokens}

  def choices(
    self,
    examples: Sequence[Mapping[str, Any]],
    lengths: Mapping[str, int],
    *,
    width: int = 0,
  ) -> dict[str, np.ndarray]:
    """Returns `encoder_input_tokens`, and a row of the decoder per choice."""
    width = width or most_choices(examples, self.end)
    shape = (len(examples), width, lengths["targets"])
    targets, weights = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    for row, example in enumerate(examples):
      found = _choices_of(example, self.end, width, shape[-1], self.cut)
      for place, ids in enumerate(found):
        targets[row, place, : len(ids)] = ids
        weights[row, place, : len(ids)] = 1
    begun = np.pad(targets, [(0, 0), (0, 0), (1, 0)])[..., :-1]
    return {
      "encoder_input_tokens": self.inputs(examples, lengths)["inputs"],
      "decoder_input_tokens": begun,
      "decoder_target_tokens": targets,
      "decoder_loss_weights": weights,
      "labels": _labels(examples),
    }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Text:
  """One text of inputs and targets, for decoder-only networks.

  Attributes:
    begin: id in front of every text.
    end: id that ends a text; that of the inputs is taken away.
    loss_on: 'targets', the answer alone, or 'all', the inputs too, as
      LLM-Adapters does by default.
    prefix_lm: whether the inputs see one another in both directions.
    pack: whether several texts share a row in training.
    cut: whether an answer choice that is too long is cut, or an error.
  """

  begin: int
  end: int
  loss_on: LossOn = "targets"
  prefix_lm: bool = False
  pack: bool = False
  cut: bool = False

  def train(self, dataset: Dataset, lengths: Mapping[str, int]) -> Dataset:
    """Returns rows of `decoder_*` features, inputs + targets long."""
    total = lengths["inputs"] + lengths["targets"]
    rows = dataset.map(
      lambda example: self._text(example, lengths), tf.data.AUTOTUNE
    )
    if self.pack:
      return self._packed(rows, total)
    return rows.map(
      lambda row: {
        name: tf.pad(x, [(0, total - tf.shape(x)[0])])  # pyright: ignore
        for name, x in row.items()
      }
    ).map(lambda row: {k: tf.ensure_shape(v, [total]) for k, v in row.items()})

  def _text(
    self, example: Mapping[str, tf.Tensor], lengths: Mapping[str, int]
  ) -> dict[str, tf.Tensor]:
    """Returns one text, not padded."""
    inputs = tf.cast(example["inputs"], tf.int32)
    # A task ends its inputs for T5; here the text goes on.
    inputs = tf.cond(
      tf.logical_and(tf.size(inputs) > 0, inputs[-1] == self.end),
      lambda: inputs[:-1],
      lambda: inputs,
    )[: lengths["inputs"]]
    targets = tf.cast(example["targets"], tf.int32)[: lengths["targets"]]
    tokens = tf.concat([inputs, targets], 0)
    asked = tf.zeros_like(inputs) + int(self.loss_on == "all")
    row = {
      "decoder_input_tokens": tf.concat([[self.begin], tokens[:-1]], 0),
      "decoder_target_tokens": tokens,
      "decoder_loss_weights": tf.concat([asked, tf.ones_like(targets)], 0),
    }
    if self.prefix_lm:
      seen = tf.concat([[1], tf.ones_like(inputs)], 0)
      rest = tf.zeros_like(targets)
      row["decoder_causal_attention"] = tf.concat([seen, rest], 0)[
        : tf.size(tokens)
      ]
    return row

  def _packed(self, rows: Dataset, total: int) -> Dataset:
    """Puts several texts into a row, each a segment of its own."""
    # SeqIO takes 0 for padding, which may be a real token or a weight here.
    shifted = rows.map(lambda row: {k: v + 1 for k, v in row.items()})
    names: Any = rows.element_spec
    lengths = dict.fromkeys(names, total)
    packed = seqio.utils.trim_and_pack_dataset(shifted, lengths)

    def finish(row: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
      found = {
        name: tf.maximum(tf.cast(row[name], tf.int32) - 1, 0)
        for name in lengths
      }
      first = "decoder_input_tokens"
      found["decoder_segment_ids"] = row[f"{first}_segment_ids"]
      found["decoder_positions"] = row[f"{first}_positions"]
      return found

    return packed.map(finish)

  def inputs(
    self, examples: Sequence[Mapping[str, Any]], lengths: Mapping[str, int]
  ) -> dict[str, np.ndarray]:
    """Returns `inputs` and `inputs_mask`, [N, 1 + S], padded behind."""
    shape = (len(examples), 1 + lengths["inputs"])
    tokens, mask = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    for row, example in enumerate(examples):
      ids = self._asked(example, lengths)
      tokens[row, : len(ids)], mask[row, : len(ids)] = ids, 1
    return {"inputs": tokens, "inputs_mask": mask}

  def choices(
    self,
    examples: Sequence[Mapping[str, Any]],
    lengths: Mapping[str, int],
    *,
    width: int = 0,
  ) -> dict[str, np.ndarray]:
    """Returns a whole text per choice; its weights are the choice's."""
    width = width or most_choices(examples, self.end)
    shape = (len(examples), width, lengths["inputs"] + lengths["targets"])
    names = (*_TEXT, "decoder_loss_weights")
    found = {name: np.zeros(shape, np.int32) for name in names}
    if self.prefix_lm:
      found["decoder_causal_attention"] = np.zeros(shape, np.int32)
    for row, example in enumerate(examples):
      inputs = self._asked(example, lengths)
      choices = _choices_of(
        example, self.end, width, lengths["targets"], self.cut
      )
      for place, ids in enumerate(choices):
        at, size = (row, place), len(inputs) - 1 + len(ids)
        found["decoder_input_tokens"][at][:size] = [*inputs, *ids[:-1]]
        found["decoder_target_tokens"][at][:size] = [*inputs[1:], *ids]
        found["decoder_loss_weights"][at][len(inputs) - 1 : size] = 1
        if self.prefix_lm:
          found["decoder_causal_attention"][at][: len(inputs)] = 1
    return {**found, "labels": _labels(examples)}

  def _asked(
    self, example: Mapping[str, Any], lengths: Mapping[str, int]
  ) -> list[int]:
    """Returns begin and inputs, cut; a task's end of the inputs is dropped."""
    ids = np.asarray(example["inputs"]).tolist()
    ids = ids[:-1] if ids and ids[-1] == self.end else ids
    return [self.begin, *ids[: lengths["inputs"]]]
