"""Optimizers of T5X's and of optax's, for the adapter alone."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import freeze
from helpers import methods, tiny

from peft_jax import Adapted, backbone, networks, optim, partition
from peft_jax.train import config, loop

pytestmark = pytest.mark.t5x


def module_of(method="lora"):
  return Adapted(tiny.t5x(), methods.METHODS[method])


def both():
  from peft_jax.t5x import optimizer

  return {
    "optax": lambda m: optimizer.from_optax(
      optim.adamw(learning_rate=0.1, weight_decay=0.1), m
    ),
    "adafactor": lambda m: optimizer.adafactor(
      m, learning_rate=0.1, weight_decay_rate=0.1
    ),
  }


@pytest.mark.parametrize("kind", ["optax", "adafactor"])
@pytest.mark.parametrize("method", ["pissa", "top_layer"])
def test_what_is_frozen_stays_to_the_bit(kind, method):
  module = module_of(method)
  tx, params = both()[kind](module), freeze(tiny.params(module))
  state = tx.init_state(params)
  grads = jax.tree.map(jnp.ones_like, params)
  hyper = tx.update_hyper_params(learning_rate=0.1)
  after, state = tx.apply_gradient(hyper, params, state, grads)
  assert jax.tree.structure(after) == jax.tree.structure(params)
  assert int(state.step) == 1
  for path, leaf in tiny_flat(after).items():
    same = bool((leaf == tiny_flat(params)[path]).all())
    assert same != partition.is_trained(path, module), path


def tiny_flat(tree):
  from flax.traverse_util import flatten_dict

  return flatten_dict(tree.unfreeze(), sep="/")


@pytest.mark.parametrize("kind", ["optax", "adafactor"])
def test_slots_lie_as_their_leaf(kind):
  """And T5X's way to dictionaries and back keeps all of it."""
  from jax.sharding import PartitionSpec

  module = module_of()
  tx, params = both()[kind](module), freeze(tiny.params(module))
  created = jax.tree.map(jnp.asarray, tx.create(params))
  axes = jax.tree.map(lambda x: PartitionSpec(*["embed"] * x.ndim), params)
  derived = tx.derive_logical_axes(created, axes).state_dict()
  flat = tiny.spec(created.state_dict()["state"])
  from flax.traverse_util import flatten_dict

  found = flatten_dict(derived["state"], sep="/")
  assert found.keys() == flat.keys()
  for path, (shape, _) in flat.items():
    whole = len(shape) < 2
    assert found[path] == (None if whole else PartitionSpec("embed", "embed"))
  again = created.restore_state(created.state_dict())
  assert jax.tree.structure(again) == jax.tree.structure(created)


def test_the_step_offset_of_a_checkpoint():
  """T5X's counter goes on from the backbone's; with ours it starts at 0."""
  from t5x import optimizers

  module = module_of("ia3")
  params = freeze(tiny.params(module))
  grads = jax.tree.map(jnp.ones_like, params)

  def moved(step, **settings):
    from peft_jax.t5x import optimizer

    tx = optimizer.adafactor(module, learning_rate=0.1, **settings)
    state = tx.init_state(params)
    state = optimizers.OptimizerState(jnp.int32(step), state.param_states)
    hyper = tx.update_hyper_params(learning_rate=0.1)
    after, _ = tx.apply_gradient(hyper, params, state, grads)
    key = "encoder/layers_0/attention/key/ia3/scaling"
    return np.asarray(tiny_flat(after)[key] - tiny_flat(params)[key])

  np.testing.assert_allclose(
    moved(1_000_000, step_offset=1_000_000), moved(0), rtol=1e-6
  )
  # Without the offset the first mean square keeps 1.6e-5 of the gradient's.
  clipped = moved(1_000_000, clipping_threshold=None)
  assert np.abs(clipped).min() > 100 * np.abs(moved(0)).max()


def test_micro_batches_cost_no_gradients_of_the_backbone(jobs, devices):
  """T5X sums all gradients in a loop; XLA drops those that nothing reads."""
  from t5x import models, partitioning, trainer

  del jobs, devices
  import seqio

  from peft_jax.t5x import optimizer

  module = Adapted(
    tiny.t5x(emb_dim=64, mlp_dim=256, vocab_size=512), methods.METHODS["lora"]
  )
  vocabulary = seqio.PassThroughVocabulary(512, eos_id=1)
  model = models.EncoderDecoderModel(
    module=module,
    input_vocabulary=vocabulary,
    output_vocabulary=vocabulary,
    optimizer_def=optimizer.adafactor(module, learning_rate=1e-3),
  )
  params = freeze(tiny.shapes(module))
  batch = jax.eval_shape(lambda: tiny.batch(rows=8))
  frozen, adapter = partition.split(params, module)

  class OfTheAdapter:
    """A model whose parameters are the adapter's alone."""

    def __init__(self, frozen):
      self._frozen = frozen

    def loss_fn(self, adapter, batch, rng):
      whole = partition.join(self._frozen, adapter)
      return model.loss_fn(whole, batch, rng)

  class State:
    flax_mutables = None

    def __init__(self, params):
      self.params = params

  def gradients(model, params, batch):
    spec = partitioning.PartitionSpec("data")
    found, metrics, _ = trainer.accumulate_grads_microbatched(
      model, State(params), batch, jax.random.PRNGKey(0), 4, spec
    )
    return found, metrics["loss"]

  def as_t5x(params, batch):
    found, loss = gradients(model, params, batch)
    tx = model.optimizer_def
    state = tx.init_state(params)
    hyper = tx.update_hyper_params(learning_rate=1e-3)
    return tx.apply_gradient(hyper, params, state, found), loss

  def of_the_adapter(params, batch):
    frozen, adapter = partition.split(params, module)
    found, loss = gradients(OfTheAdapter(frozen), adapter, batch)
    tx = model.optimizer_def
    state = tx.init_state(params)
    hyper = tx.update_hyper_params(learning_rate=1e-3)
    grads = freeze(partition.join(frozen, found))
    return tx.apply_gradient(hyper, params, state, grads), loss

  mesh = partitioning.default_mesh(1)
  with mesh:
    sizes = [
      jax.jit(step).lower(params, batch).compile().memory_analysis()
      for step in (as_t5x, of_the_adapter)
    ]
  found, expected = (size.temp_size_in_bytes for size in sizes)
  print(f"temporary bytes: T5X {found:,}, adapter only {expected:,}")
  assert found <= expected * 1.01
  del adapter, frozen


FILES = """
from __gin__ import dynamic_registration
from peft_jax.optim import adafactor
OPTIMIZER = @adafactor.adafactor()
adafactor.adafactor.learning_rate = %SCHEDULE
"""


def test_both_trainers_take_the_same_steps(
  jobs, tmp_path, data_dir, monkeypatch
):
  """(IA)3 with T5X's Adafactor: 20 losses equal to 1e-4."""
  from peft_jax.t5x import trainer

  sizes = {
    "num_encoder_layers": 1,
    "num_decoder_layers": 1,
    "emb_dim": 16,
    "num_heads": 2,
    "head_dim": 8,
    "mlp_dim": 32,
  }
  network = networks.create("tiny", **sizes)
  backbone.save(
    tmp_path / "backbone",
    tiny.params(network),
    model=backbone.describe(network, "tiny"),
  )
  same = ["TRAIN_STEPS = 20", "WARMUP_STEPS = 2", "LEARNING_RATE = 0.1"]
  (tmp_path / "adafactor.gin").write_text(FILES)
  resolved = config.resolve(
    [
      "runs/train.gin",
      "models/tiny.gin",
      "adapters/ia3.gin",
      str(tmp_path / "adafactor.gin"),
    ],
    [
      *(
        f"peft_jax.networks.create.{name} = {size}"
        for name, size in sizes.items()
      ),
      *same,
      "MIXTURE_OR_TASK_NAME = 'words'",
      f"DATA_DIR = {str(data_dir)!r}",
      f"BACKBONE = {str(tmp_path / 'backbone')!r}",
      f"MODEL_DIR = {str(tmp_path / 'ours')!r}",
      "TASK_FEATURE_LENGTHS = {'inputs': 12, 'targets': 8}",
      *("BATCH_SIZE = 8", "EVAL_BATCH_SIZE = 8", "LOG_PERIOD = 1"),
      "EVAL_FROZEN = False",
    ],
  )
  real = loop.sharding.make_mesh
  monkeypatch.setattr(
    loop.sharding,
    "make_mesh",
    lambda **k: real(**k, devices=jax.devices()[:1]),
  )
  summary = loop.train(resolved)
  lines = (tmp_path / "ours/metrics.jsonl").read_text().splitlines()
  ours = [r["loss"] for r in map(json.loads, lines) if r["kind"] == "train"]
  theirs = []
  train = trainer.Trainer.train

  def recorded(self, *args, **kwargs):
    summary = train(self, *args, **kwargs)
    theirs.append(float(summary.result()["loss"].value))
    return summary

  monkeypatch.setattr(trainer.Trainer, "train", recorded)
  jobs.train(
    tmp_path / "theirs",
    *same,
    "OPTIMIZER = @optimizer.adafactor()",
    f"INITIAL_CHECKPOINT_PATH = {str(tmp_path / 'backbone')!r}",
    "DROPOUT_RATE = 0.0",
    "CHECKPOINT_PERIOD = 20",
    adapter="ia3",
  )
  print("ours  ", ours[:3], ours[-3:])
  print("theirs", theirs[:3], theirs[-3:])
  print("largest difference", max(abs(np.array(ours) - np.array(theirs))))
  assert len(ours) == len(theirs) == 20
  assert ours[-1] < ours[0]
  np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-4)
  # And T5X evaluates what our trainer made.
  jobs.use(
    "eval",
    tmp_path / "ours",
    tmp_path / "eval",
    f"INITIAL_CHECKPOINT_PATH = {str(tmp_path / 'backbone')!r}",
    adapter="ia3",
  )
  text = (tmp_path / "eval/inference_eval/words-metrics.jsonl").read_text()
  found = json.loads(text.splitlines()[0])
  for name, value in summary.adapted_metrics["words"].items():
    assert found[name] == value
