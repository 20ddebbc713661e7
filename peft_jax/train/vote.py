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
from peft_jax.train import checkpoints, data, evaluate, features, opened
from peft_jax.train.evaluate import Evaluation
from peft_jax.train.opened import Opened
from peft_jax.train.predict import ROWS, Decoding, make_predict

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
    ids: [E, N, T] of each adapter.
    texts: E lists of N.
    winners: [E] the adapter whose answer is taken.
    probabilities: [E] of these; empty with a majority.
  """

  ids: np.ndarray
  texts: Sequence[Sequence[str]]
  winners: np.ndarray
  probabilities: Sequence[float]

  @property
  def chosen(self) -> np.ndarray:
    """The ids that are taken, [E, T]."""
    return self.ids[np.arange(len(self.ids)), self.winners]


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
  members: Members, *, how: Decoding | None = None, vote: Vote = "majority"
) -> list[Voted]:
  """Returns what the adapters answer, one result per task of theirs.

  Args:
    members: the adapters.
    how: answers are found; default greedy.
    vote: how one is chosen.
  """
  ensemble.check_vote(vote)
  config = members.opened.config
  task = data.get_task(config)
  sets = data.eval_sets(
    task,
    lengths=config.task_feature_lengths,
    split=config.eval_split,
    max_examples=config.max_eval_examples,
    features=features.of(config, task),
  )
  voted = []
  for eval_set in sets:
    vocabulary = eval_set.task.output_features["targets"].vocabulary
    found = _answers(
      members, eval_set.inputs, vocabulary, eval_set.eos_id, how, vote
    )
    voted.append(
      Voted(
        ensemble=evaluate.judge(eval_set, found.chosen),
        members=[
          evaluate.judge(eval_set, found.ids[:, n])
          for n in range(len(members.sources))
        ],
        probabilities=found.probabilities,
      )
    )
  return voted


def infer(
  members: Members,
  rows: Sequence[Mapping[str, Any]],
  *,
  how: Decoding | None = None,
  vote: Vote = "majority",
) -> list[dict[str, Any]]:
  """Returns the rows with `prediction` and `member_predictions` each.

  With 'probability' they have that of the prediction besides.

  Args:
    members: the adapters.
    rows: see `opened.infer`.
    how: answers are found; default greedy.
    vote: how one is chosen.
  """
  ensemble.check_vote(vote)
  config = members.opened.config
  vocabulary, inputs = opened.inputs_of(config, rows)
  eos_id = features.end_id(vocabulary)
  found = _answers(members, inputs, vocabulary, eos_id, how, vote)
  answered = []
  for i, row in enumerate(rows):
    texts = list(found.texts[i])
    answer = {"prediction": texts[found.winners[i]]}
    if found.probabilities:
      answer["probability"] = found.probabilities[i]
    answered.append({**row, **answer, "member_predictions": texts})
  return answered


def _answers(
  members: Members,
  inputs: Mapping[str, np.ndarray],
  vocabulary: Any,
  eos_id: int,
  how: Decoding | None,
  vote: Vote,
) -> _Answers:
  """Asks all adapters and lets them vote."""
  found, count = members.opened, len(members.sources)
  size = _examples(found.config.eval_batch_size, count, found.mesh)
  batches = {"batch_size": size, "mesh": found.mesh}
  with sharding.use(found.mesh):
    ids = evaluate.predict_tokens(
      _predict(members, eos_id, how), inputs, **batches
    )
    texts = [
      [evaluate.decode(vocabulary, row) for row in example] for example in ids
    ]
    if vote == "majority":
      winners = [ensemble.majority(row) for row in texts]
      probabilities = []
    else:
      chances = evaluate.predict_tokens(
        _scorer(members, eos_id), {**inputs, _ANSWERS: ids}, **batches
      )
      best = map(ensemble.likeliest, ids, texts, np.exp(chances))
      winners, probabilities = map(list, zip(*best, strict=True))
  return _Answers(
    ids=ids,
    texts=texts,
    winners=np.array(winners, np.int64),
    probabilities=probabilities,
  )


def _examples(batch_size: int, count: int, mesh: Any) -> int:
  """Returns examples of a batch that has about `batch_size` rows in all."""
  unit = mesh.shape["data"]
  return max(unit, batch_size // count // unit * unit)


def _predict(
  members: Members, eos_id: int, how: Decoding | None
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
