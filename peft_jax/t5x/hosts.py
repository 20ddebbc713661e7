"""A T5X job's processes meet before T5X does anything (see `train.hosts`).

T5X evaluates what gin binds to its `train` before it looks at a device: the
model folder is bound to `meet`.
"""

import jax
from absl import flags

from peft_jax import doctor, manifest
from peft_jax.train import checkpoints, hosts
from peft_jax.train.config import settings


def meet(
  model_dir: str,
  *,
  start_timeout: float = hosts.START_TIMEOUT,
  host_timeout: float = hosts.HOST_TIMEOUT,
) -> str:
  """Returns the job's folder when all processes are there and agree.

  Which they are, T5X's flags `--coordinator_address`, `--process_count` and
  `--process_index` say, without `--multiprocess_gpu`; on a TPU slice they find
  one another. A process by itself does nothing.

  Args:
    model_dir: the job's folder.
    start_timeout: see `hosts.join`.
    host_timeout: see `hosts.join`.

  Raises:
    HostsError: if some are missing, or have other settings, versions, devices
      or checkpoints; before anything is written.
  """
  told = _flags()
  if jax.distributed.is_initialized():
    raise hosts.HostsError(
      "expected processes that are not connected yet, found JAX connected."
      " Leave --multiprocess_gpu out: with it nobody learns who is missing."
    )
  if any(value is not None for value in told) or doctor.has_tpu():
    processes = hosts.join(
      *told, start_timeout=start_timeout, host_timeout=host_timeout
    )
    if processes is not hosts.ALONE:
      processes.agree(_facts(model_dir))
  return model_dir


def _flags() -> tuple[str | None, int | None, int | None]:
  """Returns what T5X's flags say; it defines them when it runs as a program."""
  known = flags.FLAGS
  names = ("coordinator_address", "process_count", "process_index")
  if not known.is_parsed() or not all(name in known for name in names):
    return None, None, None
  address, count, index = (known[name].value for name in names)
  return address, count, index


def _facts(model_dir: str) -> dict[str, str]:
  device = jax.local_devices()[0]
  return {
    **settings(),
    **{f"version of {k}": v for k, v in manifest.versions().items()},
    "devices": f"{jax.local_device_count()} x {device.device_kind}",
    # Of a folder that each has for itself, only one could go on.
    f"checkpoints in {model_dir}": str(checkpoints.steps_of(model_dir)),
  }
