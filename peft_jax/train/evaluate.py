"""Evaluation: decoding and the task's own SeqIO metric functions."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from peft_jax import decoding, partition, sharding
from peft_jax.train import data
from peft_jax.train.data import EvalSet

Inputs = Mapping[str, jax.Array]
# [B] the rows' numbers among all that are answered, by which they draw.
ROWS = "rows"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
  """What a model predicts on one task.

  Attributes:
    task: name of the task.
    metrics: metric -> value, as the task's metric functions give it.
    inputs: the examples' inputs as text.
    targets: the expected answers, post-processed.
    predictions: the model's answers, post-processed.
  """

  task: str
  metrics: Mapping[str, float]
  inputs: Sequence[str]
  targets: Sequence[Any]
  predictions: Sequence[Any]


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


def predict_tokens(
  predict: Callable[[Inputs], jax.Array],
  inputs: Mapping[str, np.ndarray],
  *,
  batch_size: int,
  mesh: Mesh,
) -> np.ndarray:
  """Returns the decoded ids [N, T] of inputs, all [N, S].

  The result does not depend on the batch size: padding is masked everywhere.

  Args:
    predict: inputs [B, S] on the devices -> [B, T] ids.
    inputs: what `decoding.greedy` is given; rows are numbered here.
    batch_size: B.
    mesh: the mesh the batches are placed on.
  """
  place = sharding.batch_sharding(mesh)
  share = batch_size // jax.process_count()
  first = jax.process_index() * share
  count = len(next(iter(inputs.values())))
  inputs = {**inputs, ROWS: np.arange(count, dtype=np.int32)}
  decoded = []
  for batch, real in data.padded_batches(inputs, batch_size):
    own = {name: rows[first : first + share] for name, rows in batch.items()}
    ids = predict(data.to_devices(own, place))
    decoded.append(np.asarray(ids)[:real])
  return np.concatenate(decoded)


def evaluate(
  predict: Callable[[Inputs], jax.Array],
  eval_set: EvalSet,
  *,
  batch_size: int,
  mesh: Mesh,
) -> Evaluation:
  """Returns predictions and metrics on one task.

  Args:
    predict: inputs [B, S] on the devices -> [B, T] ids.
    eval_set: the examples.
    batch_size: B.
    mesh: the mesh the batches are placed on.
  """
  task = eval_set.task
  decoded = predict_tokens(
    predict,
    eval_set.inputs,
    batch_size=batch_size,
    mesh=mesh,
  )
  vocabulary = task.output_features["targets"].vocabulary
  targets, predictions = [], []
  for example, ids in zip(eval_set.examples, decoded, strict=True):
    wanted = _text(example.get("targets_pretokenized"), vocabulary, example)
    targets.append(task.postprocess_fn(wanted, example=example, is_target=True))
    predictions.append(
      task.postprocess_fn(
        decode(vocabulary, ids), example=example, is_target=False
      )
    )
  metrics: dict[str, Any] = {}
  for metric in task.predict_metric_fns:
    metrics.update(metric(targets, predictions))
  return Evaluation(
    task=task.name,
    metrics={name: float(value) for name, value in metrics.items()},
    inputs=[_input_text(example, task) for example in eval_set.examples],
    targets=targets,
    predictions=predictions,
  )


def decode(vocabulary: Any, ids: np.ndarray) -> str:
  """Returns the text of ids up to the end-of-sequence id.

  Args:
    vocabulary: a SeqIO vocabulary.
    ids: [T].
  """
  kept = []
  for token in ids.tolist():
    if token == vocabulary.eos_id:
      break
    kept.append(token)
  return vocabulary.decode(kept)


def _text(pretokenized: Any, vocabulary: Any, example: Mapping) -> str:
  if pretokenized is None:
    return decode(vocabulary, example["targets"])
  return pretokenized.decode()


def _input_text(example: Mapping[str, Any], task: Any) -> str:
  found = example.get("inputs_pretokenized")
  if found is not None:
    return found.decode()
  return decode(task.output_features["inputs"].vocabulary, example["inputs"])
