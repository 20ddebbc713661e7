"""The metrics of a run, as JSON lines and for TensorBoard."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest

from peft_jax.train import logs


def tensorboard_scalars(directory):
  """Each tag's [(step, value)], read as TensorBoard itself reads a folder."""
  accumulator = pytest.importorskip(
    "tensorboard.backend.event_processing.event_accumulator"
  )
  events = accumulator.EventAccumulator(str(directory / "tensorboard"))
  events.Reload()
  return {
    tag: [(event.step, event.value) for event in events.Scalars(tag)]
    for tag in events.Tags()["scalars"]
  }


def write_steps(directory, steps, **extra):
  with logs.RunLog(directory=directory) as log:
    for step in steps:
      log.write(step=step, kind="train", metrics={"loss": 1.0 * step, **extra})


def steps_of(directory):
  return [record["step"] for record in logs.read_metrics(directory)]


def test_records_round_trip(tmp_path):
  now = iter([10.0, 10.0, 12.5, 14.0, 14.0]).__next__
  with logs.RunLog(directory=tmp_path / "run", clock=now) as log:
    log.write(step=1, kind="train", metrics={"loss": np.float32(0.5)})
    log.write(step=1, kind="eval", metrics={"rte": {"accuracy": 50, "n": 3}})
  assert logs.read_metrics(tmp_path / "run") == [
    {"step": 1, "kind": "train", "time_s": 2.5, "loss": 0.5},
    {
      "step": 1,
      "kind": "eval",
      "time_s": 4.0,
      "rte/accuracy": 50,
      "rte/n": 3,
    },
  ]
  assert tensorboard_scalars(tmp_path / "run") == {
    "train/loss": [(1, 0.5)],
    "eval/rte/accuracy": [(1, 50.0)],
    "eval/rte/n": [(1, 3.0)],
  }


def test_nan_and_infinity_are_valid_json_and_come_back(tmp_path):
  values = {"a": math.nan, "b": math.inf, "c": -math.inf}
  with logs.RunLog(directory=tmp_path) as log:
    log.write(step=np.int64(1), kind="train", metrics=values)

  def refuse(constant):
    raise AssertionError(f"{constant} is not JSON")

  text = (tmp_path / "metrics.jsonl").read_text()
  written = json.loads(text, parse_constant=refuse)
  assert [written[name] for name in "abc"] == ["NaN", "Infinity", "-Infinity"]
  (record,) = logs.read_metrics(tmp_path)
  assert math.isnan(record["a"])
  assert (record["b"], record["c"]) == (math.inf, -math.inf)
  ((_, value),) = tensorboard_scalars(tmp_path)["train/a"]
  assert math.isnan(value)


def test_resuming_cuts_what_a_killed_run_wrote_later(tmp_path):
  write_steps(tmp_path, [10, 20, 30, 40])
  with logs.RunLog(directory=tmp_path) as log:
    log.truncate_after(20)
    for step in (30, 40, 50):
      log.write(step=step, kind="train", metrics={"loss": 2.0 * step})
  assert [r["loss"] for r in logs.read_metrics(tmp_path)] == [
    10.0,
    20.0,
    60.0,
    80.0,
    100.0,
  ]
  assert tensorboard_scalars(tmp_path)["train/loss"] == [
    (10, 10.0),
    (20, 20.0),
    (30, 60.0),
    (40, 80.0),
    (50, 100.0),
  ]
  write_steps(tmp_path, [60])
  assert steps_of(tmp_path) == [10, 20, 30, 40, 50, 60]


def test_truncating_in_the_middle_of_a_run_and_to_nothing(tmp_path):
  with logs.RunLog(directory=tmp_path) as log:
    for step in (1, 2, 3):
      log.write(step=step, kind="train", metrics={"loss": 1.0})
    log.truncate_after(1)
    log.write(step=2, kind="train", metrics={"loss": 5.0})
    assert steps_of(tmp_path) == [1, 2]
    log.truncate_after(-1)
    assert steps_of(tmp_path) == []
  assert list((tmp_path / "tensorboard").iterdir()) == []
  assert sorted(path.name for path in tmp_path.iterdir()) == [
    "metrics.jsonl",
    "tensorboard",
  ]


def test_time_goes_on_after_a_resume(tmp_path):
  clock = {"now": 0.0}
  read_clock = lambda: clock["now"]
  with logs.RunLog(directory=tmp_path, clock=read_clock) as log:
    for step in (1, 2):
      clock["now"] += 10.0
      log.write(step=step, kind="train", metrics={})
  clock["now"] = 5000.0
  with logs.RunLog(directory=tmp_path, clock=read_clock) as log:
    log.truncate_after(1)
    clock["now"] += 3.0
    log.write(step=2, kind="train", metrics={})
  assert [r["time_s"] for r in logs.read_metrics(tmp_path)] == [10.0, 13.0]


def test_half_a_last_line_is_left_out_and_repaired(tmp_path):
  write_steps(tmp_path, [1, 2])
  path = tmp_path / "metrics.jsonl"
  path.write_bytes(path.read_bytes()[:-7])
  (events,) = (tmp_path / "tensorboard").iterdir()
  events.write_bytes(events.read_bytes()[:-7])
  assert steps_of(tmp_path) == [1]
  write_steps(tmp_path, [2, 3])
  assert steps_of(tmp_path) == [1, 2, 3]
  logs.RunLog(directory=tmp_path).truncate_after(2)
  assert tensorboard_scalars(tmp_path)["train/loss"] == [(1, 1.0), (2, 2.0)]


def test_a_record_is_on_disk_when_write_returns(tmp_path):
  log = logs.RunLog(directory=tmp_path)
  log.write(step=1, kind="train", metrics={"loss": 1.0})
  assert steps_of(tmp_path) == [1]
  assert tensorboard_scalars(tmp_path)["train/loss"] == [(1, 1.0)]
  log.close()


def test_object_stores_get_whole_files(tmp_path, monkeypatch):
  monkeypatch.setattr(logs, "_is_remote", lambda path: True)
  clock = {"now": 0.0}
  log = logs.RunLog(directory=tmp_path, clock=lambda: clock["now"])
  log.write(step=1, kind="train", metrics={"loss": 1.0})
  assert not (tmp_path / "metrics.jsonl").exists()
  clock["now"] = 31.0
  log.write(step=2, kind="train", metrics={"loss": 2.0})
  assert steps_of(tmp_path) == [1, 2]
  log.write(step=3, kind="train", metrics={"loss": 3.0})
  assert steps_of(tmp_path) == [1, 2]
  log.flush()
  assert steps_of(tmp_path) == [1, 2, 3]
  log.truncate_after(1)
  log.write(step=2, kind="train", metrics={"loss": 5.0})
  log.close()
  assert steps_of(tmp_path) == [1, 2]
  assert tensorboard_scalars(tmp_path)["train/loss"] == [(1, 1.0), (2, 5.0)]


def test_going_back_without_truncating_is_an_error(tmp_path):
  write_steps(tmp_path, [10, 20])
  with logs.RunLog(directory=tmp_path) as log:
    with pytest.raises(ValueError, match=r"truncate_after\(step\)"):
      log.write(step=10, kind="train", metrics={"loss": 1.0})
    log.write(step=10, kind="eval", metrics={"rte/accuracy": 1.0})


@pytest.mark.parametrize(
  ("kind", "metrics", "error", "message"),
  [
    ("test", {}, ValueError, "train, eval"),
    ("train", {"step": 1}, ValueError, "another name"),
    ("train", {"loss": "low"}, TypeError, "found str"),
    ("train", {"loss": np.ones(2)}, TypeError, r"float\(\)"),
  ],
)
def test_wrong_records_write_nothing(tmp_path, kind, metrics, error, message):
  with (
    logs.RunLog(directory=tmp_path) as log,
    pytest.raises(error, match=message),
  ):
    log.write(step=1, kind=kind, metrics=metrics)
  assert list(tmp_path.iterdir()) == []


def test_disabled_touches_nothing(tmp_path):
  directory = tmp_path / "run"
  with logs.RunLog(directory=directory, enabled=False) as log:
    log.truncate_after(3)
    log.write(step=1, kind="train", metrics={"loss": 1.0})
    log.flush()
  assert not directory.exists()


def test_reading_what_is_not_there_or_not_metrics(tmp_path):
  with pytest.raises(FileNotFoundError, match="the folder that the run"):
    logs.read_metrics(tmp_path)
  (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
  with pytest.raises(ValueError, match=r"metrics\.jsonl:1, found"):
    logs.read_metrics(tmp_path)


def test_without_tensorboard_the_metrics_are_still_written(
  tmp_path, monkeypatch
):
  monkeypatch.setitem(sys.modules, "tensorboard.compat.proto", None)
  with pytest.warns(UserWarning, match="pip install tensorboard"):
    write_steps(tmp_path, [1, 2])
  logs.RunLog(directory=tmp_path).truncate_after(1)
  assert steps_of(tmp_path) == [1]


def test_tensorflow_is_not_imported(tmp_path):
  code = (
    "import sys; from peft_jax.train import logs\n"
    f"log = logs.RunLog(directory={str(tmp_path)!r})\n"
    "log.write(step=1, kind='train', metrics={'loss': 1.0})\n"
    "log.truncate_after(0)\n"
    "assert 'tensorflow' not in sys.modules\n"
  )
  subprocess.run([sys.executable, "-c", code], check=True)
