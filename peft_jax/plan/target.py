"""The devices that a program is compiled for: a TPU slice, or any memory."""

import dataclasses
import importlib.util
import os
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import topologies

from peft_jax.plan import hardware
from peft_jax.plan.hardware import Chip, HardwareError

# libtpu looks for a TPU and for the other machines of its slice. Here it shall
# look for neither, and may be loaded by several processes. Its threads have too
# little stack for its own compiler, which some small shapes end in a crash.
_LIBTPU = {
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_ACCELERATOR_TYPE": "v5litepod-4",
  "TPU_WORKER_HOSTNAMES": "localhost",
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
  "TPU_MIN_LOG_LEVEL": "3",
  "TPU_STDERR_LOG_LEVEL": "3",
}
_LIBTPU_FLAGS = "--fibers_default_thread_stack_size=4194304"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
  """Devices, and what they are capable of.

  Attributes:
    name: as the user calls it.
    memory_bytes: that a program may use, per device.
    devices: what JAX compiles for.
    chip: what a device is capable of; None: unknown, no time is estimated.
    shape: of the slice; empty: there is none.
  """

  name: str
  memory_bytes: int
  devices: Sequence[Any]
  chip: Chip | None = None
  shape: tuple[int, ...] = ()


def tpu(name: str) -> Target:
  """Returns a slice, for which libtpu compiles without a TPU.

  Args:
    name: e.g. 'v5e:4x4'.

  Raises:
    HardwareError: for an unknown slice, or without libtpu.
  """
  found = hardware.topology(name)
  if importlib.util.find_spec("libtpu") is None:
    raise HardwareError(
      f"expected libtpu, which compiles for {name}, found none. Install it with"
      " pip install 'peft_jax[tpu]'; it needs no TPU."
    )
  for variable, value in _LIBTPU.items():
    os.environ.setdefault(variable, value)
  flags = os.environ.get("LIBTPU_INIT_ARGS", "")
  if _LIBTPU_FLAGS.split("=")[0] not in flags:
    os.environ["LIBTPU_INIT_ARGS"] = f"{flags} {_LIBTPU_FLAGS}".strip()
  options: dict[str, Any] = dict(found.chip.options)
  if found.chips == 1:
    options["chips_per_host_bounds"] = (1, 1, 1)
  described = topologies.get_topology_desc(
    platform="tpu", topology_name=name, **options
  )
  return Target(
    name=name,
    memory_bytes=found.chip.hbm_bytes,
    devices=described.devices,
    chip=found.chip,
    shape=found.shape,
  )


def of_memory(size: str, devices: int = 1) -> Target:
  """Returns devices of JAX's own backend, each with a memory of that size.

  On a GPU machine these are its GPUs. Elsewhere it is the processor: what
  arguments take is exact, what activations take is what they take there.

  Args:
    size: e.g. '80GB'.
    devices: how many.

  Raises:
    HardwareError: for what is no size, or if there are fewer devices.
  """
  bytes_ = hardware.memory_bytes(size)
  there = jax.devices()
  if len(there) < devices:
    raise HardwareError(
      f"expected {devices} devices to compile for, found {len(there)}. On a"
      " processor set"
      f" XLA_FLAGS=--xla_force_host_platform_device_count={devices}."
    )
  return Target(
    name=f"{devices} x {size} ({there[0].platform})",
    memory_bytes=bytes_,
    devices=there[:devices],
  )
