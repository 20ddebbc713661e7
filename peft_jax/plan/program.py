"""Reads a compiled program: its collectives, its products, how often each runs.

XLA's text names every computation, and which others each of them calls. What
lies in the body of a loop runs as often as the loop turns. That number is in
`known_trip_count` where XLA says it (CPU, GPU), and otherwise the constant that
the loop's condition compares its counter with, which is what `lax.scan` and
`fori_loop` compile to, and for decoding the most tokens there can be.
"""

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Sequence

from peft_jax.plan.flops import Work

COLLECTIVES = (
  "all-reduce",
  "all-gather",
  "reduce-scatter",
  "all-to-all",
  "collective-permute",
)

_REARRANGES = (
  "convert",
  "broadcast",
  "bitcast",
  "reshape",
  "transpose",
  "copy",
)
_SIZES = {"pred": 1, "token": 0, "opaque": 0}
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
_OPCODE = re.compile(r"(?:^|[\s)])([a-z][\w\-]*)\(")
_SHAPE = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\]")
_NAME = re.compile(r"%([\w.\-]+)")


@dataclasses.dataclass(frozen=True)
class Array:
  """An array on one device."""

  dtype: str
  shape: tuple[int, ...]

  @property
  def bytes(self) -> int:
    """Without what a tiled layout adds."""
    return int(math.prod(self.shape) * _itemsize(self.dtype))


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line of a computation."""

  name: str
  opcode: str
  arrays: tuple[Array, ...]  # results
  operands: tuple[str, ...]
  attributes: str

  def called(self, attribute: str) -> str | None:
    """Returns the computation that an attribute names."""
    found = re.search(rf"\b{attribute}=%?([\w.\-]+)", self.attributes)
    return found[1] if found else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collective:
  """Collectives of one kind and size.

  Attributes:
    kind: one of `COLLECTIVES`.
    bytes: of the result of one, on one chip.
    group: chips that take part.
    count: how often it runs in one call of the program.
  """

  kind: str
  bytes: int
  group: int
  count: int

  @property
  def sent_bytes(self) -> float:
    """What one chip sends for all of them, along a ring."""
    others = (self.group - 1) / self.group
    factor = {
      "all-reduce": 2 * others,
      "all-gather": others,
      "reduce-scatter": self.group - 1,
      "all-to-all": others,
      "collective-permute": 1.0,
    }[self.kind]
    return factor * self.bytes * self.count


class Program:
  """A compiled program.

  Attributes:
    computations: name -> instruction name -> instruction.
    entry: where it begins.
  """

  def __init__(self, text: str) -> None:
    self.computations: dict[str, dict[str, Instruction]] = {}
    self.entry = ""
    current: dict[str, Instruction] = {}
    for line in text.splitlines():
      if head := _COMPUTATION.match(line):
        current = self.computations.setdefault(head[1], {})
        if line.startswith("ENTRY"):
          self.entry = head[1]
      elif found := _INSTRUCTION.match(line):
        current[found[1]] = _instruction(found[1], found[2])
    if not self.entry:
      raise ValueError("expected the text of a compiled program, found none.")

  @functools.cached_property
  def runs(self) -> dict[str, int]:
    """Computation -> how often it runs in one call of the program."""
    runs: collections.Counter[str] = collections.Counter()

    def walk(name: str, times: int) -> None:
      runs[name] += times
      for instruction in self.computations[name].values():
        for callee, turns in self._calls(instruction):
          walk(callee, times * turns)

    walk(self.entry, 1)
    return dict(runs)

  def _calls(self, instruction: Instruction) -> Iterator[tuple[str, int]]:
    if instruction.opcode == "while":
      body = instruction.called("body")
      if body in self.computations:
        yield body, self.turns(instruction)
      return
    if instruction.opcode in ("async-done", "async-update"):
      return  # the same as that of async-start
    for attribute in ("calls", "to_apply"):
      callee = instruction.called(attribute)
      if callee in self.computations:
        yield callee, 1
    branches = re.search(
      r"branch_computations=\{(.*?)\}", instruction.attributes
    )
    for callee in _NAME.findall(branches[1]) if branches else ():
      yield callee, 1

  def turns(self, loop: Instruction) -> int:
    """Returns how often a loop turns; 1 where the program does not say."""
    known = re.search(r'known_trip_count":\{"n":"(\d+)"', loop.attributes)
    if known:
      return int(known[1])
    condition = self.computations.get(loop.called("condition") or "", {})
    reached = {
      callee for i in condition.values() for callee, _ in self._calls(i)
    }
    lines = [*condition.values()]
    for callee in reached:
      lines += self.computations[callee].values()
    limits = [
      int(value[1])
      for i in lines
      if i.opcode == "constant"
      and i.arrays[0] in (Array("s32", ()), Array("u32", ()))
      and (value := re.match(r"(\d+)\)", i.attributes))
    ]
    return max(limits, default=1) or 1

  def collectives(self) -> list[Collective]:
    """Returns the collectives, those that send most first."""
    found: collections.Counter[tuple[str, int, int]] = collections.Counter()
    for name, times in self.runs.items():
      for instruction in self.computations[name].values():
        kind = instruction.opcode.removesuffix("-start")
        if kind not in COLLECTIVES:
          continue
        group = _group(instruction.attributes)
        if kind != "collective-permute" and group < 2:
          continue
        found[kind, _result_bytes(instruction), group] += times
    all_ = [
      Collective(kind=kind, bytes=size, group=group, count=count)
      for (kind, size, group), count in found.items()
    ]
    return sorted(all_, key=lambda one: -one.sent_bytes)

  def products(self) -> Work:
    """Returns the work of all products that one chip does."""
    total = Work()
    for name, times in self.runs.items():
      computation = self.computations[name]
      for instruction in computation.values():
        if instruction.opcode in ("dot", "convolution"):
          total += _product(instruction, computation) * times
        elif instruction.opcode == "reduce":
          total += _product_with_a_row(instruction, computation) * times
    return total


def _instruction(name: str, rest: str) -> Instruction:
  found = _OPCODE.search(rest)
  if not found:
    return Instruction(name, "", (), (), rest)
  arrays = tuple(
    Array(dtype, tuple(int(n) for n in shape.split(",") if n))
    for dtype, shape in _SHAPE.findall(rest[: found.start(1)])
  )
  inside = rest[found.end() :]
  end = inside.find(")")
  operands = tuple(_NAME.findall(inside[:end]))
  return Instruction(name, found[1], arrays, operands, inside)


def _itemsize(dtype: str) -> float:
  if dtype in _SIZES:
    return _SIZES[dtype]
  bits = re.search(r"\d+", dtype)
  return int(bits[0]) / 8 if bits else 0


def _result_bytes(instruction: Instruction) -> int:
  """Bytes of what a collective gives.

  What begins an asynchronous one holds its operands beside its results.
  """
  arrays = instruction.arrays
  if instruction.opcode.endswith("-start") and len(arrays) > 1:
    arrays = arrays[len(instruction.operands) :][: len(instruction.operands)]
  return int(sum(array.bytes for array in arrays))


def _group(attributes: str) -> int:
  """Returns how many devices take part in a collective."""
  if found := re.search(r"replica_groups=\[(\d+),(\d+)\]<=", attributes):
    return int(found[2])
  if found := re.search(r"replica_groups=\{\{([\d,]*)\}", attributes):
    return len(found[1].split(","))
  if found := re.search(
    r"replica_groups=mesh\[(.*?)\].*?\{('.*?')\}", attributes
  ):
    sizes = dict(re.findall(r"'([\w.\-]+)'=(\d+)", found[1]))
    axes = re.findall(r"'([\w.\-]+)'", found[2])
    return math.prod(int(sizes[axis]) for axis in axes)
  return 1


def _product(
  instruction: Instruction, computation: dict[str, Instruction]
) -> Work:
  left, right = (computation[name].arrays[0] for name in instruction.operands)
  out = instruction.arrays[0]
  if instruction.opcode == "dot":
    numbers = re.search(
      r"lhs_contracting_dims=\{([\d,]*)\}", instruction.attributes
    )
    dims = [int(n) for n in numbers[1].split(",") if n] if numbers else []
    reduced = math.prod(left.shape[i] for i in dims)
    flops = 2 * reduced * math.prod(out.shape)
  else:
    flops = _convolution_flops(instruction.attributes, left, right, out)
  return Work(flops, int(left.bytes + right.bytes + out.bytes))


def _product_with_a_row(
  reduce: Instruction, computation: dict[str, Instruction]
) -> Work:
  """Returns the work of a sum that was a product; none of another sum.

  XLA for TPU multiplies a single row, as in decoding one text, by itself and
  adds up. That it was a product is in the name of the traced operation.
  """
  if not re.search(r'op_name="[^"]*dot_general"', reduce.attributes):
    return Work()
  factors = _source(reduce.operands[0], computation)
  if factors.opcode != "multiply":
    return Work()
  sources = [_source(name, computation) for name in factors.operands]
  moved = sum(one.arrays[0].bytes for one in [*sources, reduce])
  return Work(2 * math.prod(factors.arrays[0].shape), int(moved))


def _source(name: str, computation: dict[str, Instruction]) -> Instruction:
  """Returns what was computed or given before it was only rearranged."""
  found = computation[name]
  while found.opcode in _REARRANGES:
    found = computation[found.operands[0]]
  return found


def _convolution_flops(
  attributes: str, left: Array, right: Array, out: Array
) -> int:
  """Returns the FLOPs of a convolution, without those on padding and holes.

  XLA for TPU writes a product as a convolution, and axes over which it is
  batched as a window that meets one real entry at a time.
  """
  labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", attributes)
  assert labels is not None
  at_left, at_right, at_out = labels[1], labels[2], labels[3]
  window = re.search(r"window=\{(.*?)\}", attributes)
  fields = dict(re.findall(r"(\w+)=(\S+)", window[1])) if window else {}
  spatial = sorted(c for c in at_out if c.isdigit())
  pairs = 1
  for i, axis in enumerate(spatial):
    size = right.shape[at_right.index(axis)]
    low = _at(fields, "pad", i, "0_0").split("_")[0]
    pairs *= _valid_pairs(
      length=left.shape[at_left.index(axis)],
      outputs=out.shape[at_out.index(axis)],
      window=size,
      stride=int(_at(fields, "stride", i, "1")),
      pad=int(low),
      holes=int(_at(fields, "lhs_dilate", i, "1")),
      spread=int(_at(fields, "rhs_dilate", i, "1")),
    )
  batch = out.shape[at_out.index("b")]
  features = out.shape[at_out.index("f")]
  return 2 * pairs * batch * features * right.shape[at_right.index("i")]


def _at(fields: dict[str, str], name: str, i: int, default: str) -> str:
  return fields[name].split("x")[i] if name in fields else default


@functools.cache
def _valid_pairs(
  *,
  length: int,
  outputs: int,
  window: int,
  stride: int,
  pad: int,
  holes: int,
  spread: int,
) -> int:
  """Counts the pairs of an output and a window position that meet an entry."""
  reach = (length - 1) * holes
  count = 0
  for output in range(outputs):
    first = output * stride - pad
    for position in range(window):
      place = first + position * spread
      count += 0 <= place <= reach and place % holes == 0
  return count


def total_bytes(collectives: Sequence[Collective]) -> float:
  """Returns what one chip sends for all collectives."""
  return sum(one.sent_bytes for one in collectives)
