"""`peft-jax plan`: from what was typed to a plan on the screen."""

import dataclasses
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from peft_jax.plan import report, search, target
from peft_jax.plan.search import Ask
from peft_jax.plan.target import Target
from peft_jax.train.config import Config


class PlanError(ValueError):
  """What cannot be planned."""


def run(args: Any, read_config: Callable[[], Config]) -> int:
  """Prints the plan; returns 1 if it does not fit.

  Args:
    args: of the command line.
    read_config: returns the run's configuration. It is called when the slice is
      known: what it does may start JAX.

  Raises:
    ValueError: of several kinds, all before anything is compiled: an unknown
      slice, no libtpu, lengths or a mesh that are none or do not divide.
  """
  lengths = pair("--lengths", args.lengths, "512,64")
  mesh = pair("--mesh", args.mesh, "4,4") if args.mesh else None
  if args.mesh and args.search:
    raise PlanError(
      "expected --mesh or --search, found both. --search tries all meshes."
    )
  if args.batch < 1:
    raise PlanError(f"expected --batch of at least 1, found {args.batch}.")
  aim = _target(args, mesh)
  ask = ask_of(
    read_config(),
    aim,
    model=args.model,
    adapter=args.adapter,
    batch=args.batch,
    lengths=lengths,
    remat=args.remat,
    micro_batches=args.micro_batches,
    mesh=mesh,
  )
  found = make(ask, every_mesh=args.search)
  print(report.to_text(found))
  if args.json:
    report.write_json(found, args.json)
  return 0 if found.fits else 1


def make(ask: Ask, *, every_mesh: bool = False) -> report.Plan:
  """Returns the plan, with a suggestion if it does not fit.

  Args:
    ask: what is to be planned.
    every_mesh: whether all meshes are compiled for and the best is taken.

  Raises:
    PlanError: if the batch divides over no mesh.
    ShardingError: if it does not over the mesh that was asked for.
  """
  if not search.meshes(ask):
    devices = len(ask.target.devices)
    raise PlanError(
      f"expected a batch that divides over some mesh of {devices} devices in"
      f" {ask.config.micro_batches} micro-batches, found"
      f" {ask.config.batch_size}. Take a multiple of"
      f" {ask.config.micro_batches}."
    )
  find = search.best if every_mesh else search.first_that_fits
  found = find(ask, say)
  if not found.fits:
    other = search.suggestion(ask, say)
    found = dataclasses.replace(
      found, suggestion=other or "nothing that was tried fits"
    )
  return found


def ask_of(
  config: Config,
  aim: Target,
  *,
  model: str,
  adapter: str,
  batch: int,
  lengths: tuple[int, int],
  remat: str | None = None,
  micro_batches: int = 1,
  mesh: tuple[int, int] | None = None,
  decode: bool = True,
) -> Ask:
  """Returns what is to be planned, from a configuration and what changes it.

  Args:
    config: of the run.
    aim: what to compile for.
    model: its name, for the plan.
    adapter: its name, for the plan.
    batch: B.
    lengths: tokens of inputs and targets.
    remat: of `TransformerConfig`; None: the configuration's.
    micro_batches: parts that the batch is cut into.
    mesh: (data, model); None: the smallest model axis that fits.
    decode: whether decoding is compiled too.
  """
  config = dataclasses.replace(
    on_accelerator(config),
    batch_size=batch,
    eval_batch_size=batch,
    micro_batches=micro_batches,
    task_feature_lengths={"inputs": lengths[0], "targets": lengths[1]},
  )
  if remat:
    config = search.with_network(config, remat=remat)
  settings = {
    "model": model,
    "adapter": adapter,
    "batch": batch,
    "lengths": list(lengths),
    "remat": config.network.config.remat,
    "micro_batches": micro_batches,
  }
  return Ask(
    config=config, settings=settings, target=aim, mesh=mesh, decode=decode
  )


def on_accelerator(config: Config) -> Config:
  """Returns the run as it is on TPU and GPU: activations, backbone bfloat16."""
  config = search.with_network(config, dtype=jnp.bfloat16)
  return dataclasses.replace(config, backbone_dtype=jnp.bfloat16)


def _target(args: Any, mesh: tuple[int, int] | None) -> Target:
  if args.topology:
    # Only shapes are made here: leave a TPU or GPU that is there alone.
    jax.config.update("jax_platforms", "cpu")
    return target.tpu(args.topology)
  return target.of_memory(args.gpu_memory, mesh[0] * mesh[1] if mesh else 1)


def pair(flag: str, text: str, example: str) -> tuple[int, int]:
  """Returns two numbers of a flag.

  Example:
    >>> pair("--lengths", "512,64", "512,64")
    (512, 64)

  Raises:
    PlanError: for what is not two numbers.
  """
  parts = text.split(",")
  if len(parts) != 2 or not all(p.isdigit() and int(p) > 0 for p in parts):
    raise PlanError(
      f"expected two numbers for {flag}, such as {example}, found {text!r}."
    )
  return int(parts[0]), int(parts[1])


def say(text: str) -> None:
  """Prints progress, apart from the plan."""
  print(text, file=sys.stderr, flush=True)
