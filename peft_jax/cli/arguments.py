"""Arguments of the commands."""

import argparse

from peft_jax.networks.config import REMAT_POLICIES

EPILOG = """\
settings: --gin_file FILE, --gin.NAME=value and --gin_search_paths A,B as in
T5X; values are Python literals: --gin.TRAIN_STEPS=200. Short names stand for
files of the package: --model tiny is --gin_file=models/tiny.gin.
"""


def add_run_arguments(command: argparse.ArgumentParser) -> None:
  """What a run is made of."""
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
  command.add_argument(
    "--task",
    metavar="NAME",
    help="peft-jax list tasks; with --recipe, rte is tfew_rte or superglue_rte",
  )
  command.add_argument("--backbone", metavar="DIR", help="or: random")
  command.add_argument("--data_dir", metavar="DIR", help="local files")
  command.add_argument("--vocabulary", metavar="FILE", help="or: t5, bytes")
  command.add_argument(
    "--templates", metavar="DIR", help="of prompts, in PromptSource's form"
  )
  command.add_argument("--model_dir", metavar="DIR", help="the run's folder")
  command.add_argument("--warm_start", metavar="DIR", help="take weights from")


def add_process_arguments(command: argparse.ArgumentParser) -> None:
  """How the processes of a run meet."""
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


def add_plan_arguments(command: argparse.ArgumentParser) -> None:
  """What is planned, and for which devices."""
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


def add_adapters_arguments(command: argparse.ArgumentParser) -> None:
  """One adapter, or several that vote."""
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


def add_neighbors_arguments(command: argparse.ArgumentParser) -> None:
  """Whose neighbours are asked for."""
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


def add_report_arguments(command: argparse.ArgumentParser) -> None:
  """Which runs stand in the table."""
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


def add_submit_arguments(command: argparse.ArgumentParser) -> None:
  """What is sent in."""
  command.add_argument(
    "sources",
    nargs="+",
    metavar="RUN_OR_FILE",
    help="an adapter, which answers the test split, or predictions, JSONL",
  )
  command.add_argument("--benchmark", required=True, metavar="NAME")
  command.add_argument("--to", required=True, metavar="DIR")
  add_decoding_arguments(command)


def add_decoding_arguments(command: argparse.ArgumentParser) -> None:
  """How answers are found."""
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
