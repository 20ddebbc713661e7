"""Names of slices and sizes of memory, and what is wrong with others."""

import importlib.util

import pytest

from peft_jax.plan import hardware, target
from peft_jax.plan.hardware import CHIPS, SLICES, HardwareError


def test_every_slice_has_a_name():
  for chip in CHIPS.values():
    for shape in SLICES[chip.axes]:
      name = f"{chip.name}:{shape}"
      assert hardware.topology(name).name == name


@pytest.mark.parametrize(
  ("name", "chips"), [("v5e:16x16", 256), ("v4:2x2x2", 8), ("v6e:1x1", 1)]
)
def test_chips_of_a_slice(name, chips):
  assert hardware.topology(name).chips == chips


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("v9:4x4", "of the chips v4, v5e, v5p, v6e, found 'v9:4x4'"),
    ("v5litepod-16", "expected a slice such as v5e:4x4"),
    ("v5e:3x3", "1x1, 2x2, 2x4, .* of v5e chips, found '3x3'"),
    ("v4:4x4", "2x2x1, 2x2x2, .* of v4 chips, found '4x4'"),
  ],
)
def test_unknown_slices(name, message):
  with pytest.raises(HardwareError, match=message):
    hardware.topology(name)


@pytest.mark.parametrize("size", ["80", "80 miles", "-1GB", "GB"])
def test_what_is_no_size(size):
  with pytest.raises(HardwareError, match="such as 80GB or 24GiB, found"):
    hardware.memory_bytes(size)


def test_sizes():
  assert hardware.memory_bytes("24GiB") == 24 * 2**30
  assert hardware.memory_bytes("1.5gb") == 1_500_000_000


def test_without_libtpu_the_remedy_is_named(monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(HardwareError, match=r"pip install 'peft_jax\[tpu\]'"):
    target.tpu("v5e:4x4")


def test_more_devices_than_there_are():
  with pytest.raises(HardwareError, match="expected 64 devices"):
    target.of_memory("80GB", 64)


@pytest.mark.parametrize(
  ("shape", "group", "axes"),
  [
    ((4, 4), 1, 1),
    ((4, 4), 4, 1),
    ((4, 4), 8, 2),
    ((2, 4), 4, 1),
    ((2, 2, 4), 16, 3),
  ],
)
def test_axes_that_a_group_lies_along(shape, group, axes):
  assert hardware.axes_spanned(shape, group) == axes
