"""Answer choices from a task's examples to T-Few's loss and to a ranking."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import runs, tiny
from helpers.runs import SMALL, losses, write_rows

from peft_jax import IA3, Adapted, Prefix, Prompt, Rule, choices, cli, sharding
from peft_jax.partition import split
from peft_jax.tasks.sources import DataError
from peft_jax.train import config, features, forward, loop, opened, step
from peft_jax.train import predict as predicting
from peft_jax.train.config import ConfigError
from peft_jax.train.objective import AnswerChoices

END = 1
LENGTHS = {"inputs": 5, "targets": 3}
# Three and two choices; what a task gives after tokenising.
EXAMPLES = [
  {
    "inputs": np.array([5, 6, 1]),
    "choices": np.array([7, 1, 8, 9, 1, 4, 1]),
    "label": np.int32(1),
  },
  {
    "inputs": np.array([5, 6, 7, 8, 9, 1]),
    "choices": np.array([7, 7, 1, 3, 1]),
    "label": np.int32(0),
  },
]
ENCODER_DECODER = features.EncoderDecoder(end=END)
TEXT = features.Text(begin=2, end=END)


def test_an_encoder_decoder_has_a_row_per_choice():
  batch = ENCODER_DECODER.choices(EXAMPLES, LENGTHS)
  assert batch["encoder_input_tokens"].tolist() == [
    [5, 6, 1, 0, 0],
    [5, 6, 7, 8, 9],
  ]
  assert batch["decoder_target_tokens"].tolist() == [
    [[7, 1, 0], [8, 9, 1], [4, 1, 0]],
    [[7, 7, 1], [3, 1, 0], [0, 0, 0]],
  ]
  assert batch["decoder_input_tokens"][0].tolist() == [
    [0, 7, 1],
    [0, 8, 9],
    [0, 4, 1],
  ]
  assert batch["decoder_loss_weights"].sum(-1).tolist() == [
    [2, 3, 2],
    [3, 2, 0],
  ]
  assert batch["labels"].tolist() == [1, 0]


def test_a_text_has_its_input_before_each_choice():
  batch = TEXT.choices(EXAMPLES, LENGTHS, width=4)
  assert batch["decoder_input_tokens"][0, 1].tolist() == [
    2,
    5,
    6,
    8,
    9,
    0,
    0,
    0,
  ]
  assert batch["decoder_target_tokens"][0, 1].tolist() == [
    *(5, 6, 8, 9, 1),
    *(0, 0, 0),
  ]
  assert batch["decoder_loss_weights"][0, 1].tolist() == [
    0,
    0,
    1,
    1,
    1,
    0,
    0,
    0,
  ]
  assert batch["decoder_loss_weights"].shape == (2, 4, 8)
  assert not batch["decoder_loss_weights"][:, 3].any()
  both = features.Text(begin=2, end=END, prefix_lm=True)
  seen = both.choices(EXAMPLES, LENGTHS)["decoder_causal_attention"]
  assert seen[0, 1].tolist() == [1, 1, 1, 0, 0, 0, 0, 0]


def test_text_choices_are_as_its_training_rows():
  """The right choice's row is that of the same text without choices."""
  import tensorflow as tf

  rows = tf.data.Dataset.from_tensors(
    {"inputs": [5, 6, 1], "targets": [8, 9, 1]}
  )
  [row] = TEXT.train(rows, LENGTHS).as_numpy_iterator()
  batch = TEXT.choices(EXAMPLES, LENGTHS)
  for name in row:
    assert row[name].tolist() == batch[name][0, 1].tolist(), name


@pytest.mark.parametrize("asked", [ENCODER_DECODER, TEXT])
def test_choices_that_do_not_fit(asked):
  with pytest.raises(
    DataError, match=r"found one of 3\. Set TASK_FEATURE_LENGTHS"
  ):
    asked.choices(EXAMPLES, {"inputs": 5, "targets": 2})
  with pytest.raises(DataError, match="at most 2 answer choices, found 3"):
    asked.choices(EXAMPLES, LENGTHS, width=2)
  with pytest.raises(DataError, match="with answer choices, found one without"):
    asked.choices([{"inputs": np.array([5, 1])}], LENGTHS)


@pytest.mark.parametrize("asked", [ENCODER_DECODER, TEXT])
def test_choices_that_are_cut_keep_their_end(asked):
  cut = dataclasses.replace(asked, cut=True)
  found = cut.choices(EXAMPLES, {"inputs": 5, "targets": 2})
  targets, weights = (
    found[f"decoder_{name}"][0] for name in ("target_tokens", "loss_weights")
  )
  kept = [t[w > 0].tolist() for t, w in zip(targets, weights, strict=True)]
  assert kept == [[7, END], [8, END], [4, END]]


PROMPTS = {
  "ia3": Rule("kv", IA3()),
  "prompt": Rule("first_stack", Prompt(length=3)),
  "prefix": Rule(".*self_attention", Prefix(length=2)),
}
NETWORKS = {
  "encoder-decoder": (tiny.t5, ENCODER_DECODER),
  "decoder-only": (tiny.decoder_only, TEXT),
}


def network_of(kind):
  make, asked = NETWORKS[kind]
  batch = asked.choices(EXAMPLES, LENGTHS)
  return make(), {name: jnp.asarray(x) for name, x in batch.items()}


def adapted(kind, rule):
  network, batch = network_of(kind)
  model = Adapted(network, [rule])
  row = {k: x[:, 0] if x.ndim == 3 else x for k, x in batch.items()}
  variables = model.init(jax.random.key(0), **forward.network_inputs(row))
  leaves, tree = jax.tree.flatten(variables["params"])
  keys = jax.random.split(jax.random.key(1), len(leaves))
  params = jax.tree.unflatten(
    tree,
    [
      x + 0.3 * jax.random.normal(key, x.shape)
      for x, key in zip(leaves, keys, strict=True)
    ],
  )
  return model, params, batch


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("method", PROMPTS)
def test_logits_are_those_of_each_choice_alone(kind, method):
  """An encoder's output is shared; the whole network for each choice is not."""
  model, params, batch = adapted(kind, PROMPTS[method])
  found = jax.jit(
    lambda p, b: forward.choice_logits(model, p, b, enable_dropout=False)
  )(params, batch)
  alone = jax.jit(lambda p, b: model.apply({"params": p}, **b))
  for place in range(3):
    row = {k: x[:, place] if x.ndim == 3 else x for k, x in batch.items()}
    logits = alone(params, forward.network_inputs(row))
    real = np.asarray(row["decoder_loss_weights"]) > 0
    np.testing.assert_allclose(
      np.asarray(found)[:, place][real], np.asarray(logits)[real], atol=2e-5
    )


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("formula", ["paper", "tfew_code"])
def test_a_step_is_the_gradient_of_the_weighted_sum(kind, formula):
  model, params, batch = adapted(kind, PROMPTS["ia3"])
  frozen, adapter = split(params, model)
  aim = AnswerChoices(
    language_model=0.5, unlikelihood=2.0, length_norm=0.7, formula=formula
  )

  def reference(adapter):
    from peft_jax import partition

    logits = forward.choice_logits(
      model, partition.join(frozen, adapter), batch, enable_dropout=False
    )
    real, labels = batch["decoder_loss_weights"], batch["labels"]
    lm, unlikely, ranked = choices.losses(
      logits,
      batch["decoder_target_tokens"],
      labels,
      choices.weigh(real, labels, formula=formula),
      length_norm=0.7,
      formula=formula,
    )
    return 0.5 * lm + 2 * unlikely + ranked

  loss, gradient = jax.jit(jax.value_and_grad(reference))(adapter)
  tx = optax.sgd(1.0)
  for micro_batches in (1, 2):
    call = step.make_train_step(
      model, tx, dropout=False, objective=aim, micro_batches=micro_batches
    )
    state = step.init_state(adapter, tx, jax.random.key(0))
    state, metrics = jax.jit(call)(state, frozen, batch)
    assert metrics["loss"] == pytest.approx(float(loss), rel=1e-5)
    assert int(metrics["tokens"]) == int(batch["decoder_loss_weights"].sum())
    jax.tree.map(
      lambda new, old, g: np.testing.assert_allclose(
        old - new, g, rtol=2e-3, atol=1e-5
      ),
      state.adapter,
      adapter,
      gradient,
    )


def test_weights_of_the_losses():
  with pytest.raises(ValueError, match="weights of at least 0, and one above"):
    AnswerChoices(language_model=0, unlikelihood=0, length_normalized=0)
  with pytest.raises(ValueError, match="found \\(-1"):
    AnswerChoices(language_model=-1)


@pytest.mark.parametrize("kind", NETWORKS)
def test_ranking_in_chunks_is_ranking(kind):
  model, params, batch = adapted(kind, PROMPTS["prompt"])
  batch = {name: x for name, x in batch.items() if name != "labels"}
  frozen, adapter = split(params, model)
  mesh = sharding.make_mesh()
  found = {}
  for size in (0, 1, 2, 5):
    how = predicting.Ranking(choices_per_chunk=size)
    rank = predicting.make_rank(model, mesh=mesh, how=how)
    found[size] = np.asarray(rank(frozen, adapter, batch))
    np.testing.assert_allclose(found[size], found[0], rtol=1e-5)
  logits = forward.choice_logits(model, params, batch, enable_dropout=False)
  log_p = np.asarray(jax.nn.log_softmax(logits), np.float64)
  targets = np.asarray(batch["decoder_target_tokens"])[..., None]
  real = np.asarray(batch["decoder_loss_weights"])
  nll = -np.take_along_axis(log_p, targets, -1)[..., 0] * real
  with np.errstate(invalid="ignore"):
    mean = nll.sum(-1) / real.sum(-1)
  mean[real.sum(-1) == 0] = np.inf
  np.testing.assert_allclose(found[0], mean, rtol=1e-4)
  with pytest.raises(ValueError, match="choices_per_chunk >= 0, found -1"):
    predicting.Ranking(choices_per_chunk=-1)


@pytest.fixture(autouse=True)
def one_device():
  with runs.one_device():
    yield


# A whole run.
ROWS = [
  {"inputs": f"say {word}", "targets": word, "choices": ["up", "down", "left"]}
  for word in ("up", "down", "left")
] + [{"inputs": "say no", "targets": "no", "choices": ["yes", "no"]}]
ASKED = ["LOSS = 'answer_choices'", "ANSWER_BY = 'ranking'", "BATCH_SIZE = 4"]


def resolve(tmp_path, *bindings, rows=ROWS, name="run"):
  data = write_rows(tmp_path / f"data_{name}", rows)
  return config.resolve(
    ["runs/train.gin", "models/tiny.gin", "adapters/lora.gin"],
    [
      *SMALL,
      f"DATA_DIR = {str(data)!r}",
      f"MODEL_DIR = {str(tmp_path / name)!r}",
      *ASKED,
      *bindings,
    ],
  )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """A run with T-Few's loss, evaluated by ranking."""
  folder = tmp_path_factory.mktemp("ranked")
  with runs.one_device():
    loop.train(resolve(folder, "TRAIN_STEPS = 12", "CHECKPOINT_PERIOD = 12"))
  return folder / "run"


def test_a_run_learns_to_rank(run):
  found = losses(run)
  assert found[12] < found[1]
  rows = [
    json.loads(x) for x in (run / "metrics.jsonl").read_text().splitlines()
  ]
  assert {"unlikelihood", "length_normalized"} <= rows[0].keys()
  lines = (run / "predictions" / "words.jsonl").read_text().splitlines()
  for line, given in zip(map(json.loads, lines), ROWS, strict=True):
    scores = line["adapted_scores"]
    assert list(scores) == given["choices"]
    assert line["adapted_prediction"] == min(scores, key=scores.get)


def test_eval_and_infer_rank_as_the_run_did(run, tmp_path, capsys):
  assert (
    cli.main(["eval", str(run), "--output", str(tmp_path / "p.jsonl")]) == 0
  )
  lines = (run / "predictions" / "words.jsonl").read_text().splitlines()
  trained = [json.loads(line) for line in lines]
  evaluated = (tmp_path / "p.jsonl").read_text().splitlines()
  for line, row in zip(map(json.loads, evaluated), trained, strict=True):
    assert line["prediction"] == row["adapted_prediction"]
    for text, score in line["scores"].items():
      assert score == pytest.approx(row["adapted_scores"][text], rel=1e-5)
  asked = tmp_path / "asked.jsonl"
  asked.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
  answers = tmp_path / "answers.jsonl"
  command = ["infer", str(run), "--input", str(asked), "--output", str(answers)]
  assert cli.main(command) == 0
  for line, row in zip(answers.read_text().splitlines(), trained, strict=True):
    found = json.loads(line)
    assert found["prediction"] == row["adapted_prediction"]
    scores = list(row["adapted_scores"].values())
    np.testing.assert_allclose(found["scores"], scores, rtol=1e-5)
  capsys.readouterr()
  assert cli.main([*command, "--calibrated"]) == 0
  assert cli.main(["eval", str(run), "--num_beams", "2", "--calibrated"]) == 1
  assert "Leave it out, or change --answer_by" in capsys.readouterr().err
  asked.write_text('{"inputs": "say up"}\n')
  assert cli.main(command) == 1
  assert "a list 'choices' of texts in every row" in capsys.readouterr().err


def test_decoding_of_a_run_that_ranks(run):
  found = opened.open_adapter(run)
  [evaluation] = opened.evaluate_task(found, how=predicting.Decoding())
  assert evaluation.scores is None


def test_free_text_cannot_be_ranked(tmp_path):
  rows = [{"inputs": "say up", "targets": "up"}] * 4
  for loss in ("'answer_choices'", "'language_model'"):
    with pytest.raises(
      DataError, match="with answer choices, found one without"
    ):
      loop.train(resolve(tmp_path, f"LOSS = {loss}", rows=rows))
    assert not (tmp_path / "run").exists()


def test_choices_that_are_too_long_stop_before_anything_is_written(tmp_path):
  # The right answer is short; the wrong one is not.
  long = {"inputs": "?", "targets": "a", "choices": ["a", "b" * 20]}
  rows = [*ROWS, long]
  message = (
    r"at most 8 tokens in 'words', found longer ones in 1 of \d+ examples"
    r" \(longest 21\)\. Set TASK_FEATURE_LENGTHS\['targets'\] to 21, or ALLOW"
  )
  with pytest.raises(DataError, match=message):
    loop.train(resolve(tmp_path, "EVAL_SPLIT = ''", rows=rows))
  assert not (tmp_path / "run").exists()


def test_a_row_without_a_label_is_not_trained_on(tmp_path):
  rows = [*ROWS, {"inputs": "?", "targets": "<unk>", "choices": ["a", "b"]}]
  with pytest.raises(DataError, match="of 'words', found 1 without one"):
    loop.train(resolve(tmp_path, rows=rows))


def test_unknown_loss(tmp_path):
  with pytest.raises(ConfigError, match="LOSS to be one of"):
    resolve(tmp_path, "LOSS = 'tfew'")


def test_packing_and_answer_choices(tmp_path):
  with pytest.raises(ConfigError, match="with a loss over answer choices"):
    loop.train(resolve(tmp_path, "PACK = True"))
