"""Estimates, by hand."""

import pytest

from peft_jax.plan import hardware, report, target
from peft_jax.plan.compiled import KINDS, Compiled
from peft_jax.plan.flops import Work
from peft_jax.plan.program import Collective


def compiled(**fields):
  values = {
    "bytes_per_chip": dict.fromkeys(KINDS, 0),
    "fits": True,
    "work": Work(0, 0),
    "work_per_chip": Work(197 * 10**12, 819 * 10**9 // 2),
    "collectives": [
      Collective(kind="all-reduce", bytes=10**9, group=4, count=10),
      Collective(kind="all-gather", bytes=10**9, group=16, count=10),
    ],
    "seconds": 1.0,
  }
  return Compiled(**(values | fields))


def v5e(shape=(4, 4)):
  return target.Target(
    name="v5e",
    memory_bytes=1,
    devices=(),
    chip=hardware.CHIPS["v5e"],
    shape=shape,
  )


def test_a_roofline():
  found = report.times(compiled(), v5e())
  assert found.compute == pytest.approx(1.0)
  assert found.memory == pytest.approx(0.5)
  # Four links, 400 GB/s both ways together: 100 GB/s out along an axis.
  along_one, along_both = 2 * 10 * 3 / 4, 10 * 15 / 16
  assert found.links == pytest.approx(along_one / 100 + along_both / 200)
  assert found.total == pytest.approx(1.0 + found.links)


def test_no_estimate_without_a_chip():
  gpu = target.of_memory("80GB")
  assert report.times(compiled(), gpu) is None
  assert report.times(compiled(work_per_chip=None), v5e()) is None
