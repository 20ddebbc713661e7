"""`--require tpu` lets the workers of a slice find one another."""

import pytest

from peft_jax import cli, doctor
from peft_jax.train import hosts

TRAIN = ("train", "--model=tiny", "--adapter=ia3", "--task=quickstart")


@pytest.mark.parametrize(
  ("files", "argv", "times"),
  [
    (["/dev/accel0"], ["--require=tpu"], 1),
    (["/dev/vfio/0", "/dev/vfio/vfio"], ["--require=tpu"], 1),
    (["/dev/vfio/vfio"], ["--require=tpu"], 0),
    ([], ["--require=tpu"], 0),
    (["/dev/accel0"], ["--require=cpu"], 0),
  ],
)
def test_workers_join_before_jax_starts(monkeypatch, files, argv, times):
  happened = []
  monkeypatch.setattr(doctor, "_device_files", lambda: files)

  def join(*told, **timeouts):
    happened.append((told, timeouts))
    return hosts.ALONE

  monkeypatch.setattr(hosts, "join", join)

  def stop(name):
    happened.append(name)
    raise doctor.DeviceError("here it ends")

  monkeypatch.setattr(doctor, "require_platform", stop)
  assert cli.main([*TRAIN, *argv]) == 1
  own = ((None, None, None), {"start_timeout": 600, "host_timeout": 60})
  assert happened == [own] * times + [argv[0].partition("=")[2]]
