"""What a plan says: does it fit, how long does a step take, what would fit."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from peft_jax.plan import hardware
from peft_jax.plan.compiled import KINDS, Compiled
from peft_jax.plan.hardware import GIB
from peft_jax.plan.program import Collective, total_bytes
from peft_jax.plan.target import Target


@dataclasses.dataclass(frozen=True, kw_only=True)
class Times:
  """Seconds that one call of a program takes, a roofline estimate.

  Attributes:
    compute: products at the chip's best.
    memory: their operands and results from and to its memory.
    links: collectives, each along rings over the axes that its chips span.
  """

  compute: float
  memory: float
  links: float

  @property
  def total(self) -> float:
    """Products and memory overlap; collectives are waited for."""
    return max(self.compute, self.memory) + self.links


def times(found: Compiled, aim: Target) -> Times | None:
  """Returns the roofline estimate; None where chip or program is unknown."""
  chip = aim.chip
  if chip is None or found.work_per_chip is None:
    return None
  links = sum(
    one.sent_bytes / hardware.axes_spanned(aim.shape, one.group)
    for one in found.collectives
  )
  return Times(
    compute=found.work_per_chip.flops / chip.flops_per_second,
    memory=found.work_per_chip.bytes / chip.hbm_bandwidth,
    links=links / chip.link_bandwidth,
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
  """What a run needs.

  Attributes:
    settings: what was asked: model, adapter, lengths, ...
    target: name of the slice or memory.
    mesh: axis -> size.
    hbm_bytes: that a program may use on one chip.
    train: the training step.
    decoding: of a batch; None: not compiled.
    train_times: of the step; None: unknown.
    decoding_times: of a batch; None: unknown.
    suggestion: other settings that fit, in words; empty if these do.
  """

  settings: Mapping[str, Any]
  target: str
  mesh: Mapping[str, int]
  hbm_bytes: int
  train: Compiled
  decoding: Compiled | None
  train_times: Times | None
  decoding_times: Times | None
  suggestion: str = ""

  @property
  def fits(self) -> bool:
    """Whether training fits, and decoding where it was compiled."""
    programs = [found for found in (self.train, self.decoding) if found]
    return all(
      found.fits and found.used_bytes <= self.hbm_bytes for found in programs
    )

  @property
  def compile_seconds(self) -> float:
    """Of both programs."""
    return self.train.seconds + (self.decoding.seconds if self.decoding else 0)


def to_json(plan: Plan) -> dict[str, Any]:
  """Returns the plan as it is written to a file."""
  batch = plan.settings["batch"]
  lengths = plan.settings["lengths"]
  found = {
    **plan.settings,
    "target": plan.target,
    "mesh": dict(plan.mesh),
    "fits": plan.fits,
    "hbm_bytes": plan.hbm_bytes,
    **_program(plan.train, plan.train_times),
    "flops_per_step": plan.train.work.flops,
    "step_seconds_estimate": _total(plan.train_times),
    "tokens_per_second_estimate": _rate(batch * sum(lengths), plan.train_times),
    "compile_seconds": round(plan.compile_seconds, 1),
    "suggestion": plan.suggestion,
    "decoding": None,
  }
  if plan.decoding is not None:
    found["decoding"] = {
      **_program(plan.decoding, plan.decoding_times),
      "seconds_estimate": _total(plan.decoding_times),
      "tokens_per_second_estimate": _rate(
        batch * lengths[1], plan.decoding_times
      ),
    }
  return found


def _program(found: Compiled, estimate: Times | None) -> dict[str, Any]:
  per_chip = found.work_per_chip
  return {
    "bytes_per_chip": dict(found.bytes_per_chip),
    "used_bytes": found.used_bytes,
    "flops_per_chip": per_chip.flops if per_chip else None,
    "product_bytes_per_chip": per_chip.bytes if per_chip else None,
    "roofline_seconds": dataclasses.asdict(estimate) if estimate else None,
    "collectives": [
      {**dataclasses.asdict(one), "sent_bytes": one.sent_bytes}
      for one in found.collectives
    ],
  }


def _total(estimate: Times | None) -> float | None:
  return estimate.total if estimate else None


def _rate(tokens: int, estimate: Times | None) -> float | None:
  return tokens / estimate.total if estimate else None


def to_text(plan: Plan) -> str:
  """Returns the plan as a table for people."""
  settings = plan.settings
  columns = {"train step": plan.train}
  if plan.decoding is not None:
    columns["decoding"] = plan.decoding
  unit, size = "GiB", GIB
  if max(found.used_bytes for found in columns.values()) < GIB:
    unit, size = "MiB", 2**20
  mesh = " x ".join(f"{axis} {size}" for axis, size in plan.mesh.items())
  inputs, targets = settings["lengths"]
  lines = [
    f"{settings['model']} + {settings['adapter']} on {plan.target}, mesh"
    f" {mesh}, batch {settings['batch']} x {inputs}/{targets} tokens, remat"
    f" {settings['remat']}, {settings['micro_batches']} micro-batch(es)",
    "",
    _row(f"{unit} per chip", columns),
  ]
  for kind in KINDS:
    sizes = [found.bytes_per_chip[kind] / size for found in columns.values()]
    lines.append(_row(kind, [f"{one:.3f}" for one in sizes]))
  used = [f"{found.used_bytes / size:.3f}" for found in columns.values()]
  lines.append(_row("together", used))
  has = f"{plan.hbm_bytes / size:.3f}"
  lines.append(_row("the chip has", [has] * len(columns)))
  lines.append(_row("fits", ["yes" if plan.fits else "NO"]))
  lines += ["", *_time_lines(plan)]
  for name, found in columns.items():
    lines += ["", *_collective_lines(name, found.collectives)]
  lines += ["", f"compiled in {plan.compile_seconds:.0f} s"]
  if plan.suggestion:
    lines.append(plan.suggestion)
  return "\n".join(lines)


def _row(name: str, cells: Sequence[str] | Mapping[str, Any]) -> str:
  return f"{name:<14}" + "".join(f"{cell:>14}" for cell in cells)


def _time_lines(plan: Plan) -> list[str]:
  work = plan.train.work
  lines = [f"{work.flops / 1e12:.4g} TFLOP a step, over all chips"]
  estimate = plan.train_times
  if estimate is None:
    return lines
  settings = plan.settings
  tokens = settings["batch"] * sum(settings["lengths"])
  lines.append(
    f"a step takes about {1e3 * estimate.total:.1f} ms,"
    f" {tokens / estimate.total:,.0f} tokens/s: products"
    f" {1e3 * estimate.compute:.1f} ms or memory"
    f" {1e3 * estimate.memory:.1f} ms, then collectives"
    f" {1e3 * estimate.links:.1f} ms"
  )
  if plan.decoding_times is not None:
    written = settings["batch"] * settings["lengths"][1]
    lines.append(
      f"decoding a batch about {1e3 * plan.decoding_times.total:.1f} ms,"
      f" {written / plan.decoding_times.total:,.0f} tokens/s"
    )
  return lines


def _collective_lines(
  name: str, collectives: Sequence[Collective], most: int = 6
) -> list[str]:
  if not collectives:
    return [f"{name}: no collectives"]
  lines = [
    f"{name}: collective, chips, bytes of one, times, GiB sent by a chip"
  ]
  for one in collectives[:most]:
    lines.append(
      f"  {one.kind:<18} {one.group:>4} {one.bytes:>14,} {one.count:>6}"
      f" {one.sent_bytes / GIB:>10.4f}"
    )
  rest = collectives[most:]
  if rest:
    sent = total_bytes(rest) / GIB
    lines.append(f"  and {sum(one.count for one in rest)} more {sent:>30.4f}")
  return lines


def write_json(plan: Plan, path: str) -> None:
  """Writes the plan as JSON."""
  with open(path, "w", encoding="utf-8") as file:
    json.dump(to_json(plan), file, indent=2)
    file.write("\n")
