"""The command line: peft-jax train | plan | eval | infer | ..."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from peft_jax.cli import answers, arguments, files, tables, training


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
  args = parser_of().parse_args(rest)
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


def parser_of() -> argparse.ArgumentParser:
  """Returns the parser of all commands."""
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
      epilog=arguments.EPILOG,
      formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(run=run, reads_data=reads_data)
    command.add_argument("--gin_search_paths", default="", metavar="A,B")
    return command

  train = add(
    "train", training.train, "train an adapter; the same command resumes it"
  )
  arguments.add_run_arguments(train)
  train.add_argument(
    "--seeds",
    metavar="0,1,2",
    help="one run per seed, in MODEL_DIR/seed_0 and so on",
  )
  train.add_argument("--require", choices=["tpu", "gpu", "cpu"])
  arguments.add_process_arguments(train)

  check = add(
    "check", training.check, "resolve a configuration without training"
  )
  arguments.add_run_arguments(check)

  plan = add(
    "plan",
    training.plan,
    "say what a run needs of a TPU, without one",
    reads_data=False,
  )
  arguments.add_plan_arguments(plan)

  evaluate = add(
    "eval", answers.eval_, "evaluate a trained adapter on its task"
  )
  arguments.add_adapters_arguments(evaluate)
  evaluate.add_argument("--output", metavar="FILE", help="predictions, JSONL")
  arguments.add_decoding_arguments(evaluate)

  infer = add("infer", answers.infer, "answer JSON-lines rows with an adapter")
  arguments.add_adapters_arguments(infer)
  infer.add_argument("--input", required=True, help='rows {"inputs": "..."}')
  infer.add_argument("--output", required=True, help="rows with prediction")
  arguments.add_decoding_arguments(infer)

  neighbors = add(
    "neighbors",
    files.neighbors,
    "say which words a trained prompt is near to",
  )
  arguments.add_neighbors_arguments(neighbors)

  report = add(
    "report",
    tables.report,
    "put finished runs into a table: median and quartiles over seeds",
    reads_data=False,
  )
  arguments.add_report_arguments(report)

  submit = add(
    "submit", answers.submit, "write the files that a benchmark takes"
  )
  arguments.add_submit_arguments(submit)

  export = add(
    "export",
    files.export,
    "write an adapter as Orbax, numpy, manifest",
    reads_data=False,
  )
  export.add_argument("adapter", help="a run")
  export.add_argument("--to", required=True, metavar="DIR")
  export.add_argument("--step", type=int, help="default: the last")
  export.add_argument("--format", choices=["orbax"], default="orbax")

  bring = add(
    "import",
    files.import_,
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

  merge = add("merge", files.merge, "fold an adapter into a full backbone")
  merge.add_argument("adapter", help="a run or an exported adapter")
  merge.add_argument("--to", required=True, metavar="DIR")
  merge.add_argument("--dtype", choices=["float32", "bfloat16"])

  listing = add(
    "list",
    tables.list_,
    "list methods, models, recipes or tasks",
    reads_data=False,
  )
  listing.add_argument("what", nargs="?", choices=sorted(tables.LISTS))
  listing.add_argument("--model", help="count parameters of this model")
  listing.add_argument("--adapter", help="and of this method")
  listing.add_argument("--json", action="store_true")

  costs = add(
    "cost",
    tables.cost,
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

  quickstart = add(
    "quickstart", training.quickstart, "adapt the model that ships"
  )
  quickstart.add_argument("--model_dir", default="runs/quickstart")

  doctor = commands.add_parser(
    "doctor", help="versions, devices, known trouble"
  )
  del doctor  # dispatched in main
  return parser
