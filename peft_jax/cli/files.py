"""export, import, merge and neighbors: adapters as files."""

import json
from pathlib import Path
from typing import Any

from peft_jax.cli import settings


def export(args: Any) -> None:
  """Writes the adapter of a run by itself."""
  from peft_jax import checkpoint, reparametrization
  from peft_jax import manifest as manifests
  from peft_jax.inject import Adapted
  from peft_jax.train import checkpoints

  found, leaves = checkpoints.read(args.adapter, step=args.step)
  rules = [manifests.rule_from_json(rule) for rule in found.rules]
  nothing: Any = None  # rules say all that is needed
  leaves, model = reparametrization.drop(leaves, Adapted(nothing, rules))
  checkpoint.save(
    args.to,
    leaves,
    model.rules,
    model=found.model,
    backbone=found.backbone,
    training=found.training,
  )
  size = sum(p.stat().st_size for p in Path(args.to).rglob("*") if p.is_file())
  number = len(manifests.read(args.to).leaves)
  print(f"{args.to}: {number} leaves, {size:,} bytes on disk")


def import_(args: Any) -> None:
  """Reads what others have trained."""
  from peft_jax.train import bring

  for line in bring.bring(args.kind, args.source, args.to, args.model):
    print(line)


def merge(args: Any) -> None:
  """Writes a backbone with the adapter folded in."""
  from peft_jax import backbone
  from peft_jax.merge import merge
  from peft_jax.train import opened

  # Sums are made in float32 and rounded once, whatever the run kept.
  found = opened.open_adapter(
    args.adapter,
    bindings=args.bindings,
    search_paths=settings.search_paths(args),
    backbone_dtype="float32",
  )
  merged = merge(found.params, found.model, dtype=args.dtype)
  backbone.save(args.to, merged, model=found.manifest.model)
  print(f"{args.to}: backbone with the adapter folded in")


def neighbors(args: Any) -> None:
  """Prints which words the rows of a prompt are near to."""
  from peft_jax.train import neighbors

  found = neighbors.look(
    neighbors.read(
      args.adapter,
      embeddings=args.embeddings,
      vocabulary=args.vocabulary,
      bindings=args.bindings,
      search_paths=settings.search_paths(args),
    ),
    count=args.k,
    words=args.words,
    picture=args.picture,
    title="/".join(Path(args.adapter).parts[-2:]),
  )
  print(neighbors.format_table(found))
  if args.json:
    text = json.dumps(neighbors.to_json(found), ensure_ascii=False, indent=2)
    Path(args.json).write_text(text + "\n")
