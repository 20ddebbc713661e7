"""Several trained adapters, evaluated and asked as one (see `ensemble`)."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from peft_jax import checkpoint, decoding, ensemble, layout, partition, sharding
from peft_jax.ensemble import Vote
from peft_jax.train import checkpoints, data, evaluate, opened
from peft_jax.train.data import Asked
from peft_jax.train.evaluate import Evaluation
from peft_jax.train.opened import Opened
from peft_jax.train.predict import (
  ROWS,
  Answering,
  Decoding,
  Ranking,
  make_predict,
  make_rank,
)

# [B, N, T] what each adapter answered, beside a batch's inputs.
_ANSWERS = "answers"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Members:
  """Several adapters over one backbone.

  Attributes:
    sources: where they lie, in their order.
    opened: the first of them, with the backbone; its settings hold for all.
    adapters: their leaves, [N, ...] each.
  """

  sources: tuple[str, ...]
  opened: Opened
  adapters: Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Voted:
  """What several adapters answer on one task.

  Attributes:
    ensemble: the answers they gave together.
    members: those of each, in their order.
    probabilities: of the answers together; empty with a majority.
  """

  ensemble: Evaluation
  members: Sequence[Evaluation]
  probabilities: Sequence[float] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Answers:
  """Answers to E examples.

  Attributes:
    members: N lists of E texts.
    chosen: E texts.
    probabilities: of these; empty with a majority.
    scores: of a ranking, N lists of E lists, a score per choice.
  """

  members: Sequence[Sequence[str]]
  chosen: Sequence[str]
  probabilities: Sequence[float] = ()
  scores: Sequence[Sequence[Sequence[float]]] = ()


def open_members(
  directories: Sequence[str | Path],
  *,
  bindings: Sequence[str] = (),
  search_paths: Sequence[str] = (),
) -> Members:
  """Opens runs or exported adapters that shall answer together.

  Args:
    directories: N of them, in the order that ties are decided by.
    bindings: see `opened.open_adapter`.
    search_paths: see `config.resolve`.

  Raises:
    EnsembleError: if they cannot (see `ensemble.check_alike`).
    ValueError: as `opened.open_adapter`.
  """
  sources = tuple(map(str, directories))
  if len(sources) < 2 or len(set(sources)) < len(sources):
    raise ensemble.EnsembleError(
      "expected two different adapters or more, found"
      f" {', '.join(sources) or 'none'}. Name each once."
    )
  read = {source: checkpoints.load_adapter(source) for source in sources}
  ensemble.check_alike({place: found for place, (found, _) in read.items()})
  first = opened.open_adapter(
    sources[0], bindings=bindings, search_paths=search_paths
  )
  with sharding.use(first.mesh):
    adapters = []
    for source, (_, leaves) in read.items():
      checkpoint.check_fits(leaves, first.adapter, source=source)
      adapters.append(
        jax.tree.map(
          lambda leaf, like: jax.device_put(leaf, like.sharding),
          layout.like(leaves, first.adapter),
          first.adapter,
        )
      )
    stacked = ensemble.stack(adapters)
  return Members(sources=sources, opened=first, adapters=stacked)


def evaluate_task(
  members: Members, *, how: Answering | None = None, vote: Vote = "majority"
) -> list[Voted]:
  """Returns what the adapters answer, one result per task of theirs.

  Args:
    members: the adapters.
    how: answers are found; default: as the first run's evaluations did.
    vote: how one is chosen.
  """
  ensemble.check_vote(vote)
  config = members.opened.config
  how = how or config.answer_by
  sets = data.configured_sets(config, data.get_task(config))
  evaluate.check(how, sets)
  voted = []
  for eval_set in sets:
    found = _answers(members, eval_set, how, vote)
    scores = found.scores or [None] * len(members.sources)
    voted.append(
      Voted(
        ensemble=evaluate.judge(eval_set, found.chosen),
        members=[
          evaluate.judge(eval_set, texts, of)
          for texts, of in zip(found.members, scores, strict=True)
        ],
        probabilities=found.probabilities,
      )
    )
  return voted


def rows_of(voted: Voted) -> list[dict[str, Any]]:
  """Returns one row per example: what was asked, and all answers."""
  found = voted.ensemble
  rows = []
  for i, target in enumerate(found.targets):
    row = {"task": found.task, "input": found.inputs[i], "target": target}
    row["prediction"] = found.predictions[i]
    if voted.probabilities:
      row["probability"] = voted.probabilities[i]
    row["member_predictions"] = [one.predictions[i] for one in voted.members]
    rows.append(row)
  return rows


def infer(
  members: Members,
  rows: Sequence[Mapping[str, Any]],
  *,
  how: Answering | None = None,
  vote: Vote = "majority",
) -> list[dict[str, Any]]:
  """Returns the rows with `prediction` and `member_predictions` each.

  With 'probability' they have that of the prediction besides.

  Args:
    members: the adapters.
    rows: see `opened.infer`.
    how: answers are found; default: as the first run's evaluations did.
    vote: how one is chosen.

  Raises:
    DataError: see `opened.infer`.
  """
  ensemble.check_vote(vote)
  config = members.opened.config
  how = how or config.answer_by
  asked = opened.asked_of(config, rows, how)
  found = _answers(members, asked, how, vote)
  answered = []
  for i, row in enumerate(rows):
    answer: dict[str, Any] = {"prediction": found.chosen[i]}
    if found.probabilities:
      answer["probability"] = found.probabilities[i]
    answer["member_predictions"] = [texts[i] for texts in found.members]
    answered.append({**row, **answer})
  return answered


def _answers(
  members: Members,
  asked: Asked,
  how: Answering,
  vote: Vote,
) -> _Answers:
  """Asks all adapters and lets them vote."""
  found = members.opened
  size = _examples(
    found.config.eval_batch_size, len(members.sources), found.mesh
  )
  kept: dict[str, Any] = {"batch_size": size, "mesh": found.mesh}
  with sharding.use(found.mesh):
    if isinstance(how, Ranking):
      scores = evaluate.choice_scores(
        _compiled(members, make_rank(found.model, mesh=found.mesh, how=how)),
        asked.choices,
        without_input=asked.blank_choices if how.calibrated else None,
        **kept,
      )
      return _ranked(np.moveaxis(scores, 1, 0), asked, vote)
    ids = evaluate.predict_tokens(
      _predict(members, asked.eos_id, how), asked.inputs, **kept
    )
    texts = [
      [evaluate.decode(asked.vocabulary, row) for row in example]
      for example in ids
    ]
    if vote == "majority":
      winners, probabilities = [ensemble.majority(row) for row in texts], []
    else:
      chances = evaluate.predict_tokens(
        _scorer(members, asked.eos_id), {**asked.inputs, _ANSWERS: ids}, **kept
      )
      best = map(ensemble.likeliest, ids, texts, np.exp(chances))
      winners, probabilities = map(list, zip(*best, strict=True))
  return _Answers(
    members=list(zip(*texts, strict=True)),
    chosen=[row[n] for row, n in zip(texts, winners, strict=True)],
    probabilities=probabilities,
  )


def _ranked(scores: np.ndarray, asked: Asked, vote: Vote) -> _Answers:
  """scores: [N, E, C] -> the choices with the best."""
  each = [evaluate.best_choices(asked, of) for of in scores]
  chosen = ensemble.choose(scores, vote)
  means = ensemble.mean_probabilities(scores)
  return _Answers(
    members=[texts for texts, _ in each],
    chosen=[asked.choice_texts(row)[best] for row, best in enumerate(chosen)],
    probabilities=(
      means[np.arange(len(chosen)), chosen].tolist()
      if vote == "probability"
      else []
    ),
    scores=[found for _, found in each],
  )


def _examples(batch_size: int, count: int, mesh: Any) -> int:
  """Returns examples of a batch that has about `batch_size` rows in all."""
  unit = mesh.shape["data"]
  return max(unit, batch_size // count // unit * unit)


def _predict(
  members: Members, eos_id: int, how: Decoding
) -> Callable[[Any], jax.Array]:
  """Returns the compiled inputs [B, S] -> ids [B, N, T]."""
  found = members.opened
  one = make_predict(
    found.model,
    mesh=found.mesh,
    max_decode_length=found.config.task_feature_lengths["targets"],
    eos_id=eos_id,
    how=how,
  )
  return _compiled(members, one)


def _scorer(members: Members, eos_id: int) -> Callable[[Any], jax.Array]:
  """Returns the compiled inputs, answers -> log probabilities [B, N, N].

  In row n is what adapter n thinks of every answer.
  """

  def one(frozen: Any, adapter: Any, inputs: Any) -> jax.Array:
    asked = {k: x for k, x in inputs.items() if k not in (ROWS, _ANSWERS)}
    return decoding.log_probabilities(
      members.opened.model,
      partition.join(frozen, adapter),
      **asked,
      answers=inputs[_ANSWERS],
      eos_id=eos_id,
    )

  return _compiled(members, one)


def _compiled(
  members: Members, one: Callable[..., jax.Array]
) -> Callable[[Any], jax.Array]:
  whole = sharding.replicated(members.opened.mesh)

  def run(frozen: Any, adapters: Any, inputs: Any) -> jax.Array:
    return jnp.swapaxes(ensemble.each(one)(frozen, adapters, inputs), 0, 1)

  jitted = jax.jit(run, out_shardings=whole)
  return lambda inputs: jitted(members.opened.frozen, members.adapters, inputs)
