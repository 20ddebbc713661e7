"""Prompts trained with several seeds: they vote, and are looked at."""

import collections
import json

import jax
import numpy as np
import pytest
from helpers import tiny

from peft_jax import (
  IA3,
  Prompt,
  Rule,
  backbone,
  checkpoint,
  cli,
  decoding,
  ensemble,
  networks,
  sharding,
)
from peft_jax.train import (
  checkpoints,
  evaluate,
  features,
  neighbors,
  opened,
  seeds,
  vote,
)
from peft_jax.train.config import ConfigError
from peft_jax.train.predict import Decoding, Ranking

ROWS = [
  {"inputs": f"say {word}", "targets": word[:3]}
  for word in ("up", "down", "left", "right", "north")
]
SEEDS = (0, 1, 2)


@pytest.fixture(scope="module", autouse=True)
def one_device():
  """One of the fake devices: compiling for eight takes most of the time."""
  real = sharding.make_mesh
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(
      sharding,
      "make_mesh",
      lambda **sizes: real(**sizes, devices=jax.devices()[:1]),
    )
    yield


@pytest.fixture(scope="module")
def home(tmp_path_factory):
  """A folder with data and two backbones of bytes."""
  folder = tmp_path_factory.mktemp("prompts")
  for task, rows in (("words", ROWS), ("others", ROWS[::-1])):
    (folder / task).mkdir()
    text = "\n".join(map(json.dumps, rows))
    for split in ("train", "validation"):
      (folder / task / f"{split}.jsonl").write_text(text)
  for name, network in (
    ("model", tiny.t5(vocab_size=384)),
    ("text", tiny.decoder_only(vocab_size=384)),
  ):
    params = jax.tree.map(lambda x: x * 2, tiny.params(network))
    backbone.save(folder / name, params, model=backbone.describe(network, name))
  return folder


PROMPT = (
  "--adapter=prompt",
  "--gin.prompt/adapters.Prompt.length=4",
  "--gin.prompt/adapters.Prompt.population=200",
)


def command(home, name, *flags, task="words", steps=2, method=PROMPT):
  return [
    "train",
    f"--model={home / 'model'}",
    "--vocabulary=bytes",
    *method,
    f"--task={task}",
    f"--data_dir={home / task}",
    f"--model_dir={home / name}",
    f"--gin.TRAIN_STEPS={steps}",
    "--gin.WARMUP_STEPS=1",
    "--gin.BATCH_SIZE=8",
    "--gin.EVAL_BATCH_SIZE=8",
    "--gin.EVAL_FROZEN=False",
    "--gin.TASK_FEATURE_LENGTHS={'inputs': 10, 'targets': 5}",
    *flags,
  ]


@pytest.fixture(scope="module")
def runs(home):
  """Three runs of one command; of each its folder."""
  assert cli.main(command(home, "runs", "--seeds=0,1,2")) == 0
  return [str(home / "runs" / f"seed_{seed}") for seed in SEEDS]


def test_each_seed_is_a_run_of_its_own(home, runs, capsys):
  prompts = []
  for seed, run in zip(SEEDS, runs, strict=True):
    manifest, leaves = checkpoints.load_adapter(run)
    assert f"RANDOM_SEED = {seed}" in manifest.training["gin"]
    prompts.append(leaves["encoder"]["prompt"]["prompt"])
  assert not np.array_equal(prompts[0], prompts[1])
  # The same command again trains nothing.
  assert cli.main(command(home, "runs", "--seeds=0,1,2")) == 0
  err = capsys.readouterr().err
  assert err.count("finished before") == 3
  assert "words sequence_accuracy: median" in err or "median" in err
  # One of them is resumed as any run is: here it has nothing left to do.
  flags = ["--gin.RANDOM_SEED=1"]
  assert cli.main(command(home, "runs/seed_1", *flags)) == 0
  assert "resumed" in capsys.readouterr().err


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (["--seeds=0,1,0"], "different seeds, found [0] more than once"),
    (["--seeds=0;1"], "seeds as whole numbers from 0 on"),
    (["--seeds="], "seeds as whole numbers from 0 on"),
    (["--seeds=0", "--gin.RANDOM_SEED=3"], "RANDOM_SEED from --seeds alone"),
  ],
)
def test_bad_seeds(home, flags, message, capsys):
  assert cli.main(command(home, "bad", *flags)) == 1
  assert message in capsys.readouterr().err
  assert not (home / "bad").exists()


def test_seeds_in_the_folder_of_a_run(home, runs, capsys):
  assert cli.main(command(home, "runs/seed_0", "--seeds=0,1")) == 1
  assert "found a run in" in capsys.readouterr().err


def separately(runs):
  """Returns the evaluations of runs that are opened one by one."""
  return [opened.evaluate_task(opened.open_adapter(run))[0] for run in runs]


def test_together_as_separately_and_a_vote(home, runs, capsys):
  alone = separately(runs)
  out = home / "answers.jsonl"
  assert cli.main(["eval", *runs, f"--output={out}"]) == 0
  printed = json.loads(capsys.readouterr().out)
  rows = list(map(json.loads, out.read_text().splitlines()))
  assert len(rows) == len(ROWS)
  differ = 0
  for i, row in enumerate(rows):
    texts = [one.predictions[i] for one in alone]
    assert row["member_predictions"] == texts
    counts = collections.Counter(texts)
    most = max(counts.values())
    assert row["prediction"] == next(t for t in texts if counts[t] == most)
    differ += len(counts) > 1
  assert differ
  for run, one in zip(runs, alone, strict=True):
    assert printed["members"][run] == {"words": dict(one.metrics)}
  assert printed["ensemble"].keys() == {"words"}


def test_probability_is_the_mean_over_all(runs):
  members = vote.open_members(runs)
  found = vote.infer(members, ROWS, vote="probability")
  alone = [opened.infer(opened.open_adapter(run), ROWS) for run in runs]
  for i, row in enumerate(found):
    texts = [one[i]["prediction"] for one in alone]
    assert row["member_predictions"] == texts
    assert row["prediction"] in texts
    assert 0 < row["probability"] <= 1
  # By hand: what each adapter thinks of the ids that each answered.
  config = members.opened.config
  rows = opened.asked_of(config, ROWS, Decoding())
  vocabulary = rows.vocabulary
  asked = features.EncoderDecoder().inputs(rows.examples, {"inputs": 10})
  models = [opened.open_adapter(run) for run in runs]
  answers = [
    np.asarray(
      decoding.greedy(one.model, one.params, **asked, max_decode_length=5)
    )
    for one in models
  ]
  for i, row in enumerate(found):
    totals = collections.Counter()
    for ids in {tuple(ids[i].tolist()) for ids in answers}:
      length = ids.index(1) + 1 if 1 in ids else len(ids)
      tokens = np.array([ids], np.int32)
      batch = {
        "encoder_input_tokens": asked["inputs"][[i]],
        "decoder_input_tokens": np.pad(tokens, ((0, 0), (1, 0)))[:, :-1],
        "decoder_target_tokens": np.ones_like(tokens),
      }
      text = evaluate.decode(vocabulary, tokens[0])
      for one in models:
        logits = tiny.logits(one.model)(one.params, batch)[0, :length]
        logits = np.asarray(logits, np.float64)
        chances = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        chance = np.prod(chances[range(length), ids[:length]])
        totals[text] += chance / len(runs)
    [(best, chance)] = totals.most_common(1)
    assert row["prediction"] == best
    assert row["probability"] == pytest.approx(chance, rel=1e-4)


@pytest.mark.parametrize("calibrated", [False, True])
def test_rankings_vote(runs, calibrated):
  rows = [{**row, "choices": ["up", "dow", "l"]} for row in ROWS]
  how = Ranking(length_norm=0.0, calibrated=calibrated)
  alone = [
    opened.infer(opened.open_adapter(run), rows, how=how) for run in runs
  ]
  members = vote.open_members(runs)
  for kind in ensemble.VOTES:
    found = vote.infer(members, rows, how=how, vote=kind)
    for i, row in enumerate(found):
      texts = [one[i]["prediction"] for one in alone]
      assert row["member_predictions"] == texts
      scores = np.array([one[i]["scores"] for one in alone])
      shares = np.exp(-scores) / np.exp(-scores).sum(axis=1, keepdims=True)
      if kind == "probability":
        best = shares.mean(axis=0).argmax()
        assert row["prediction"] == rows[i]["choices"][best]
        assert row["probability"] == pytest.approx(
          shares.mean(axis=0)[best], rel=1e-4
        )
      else:
        most = max(texts, key=lambda text: texts.count(text))
        assert row["prediction"] == most


def adapters_of_a_text_model(home):
  """Returns two adapters that no run has made, for a decoder-only network."""
  network = tiny.decoder_only(vocab_size=384)
  rule = Rule("decoder", Prompt(length=4, initializer="uniform"))
  folders = []
  for seed in (0, 1):
    rows = np.random.default_rng(seed).standard_normal((4, 16))
    folders.append(home / f"text_{seed}")
    checkpoint.save(
      folders[-1],
      {"decoder": {"prompt": {"prompt": rows}}},
      [rule],
      model=backbone.describe(network, "text"),
      backbone={"source": str(home / "text"), "fingerprint": ""},
      training={
        "task": "words",
        "vocabulary": "bytes",
        "task_feature_lengths": {"inputs": 10, "targets": 5},
        "data_dir": str(home / "words"),
        "eval_batch_size": 5,
      },
    )
  return list(map(str, folders))


def test_decoder_only_prompts_vote(home):
  folders = adapters_of_a_text_model(home)
  alone = separately(folders)
  [found] = vote.evaluate_task(vote.open_members(folders), vote="probability")
  for one, member in zip(alone, found.members, strict=True):
    assert one.predictions == member.predictions
  assert len(found.probabilities) == len(ROWS)
  assert alone[0].predictions != alone[1].predictions


def test_what_cannot_vote(runs, capsys):
  def refused(*argv):
    assert cli.main(["eval", *argv]) == 1
    return capsys.readouterr().err

  assert "Name each once" in refused(runs[0], runs[0])
  assert "expected several adapters with --vote" in refused(
    runs[0], "--vote=majority"
  )
  with pytest.raises(ensemble.EnsembleError, match="expected a vote of"):
    vote.infer(vote.open_members(runs[:2]), ROWS, vote="mean")


# What they are near to.


def test_a_run_that_did_not_move(home, capsys):
  """The start is drawn again exactly: a run without a rate is still there."""
  assert cli.main(command(home, "still", "--gin.LEARNING_RATE=0.0")) == 0
  capsys.readouterr()
  report = home / "still.json"
  run = str(home / "still")
  argv = ["neighbors", run, f"--json={report}", "--words", "a", "b"]
  assert cli.main(argv) == 0
  out = capsys.readouterr().out
  found = json.loads(report.read_text())
  for row in found["rows"]:
    assert row["start"]["distance"] == 0
    # Drawn from the vocabulary, it is one of its words.
    assert row["l2"][0]["text"] == row["start"]["token"]
    assert row["l2"][0]["distance"] == 0
    assert row["cosine"][0]["similarity"] == pytest.approx(1)
  assert "drawn again from RANDOM_SEED = 0" in out
  assert out.startswith("| row | nearest by cosine")
  assert "a label word is nearest to" in out
  assert found["labels"] == {"a": [100], "b": [101]}


def test_neighbors_of_a_trained_prompt_against_numpy(home, runs):
  read = neighbors.read(runs[1])
  found = neighbors.compare(read, count=3)
  _, leaves = checkpoints.load_adapter(runs[1])
  prompt = leaves["encoder"]["prompt"]["prompt"].astype(np.float64)
  table = np.asarray(
    tiny.params(tiny.t5(vocab_size=384))["token_embedder"]["embedding"] * 2,
    np.float64,
  )[:259]
  unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)
  order = np.argsort(-unit(prompt) @ unit(table).T, axis=1)[:, :3]
  np.testing.assert_array_equal(found.cosine.ids, order)
  assert read.start is not None and found.moved is not None
  np.testing.assert_allclose(
    found.moved, np.linalg.norm(prompt - read.start, axis=1)
  )
  assert (found.moved > 0).all()


def test_a_picture_is_drawn(home, runs, capsys):
  for name in ("map.png", "map.svg"):
    path = home / name
    assert cli.main(["neighbors", runs[0], f"--picture={path}"]) == 0
    assert path.stat().st_size > 1000
  assert cli.main(["neighbors", runs[0], f"--picture={home / 'x.pdf'}"]) == 1
  assert "expected a picture called .png or .svg" in capsys.readouterr().err


def test_groups_and_label_words():
  """Rows made to be near given words."""
  table = np.random.default_rng(0).standard_normal((259, 16))
  table = table.astype(np.float32)
  noise = 0.01 * np.random.default_rng(1).standard_normal((4, 16))
  prompt = (3 * table[[100, 101, 100, 120]] + noise).astype(np.float32)
  read = neighbors.Read(
    prompt=prompt,
    table=table,
    vocabulary=neighbors.vocabularies.resolve("bytes"),
    start=None,
    note="made up",
  )
  found = neighbors.compare(read, words=("a", "b"))
  assert [found.words[i] for i in found.cosine.ids[:, 0]] == list("abau")
  assert found.by_neighbors == found.by_cosine == [[0, 2]]
  assert found.label_shares()["nearest"] == 0.75
  text = neighbors.format_table(found)
  assert "2 of 4 rows share most neighbours with another, in 1 cluster" in text
  assert "rows 0, 2: a" in text
  assert "not known (made up)" in text


def test_real_prompts_with_embeddings_of_a_file(shared_data, tmp_path, capsys):
  folder = shared_data("prompt_tuning/pretrained_prompts/t5_1_1_lm100k_base")
  rng = np.random.default_rng(0)
  table = rng.standard_normal((259, 768)).astype(np.float32)
  np.save(tmp_path / "table.npy", table)
  for name in ("mrpc", "rte", "sst2"):
    argv = ["neighbors", str(folder / f"{name}.npy"), "--vocabulary=bytes"]
    assert cli.main([*argv, f"--embeddings={tmp_path / 'table.npy'}"]) == 0
    out = capsys.readouterr().out
    assert out.count("\n| ") == 101
    assert "not known (with --embeddings the backbone is not opened)" in out


def test_what_has_no_neighbors(home, runs, tmp_path, capsys):
  def refused(*argv):
    assert cli.main(["neighbors", *argv]) == 1
    return capsys.readouterr().err

  np.save(tmp_path / "prompt.npy", np.ones((2, 16), np.float32))
  np.save(tmp_path / "short.npy", np.ones((9, 16), np.float32))
  np.save(tmp_path / "narrow.npy", np.ones((300, 9), np.float32))
  np.save(tmp_path / "flat.npy", np.ones(9, np.float32))
  prompt, short = str(tmp_path / "prompt.npy"), str(tmp_path / "short.npy")
  assert "expected --embeddings FILE.npy" in refused(prompt)
  assert "expected a vocabulary" in refused(prompt, f"--embeddings={short}")
  assert "embeddings of at least 259 rows" in refused(
    prompt, f"--embeddings={short}", "--vocabulary=bytes"
  )
  assert "expected embeddings [V, 16]" in refused(
    prompt, f"--embeddings={tmp_path / 'narrow.npy'}", "--vocabulary=bytes"
  )
  assert "expected embeddings [V, D]" in refused(
    prompt, f"--embeddings={tmp_path / 'flat.npy'}"
  )
  assert "expected pieces of ''" in refused(runs[0], "--words", "")
  lora = home / "lora"
  checkpoint.save(
    lora,
    {"encoder": {"key": {"ia3": {"scaling": np.ones(3)}}}},
    [Rule("encoder/key", IA3())],
    model={},
    backbone={},
  )
  assert "expected one prompt in" in refused(str(lora))


# Where they start: another task's prompt.


def google(home, rows):
  path = home / f"google_{rows.shape[0]}_{rows.shape[1]}.npy"
  np.save(path, rows)
  return path


def imported(home, monkeypatch, rows):
  """Returns the adapter directory of a prompt as Google saves it."""
  network = tiny.t5(vocab_size=384)
  if rows.shape[1] != 16:
    network = tiny.t5(vocab_size=384, emb_dim=rows.shape[1])
  monkeypatch.setitem(networks.CONFIGS, "mine", network.config)
  source = google(home, rows)
  to = source.with_suffix("")
  argv = ["import", str(source), "--from=prompt", "--model=mine"]
  assert cli.main([*argv, f"--to={to}"]) == 0
  return to


def test_googles_prompt_goes_on_with_another_task(home, monkeypatch, capsys):
  rows = np.random.default_rng(0).standard_normal((4, 16)).astype(np.float32)
  source = imported(home, monkeypatch, rows)
  flag = f"--warm_start={source}"
  assert cli.main(command(home, "moved", flag, task="others")) == 0
  _, leaves = checkpoints.load_adapter(home / "moved")
  moved = leaves["encoder"]["prompt"]["prompt"]
  assert not np.array_equal(moved, rows) and np.isfinite(moved).all()
  # It knows where it began.
  found = neighbors.read(home / "moved")
  np.testing.assert_array_equal(found.start, rows)
  assert str(source) in found.note
  # And a run of our own is a start too.
  flags = [f"--warm_start={home / 'moved'}", "--gin.LEARNING_RATE=0.0"]
  assert cli.main(command(home, "third", *flags)) == 0
  _, leaves = checkpoints.load_adapter(home / "third")
  np.testing.assert_array_equal(leaves["encoder"]["prompt"]["prompt"], moved)


def test_a_prompt_of_another_shape(home, monkeypatch, capsys):
  longer = imported(home, monkeypatch, np.ones((6, 16), np.float32))
  wider = imported(home, monkeypatch, np.ones((4, 24), np.float32))
  for source, message in (
    (longer, "Set length=6 to use the adapter"),
    (wider, "of shape (4, 16), found (4, 24)"),
  ):
    argv = command(home, "refused", f"--warm_start={source}")
    assert cli.main(argv) == 1
    assert message in capsys.readouterr().err
    assert not (home / "refused").exists()


def test_what_the_seeds_came_to():
  of = lambda value: seeds.Summary(
    steps=1,
    frozen_metrics={},
    adapted_metrics={"rte": {"accuracy": value}},
    trained_parameters=1,
    backbone_parameters=1,
    adapter_bytes=4,
    seconds=1.0,
  )
  values = [60.0, 70.0, 62.0, 90.0, 61.0]
  text = seeds.format_spread(dict(enumerate(map(of, values))))
  low, middle, high = np.percentile(values, [25, 50, 75])
  assert f"median {middle:.2f}, quartiles {low:.2f} to {high:.2f}" in text
  assert "seed 3 90.00" in text
  with pytest.raises(ConfigError, match="Write --seeds 0,1,2"):
    seeds.parse("-1")
