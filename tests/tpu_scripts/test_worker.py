"""What a worker does with what it is sent: install, start, start again."""

import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys

import pytest

from peft_jax import doctor

WHEEL = "gs://mine/peft_jax-0.1.0-py3-none-any.whl"
SETUP = ("setup.sh", "rte", "--zone=z", "--dry-run", "--source", WHEEL)

# A job as both trainers are: it saves when it is told to go, and says so with
# its exit status.
JOB = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
print(os.getpid(), os.environ["JAX_PLATFORMS"], os.environ["A"], os.getcwd())
print(sys.argv[1:], flush=True)
time.sleep(60)
"""

# `uv venv` makes a folder with a python and a pip; both are fakes as well.
_UV = r"""
case $* in
  *'--target '*) mkdir -p "${@: -2:1}/bin" && cp "$0" "${@: -2:1}/bin/uv" ;;
  'venv --seed'*) mkdir -p "${@: -1}/bin" &&
    cp "$0" "${@: -1}/bin/pip" && cp "$0" "${@: -1}/bin/python" ;;
  *sysconfig*) echo /site ;;
esac
[[ $* != *"${BROKEN:-nothing}"* ]]
"""


@pytest.fixture
def worker(cloud):
  """A machine with the image's own python3, systemd and gcloud, all fakes."""
  if shutil.which("flock") is None:
    pytest.skip("needs flock, of util-linux")
  cloud.add("python3", "systemctl", "sleep")
  path = cloud.folder / "bin/python3"
  path.write_text(path.read_text() + _UV)
  cloud.play(jobs=["dead"])
  return cloud


def compose(cloud, *args):
  done = cloud.run(*SETUP, *args)
  assert done.returncode == 0, done.stderr
  return cloud.folder / ".cache/peft_jax/rte-startup.sh"


def boot(cloud, startup, **environment):
  here = {"ROOT": f"{cloud.folder}/root", "UNITS": str(cloud.folder)}
  return cloud.run(startup, **here, **environment)


def test_a_worker_installs_pinned(worker):
  done = boot(worker, compose(worker, "--files", "gs://mine/inputs"))
  assert done.returncode == 0, done.stderr
  root = f"{worker.folder}/root"
  calls = [call for call in worker.calls() if call[0] != "python"]
  assert calls[0][:4] == ["python3", "-m", "pip", "install"]
  assert calls[0][-3:] == ["--target", f"{root}/uv", "uv==0.13.8"]
  assert calls[1:] == [
    ["uv", "venv", "--seed", "--python", "3.12", f"{root}/venv"],
    ["gcloud", "storage", "cp", WHEEL, f"{root}/"],
    [
      *("pip", "install", "--quiet"),
      *("--constraint", f"{root}/constraints.txt"),
      f"peft_jax[t5x,tpu] @ file://{root}/{WHEEL.rpartition('/')[2]}",
    ],
    [
      *("pip", "install", "--quiet", "--no-deps"),
      *(f"git+{u}@{c}" for u, c in doctor.T5X_SOURCES.values()),
    ],
    [
      "gcloud",
      "storage",
      "rsync",
      "--recursive",
      "gs://mine/inputs",
      f"{root}/work",
    ],
  ]
  pins = pathlib.Path(root, "constraints.txt").read_text()
  tested = pathlib.Path(__file__).parents[2] / "requirements"
  assert pins == (tested / "constraints-py312.txt").read_text()
  assert os.readlink(f"{root}/work/gin_configs") == "/site/peft_jax/gin_configs"
  assert not pathlib.Path(root, "setup_failed").exists()


def test_a_second_time_installs_only_what_changed(worker):
  startup = compose(worker)
  boot(worker, startup)
  first = len(worker.calls())
  boot(worker, startup)
  assert [call[0] for call in worker.calls()[first:]] == ["python"]
  commit = "git+https://github.com/me/peft_jax@" + "a" * 40
  boot(worker, compose(worker, f"--source={commit}"))
  assert f"peft_jax[t5x,tpu] @ {commit}" in worker.calls()[-3]


def test_a_failed_installation_is_tried_again_and_told(worker):
  startup = compose(worker)
  done = boot(worker, startup, BROKEN="--no-deps")
  assert done.returncode == 1
  tried = [call for call in worker.calls() if "--no-deps" in call]
  assert len(tried) == 3
  assert (worker.folder / "root/setup_failed").exists()
  assert boot(worker, startup).returncode == 0
  assert not (worker.folder / "root/setup_failed").exists()


def start(worker, *command):
  startup = compose(worker, "--env", "A=b c", "--", *command)
  done = boot(worker, startup)
  return done, worker.folder / "root/run"


def test_sigterm_reaches_python_itself(worker):
  program = worker.folder / "job.py"
  program.write_text(JOB)
  done, run = start(worker, sys.executable, program, "it's", "--gin.A='b'")
  assert done.returncode == 0, done.stderr
  assert worker.calls()[-2:] == [
    ["systemctl", "daemon-reload"],
    ["systemctl", "restart", "peft-jax"],
  ]
  job = subprocess.Popen([run], stdout=subprocess.PIPE, text=True)
  try:
    assert job.stdout is not None
    told = [job.stdout.readline().rstrip("\n") for _ in range(2)]
    work = f"{worker.folder}/root/work"
    assert told[0] == f"{job.pid} tpu,cpu b c {work}"
    assert told[1] == repr(["it's", "--gin.A='b'"])
    job.send_signal(signal.SIGTERM)
    assert job.wait(timeout=30) == 143
  finally:
    job.kill()
    job.communicate()


@pytest.mark.parametrize(
  "command",
  ["peft-jax train --model tiny", "python -m t5x.train --gin_file=a.gin"],
)
def test_both_trainers_are_those_of_the_environment(worker, command):
  _, run = start(worker, *shlex.split(command))
  text = run.read_text()
  assert text.endswith(f"exec {command}\n")
  assert f"export PATH={worker.folder}/root/venv/bin:$PATH\n" in text


def test_the_service_starts_again_after_143_only(worker):
  start(worker, "peft-jax", "train")
  unit = worker.folder / "peft-jax.service"
  lines = unit.read_text().splitlines()
  assert f"ExecStart={worker.folder}/root/run" in lines
  assert {"RestartForceExitStatus=143", "KillMode=mixed"} < set(lines)
  assert not any(line.startswith("Restart=") for line in lines)
  program = shutil.which("systemd-analyze")
  if program:
    command = [program, "verify", str(unit)]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    # It says which keys it does not know; of the machine it may say anything.
    assert "peft-jax.service" not in found.stderr


def test_a_running_job_is_left_alone(worker):
  start(worker, "peft-jax", "train")
  worker.play(jobs=["running"])
  before = len(worker.calls())
  done, run = start(worker, "peft-jax", "train")
  assert done.returncode == 0
  assert "the job is running already" in done.stdout
  assert ["systemctl", "restart", "peft-jax"] not in worker.calls()[before:]
  done, _ = start(worker, "peft-jax", "eval")
  assert done.returncode == 1
  assert "expected no job on this worker, found another" in done.stderr
  assert "sudo systemctl stop peft-jax" in done.stderr
  assert run.read_text().endswith("exec peft-jax train\n")
