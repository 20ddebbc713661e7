"""The page and the picture a run leaves behind."""

import dataclasses
import html.parser
import math
import re
import sys

import pytest

from peft_jax.partition import RuleRow
from peft_jax.train import report as report_lib

VOID = {"meta", "br", "wbr"}


class Page(html.parser.HTMLParser):
  """Checks that a page nests, and keeps what the tests ask about."""

  def __init__(self, source):
    super().__init__()
    self.source = source
    self.open = []
    self.tags = []
    self.attributes = []
    self.headings = []
    self.words = []
    self.feed(source)
    assert self.open == []
    self.text = " ".join(" ".join(self.words).split())

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    self.attributes += attrs
    if tag not in VOID:
      self.open.append(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    if self.open and self.open[-1] == "h2":
      self.headings.append(data)
    if "style" not in self.open:
      self.words.append(data)


def train_records(losses):
  return [
    {"step": 10 * i, "kind": "train", "time_s": float(i), "loss": loss}
    for i, loss in enumerate(losses, start=1)
  ]


def full_report(**changes):
  evaluations = [
    {"step": step, "kind": "eval", "time_s": 1.0, "rte/accuracy": value}
    for step, value in ((100, 60.0), (200, 71.5))
  ]
  report = report_lib.Report(
    title="RTE on T5 small",
    method="(IA)3",
    rules=[
      RuleRow(
        pattern=r".*attention/(key|value)",
        adapter="IA3()",
        sites=48,
        example_path="encoder/layers_0/attention/key",
        parameters=24576,
      )
    ],
    trained_parameters=24576,
    backbone_parameters=76_961_152,
    adapter_bytes=98_304,
    optimizer_bytes=196_608,
    seconds=192.0,
    settings={"steps": 200, "optimizer": "adafactor"},
    environment={"jax": "0.10.2", "devices": "8 x TPU v5e"},
    metrics=[*train_records([3.0 / (i + 1) for i in range(20)]), *evaluations],
    frozen_metrics={"rte": {"accuracy": 52.7}},
    adapted_metrics={"rte": {"accuracy": 71.5}},
    examples=[
      {
        "input": "a dog runs",
        "target": "yes",
        "frozen_prediction": "no",
        "adapted_prediction": "yes",
      }
    ],
  )
  return dataclasses.replace(report, **changes)


def bare_report(**changes):
  report = report_lib.Report(
    title="bare",
    method="LoRA",
    rules=(),
    trained_parameters=1000,
    backbone_parameters=100_000,
    adapter_bytes=4000,
    optimizer_bytes=8000,
    seconds=1.0,
  )
  return dataclasses.replace(report, **changes)


def written(directory, report):
  return Page(report_lib.write_report(directory, report).read_text())


def test_full_report_has_every_part(tmp_path):
  page = written(tmp_path / "run", full_report())
  assert page.headings == [
    "Curves",
    "Predictions",
    "What was trained",
    "Settings",
    "Environment",
  ]
  for text in (
    "71.5% rte; frozen 52.7%",
    "0.032% 24,576 parameters beside 77.0M frozen ones",
    "98.3 kB and 197 kB of optimizer state",
    "3 min 12 s 200 steps",
    "frozen 0 of 1, adapted 1 of 1",
    "no wrong",
    "yes right",
    "adafactor",
    "8 x TPU v5e",
  ):
    assert text in page.text
  picture = (tmp_path / "run" / "curves.png").read_bytes()
  assert picture.startswith(b"\x89PNG")


def test_page_needs_nothing_from_outside(tmp_path):
  page = written(tmp_path, full_report())
  assert not {"script", "link", "iframe", "object", "embed"} & set(page.tags)
  assert not {"src", "href", "srcset"} & {name for name, _ in page.attributes}
  assert not re.search(r"https?://|@import|url\(", page.source)
  assert "default-src 'none'" in page.source


def test_everything_is_escaped(tmp_path):
  evil = """<script>alert("x")</script>&'"""
  page = written(
    tmp_path,
    full_report(
      title=evil,
      method=evil,
      rules=[
        RuleRow(
          pattern=evil, adapter=evil, sites=1, example_path=evil, parameters=1
        )
      ],
      settings={evil: evil},
      environment={evil: [evil]},
      metrics=[
        {"step": step, "kind": "eval", "time_s": 1.0, f"{evil}/{evil}": 1.0}
        for step in (1, 2)
      ],
      frozen_metrics={evil: {evil: 1.0}},
      adapted_metrics={evil: {evil: 1.0, "loss": 2.0}},
      examples=[
        {
          "input": evil * 20,
          "target": evil,
          "frozen_prediction": evil,
          "adapted_prediction": evil,
        }
      ],
    ),
  )
  assert "script" not in page.tags
  assert "<script" not in page.source
  assert page.text.count(evil) > 20


def test_characters_no_page_can_hold(tmp_path):
  page = written(tmp_path, bare_report(title="a\x00b\x1b[31m\ud800 é 日本"))
  assert "a\ufffdb\ufffd[31m\ufffd é 日本" in page.text


def test_what_was_not_measured_is_left_out(tmp_path):
  page = written(tmp_path, bare_report())
  assert page.headings == []
  assert "table" not in page.tags
  assert "frozen" not in page.text.replace("frozen ones", "")
  assert not (tmp_path / "curves.png").exists()


def test_no_frozen_model(tmp_path):
  examples = [{"input": "a", "target": "b", "adapted_prediction": "c"}]
  page = written(tmp_path, full_report(frozen_metrics={}, examples=examples))
  assert "Frozen" not in page.text
  assert "71.5% rte" in page.text
  assert "adapted 0 of 1" in page.text


def test_no_evaluation_shows_the_loss(tmp_path):
  page = written(tmp_path, bare_report(metrics=train_records([4.0, 2.0])))
  assert "Training loss 2 4 when first logged" in page.text
  assert page.tags.count("svg") == 1


def test_several_metrics_get_a_table(tmp_path):
  page = written(
    tmp_path,
    full_report(
      frozen_metrics={"rte": {"loss": 1.5, "accuracy": 50.0}},
      adapted_metrics={
        "rte": {"loss": 0.5, "accuracy": 75.0},
        "copa": {"exact_match": 60.0},
      },
    ),
  )
  assert page.headings[0] == "Results"
  # The headline is the task's accuracy, though its loss comes first.
  assert "Accuracy 75.0% rte; frozen 50.0%" in page.text
  assert "rte Loss 1.5 0.5 -1" in page.text
  assert "rte Accuracy 50.0% 75.0% +25.0" in page.text
  assert "copa Exact match \N{EN DASH} 60.0%" in page.text


def test_nan_is_named_and_does_not_spoil_the_curve(tmp_path):
  losses = [3.0, math.nan, 2.0, math.inf, 1.0]
  page = written(
    tmp_path,
    full_report(
      metrics=train_records(losses),
      frozen_metrics={"rte": {"accuracy": math.nan}},
      adapted_metrics={"rte": {"accuracy": math.nan}},
    ),
  )
  assert "NaN or infinite 2 times, first at step 20." in page.text
  for name, value in page.attributes:
    if name in ("points", "x1", "y1", "cx", "cy", "x", "y"):
      assert "nan" not in value and "inf" not in value
  only_nan = bare_report(metrics=train_records([math.nan] * 3))
  assert "Training loss nan" in written(tmp_path, only_nan).text
  assert not (tmp_path / "curves.png").exists()


@pytest.mark.parametrize(
  "losses", [[1.0, 1.0], [0.0, 0.0], [-1.0, -2.0], [1e-9, 2e-9], [1e30, 1.0]]
)
def test_curves_of_any_size_can_be_drawn(tmp_path, losses):
  page = written(tmp_path, bare_report(metrics=train_records(losses)))
  assert page.tags.count("polyline") == 1
  heights = [float(v) for name, v in page.attributes if name == "cy"]
  assert all(0 <= height <= 210 for height in heights)


def test_long_curves_are_thinned_and_smoothed(tmp_path):
  losses = [1.0 + 0.1 * (-1) ** i for i in range(5001)]
  page = written(tmp_path, bare_report(metrics=train_records(losses)))
  lines = [value for name, value in page.attributes if name == "points"]
  assert len(lines) == 2
  assert all(len(line.split()) <= 240 for line in lines)
  assert len(page.source) < 30_000


def test_curves_speak_to_those_who_do_not_see_them(tmp_path):
  page = written(tmp_path, full_report())
  labels = [value for name, value in page.attributes if name == "aria-label"]
  assert labels == [
    "Training loss: 3 at step 10, 0.15 at step 200",
    "rte: accuracy: 60.0% at step 100, 71.5% at step 200; frozen model 52.7%",
  ]
  assert {"caption", "thead", "th"} <= set(page.tags)
  assert ("lang", "en") in page.attributes
  assert ("scope", "col") in page.attributes


def test_predictions_right_wrong_long_empty_and_many(tmp_path):
  example = {
    "input": "word " * 200,
    "target": "a",
    "adapted_prediction": " a\n",
  }
  examples = [
    example,
    {"input": "i", "target": "a", "adapted_prediction": "  "},
    {
      "input": "i",
      "target": "a",
      "adapted_prediction": "A",
      "adapted_correct": True,
    },
    {"input": " " * 1000 + "\r\n", "target": "", "adapted_prediction": "x"},
    *[example] * 100,
  ]
  page = written(tmp_path, bare_report(examples=examples))
  assert "adapted 48 of 50. The first 50 of 104 examples." in page.text
  assert "(nothing) wrong" in page.text
  assert "A right" in page.text
  assert "details" in page.tags


def test_titles_in_any_script(tmp_path):
  written(tmp_path, full_report(title="日本語 ไทย"))
  assert (tmp_path / "curves.png").exists()


def test_short_runs_have_whole_steps_on_the_axis(tmp_path):
  metrics = [
    {"step": step, "kind": "train", "time_s": 1.0, "loss": 1.0 / step}
    for step in (1, 2)
  ]
  page = written(tmp_path, bare_report(metrics=metrics))
  steps = re.findall(r'text-anchor="(?:middle|end)">([^<]*)<', page.source)
  assert [text for text in steps if "." not in text][-2:] == ["step 1", "2"]


def test_only_the_frozen_model_was_evaluated(tmp_path):
  page = written(tmp_path, full_report(adapted_metrics={}, examples=()))
  assert page.headings[0] == "Results"
  assert "rte Accuracy 52.7%" in page.text
  assert "Adapted" not in page.text


def test_title_with_dollars_is_no_formula(tmp_path):
  written(tmp_path, full_report(title=r"costs $5 \frac{ and $6"))
  assert (tmp_path / "curves.png").exists()


def test_without_matplotlib_the_page_is_still_written(tmp_path, monkeypatch):
  (tmp_path / "curves.png").write_bytes(b"of an older run")
  monkeypatch.setitem(sys.modules, "matplotlib", None)
  with pytest.warns(UserWarning, match="pip install matplotlib"):
    page = written(tmp_path, full_report())
  assert "svg" in page.tags
  assert not (tmp_path / "curves.png").exists()
