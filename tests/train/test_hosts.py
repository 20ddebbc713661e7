"""Several processes: they meet, agree, and none goes on when one is gone."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent import futures
from pathlib import Path

import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from peft_jax.train import checkpoints, hosts
from peft_jax.train.logs import read_metrics

FACTS = {"BATCH_SIZE": "8", "version of jax": "1"}
HELPER = Path(__file__).resolve().parents[1] / "helpers" / "processes.py"


def free_port():
  with socket.socket() as probe:
    probe.bind(("localhost", 0))
    return probe.getsockname()[1]


# --- Meeting and agreeing, each process a thread of this one.


class Ended(BaseException):
  """What `os._exit` would have done."""


@pytest.fixture
def together(monkeypatch, capsys):
  """Returns a function that runs another in several 'processes' at once."""
  ended, met = [], []

  def end(code):
    ended.append(code)
    raise Ended

  monkeypatch.setattr(hosts.os, "_exit", end)
  monkeypatch.setattr(hosts.atexit, "register", lambda call: None)
  monkeypatch.setattr(hosts, "_NEWS_SECONDS", 0.0)
  monkeypatch.setattr(threading, "excepthook", lambda args: None)
  monkeypatch.setattr(
    hosts.socket, "gethostname", lambda: threading.current_thread().name
  )

  def run(count, work, *, expected=None, ids=None, **timeouts):
    port = free_port()
    timeouts = {"start_timeout": 20.0, "host_timeout": 5.0} | timeouts

    def be(index, process):
      threading.current_thread().name = f"host{index}"
      one = hosts.meet(
        f"localhost:{port}",
        (expected or [count] * count)[index],
        process,
        **timeouts,
      )
      met.append(one)
      return work(one)

    with futures.ThreadPoolExecutor(count) as pool:
      jobs = [pool.submit(be, i, p) for i, p in enumerate(ids or range(count))]
    return [job.exception() or job.result() for job in jobs]

  run.ended, run.met = ended, met
  yield run
  for one in met:
    one._failed = True
  for one in met:
    hang_up(one)
  wait_for(lambda: hosts._THREAD not in [t.name for t in threading.enumerate()])
  for one in met:
    for line in one._lines.values():
      line.close()


@pytest.mark.parametrize("count", [2, 4])
def test_processes_that_agree_have_one_hash(together, count):
  hashes = together(count, lambda one: one.agree(FACTS))
  assert len(set(hashes)) == 1
  assert hashes[0] == hosts.ALONE.agree(FACTS)
  assert together.met[0].names == tuple(f"host{i}" for i in range(count))


def test_what_differs_is_named_on_every_process(together):
  def work(one):
    rate = "0.1" if one.process < 2 else "0.2"
    extra = {"PACK": "True"} if one.process == 3 else {}
    return one.agree(FACTS | extra | {"LEARNING_RATE": rate})

  for error in together(4, work):
    assert isinstance(error, hosts.HostsError)
    assert (
      "found 2 that differ. LEARNING_RATE: 0.1 on processes 0 (host0), 1"
      " (host1), 0.2 on processes 2 (host2), 3 (host3); PACK: nothing on"
      " processes 0 (host0), 1 (host1), 2 (host2), True on process 3 (host3)."
      " Nothing was written"
    ) in str(error)
  assert not together.ended


def test_who_does_not_start_is_named(together, monkeypatch):
  monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "a,b,c,d")
  errors = together(2, None, expected=[4, 4], ids=[0, 2], start_timeout=1.0)
  for error in errors:
    assert isinstance(error, hosts.HostsError)
    assert (
      "expected all processes within 1 s, found no processes 1 (b), 3 (d)."
      " Found 2 of 4: processes 0 (host0), 2 (host1)."
    ) in str(error)


def test_a_missing_first_process_is_named(together):
  [error] = together(1, None, expected=[4], ids=[1], start_timeout=1.0)
  assert "expected process 0 at localhost:" in str(error)


def test_who_does_not_come_to_agree_is_named(together):
  def work(one):
    return one.process == 1 or one.agree(FACTS)

  first, _, last = together(3, work, start_timeout=1.0)
  for error in (first, last):
    assert "within 1 s, found no process 1 (host1)" in str(error)


@pytest.mark.parametrize(
  ("expected", "ids", "message"),
  [
    ([2, 3], [0, 1], "found 2 on process 0 (host0) and 3 on process 1 (host1)"),
    ([3, 3, 3], [0, 1, 1], "each once, found 1 on host"),
  ],
)
def test_processes_that_do_not_fit_stop(together, expected, ids, message):
  errors = together(
    len(ids), None, expected=expected, ids=ids, start_timeout=2.0
  )
  assert all(isinstance(error, hosts.HostsError) for error in errors)
  assert all(message in str(error) for error in errors), errors


def test_a_port_that_is_taken_is_named(together):
  with socket.create_server(("", 0)) as other:
    address = f"localhost:{other.getsockname()[1]}"
    with pytest.raises(hosts.HostsError, match="to be free here, on MainThr"):
      hosts.meet(address, 2, 0, start_timeout=1.0)


@pytest.mark.parametrize("noticed", [True, False])
def test_who_comes_twice_after_a_restart_is_taken(
  together, monkeypatch, noticed
):
  """And what is not one of ours does not disturb."""
  real = hosts._gather

  def visited(listener, *rest):
    address = ("localhost", listener.getsockname()[1])
    for text in (b"GET / HTTP/1.1\r\n\r\n", b'{"process": 1, "host"'):
      with socket.create_connection(address) as stranger:
        stranger.sendall(text)
    early = socket.create_connection(address)
    early.sendall(b'{"process": 1, "host": "old", "count": 2}\n')
    early.close()
    return real(listener, *rest)

  class Late(hosts.selectors.DefaultSelector):
    """Hears of who comes before it hears of who left."""

    def select(self, timeout=None):
      found = super().select(timeout)
      time.sleep(0.2)  # for the next one to come
      found = super().select(0) or found
      return sorted(found, key=lambda event: -event[0].fd)

  if not noticed:
    monkeypatch.setattr(hosts.selectors, "DefaultSelector", Late)
  monkeypatch.setattr(hosts, "_gather", visited)
  assert len(set(together(2, lambda one: one.agree(FACTS)))) == 1
  assert together.met[0].names == ("host0", "host1")


@pytest.mark.parametrize("gone", [0, 2])
def test_the_others_stop_when_one_is_gone(together, capsys, gone):
  together(4, lambda one: one.agree(FACTS))
  [lost] = [one for one in together.met if one.process == gone]
  lost._failed = True
  hang_up(lost)
  wait_for(lambda: len(together.ended) == 3)
  assert together.ended == [143] * 3
  text = capsys.readouterr().err
  assert text.count(f"Process {gone} (host{gone}) is gone: killed, or") == 3


@pytest.mark.parametrize("failing", [0, 1])
def test_the_others_hear_of_an_error(together, capsys, failing):
  def work(one):
    one.agree(FACTS)
    with one:
      if one.process == failing:
        raise RuntimeError("disk full")
      wait_for(lambda: len(together.ended) >= 2)

  errors = together(3, work)
  assert str(errors[failing]) == "disk full"
  assert together.ended == [1, 1]
  text = f"Process {failing} (host{failing}) stopped, and so do the others:"
  assert capsys.readouterr().err.count(f"{text} RuntimeError: disk full") == 2


def test_who_is_done_may_go(together):
  def work(one):
    one.agree(FACTS)
    with one:
      return True

  together(3, work)
  hang_up(together.met[1])
  assert not together.ended


def hang_up(one):
  for line in one._lines.values():
    with contextlib.suppress(OSError):
      line.socket.shutdown(socket.SHUT_RDWR)


def wait_for(condition):
  """Waits for threads that do not say when they are done."""
  done = threading.Event()
  for _ in range(500):
    if condition():
      return
    done.wait(0.02)
  raise AssertionError("waited in vain")


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ((None, 2, 0), "--coordinator_address HOST:PORT of process 0, found None"),
    (("here", 2, 0), "HOST:PORT of process 0, found here"),
    (("a:1", None, 0), "--num_processes of 1 or more, found None"),
    (("a:1", 2, None), "--process_id from 0 to 1, found None"),
    (("a:1", 2, 2), "--process_id from 0 to 1, found 2"),
  ],
)
def test_arguments_that_do_not_fit(arguments, message):
  with pytest.raises(hosts.HostsError, match=message):
    hosts.join(*arguments)


@pytest.mark.parametrize("name", ["start_timeout", "host_timeout"])
def test_no_time_is_not_enough(name):
  with pytest.raises(hosts.HostsError, match=f"expected {name} of 1 second"):
    hosts.join("a:1", 2, 0, **{name: 0.5})


def test_a_single_process_is_alone():
  assert hosts.join("a:1", 1, 0) is hosts.ALONE
  assert hosts.join() is hosts.ALONE


# --- The trainer, each process one of its own.

SETTINGS = [
  "networks.create.num_encoder_layers=1",
  "networks.create.num_decoder_layers=1",
  "networks.create.emb_dim=16",
  "networks.create.num_heads=4",
  "networks.create.head_dim=4",
  "networks.create.mlp_dim=32",
  "BACKBONE='random'",
  "MIXTURE_OR_TASK_NAME='words'",
  "TASK_FEATURE_LENGTHS={'inputs': 12, 'targets': 8}",
  "BATCH_SIZE=8",
  "EVAL_BATCH_SIZE=4",
  "EVAL_FROZEN=False",
  "ALLOW_CUT_TARGETS=True",
  "WARMUP_STEPS=1",
  "LOG_PERIOD=1",
  "CHECKPOINT_PERIOD=1000",
  "TRAIN_STEPS=20",
  # At 0.05 the loss is no longer smooth: rounding grows tenfold in 20 steps.
  "LEARNING_RATE=0.01",
]


@pytest.fixture(scope="module")
def start(tmp_path_factory):
  """Returns a function that runs the trainer in some processes."""
  data = tmp_path_factory.mktemp("data")
  rows = [{"inputs": f"say {w}", "targets": w} for w in ("up", "down", "left")]
  text = "".join(json.dumps(row) + "\n" for row in rows)
  for split in ("train", "validation"):
    (data / f"{split}.jsonl").write_text(text)
  flags = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1")
  helper = subprocess.Popen(
    [sys.executable, str(HELPER)],
    env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
  )

  def run(folder, count, *more, own=None, signal=None, pause=0.0):
    folder.mkdir(exist_ok=True)
    argv = [
      "train",
      *("--model=tiny", "--adapter=lora", "--task=words"),
      *(f"--gin.{setting}" for setting in SETTINGS),
      *(f"--data_dir={data}", f"--model_dir={folder}/run", *more),
    ]
    if count > 1:
      argv += [
        f"--coordinator_address=localhost:{free_port()}",
        f"--num_processes={count}",
        "--start_timeout=300",
        "--host_timeout=5",
      ]
    each = [
      argv + [f"--process_id={i}"] * (count > 1) + (own or {}).get(i, [])
      for i in range(count)
    ]
    job = {"argv": each, "folder": str(folder), "signal": signal}
    helper.stdin.write(json.dumps(job | {"pause": pause}) + "\n")
    helper.stdin.flush()
    codes = json.loads(helper.stdout.readline())
    logs = [(folder / f"{i}.log").read_text() for i in range(count)]
    return codes, logs

  yield run
  helper.stdin.close()
  helper.kill()
  helper.stdout.close()
  helper.wait()


def losses(folder):
  return [
    row["loss"]
    for row in read_metrics(folder / "run")
    if row["kind"] == "train"
  ]


@pytest.fixture(scope="module")
def one(start, tmp_path_factory):
  folder = tmp_path_factory.mktemp("one")
  codes, logs = start(folder, 1)
  assert codes == [0], logs
  return folder


@pytest.fixture(scope="module")
def two(start, tmp_path_factory):
  folder = tmp_path_factory.mktemp("two")
  codes, logs = start(folder, 2)
  assert codes == [0, 0], logs
  return folder


@pytest.mark.slow
def test_two_processes_give_the_loss_of_one(one, two):
  np.testing.assert_allclose(losses(two), losses(one), rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("model_parallel", [1, 2])
def test_four_give_the_loss_of_one(start, one, tmp_path, model_parallel):
  """Each its part of a batch, or pairs that share the model."""
  codes, logs = start(tmp_path, 4, f"--gin.MODEL_PARALLEL={model_parallel}")
  assert codes == [0] * 4, logs
  np.testing.assert_allclose(losses(tmp_path), losses(one), rtol=1e-6)


@pytest.mark.slow
def test_told_to_go_killed_and_started_again(start, two, tmp_path):
  """One process has the signal; the weights are those of an undisturbed run."""
  stop = (1, int(signal.SIGTERM), 2)
  codes, logs = start(tmp_path, 2, signal=stop, pause=0.2)
  assert codes == [143, 143], logs
  assert "Preempted: saved step" in logs[0]
  [saved] = checkpoints.steps_of(tmp_path / "run")

  codes, logs = start(tmp_path, 2, signal=(1, int(signal.SIGKILL), 2))
  assert codes == [143, -9], logs
  assert f"resumed {tmp_path}/run at step {saved}" in logs[0]
  name = f"Process 1 ({socket.gethostname()}) is gone: killed, or"
  assert name in logs[0]
  assert checkpoints.steps_of(tmp_path / "run") == [saved]

  codes, logs = start(tmp_path, 2)
  assert codes == [0, 0], logs
  found, expected = (
    flatten_dict(checkpoints.read(folder / "run")[1])
    for folder in (tmp_path, two)
  )
  assert found.keys() == expected.keys()
  for path, leaf in expected.items():
    np.testing.assert_array_equal(found[path], leaf, err_msg=str(path))
  assert losses(tmp_path) == losses(two)


@pytest.mark.slow
def test_another_setting_on_one_process_stops_all(start, tmp_path):
  codes, logs = start(tmp_path, 2, own={1: ["--gin.LEARNING_RATE=0.02"]})
  assert codes == [1, 1]
  name = socket.gethostname()
  for text in logs:
    assert (
      f"LEARNING_RATE: 0.01 on process 0 ({name}), 0.02 on process 1 ({name})"
    ) in text
  assert not (tmp_path / "run").exists()
