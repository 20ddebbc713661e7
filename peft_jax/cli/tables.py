"""list, cost and report: tables."""

import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

from peft_jax import networks
from peft_jax.cli import settings

LISTS: dict[str, Callable[[], Sequence[str]]] = {
  "methods": lambda: settings.gin_names("adapters"),
  "models": lambda: list(networks.CONFIGS),
  "recipes": lambda: settings.gin_names("recipes"),
  "tasks": settings.task_names,
}


def list_(args: Any) -> None:
  """Prints names, or counts parameters."""
  if args.model and args.adapter:
    counts = _count(args.model, args.adapter)
    if args.json:
      print(json.dumps(counts))
    else:
      for name, value in counts.items():
        print(f"{name:22} {value:,}")
    return
  for what in [args.what] if args.what else LISTS:
    names = list(LISTS[what]())
    if args.json:
      print(json.dumps({what: names}))
    elif args.what:
      print("\n".join(names))
    else:
      print(f"{what}: {', '.join(names)}")


def _count(model_name: str, adapter_name: str) -> dict[str, int | float]:
  """Counts parameters from shapes alone; allocates nothing."""
  from peft_jax import partition
  from peft_jax.inject import Adapted
  from peft_jax.train import config
  from peft_jax.train.setup import shapes_of

  rules = config.read_adapters(settings.named("adapters", adapter_name))
  model = Adapted(networks.create(model_name), rules)
  return partition.counts(shapes_of(model)["params"], model)


def cost(args: Any) -> None:
  """Prints what examples in the prompt cost beside an adapter."""
  from peft_jax import cost

  for name in ("shots", "tokens_per_example", "steps", "batch"):
    value, least = getattr(args, name), int(name != "shots")
    if value < least:
      flag = name.replace("_", "-")
      raise ValueError(f"expected --{flag} >= {least}, found {value}.")
  query = args.query_tokens or args.tokens_per_example
  counts = _count(args.model, args.adapter or "ia3")
  config = networks.create(args.model).config
  parameters = int(counts["backbone_parameters"])
  prompt = cost.in_context(
    config,
    parameters,
    shots=args.shots,
    tokens_per_example=args.tokens_per_example,
    query_tokens=query,
  )
  found = {
    "parameters": parameters,
    "query_tokens": query,
    "in_context": dataclasses.asdict(prompt),
  }
  if args.adapter:
    adapter = cost.adapter(
      config,
      parameters,
      adapter_bytes=int(counts["adapter_bytes"]),
      query_tokens=query,
      steps=args.steps,
      batch_size=args.batch,
      against=prompt,
    )
    found["adapter"] = dataclasses.asdict(adapter)
  print(json.dumps(found) if args.json else _cost_text(args, found))


def _cost_text(args: Any, found: dict[str, Any]) -> str:
  prompt = found["in_context"]
  lines = [
    f"{args.model}: {found['parameters']:,} parameters",
    f"{args.shots} examples of {args.tokens_per_example} tokens in the prompt:",
    f"  a prediction  {prompt['flops_per_prediction']:.2e} FLOPs, or"
    f" {prompt['flops_per_prediction_cached']:.2e} with"
    f" {prompt['cached_bytes'] / 2**30:.2f} GiB of cached keys and values",
    f"  stored        {prompt['storage_bytes']:,} bytes",
  ]
  if "adapter" in found:
    adapter = found["adapter"]
    even = adapter["predictions_to_break_even"]
    lines += [
      f"{args.adapter}, trained for {args.steps} steps of {args.batch}:",
      f"  a prediction  {adapter['flops_per_prediction']:.2e} FLOPs",
      f"  training      {adapter['training_flops']:.2e} FLOPs"
      + ("" if even is None else f", saved after {even:,} predictions"),
      f"  stored        {adapter['storage_bytes']:,} bytes",
    ]
  return "\n".join(lines)


def report(args: Any) -> None:
  """Prints finished runs as one table."""
  from peft_jax.train import summary_files, summary_table

  table = summary_table.collect(
    args.runs, metrics=args.metric, over=args.over, partial=args.partial
  )
  print(summary_files.to_markdown(table), end="")
  if args.to:
    for path in summary_files.write(table, args.to):
      print(f"written: {path}", file=sys.stderr)
