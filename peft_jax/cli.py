"""The command line: peft-jax train | plan | eval | infer | ..."""

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from peft_jax import networks
from peft_jax.networks.config import REMAT_POLICIES

_EPILOG = """\
settings: --gin_file FILE, --gin.NAME=value and --gin_search_paths A,B as in
T5X; values are Python literals: --gin.TRAIN_STEPS=200. Short names stand for
files of the package: --model tiny is --gin_file=models/tiny.gin.
"""


def main(argv: Sequence[str] | None = None) -> int:
  """Runs one command; returns its exit status.

  Example:
    >>> main(["list", "recipes"])  # doctest: +ELLIPSIS
    prompt_tuning
    quickstart
    ...
    0
  """
  argv = list(sys.argv[1:] if argv is None else argv)
  if argv[:1] == ["doctor"]:
    from peft_jax import doctor

    return doctor.main(argv[1:])
  bindings = [a[len("--gin.") :] for a in argv if a.startswith("--gin.")]
  rest = [a for a in argv if not a.startswith("--gin.")]
  args = _parser().parse_args(rest)
  args.bindings = bindings
  try:
    if args.reads_data:
      from peft_jax.train import host_tensorflow

      host_tensorflow.import_tensorflow()
    return args.run(args) or 0
  except (ValueError, RuntimeError, FloatingPointError) as error:
    # Those of ours say what to do; the others are at least short.
    if os.environ.get("PEFT_JAX_TRACEBACK"):
      raise
    print(f"{type(error).__name__}: {error}", file=sys.stderr)
    return 1


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog="peft-jax",
    description="Parameter-efficient fine-tuning in JAX.",
    epilog="PEFT_JAX_TRACEBACK=1 shows where an error was raised.",
  )
  commands = parser.add_subparsers(dest="command", required=True)

  def add(
    name: str,
    run: Callable[[Any], int | None],
    text: str,
    reads_data: bool = True,
  ) -> argparse.ArgumentParser:
    command = commands.add_parser(
      name,
      help=text,
      description=text[0].upper() + text[1:] + ".",
      epilog=_EPILOG,
      formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(run=run, reads_data=reads_data)
    command.add_argument("--gin_search_paths", default="", metavar="A,B")
    return command

  train = add("train", _train, "train an adapter; the same command resumes it")
  _add_run_arguments(train)
  train.add_argument(
    "--seeds",
    metavar="0,1,2",
    help="one run per seed, in MODEL_DIR/seed_0 and so on",
  )
  train.add_argument("--require", choices=["tpu", "gpu", "cpu"])
  _add_process_arguments(train)

  check = add("check", _check, "resolve a configuration without training")
  _add_run_arguments(check)

  plan = add(
    "plan",
    _plan,
    "say what a run needs of a TPU, without one",
    reads_data=False,
  )
  _add_plan_arguments(plan)

  evaluate = add("eval", _eval, "evaluate a trained adapter on its task")
  _add_adapters_arguments(evaluate)
  evaluate.add_argument("--output", metavar="FILE", help="predictions, JSONL")
  _add_decoding_arguments(evaluate)

  infer = add("infer", _infer, "answer JSON-lines rows with an adapter")
  _add_adapters_arguments(infer)
  infer.add_argument("--input", required=True, help='rows {"inputs": "..."}')
  infer.add_argument("--output", required=True, help="rows with prediction")
  _add_decoding_arguments(infer)

  neighbors = add(
    "neighbors",
    _neighbors,
    "say which words a trained prompt is near to",
  )
  _add_neighbors_arguments(neighbors)

  report = add(
    "report",
    _report,
    "put finished runs into a table: median and quartiles over seeds",
    reads_data=False,
  )
  _add_report_arguments(report)

  submit = add("submit", _submit, "write the files that a benchmark takes")
  _add_submit_arguments(submit)

  export = add(
    "export",
    _export,
    "write an adapter as Orbax, numpy, manifest",
    reads_data=False,
  )
  export.add_argument("adapter", help="a run")
  export.add_argument("--to", required=True, metavar="DIR")
  export.add_argument("--step", type=int, help="default: the last")
  export.add_argument("--format", choices=["orbax"], default="orbax")

  bring = add(
    "import",
    _import,
    "read a backbone or an adapter of others",
    reads_data=False,
  )
  bring.add_argument("source", metavar="DIR", help="what is read")
  bring.add_argument(
    "--from",
    dest="kind",
    required=True,
    choices=["hf", "t5x", "peft", "tfew", "prompt"],
  )
  bring.add_argument("--to", required=True, metavar="DIR")
  bring.add_argument(
    "--model", metavar="NAME", help="hf:DIR of peft, of others the size"
  )

  merge = add("merge", _merge, "fold an adapter into a full backbone")
  merge.add_argument("adapter", help="a run or an exported adapter")
  merge.add_argument("--to", required=True, metavar="DIR")
  merge.add_argument("--dtype", choices=["float32", "bfloat16"])

  listing = add(
    "list", _list, "list methods, models, recipes or tasks", reads_data=False
  )
  listing.add_argument("what", nargs="?", choices=sorted(_LISTS))
  listing.add_argument("--model", help="count parameters of this model")
  listing.add_argument("--adapter", help="and of this method")
  listing.add_argument("--json", action="store_true")

  costs = add(
    "cost",
    _cost,
    "compare examples in the prompt with an adapter",
    reads_data=False,
  )
  costs.add_argument("--model", required=True, metavar="NAME")
  costs.add_argument("--adapter", metavar="NAME", help="default: none")
  costs.add_argument("--shots", type=int, default=32, metavar="N")
  costs.add_argument("--tokens-per-example", type=int, required=True)
  costs.add_argument(
    "--query-tokens", type=int, help="default: as many as an example has"
  )
  costs.add_argument("--steps", type=int, default=1000, help="of training")
  costs.add_argument("--batch", type=int, default=8)
  costs.add_argument("--json", action="store_true")

  quickstart = add("quickstart", _quickstart, "adapt the model that ships")
  quickstart.add_argument("--model_dir", default="runs/quickstart")

  doctor = commands.add_parser(
    "doctor", help="versions, devices, known trouble"
  )
  del doctor  # dispatched in main
  return parser


def _add_run_arguments(command: argparse.ArgumentParser) -> None:
  command.add_argument("--gin_file", action="append", default=[])
  command.add_argument(
    "--model",
    metavar="NAME",
    help="peft-jax list models, hf:DIR, or a backbone",
  )
  command.add_argument(
    "--adapter", metavar="NAME", help="peft-jax list methods"
  )
  command.add_argument("--recipe", metavar="NAME", help="peft-jax list recipes")
  command.add_argument("--task", metavar="NAME", help="peft-jax list tasks")
  command.add_argument("--backbone", metavar="DIR", help="or: random")
  command.add_argument("--data_dir", metavar="DIR", help="local files")
  command.add_argument("--vocabulary", metavar="FILE", help="or: t5, bytes")
  command.add_argument(
    "--templates", metavar="DIR", help="of prompts, in PromptSource's form"
  )
  command.add_argument("--model_dir", metavar="DIR", help="the run's folder")
  command.add_argument("--warm_start", metavar="DIR", help="take weights from")


def _add_process_arguments(command: argparse.ArgumentParser) -> None:
  group = command.add_argument_group(
    "several processes",
    "The same command on each, but for --process_id; on a TPU slice --require\n"
    "tpu alone does it. All must be there and have the same settings before\n"
    "anything is written. If one is gone later, the others exit 143, for a\n"
    "restart.",
  )
  group.add_argument(
    "--coordinator_address", metavar="HOST:PORT", help="of process 0"
  )
  group.add_argument("--num_processes", type=int, metavar="N")
  group.add_argument("--process_id", type=int, metavar="I", help="from 0")
  group.add_argument(
    "--start_timeout",
    type=float,
    default=600,
    metavar="S",
    help="seconds to wait for all to start (default: 600)",
  )
  group.add_argument(
    "--host_timeout",
    type=float,
    default=60,
    metavar="S",
    help="seconds after which a machine that does not answer is gone"
    " (default: 60); a killed process is noticed at once",
  )


def _add_plan_arguments(command: argparse.ArgumentParser) -> None:
  command.add_argument(
    "--model",
    required=True,
    metavar="NAME",
    help="peft-jax list models, hf:DIR",
  )
  command.add_argument(
    "--adapter", required=True, metavar="NAME", help="peft-jax list methods"
  )
  command.add_argument("--gin_file", action="append", default=[])
  command.add_argument("--batch", type=int, default=32, metavar="B")
  command.add_argument(
    "--lengths", default="512,64", metavar="S,T", help="inputs, targets"
  )
  command.add_argument("--micro_batches", type=int, default=1, metavar="N")
  command.add_argument("--remat", choices=REMAT_POLICIES)
  where = command.add_mutually_exclusive_group(required=True)
  where.add_argument("--topology", metavar="SLICE", help="e.g. v5e:4x4")
  where.add_argument("--gpu_memory", metavar="SIZE", help="e.g. 80GB")
  command.add_argument(
    "--mesh", metavar="DATA,MODEL", help="default: the smallest MODEL that fits"
  )
  command.add_argument(
    "--search",
    action="store_true",
    help="compile for every mesh, take the best",
  )
  command.add_argument("--json", metavar="FILE", help="where it is written")
  # What a run says besides; nothing of it is read.
  command.set_defaults(
    recipe=None,
    task="plan",
    backbone="random",
    data_dir=None,
    vocabulary="bytes",
    templates=None,
    model_dir="plan",
    warm_start=None,
  )


def _add_adapters_arguments(command: argparse.ArgumentParser) -> None:
  command.add_argument(
    "adapter",
    nargs="+",
    help="a run or an exported adapter; several answer in one batch and vote",
  )
  command.add_argument(
    "--vote",
    choices=["majority", "probability"],
    help="of several adapters, default: majority",
  )


def _add_neighbors_arguments(command: argparse.ArgumentParser) -> None:
  command.add_argument(
    "adapter", help="a run, an exported adapter, or a prompt as .npy file"
  )
  command.add_argument("--k", type=int, default=5, help="neighbours of a row")
  command.add_argument(
    "--words", nargs="+", default=[], metavar="WORD", help="class labels"
  )
  command.add_argument(
    "--embeddings", default="", metavar="FILE.npy", help="not the backbone's"
  )
  command.add_argument(
    "--vocabulary", default="", metavar="FILE", help="or: t5, bytes"
  )
  command.add_argument("--json", metavar="FILE", help="where it is written")
  command.add_argument("--picture", metavar="FILE.png", help="or: FILE.svg")


def _add_report_arguments(command: argparse.ArgumentParser) -> None:
  command.add_argument(
    "runs", nargs="+", metavar="RUN", help="a run, a folder of runs, a pattern"
  )
  command.add_argument(
    "--metric",
    action="append",
    default=[],
    metavar="NAME",
    help="accuracy or rte/accuracy; default: all",
  )
  command.add_argument(
    "--over",
    action="append",
    default=[],
    metavar="SETTING",
    help="take its values together, as those of RANDOM_SEED",
  )
  command.add_argument(
    "--partial", action="store_true", help="leave out unfinished runs"
  )
  command.add_argument(
    "--to", metavar="DIR", help="write Markdown, CSV and a picture there"
  )


def _add_submit_arguments(command: argparse.ArgumentParser) -> None:
  command.add_argument(
    "sources",
    nargs="+",
    metavar="RUN_OR_FILE",
    help="an adapter, which answers the test split, or predictions, JSONL",
  )
  command.add_argument("--benchmark", required=True, metavar="NAME")
  command.add_argument("--to", required=True, metavar="DIR")
  _add_decoding_arguments(command)


def _add_decoding_arguments(command: argparse.ArgumentParser) -> None:
  group = command.add_argument_group(
    "answers", "default: as the run's evaluations, which decode greedily"
  )
  group.add_argument(
    "--answer_by",
    choices=["decoding", "ranking"],
    help="ranking: the answer choice with the best score",
  )
  group.add_argument("--num_beams", type=int, metavar="N")
  group.add_argument("--length_penalty", type=float)
  group.add_argument("--temperature", type=float, help="samples")
  group.add_argument("--top_k", type=int, metavar="K")
  group.add_argument("--top_p", type=float, metavar="P")
  group.add_argument("--seed", type=int)
  group.add_argument(
    "--length_norm", type=float, help="of ranking: 1 mean, 0 sum of tokens"
  )
  group.add_argument(
    "--calibrated",
    action="store_true",
    default=None,
    help="ranking without what a choice scores without the input",
  )
  group.add_argument("--choices_per_chunk", type=int, metavar="N")


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


def _resolve(args: Any) -> Any:
  """Turns short names into gin files and bindings, and resolves them."""
  from peft_jax.train import config

  files: list[str] = []
  bindings: list[str] = []
  if args.recipe:
    files.append(_named("recipes", args.recipe))
  elif not any("runs/" in name for name in args.gin_file):
    files.append("runs/train.gin")
  if args.model:
    if args.model.startswith("hf:"):
      files.append("models/hugging_face.gin")
      bindings.append(f"MODEL_NAME = {args.model!r}")
    elif (Path(args.model) / "backbone.json").is_file():
      files.append("models/directory.gin")
      bindings.append(f"MODEL_NAME = {args.model!r}")
    elif args.model in _named_models():
      files.append(f"models/{args.model}.gin")
    else:
      networks.create(args.model)  # raises for an unknown name
      files.append("models/t5.gin")
      bindings.append(f"MODEL_NAME = {args.model!r}")
  if args.adapter:
    files.append(_named("adapters", args.adapter))
  files += args.gin_file
  macros = {
    "MIXTURE_OR_TASK_NAME": args.task,
    "BACKBONE": args.backbone,
    "DATA_DIR": args.data_dir,
    "VOCABULARY": args.vocabulary,
    "TEMPLATES": args.templates,
    "MODEL_DIR": args.model_dir or _default_model_dir(args),
    "WARM_START": args.warm_start,
    "METHOD": args.adapter or args.recipe,
  }
  bindings += [f"{name} = {v!r}" for name, v in macros.items() if v]
  return config.resolve(files, [*bindings, *args.bindings], _search_paths(args))


def _named_models() -> list[str]:
  """Models that have a gin file of their own."""
  return [name for name in _gin_names("models") if name in networks.CONFIGS]


def _named(kind: str, name: str) -> str:
  from peft_jax.train import config

  known = config.names_of(kind)
  if name not in known:
    raise config.ConfigError(
      f"expected one of the {kind} {known}, found {name!r}. For a file of your"
      " own use --gin_file."
    )
  return f"{kind}/{name}.gin"


def _default_model_dir(args: Any) -> str:
  names = [args.recipe, args.task, args.model, args.adapter]
  known = [name for name in names if name]
  return os.path.join("runs", "-".join(known)) if known else ""


def _search_paths(args: Any) -> list[str]:
  return [path for path in args.gin_search_paths.split(",") if path]


def _train(args: Any) -> None:
  with _joined(args) as processes:
    if args.require:
      from peft_jax import doctor

      doctor.require_platform(args.require)
    from peft_jax.train import loop

    resolved = _resolve(args)
    if args.seeds is not None:
      return _train_seeds(args, resolved.config.model_dir, processes)
    summary = loop.train(resolved, processes)
  for task, metrics in summary.adapted_metrics.items():
    before = summary.frozen_metrics.get(task, {})
    for name, value in metrics.items():
      start = f" (frozen {before[name]:.2f})" if name in before else ""
      loop.note(f"{task} {name} {value:.2f}{start}")
  loop.note(f"report: {resolved.config.model_dir}/report.html")


def _train_seeds(args: Any, model_dir: str, processes: Any) -> None:
  from peft_jax.train import config, loop, seeds

  numbers = seeds.parse(args.seeds)
  if any(b.split("=")[0].strip() == "RANDOM_SEED" for b in args.bindings):
    raise config.ConfigError(
      "expected RANDOM_SEED from --seeds alone, found it in --gin.RANDOM_SEED"
      " too. Leave one of them out."
    )
  given = list(args.bindings)

  def resolve(seed: int) -> Any:
    args.bindings = [*given, *seeds.bindings_of(model_dir, seed)]
    return _resolve(args)

  done = seeds.train(model_dir, numbers, resolve, processes)
  loop.note(seeds.format_spread(done))


def _joined(args: Any) -> Any:
  """Returns the processes of the run; the workers of a slice find them."""
  from peft_jax import doctor
  from peft_jax.train import hosts

  told = (args.coordinator_address, args.num_processes, args.process_id)
  if told == (None, None, None) and not (
    args.require == "tpu" and doctor.has_tpu()
  ):
    return hosts.ALONE
  return hosts.join(
    *told, start_timeout=args.start_timeout, host_timeout=args.host_timeout
  )


def _check(args: Any) -> None:
  from peft_jax import partition, sharding
  from peft_jax.inject import Adapted
  from peft_jax.train import data, run_dir
  from peft_jax.train.setup import shapes_of

  resolved = _resolve(args)
  config = resolved.config
  model = Adapted(config.network, config.rules)
  params = shapes_of(model)["params"]
  print(partition.format_rule_table(partition.rule_table(params, model)))
  counts = partition.counts(params, model)
  print(
    f"trained {counts['trained_parameters']:,} of"
    f" {counts['all_parameters']:,} parameters ({100 * counts['share']:.3f} %)"
  )
  mesh = sharding.make_mesh(model=config.model_parallel)
  sharding.check_batch(
    config.batch_size, mesh=mesh, micro_batches=config.micro_batches
  )
  resuming = run_dir.check(resolved)
  print(f"{config.model_dir}: {'resumes' if resuming else 'a new run'}")
  task = data.get_task(config)
  found = data.measure_lengths(task, config.task_feature_lengths)
  for name, allowed in config.task_feature_lengths.items():
    print(
      f"{task.name} {name}: longest {found.longest[name]} tokens of {allowed}"
      f" allowed, {found.cut[name]} of {found.examples} examples cut"
      f" ({100 * found.cut[name] / max(1, found.examples):.1f} %)"
    )
  if not config.allow_cut_targets:
    data.check_targets(task, config.task_feature_lengths)
  if not config.backbone:
    raise ValueError("expected a backbone, found none. Pass --backbone DIR.")
  print("ok")


def _plan(args: Any) -> int:
  from peft_jax.plan import command

  return command.run(args, lambda: _resolve(args).config)


def _eval(args: Any) -> None:
  from peft_jax.train import opened

  how = _decoding(args)
  if _is_several(args):
    return _eval_together(args, how)
  found = opened.open_adapter(
    args.adapter[0], bindings=args.bindings, search_paths=_search_paths(args)
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


def _infer(args: Any) -> None:
  from peft_jax.train import opened, vote

  how = _decoding(args)
  several = _is_several(args)
  rows = opened.read_inputs(args.input)
  if several:
    found = vote.infer(_open_members(args), rows, how=how, vote=args.vote)
    return _write_rows(args.output, found)
  found = opened.open_adapter(
    args.adapter[0], bindings=args.bindings, search_paths=_search_paths(args)
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
    args.adapter, bindings=args.bindings, search_paths=_search_paths(args)
  )


def _neighbors(args: Any) -> None:
  from peft_jax.train import neighbors

  found = neighbors.look(
    neighbors.read(
      args.adapter,
      embeddings=args.embeddings,
      vocabulary=args.vocabulary,
      bindings=args.bindings,
      search_paths=_search_paths(args),
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


def _report(args: Any) -> None:
  from peft_jax.train import summary_files, summary_table

  table = summary_table.collect(
    args.runs, metrics=args.metric, over=args.over, partial=args.partial
  )
  print(summary_files.to_markdown(table), end="")
  if args.to:
    for path in summary_files.write(table, args.to):
      print(f"written: {path}", file=sys.stderr)


def _submit(args: Any) -> None:
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
    adapter, bindings=args.bindings, search_paths=_search_paths(args)
  )
  return unlabelled.predict(found, how=how)


def _write_rows(path: str, rows: Sequence[dict[str, Any]]) -> None:
  lines = [json.dumps(row, ensure_ascii=False, default=str) for row in rows]
  Path(path).write_text("\n".join(lines) + "\n")


def _export(args: Any) -> None:
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


def _import(args: Any) -> None:
  from peft_jax.train import bring

  for line in bring.bring(args.kind, args.source, args.to, args.model):
    print(line)


def _merge(args: Any) -> None:
  from peft_jax import backbone
  from peft_jax.merge import merge
  from peft_jax.train import opened

  # Sums are made in float32 and rounded once, whatever the run kept.
  found = opened.open_adapter(
    args.adapter,
    bindings=args.bindings,
    search_paths=_search_paths(args),
    backbone_dtype="float32",
  )
  merged = merge(found.params, found.model, dtype=args.dtype)
  backbone.save(args.to, merged, model=found.manifest.model)
  print(f"{args.to}: backbone with the adapter folded in")


def _list_tasks() -> list[str]:
  from peft_jax.train import host_tensorflow

  host_tensorflow.import_tensorflow()

  from peft_jax.tasks import prepare

  return prepare.names()


def _gin_names(kind: str) -> list[str]:
  from peft_jax.train import config

  return config.names_of(kind)


_LISTS: dict[str, Callable[[], Sequence[str]]] = {
  "methods": lambda: _gin_names("adapters"),
  "models": lambda: list(networks.CONFIGS),
  "recipes": lambda: _gin_names("recipes"),
  "tasks": _list_tasks,
}


def _list(args: Any) -> None:
  if args.model and args.adapter:
    counts = _count(args.model, args.adapter)
    if args.json:
      print(json.dumps(counts))
    else:
      for name, value in counts.items():
        print(f"{name:22} {value:,}")
    return
  for what in [args.what] if args.what else _LISTS:
    names = list(_LISTS[what]())
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

  rules = config.read_adapters(_named("adapters", adapter_name))
  model = Adapted(networks.create(model_name), rules)
  return partition.counts(shapes_of(model)["params"], model)


def _cost(args: Any) -> None:
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


def _quickstart(args: Any) -> int:
  from peft_jax.train import quickstart

  return quickstart.run(args.model_dir, args.bindings)


if __name__ == "__main__":
  sys.exit(main())
