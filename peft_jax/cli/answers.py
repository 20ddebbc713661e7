"""eval, infer and submit: what adapters answer."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peft_jax.cli import settings


def _decoding(args: Any) -> Any:
  from peft_jax.train.predict import Decoding, Ranking

  asked: dict[Any, dict[str, Any]] = {
    kind: {
      field.name: getattr(args, field.name)
      for field in dataclasses.fields(kind)
      if getattr(args, field.name) is not None
    }
    for kind in (Decoding, Ranking)
  }
  by = args.answer_by or ("decoding" if asked[Decoding] else None)
  by = by or ("ranking" if asked[Ranking] else None)
  other = {"decoding": Ranking, "ranking": Decoding}.get(by or "")
  if other and asked[other]:
    raise ValueError(
      f"expected options of {by}, found --{next(iter(asked[other]))} too. Leave"
      " it out, or change --answer_by."
    )
  if by is None:
    return None
  kind = Decoding if by == "decoding" else Ranking
  return kind(**asked[kind])


def eval_(args: Any) -> None:
  """Prints the metrics of a trained adapter, or of several that vote."""
  from peft_jax.train import opened

  how = _decoding(args)
  if _is_several(args):
    return _eval_together(args, how)
  found = opened.open_adapter(
    args.adapter[0],
    bindings=args.bindings,
    search_paths=settings.search_paths(args),
  )
  evaluations = opened.evaluate_task(found, how=how)
  print(json.dumps({e.task: dict(e.metrics) for e in evaluations}, indent=2))
  if args.output:
    rows = [
      {"task": e.task, "input": i, "target": t, "prediction": p, **scores}
      for e in evaluations
      for i, t, p, scores in zip(
        e.inputs, e.targets, e.predictions, _scores_of(e), strict=True
      )
    ]
    _write_rows(args.output, rows)


def _scores_of(evaluation: Any) -> list[dict[str, Any]]:
  if evaluation.scores is None:
    return [{}] * len(evaluation.inputs)
  return [{"scores": scores} for scores in evaluation.scores]


def _eval_together(args: Any, how: Any) -> None:
  from peft_jax.train import vote

  members = _open_members(args)
  voted = vote.evaluate_task(members, how=how, vote=args.vote)
  metrics = {
    "members": {
      source: {v.members[n].task: dict(v.members[n].metrics) for v in voted}
      for n, source in enumerate(members.sources)
    },
    "ensemble": {v.ensemble.task: dict(v.ensemble.metrics) for v in voted},
  }
  print(json.dumps(metrics, indent=2))
  if args.output:
    _write_rows(args.output, [row for v in voted for row in vote.rows_of(v)])


def infer(args: Any) -> None:
  """Answers rows of a file with an adapter, or with several that vote."""
  from peft_jax.train import opened, vote

  how = _decoding(args)
  several = _is_several(args)
  rows = opened.read_inputs(args.input)
  if several:
    found = vote.infer(_open_members(args), rows, how=how, vote=args.vote)
    return _write_rows(args.output, found)
  found = opened.open_adapter(
    args.adapter[0],
    bindings=args.bindings,
    search_paths=settings.search_paths(args),
  )
  _write_rows(args.output, opened.infer(found, rows, how=how))


def _is_several(args: Any) -> bool:
  """Whether adapters answer together; says how, if nobody did."""
  if len(args.adapter) > 1:
    args.vote = args.vote or "majority"
    return True
  if args.vote:
    raise ValueError(
      f"expected several adapters with --vote {args.vote}, found one. Name all"
      " that shall vote, or leave --vote out."
    )
  return False


def _open_members(args: Any) -> Any:
  from peft_jax.train import vote

  return vote.open_members(
    args.adapter,
    bindings=args.bindings,
    search_paths=settings.search_paths(args),
  )


def submit(args: Any) -> None:
  """Writes a benchmark's files."""
  from peft_jax.tasks import submission

  submission.find(args.benchmark)  # before a model is loaded
  how = _decoding(args)
  parts = [
    submission.read(source)
    if Path(source).is_file()
    else _test_predictions(args, source, how)
    for source in args.sources
  ]
  predictions = submission.merged(parts)
  for path in submission.write(args.benchmark, predictions, args.to):
    print(path)


def _test_predictions(args: Any, adapter: str, how: Any) -> Any:
  from peft_jax.train import opened, unlabelled

  found = opened.open_adapter(
    adapter, bindings=args.bindings, search_paths=settings.search_paths(args)
  )
  return unlabelled.predict(found, how=how)


def _write_rows(path: str, rows: Sequence[dict[str, Any]]) -> None:
  lines = [json.dumps(row, ensure_ascii=False, default=str) for row in rows]
  Path(path).write_text("\n".join(lines) + "\n")
