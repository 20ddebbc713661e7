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
from peft_jax.train.data import Asked, EvalSet
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
  how: Answering, model: Any, *, mesh: Mesh, sets: Sequence[Asked]
) -> Callable[[Any, Any, Inputs], jax.Array]:
  """Returns the compiled (frozen, adapter, inputs) -> what `evaluate` takes.

  Args:
    how: answers are found.
    model: network with adapters, or a network with an empty adapter.
    mesh: the mesh the parameters are on.
    sets: what will be asked.
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


def check(how: Answering, sets: Sequence[Asked]) -> None:
  """Raises if answers cannot be found so, before anything is computed.

  Raises:
    DataError: if a ranking lacks answer choices, or one is too long.
  """
  if isinstance(how, Ranking):
    for asked in sets:
      _ = asked.choices


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
  texts, scores = answers(
    predict, eval_set, how, batch_size=batch_size, mesh=mesh
  )
  return judge(eval_set, texts, scores)


def judge(
  eval_set: EvalSet,
  texts: Sequence[str],
  scores: Sequence[Sequence[float]] | None = None,
) -> Evaluation:
  """Returns the task's metrics of answers.

  Args:
    eval_set: the examples.
    texts: an answer for each.
    scores: of a ranking, those of each example's choices.
  """
  task = eval_set.task
  vocabulary = eval_set.vocabulary
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
  named = None
  if scores is not None:
    named = [
      dict(zip(eval_set.choice_texts(row), found, strict=True))
      for row, found in enumerate(scores)
    ]
  return Evaluation(
    task=task.name,
    metrics={name: float(value) for name, value in metrics.items()},
    inputs=[_input_text(example, task) for example in eval_set.examples],
    targets=targets,
    predictions=predictions,
    scores=named,
  )


def answers(
  predict: Predict,
  asked: Asked,
  how: Answering,
  *,
  batch_size: int,
  mesh: Mesh,
) -> tuple[list[str], list[list[float]] | None]:
  """Returns the text of every answer, and of a ranking its choices' scores.

  Args:
    predict: from `answering`, with its parameters.
    asked: the examples.
    how: answers are found, as given to `answering`.
    batch_size: B.
    mesh: the mesh the batches are placed on.
  """
  if not isinstance(how, Ranking):
    ids = predict_tokens(
      predict, asked.inputs, batch_size=batch_size, mesh=mesh
    )
    return [decode(asked.vocabulary, row) for row in ids], None
  found = choice_scores(
    predict,
    asked.choices,
    without_input=asked.blank_choices if how.calibrated else None,
    batch_size=batch_size,
    mesh=mesh,
  )
  return best_choices(asked, found)


def best_choices(
  asked: Asked, scores: np.ndarray
) -> tuple[list[str], list[list[float]]]:
  """Returns each example's choice with the lowest score, and its own scores.

  Args:
    asked: N examples.
    scores: [N, C], of absent choices too.
  """
  names = [asked.choice_texts(row) for row in range(len(scores))]
  best = np.argmin(scores, axis=1).tolist()
  return (
    [texts[choice] for texts, choice in zip(names, best, strict=True)],
    [
      row[: len(texts)].tolist()
      for texts, row in zip(names, scores, strict=True)
    ],
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
