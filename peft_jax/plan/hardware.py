"""What the chips are capable of, and how their slices are named."""

import dataclasses
import math
import re

GIB = 2**30
_UNITS = {"GB": 10**9, "GIB": GIB, "MB": 10**6, "MIB": 2**20}


class HardwareError(ValueError):
  """A slice or a size of memory that is not understood."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
  """What one chip is capable of.

  Attributes:
    name: as in a topology.
    hbm_bytes: memory that a program may use. libtpu keeps some of the chip's
      for itself; these are the limits that its compiler names.
    flops_per_second: of products in bfloat16, at best.
    hbm_bandwidth: bytes per second of the memory.
    link_bandwidth: bytes per second that a chip sends along one axis of the
      torus, over its two links.
    axes: axes of the torus.
    options: of the topology, for libtpu.
  """

  name: str
  hbm_bytes: int
  flops_per_second: float
  hbm_bandwidth: float
  link_bandwidth: float
  axes: int
  options: tuple[tuple[str, str], ...] = ()


# Peak, bandwidth of the memory and of all links in both directions are from
# docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}, seen in November 2026; the
# page of v4 has no links: twice its all-reduce bandwidth per chip, as it is for
# the others.
# libtpu takes the two cores of a v4 for devices of their own, JAX on the
# machine does not ("megacore").
CHIPS = {
  chip.name: chip
  for chip in (
    Chip(
      name="v4",
      hbm_bytes=int(30.75 * GIB),
      flops_per_second=275e12,
      hbm_bandwidth=1200e9,
      link_bandwidth=2 * 1.1e15 / 4096 / 2 / 3,
      axes=3,
      options=(("chip_config_name", "megacore"),),
    ),
    Chip(
      name="v5e",
      hbm_bytes=int(15.75 * GIB),
      flops_per_second=197e12,
      hbm_bandwidth=819e9,
      link_bandwidth=400e9 / 2 / 2,
      axes=2,
    ),
    Chip(
      name="v5p",
      hbm_bytes=int(95.74 * GIB),
      flops_per_second=459e12,
      hbm_bandwidth=2765e9,
      link_bandwidth=1200e9 / 2 / 3,
      axes=3,
    ),
    Chip(
      name="v6e",
      hbm_bytes=int(31.25 * GIB),
      flops_per_second=918e12,
      hbm_bandwidth=1638e9,
      link_bandwidth=800e9 / 2 / 2,
      axes=2,
    ),
  )
}

# Slices that can be rented, smallest first; of those with three axes, some.
# Same pages.
_TWO = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_THREE = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8")
SLICES = {2: _TWO, 3: _THREE}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Topology:
  """A slice.

  Attributes:
    chip: its chips.
    shape: how many along each axis.
  """

  chip: Chip
  shape: tuple[int, ...]

  @property
  def name(self) -> str:
    """As libtpu calls it, e.g. 'v5e:4x4'."""
    return f"{self.chip.name}:{'x'.join(map(str, self.shape))}"

  @property
  def chips(self) -> int:
    """How many chips it has."""
    return math.prod(self.shape)


def topology(name: str) -> Topology:
  """Returns the slice of a name.

  Example:
    >>> topology("v5e:4x4").chips
    16

  Args:
    name: chip, colon, shape.

  Raises:
    HardwareError: for an unknown name, with those that are known.
  """
  found = re.fullmatch(r"(\w+):(\d+(?:x\d+)+)", name)
  if not found or found[1] not in CHIPS:
    raise HardwareError(
      "expected a slice such as v5e:4x4, of the chips"
      f" {', '.join(CHIPS)}, found {name!r}."
    )
  chip = CHIPS[found[1]]
  if found[2] not in SLICES[chip.axes]:
    raise HardwareError(
      f"expected one of the slices {', '.join(SLICES[chip.axes])} of"
      f" {chip.name} chips, found {found[2]!r}."
    )
  return Topology(chip=chip, shape=tuple(map(int, found[2].split("x"))))


def axes_spanned(shape: tuple[int, ...], group: int) -> int:
  """Returns along how many axes of a slice a group of its chips lies.

  Example:
    >>> axes_spanned((4, 4), 4), axes_spanned((4, 4), 16)
    (1, 2)

  Args:
    shape: of the slice.
    group: chips that talk to one another; they fill the longest axes first.
  """
  reached, axes = 1, 0
  for size in sorted(shape, reverse=True):
    if axes and reached >= group:
      break
    reached, axes = reached * size, axes + 1
  return axes


def larger(slice_: Topology) -> list[Topology]:
  """Returns the slices of the same chips that have more of them.

  Example:
    >>> [found.name for found in larger(topology("v5e:8x8"))]
    ['v5e:8x16', 'v5e:16x16']
  """
  chip = slice_.chip
  found = [topology(f"{chip.name}:{shape}") for shape in SLICES[chip.axes]]
  return [other for other in found if other.chips > slice_.chips]


def memory_bytes(text: str) -> int:
  """Returns the bytes of a size with its unit.

  Example:
    >>> memory_bytes("80GB")
    80000000000

  Raises:
    HardwareError: for what is no size.
  """
  found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]+)", text.strip())
  if not found or found[2].upper() not in _UNITS:
    raise HardwareError(
      f"expected a size of memory such as 80GB or 24GiB, found {text!r}."
    )
  return int(float(found[1]) * _UNITS[found[2].upper()])
