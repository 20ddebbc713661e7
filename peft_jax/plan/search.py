"""Finds the mesh, or the other settings, with which a run fits."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax

from peft_jax import sharding
from peft_jax.plan import compiled, hardware, report, target
from peft_jax.plan.report import Plan
from peft_jax.plan.target import Target
from peft_jax.sharding import ShardingError
from peft_jax.train.config import Config

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ask:
  """What is to be planned.

  Attributes:
    config: of the run; its `model_parallel` is not read.
    settings: model, adapter, batch, lengths, remat, micro_batches, as printed.
    target: what to compile for.
    mesh: (data, model); None: the smallest model axis that fits.
    decode: whether decoding is compiled too.
  """

  config: Config
  settings: dict[str, Any]
  target: Target
  mesh: tuple[int, int] | None = None
  decode: bool = True


def changed(ask: Ask, **settings: Any) -> Ask:
  """Returns the same with another remat, micro_batches, target or mesh."""
  config, kept = ask.config, dict(ask.settings)
  if "remat" in settings:
    config = with_network(config, remat=settings["remat"])
    kept["remat"] = settings["remat"]
  if "micro_batches" in settings:
    config = dataclasses.replace(
      config, micro_batches=settings["micro_batches"]
    )
    kept["micro_batches"] = settings["micro_batches"]
  rest = {k: v for k, v in settings.items() if k in ("target", "mesh")}
  return dataclasses.replace(ask, config=config, settings=kept, **rest)


def with_network(config: Config, **fields: Any) -> Config:
  """Returns the run with fields of its network's configuration replaced."""
  network = config.network
  return dataclasses.replace(
    config,
    network=network.clone(config=dataclasses.replace(network.config, **fields)),
  )


def meshes(ask: Ask) -> list[tuple[int, int]]:
  """Returns (data, model) of all that the batch divides over.

  Raises:
    ShardingError: if there is none, or the mesh that was asked for is none.
  """
  count = len(ask.target.devices)
  if ask.mesh is not None:
    _check(ask, ask.mesh)
    return [ask.mesh]
  found = []
  for model in (n for n in range(1, count + 1) if count % n == 0):
    shape = (count // model, model)
    try:
      _check(ask, shape)
    except ShardingError:
      continue
    found.append(shape)
  return found


def _check(ask: Ask, shape: tuple[int, int]) -> None:
  """Raises unless devices and batch divide over a mesh."""
  mesh = _mesh(ask, shape)
  config = ask.config
  sharding.check_batch(
    config.batch_size, mesh=mesh, micro_batches=config.micro_batches
  )


def _mesh(ask: Ask, shape: tuple[int, int]) -> jax.sharding.Mesh:
  return sharding.make_mesh(
    data=shape[0], model=shape[1], devices=ask.target.devices
  )


def plan_mesh(ask: Ask, shape: tuple[int, int]) -> Plan:
  """Compiles for one mesh; decoding too, if the step fits."""
  mesh, aim = _mesh(ask, shape), ask.target
  run = compiled.shapes(ask.config, mesh)
  train = compiled.train_step(run)
  decoding = None
  if ask.decode and train.fits and train.used_bytes <= aim.memory_bytes:
    decoding = compiled.decoding(run)
  return Plan(
    settings=ask.settings,
    target=aim.name,
    mesh=dict(mesh.shape),
    hbm_bytes=aim.memory_bytes,
    train=train,
    decoding=decoding,
    train_times=report.times(train, aim),
    decoding_times=report.times(decoding, aim) if decoding else None,
  )


def first_that_fits(ask: Ask, say: Say) -> Plan:
  """Returns the plan with the smallest model axis that fits.

  Activations of the step are split over the data axis, so a small model axis
  sends least; if none fits, the plan is that of the largest.
  """
  found = None
  for shape in _worth_trying(ask, say):
    found = plan_mesh(ask, shape)
    if found.fits:
      return found
    say(f"mesh data {shape[0]} x model {shape[1]} does not fit")
  assert found is not None
  return found


def best(ask: Ask, say: Say) -> Plan:
  """Returns the plan of the mesh whose step is estimated to be the fastest.

  Where no time is known, the one that takes the least memory.
  """
  plans = []
  for shape in _worth_trying(ask, say):
    plan = plan_mesh(ask, shape)
    plans.append(plan)
    estimate = plan.train_times
    took = f", a step {1e3 * estimate.total:.1f} ms" if estimate else ""
    fits = "fits" if plan.fits else "does not fit"
    say(
      f"mesh data {shape[0]} x model {shape[1]} {fits}:"
      f" {plan.train.used_bytes / hardware.GIB:.2f} GiB{took}"
    )
  return min(plans, key=_rank)


def _rank(plan: Plan) -> tuple[bool, float, int]:
  seconds = plan.train_times.total if plan.train_times else 0.0
  return not plan.fits, seconds, plan.train.used_bytes


def _worth_trying(ask: Ask, say: Say) -> Iterator[tuple[int, int]]:
  """Yields meshes; not those whose arguments alone are too much."""
  shapes = meshes(ask)
  for shape in shapes:
    run = compiled.shapes(ask.config, _mesh(ask, shape))
    needed = compiled.argument_bytes(run)
    if needed > ask.target.memory_bytes and shape != shapes[-1]:
      say(
        f"mesh data {shape[0]} x model {shape[1]} does not fit: parameters and"
        f" optimizer alone take {needed / hardware.GIB:.1f} GiB"
      )
      continue
    yield shape


def suggestion(ask: Ask, say: Say) -> str:
  """Returns settings that fit in the place of ones that do not, compiled.

  In this order: another mesh, recompute all activations, cut the batch into
  micro-batches, larger slices. Empty if none of them does.
  """
  for words, other in _others(ask):
    say(f"trying {words}")
    try:
      plan = first_that_fits(other, say)
    except ShardingError:
      continue
    if plan.fits:
      mesh = ",".join(map(str, plan.mesh.values()))
      return f"fits with {words} --mesh {mesh}"
  return ""


def _others(ask: Ask) -> Iterator[tuple[str, Ask]]:
  free = dataclasses.replace(ask, mesh=None)
  if ask.mesh is not None:
    yield "", free
  words = ""
  if ask.settings["remat"] != "full":
    free, words = changed(free, remat="full"), "--remat full"
    yield words, free
  most = ask.config.batch_size // ask.config.micro_batches
  for parts in (2, 4, 8):
    if parts <= most and ask.config.batch_size % parts == 0:
      whole = parts * ask.config.micro_batches
      yield (
        f"{words} --micro_batches {whole}".strip(),
        changed(free, micro_batches=whole),
      )
  if ask.target.chip is None:
    return
  for slice_ in hardware.larger(hardware.topology(ask.target.name)):
    yield (
      f"--topology {slice_.name}",
      changed(ask, target=target.tpu(slice_.name), mesh=None),
    )
