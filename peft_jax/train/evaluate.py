"""Evaluation: decoding or ranking, and the task's own SeqIO metrics."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from peft_jax import choices, sharding
from peft_jax.train import data
from peft_jax.train.data import EvalSet
from peft_jax.train.predict import (
  ROWS,
  Answering,
  Inputs,
  Ranking,
  make_predict,
  make_rank,
)

# Inputs on the devices -> ids [B, T], or scores [B, C].
Predict = Callable[[Inputs], jax.Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
  """What a model predicts on one task.

  Attributes:
    task: name of the task.
    metrics: metric -> value, as the task's metric functions give it.
    inputs: the examples' inputs as text.
    targets: the expected answers, post-processed.
    predictions: the model's answers, post-processed.
    scores: of a ranking, choice -> score for every example; the lowest is the
      answer's.
  """

  task: str
  metrics: Mapping[str, float]
  inputs: Sequence[str]
  targets: Sequence[Any]
  predictions: Sequence[Any]
  scores: Sequence[Mapping[str, float]] | None = None


def answering(
  how: Answering, model: Any, *, mesh: Mesh, sets: Sequence[EvalSet]
) -> Callable[[Any, Any, Inputs], jax.Array]:
  """Returns the compiled (frozen, adapter, inputs) -> what `evaluate` takes.

  Args:
    how: answers are found.
    model: network with adapters, or a network with an empty adapter.
    mesh: the mesh the parameters are on.
    sets: what will be evaluated.
  """
  if isinstance(how, Ranking):
    return make_rank(model, mesh=mesh, how=how)
  return make_predict(
    model,
    mesh=mesh,
    max_decode_length=sets[0].lengths["targets"],
    eos_id=sets[0].eos_id,
    how=how,
  )


def check(how: Answering, sets: Sequence[EvalSet]) -> None:
  """Raises if answers cannot be found so, before anything is computed.

  Raises:
    DataError: if a ranking lacks answer choices, or one is too long.
  """
  if isinstance(how, Ranking):
    for eval_set in sets:
      _ = eval_set.choices


def predict_rows(
  predict: Predict,
  inputs: Mapping[str, np.ndarray],
  *,
  batch_size: int,
  mesh: Mesh,
) -> np.ndarray:
  """Returns what is predicted of all rows: ids [N, T], or scores [N, C].

  The result does not depend on the batch size: padding is masked everywhere.

  Args:
    predict: inputs on the devices -> one row for each.
    inputs: what `decoding.greedy` is given, or what is ranked; all [N, ...].
    batch_size: B.
    mesh: the mesh the batches are placed on.
  """
  place = sharding.batch_sharding(mesh)
  found = []
  for batch, real in data.padded_batches(inputs, batch_size):
    rows = predict(data.to_devices(batch, place))
    found.append(np.asarray(rows)[:real])
  return np.concatenate(found)


def predict_tokens(
  predict: Predict,
  inputs: Mapping[str, np.ndarray],
  *,
  batch_size: int,
  mesh: Mesh,
) -> np.ndarray:
  """Returns the decoded ids [N, T]; rows are numbered, see `predict_rows`."""
  count = len(next(iter(inputs.values())))
  numbered = {**inputs, ROWS: np.arange(count, dtype=np.int32)}
  return predict_rows(predict, numbered, batch_size=batch_size, mesh=mesh)


def choice_scores(
  predict: Predict,
  batch: Mapping[str, np.ndarray],
  *,
  without_input: Mapping[str, np.ndarray] | None = None,
  batch_size: int,
  mesh: Mesh,
) -> np.ndarray:
  """Returns the scores [N, C] of answer choices; the lowest is the answer's.

  Args:
    predict: from `answering`, with its parameters.
    batch: what is ranked, all [N, ...]; see `features.Features.choices`.
    without_input: the same behind an input of no text, to calibrate by.
    batch_size: B.
    mesh: the mesh the batches are placed on.
  """

  def scores(rows: Mapping[str, np.ndarray]) -> np.ndarray:
    rows = {name: x for name, x in rows.items() if name != "labels"}
    return predict_rows(predict, rows, batch_size=batch_size, mesh=mesh)

  found = scores(batch)
  if without_input is None:
    return found
  alone = scores(without_input)
  return np.asarray(choices.calibrated(jnp.array(found), jnp.array(alone)))


def evaluate(
  predict: Predict,
  eval_set: EvalSet,
  *,
  how: Answering,
  batch_size: int,
  mesh: Mesh,
) -> Evaluation:
  """Returns predictions and metrics on one task.

  Args:
    predict: from `answering`, with its parameters.
    eval_set: the examples.
    how: answers are found, as given to `answering`.
    batch_size: B.
    mesh: the mesh the batches are placed on.
  """
  texts, scores = answers(predict, eval_set, how, batch_size, mesh)
  return judge(eval_set, texts, scores)


def judge(
  eval_set: EvalSet,
  texts: Sequence[str],
  scores: Sequence[Mapping[str, float]] | None = None,
) -> Evaluation:
  """Returns the task's metrics of answers.

  Args:
    eval_set: the examples.
    texts: an answer for each.
    scores: see `Evaluation`.
  """
  task = eval_set.task
  vocabulary = task.output_features["targets"].vocabulary
  targets, predictions = [], []
  for example, text in zip(eval_set.examples, texts, strict=True):
    wanted = _text(example.get("targets_pretokenized"), vocabulary, example)
    targets.append(task.postprocess_fn(wanted, example=example, is_target=True))
    predictions.append(
      task.postprocess_fn(text, example=example, is_target=False)
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
    scores=scores,
  )


def answers(
  predict: Predict,
  eval_set: EvalSet,
  how: Answering,
  batch_size: int,
  mesh: Mesh,
) -> tuple[list[str], list[dict[str, float]] | None]:
  """Returns the text of every answer, and of a ranking all scores.

  Args:
    predict: from `answering`, with its parameters.
    eval_set: the examples.
    how: answers are found, as given to `answering`.
    batch_size: B.
    mesh: the mesh the batches are placed on.
  """
  if not isinstance(how, Ranking):
    vocabulary = eval_set.task.output_features["targets"].vocabulary
    ids = predict_tokens(
      predict, eval_set.inputs, batch_size=batch_size, mesh=mesh
    )
    return [decode(vocabulary, row) for row in ids], None
  found = choice_scores(
    predict,
    eval_set.choices,
    without_input=eval_set.blank_choices if how.calibrated else None,
    batch_size=batch_size,
    mesh=mesh,
  )
  texts, scores = [], []
  for row, best in enumerate(np.argmin(found, axis=1).tolist()):
    names = eval_set.choice_texts(row)
    texts.append(names[best])
    scores.append(dict(zip(names, found[row].tolist(), strict=False)))
  return texts, scores


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
