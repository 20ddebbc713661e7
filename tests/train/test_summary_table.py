"""peft-jax report: several runs in one table."""

import csv
import doctest
import json
import subprocess
import sys

import numpy as np
import pytest
from helpers import runs

from peft_jax import cli
from peft_jax.train import config, finished_runs, summary_files, summary_table
from peft_jax.train.config import ConfigError
from peft_jax.train.report import spread

SEEDS = (0, 1, 32, 42, 1024)
# Five accuracies whose quartiles are values of the list.
VALUES = (61.0, 70.0, 62.5, 58.0, 66.0)


@pytest.fixture
def fake(tmp_path):
  """Returns a function that writes what a finished run leaves behind."""

  def write(
    folder,
    metrics,
    *,
    seed=0,
    method="ia3",
    task="rte",
    steps=10,
    frozen=None,
    examples=277,
    without=(),
    **settings,
  ):
    place = tmp_path / folder
    place.mkdir(parents=True)
    found = {
      "ADAPTERS": f"[@{method}/rules.Rule()]",
      "LEARNING_RATE": "0.003",
      "MIXTURE_OR_TASK_NAME": repr(task),
      "MODEL_DIR": repr(str(place)),
      "RANDOM_SEED": str(seed),
      "TRAIN_STEPS": "10",
    }
    summary = {
      "steps": steps,
      "adapted_metrics": {task: metrics},
      "frozen_metrics": {} if frozen is None else {task: frozen},
      "method": method,
      "random_seed": seed,
      "examples": {task: examples},
      "settings": found
      | {k.replace("__", "."): v for k, v in settings.items()},
    }
    for name in without:
      del summary[name]
    (place / "summary.json").write_text(json.dumps(summary))
    return str(place)

  return write


def seeds_of(fake, folder, values=VALUES, **more):
  for seed, value in zip(SEEDS, values, strict=False):
    fake(f"{folder}/seed_{seed}", {"accuracy": value}, seed=seed, **more)


def run(capsys, *argv):
  status = cli.main(["report", *map(str, argv)])
  captured = capsys.readouterr()
  return status, captured.out, captured.err


def linear_percentile(values, percent):
  """The definition: linear between the sorted values."""
  ordered = sorted(values)
  position = percent / 100 * (len(ordered) - 1)
  below = int(position)
  above = min(below + 1, len(ordered) - 1)
  share = position - below
  return ordered[below] * (1 - share) + ordered[above] * share


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 8])
def test_quartiles_are_linear_between_the_sorted_values(count):
  values = np.random.default_rng(count).normal(60, 5, count).tolist()
  found = summary_table.spread_of(values)
  assert found.median == pytest.approx(linear_percentile(values, 50))
  assert found.q1 == pytest.approx(linear_percentile(values, 25))
  assert found.q3 == pytest.approx(linear_percentile(values, 75))
  assert (found.low, found.high) == (min(values), max(values))
  assert found.count == count
  assert found.iqr == found.q3 - found.q1


def test_five_seeds_by_hand(fake, tmp_path, capsys):
  seeds_of(fake, "ia3", frozen={"accuracy": 52.7})
  status, out, err = run(capsys, tmp_path / "ia3")
  assert (status, err) == (0, "")
  # Sorted: 58, 61, 62.5, 66, 70.
  assert out == (
    "Median and inter-quartile range of 5 runs, over RANDOM_SEED.\n"
    "\n"
    "| task | metric   | method | frozen | median |  IQR |      quartiles |"
    "          range |   n |\n"
    "| ---- | -------- | ------ | -----: | -----: | ---: | -------------: |"
    " -------------: | --: |\n"
    "| rte  | accuracy | ia3    |  52.70 |  62.50 | 5.00 | 61.00 to 66.00 |"
    " 58.00 to 70.00 |   5 |\n"
  )


def test_methods_and_tasks_have_lines_of_their_own(fake, tmp_path):
  seeds_of(fake, "a")
  seeds_of(fake, "b", method="lora", LEARNING_RATE="0.001")
  seeds_of(fake, "c", task="cb")
  table = summary_table.collect([str(tmp_path)])
  assert [(r.task, r.method) for r in table.rows] == [
    ("cb", "ia3"),
    ("rte", "ia3"),
    ("rte", "lora"),
  ]
  assert not table.columns
  assert table.notes == [
    "Methods differ in LEARNING_RATE: ia3 0.003, lora 0.001."
  ]
  assert table.runs == 15


def test_what_differs_within_a_method_becomes_a_column(fake, tmp_path):
  for rank in ("4", "16"):
    settings = {"lora/adapters__LoRA__rank": rank}
    seeds_of(fake, f"rank{rank}", method="lora", **settings)
  seeds_of(fake, "ia3")
  table = summary_table.collect([str(tmp_path)])
  assert table.columns == ["lora/adapters.LoRA.rank"]
  assert [(r.method, *r.settings.values()) for r in table.rows] == [
    ("ia3", ""),
    ("lora", "4"),
    ("lora", "16"),
  ]
  assert [r.spread.count for r in table.rows] == [5, 5, 5]
  header = summary_files.to_markdown(table).splitlines()[2]
  assert "| LoRA.rank |" in header
  panel = summary_files.panels_of(table)[0]
  assert [line.detail for line in panel.lines] == [
    "",
    "LoRA.rank 4",
    "LoRA.rank 16",
  ]


def test_other_numbers_of_examples_are_other_results(fake, tmp_path):
  fake("a", {"accuracy": 60.0}, seed=0, examples=100)
  fake("b", {"accuracy": 60.0}, seed=1)
  table = summary_table.collect([str(tmp_path)])
  assert table.columns == ["evaluated examples"]
  assert [r.spread.count for r in table.rows] == [1, 1]


def test_two_runs_of_one_seed_are_refused(fake, tmp_path):
  fake("a", {"accuracy": 60.0}, seed=3)
  fake("b", {"accuracy": 61.0}, seed=3)
  with pytest.raises(ConfigError, match=r"RANDOM_SEED 3, found two .*/a and"):
    summary_table.collect([str(tmp_path)])


def test_folds_are_taken_together_when_asked(fake, tmp_path):
  for start in range(0, 50, 10):
    fake(
      f"fold{start}",
      {"macro_f1": 50.0 + start},
      task="raft_overruling",
      config__Raft__validation_start=str(start),
    )
  apart = summary_table.collect([str(tmp_path)])
  assert len(apart.rows) == 5
  name = "config.Raft.validation_start"
  table = summary_table.collect([str(tmp_path)], over=[name])
  (row,) = table.rows
  assert row.spread.median == 70.0
  assert row.spread.iqr == 20.0
  assert list(row.values) == ["0, 0", "0, 10", "0, 20", "0, 30", "0, 40"]
  assert f"5 runs, over RANDOM_SEED, {name}." in summary_files.to_markdown(
    table
  )
  with pytest.raises(ConfigError, match=r"found 'validation'\. Nearest"):
    summary_table.collect([str(tmp_path)], over=["validation"])


def test_the_seed_of_a_sample_is_a_seed(fake, tmp_path):
  for seed in (0, 1):
    fake(f"s{seed}", {"accuracy": 60.0}, seed=seed, FEW_SHOT_SEED=str(seed + 4))
  table = summary_table.collect([str(tmp_path)])
  (row,) = table.rows
  assert list(row.values) == ["0, 4", "1, 5"]
  assert table.over == ("RANDOM_SEED", "FEW_SHOT_SEED")
  one = summary_table.collect([str(tmp_path / "s0")])
  assert one.over == ("RANDOM_SEED",)


def test_seeds_that_take_a_setting_along_are_said(fake, tmp_path):
  for seed in (0, 1):
    fake(
      f"s{seed}", {"accuracy": 60.0}, seed=seed, WARM_START=f"'v/seed_{seed}'"
    )
  table = summary_table.collect([str(tmp_path)])
  assert table.notes == [
    "Each seed of ia3 on rte differs in WARM_START too and stands alone;"
    " --over WARM_START takes them together."
  ]
  assert (
    len(summary_table.collect([str(tmp_path)], over=["WARM_START"]).rows) == 1
  )


def test_unfinished_runs_are_refused_or_left_out(fake, tmp_path, capsys):
  fake("a/seed_0", {"accuracy": 60.0})
  half = fake("a/seed_1", {"accuracy": 61.0}, seed=1, steps=4)
  begun = tmp_path / "a" / "seed_2"
  begun.mkdir()
  (begun / "settings.json").write_text("{}")
  status, out, err = run(capsys, tmp_path / "a")
  assert (status, out) == (1, "")
  assert f"2 of 3 that are not: {half} (4 of 10 steps); {begun} (no" in err
  assert "--partial" in err
  status, out, _ = run(capsys, tmp_path / "a", "--partial")
  assert status == 0
  assert "of 1 runs" in out
  assert f"* Left out, not finished: {half} (4 of 10 steps); {begun}" in out
  status, _, err = run(capsys, half, "--partial")
  assert status == 1
  assert "expected finished runs, found none" in err


def test_a_run_that_stopped_early_is_finished(fake, tmp_path):
  fake("a", {"accuracy": 60.0}, steps=4, PATIENCE="2")
  assert summary_table.collect([str(tmp_path)]).runs == 1


def test_settings_without_a_say_do_not_part_runs(fake, tmp_path):
  fake("a", {"accuracy": 60.0}, seed=0, KEEP="1", EVAL_PERIOD="5")
  fake("b", {"accuracy": 60.0}, seed=1, KEEP="2", EVAL_PERIOD="0")
  assert len(summary_table.collect([str(tmp_path)]).rows) == 1
  # Another way to answer, or another time to stop, is another result.
  fake("c", {"accuracy": 60.0}, seed=2, ANSWER_BY="'ranking'")
  for n in (1, 2):
    fake(f"d{n}", {"accuracy": 60.0}, PATIENCE="2", EVAL_PERIOD=str(n))
  table = summary_table.collect([str(tmp_path)])
  assert table.columns == ["ANSWER_BY", "EVAL_PERIOD", "PATIENCE"]
  assert len(table.rows) == 4


def test_runs_by_name_folder_and_pattern(fake, tmp_path):
  seeds_of(fake, "deep/rte/ia3")
  seeds_of(fake, "deep/rte/lora", method="lora")
  root = tmp_path / "deep"
  assert len(finished_runs.find(str(root))) == 10
  assert len(finished_runs.find(str(root / "rte" / "ia3"))) == 5
  assert len(finished_runs.find(f"{root}/*/ia3/seed_[01]")) == 2
  assert len(finished_runs.find(f"{root}/rte/l*")) == 5
  # Named twice, a run counts once.
  table = summary_table.collect([str(root), f"{root}/rte/ia3/seed_0"])
  assert table.runs == 10
  for nothing in (str(root / "cb"), f"{root}/*/bitfit"):
    with pytest.raises(ConfigError, match="expected a run, or a folder with"):
      finished_runs.find(nothing)


def test_metrics_are_chosen(fake, tmp_path):
  both = {"accuracy": 60.0, "macro_f1": 40.0}
  fake("a", both, task="cb")
  fake("b", both)
  pick = lambda *names: [
    f"{r.task}/{r.metric}"
    for r in summary_table.collect([str(tmp_path)], metrics=names).rows
  ]
  assert len(pick()) == 4
  assert pick("macro_f1") == ["cb/macro_f1", "rte/macro_f1"]
  assert pick("rte/macro_f1", "cb/accuracy") == ["cb/accuracy", "rte/macro_f1"]
  with pytest.raises(ConfigError, match=r"found 'f1'"):
    pick("f1")


def test_summaries_that_say_too_little_are_refused(fake, tmp_path):
  old = fake("old", {"accuracy": 60.0}, without=["method", "examples"])
  with pytest.raises(ConfigError, match="expected method, examples, found non"):
    finished_runs.read(old)
  with pytest.raises(ConfigError, match="its examples have no labels"):
    finished_runs.read(fake("unlabelled", {}))
  broken = fake("broken", {"accuracy": 60.0})
  (tmp_path / "broken" / "summary.json").write_text("{")
  with pytest.raises(ConfigError, match=r"summary\.json of a run, found JSON"):
    finished_runs.read(broken)


def test_files_are_written(fake, tmp_path, capsys):
  seeds_of(fake, "runs/ia3", frozen={"accuracy": 52.7})
  seeds_of(fake, "runs/lora", VALUES[:3], method="lora")
  to = tmp_path / "out" / "rte"
  status, out, err = run(capsys, tmp_path / "runs", "--to", to)
  assert status == 0
  assert [line.split("/")[-1] for line in err.splitlines()] == [
    "summary.md",
    "summary.csv",
    "runs.csv",
    "summary.png",
  ]
  assert (to / "summary.md").read_text() == out
  with (to / "summary.csv").open(newline="") as file:
    first, second = csv.DictReader(file)
  assert first | {"frozen": "52.7"} == first
  assert [float(first[n]) for n in ("median", "iqr", "q1", "q3")] == [
    62.5,
    5.0,
    61.0,
    66.0,
  ]
  assert [float(first[n]) for n in ("min", "max", "n")] == [58.0, 70.0, 5.0]
  assert (second["method"], second["frozen"], second["n"]) == ("lora", "", "3")
  with (to / "runs.csv").open(newline="") as file:
    rows = list(csv.DictReader(file))
  assert [(r["method"], r["seed"]) for r in rows if r["method"] == "lora"] == [
    ("lora", str(seed)) for seed in SEEDS[:3]
  ]
  assert {r["seed"]: float(r["value"]) for r in rows[:5]} == {
    str(seed): value for seed, value in zip(SEEDS, VALUES, strict=True)
  }
  assert rows[0]["run"] == str(tmp_path / "runs" / "ia3" / "seed_0")
  assert (to / "summary.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("module", [summary_table, summary_files])
def test_examples_of_the_docstrings(module):
  found = doctest.testmod(module)
  assert found.attempted > 0
  assert found.failed == 0


def test_names_of_columns_stay_apart():
  names = ["a/adapters.LoRA.rank", "b/adapters.LoRA.rank", "BATCH_SIZE"]
  assert summary_files.header_of(names) == names


def test_cells_do_not_break_the_table(fake, tmp_path):
  for value in ("'a|b'", "'c'"):
    fake(f"x{value[1]}", {"accuracy": 60.0}, PATTERN=value)
  text = summary_files.to_markdown(summary_table.collect([str(tmp_path)]))
  assert r"'a\|b'" in text


def test_a_picture_of_equal_values_and_of_long_names(tmp_path):
  same = spread.Line(
    name="ia3 $x", detail="", values=[0.0] * 3, median=0.0, quartiles=(0.0, 0.0)
  )
  other = spread.Line(
    name="lora",
    detail="LEARNING_RATE 0.001, " * 4,
    values=[0.0],
    median=0.0,
    quartiles=(0.0, 0.0),
    frozen=1.0,
  )
  panels = [
    spread.Panel(name=f"task{n}/accuracy", lines=[same, other][: 1 + n % 2])
    for n in range(5)
  ]
  spread.write_spread(tmp_path / "a.png", panels)
  assert (tmp_path / "a.png").stat().st_size > 10_000


def test_without_matplotlib_a_warning_says_so(fake, tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "matplotlib", None)
  fake("a", {"accuracy": 60.0})
  table = summary_table.collect([str(tmp_path / "a")])
  with pytest.warns(UserWarning, match=r"so summary\.png is not written"):
    written = summary_files.write(table, tmp_path / "to")
  assert [path.rsplit("/", 1)[-1] for path in written] == [
    "summary.md",
    "summary.csv",
    "runs.csv",
  ]


def test_the_command_loads_no_tensorflow(fake, tmp_path):
  fake("a", {"accuracy": 60.0})
  program = (
    "import sys; from peft_jax import cli;"
    f" cli.main(['report', {str(tmp_path)!r}]);"
    " sys.exit('tensorflow' in sys.modules or 'seqio' in sys.modules)"
  )
  subprocess.run([sys.executable, "-c", program], check=True)


def test_a_method_may_be_given_a_name():
  files = ["runs/train.gin", "models/tiny.gin", "adapters/ia3.gin"]
  bindings = [*runs.SMALL, "MODEL_DIR = 'x'", "METHOD = 'mine'"]
  found = config.resolve(files, bindings)
  assert found.config.method == "mine"
  # A run may be resumed under another name.
  assert "METHOD" not in found.fixed_settings


def test_real_runs(tmp_path, capsys):
  """Runs say their seed and method; those of two seeds are one line."""
  data_dir = runs.write_rows(tmp_path / "data", runs.ROWS[:2])
  settings = [*runs.SMALL, "TRAIN_STEPS = 2", "EVAL_FROZEN = False"]
  for seed in (0, 1):
    with runs.one_device():
      status = cli.main(
        [
          "train",
          "--model=tiny",
          "--adapter=ia3",
          f"--data_dir={data_dir}",
          f"--model_dir={tmp_path / 'runs' / f'seed_{seed}'}",
          *(f"--gin.{binding.replace(' = ', '=')}" for binding in settings),
          f"--gin.RANDOM_SEED={seed}",
        ]
      )
    assert status == 0, capsys.readouterr().err
  capsys.readouterr()
  summary = json.loads(
    (tmp_path / "runs" / "seed_1" / "summary.json").read_text()
  )
  assert summary["method"] == "ia3"
  assert summary["random_seed"] == 1
  assert summary["examples"] == {"words": 2}
  assert summary["settings"]["EVAL_BATCH_SIZE"] == "8"
  status, out, err = run(capsys, tmp_path / "runs", "--to", tmp_path / "out")
  assert status == 0, err
  (line,) = [line for line in out.splitlines() if line.startswith("| words")]
  assert "| ia3 " in line
  assert line.endswith("|   2 |")
