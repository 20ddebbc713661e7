"""T5X's train, eval and infer with adapters; every bad input stops them."""

import json
import shutil

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from peft_jax import cli
from peft_jax import manifest as manifests
from peft_jax.rules import TargetError
from peft_jax.train import checkpoints, hosts, opened

pytestmark = pytest.mark.t5x


def adapter_of(model_dir, step=None):
  _, leaves = checkpoints.read(model_dir, step=step)
  return flatten_dict(leaves, sep="/")


def assert_same(one, other):
  assert one.keys() == other.keys()
  for path, leaf in one.items():
    np.testing.assert_array_equal(leaf, other[path], err_msg=path)


def size_of(folder):
  return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


@pytest.fixture
def preempted_at(monkeypatch):
  """Returns a function that sends SIGTERM, as it were, before a step."""
  from peft_jax.t5x import trainer

  def at(step):
    monkeypatch.setattr(
      trainer.Preemption, "reached", lambda self, found: found == step
    )

  return at


@pytest.fixture(scope="module")
def run(jobs, tmp_path_factory):
  """A run of six steps: its folder, the parameters before, the state after."""
  from peft_jax.t5x import trainer

  folder, seen = tmp_path_factory.mktemp("whole") / "run", {}
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(
      trainer,
      "announce",
      lambda _, state: seen.update(jax.tree.map(np.array, leaves_of(state))),
    )
    step, state = jobs.train(folder)
  assert step == 6
  return folder, seen, state


def leaves_of(state):
  return flatten_dict(state.params.unfreeze(), sep="/")


def test_a_killed_job_goes_on_and_ends_with_the_same_weights(
  jobs, run, tmp_path, preempted_at
):
  folder, _, state = run
  preempted_at(4)
  with pytest.raises(SystemExit) as stopped:
    jobs.train(tmp_path / "cut")
  assert stopped.value.code == 143
  assert checkpoints.steps_of(tmp_path / "cut") == [0, 3]
  preempted_at(None)
  _, again = jobs.train(tmp_path / "cut")
  assert_same(adapter_of(folder), adapter_of(tmp_path / "cut"))
  for one, other in zip(
    jax.tree.leaves(state), jax.tree.leaves(again), strict=True
  ):
    np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


def test_only_the_adapter_changes_and_only_it_is_saved(run):
  folder, before, state = run
  for path, leaf in leaves_of(state).items():
    same = bool((leaf == before[path]).all())
    assert same == ("/lora/" not in path), path
  manifest, leaves = checkpoints.read(folder)
  assert all("/lora/" in path for path in manifest.leaves)
  assert manifest.training["step"] == 6
  assert manifest.training["task"] == "words"
  assert manifest.backbone["source"] == "random"
  # Two moments of each trained leaf and two counters, nothing of the others.
  slots = jax.tree.leaves(state.param_states)
  assert sum(leaf.size for leaf in slots) == 2 + 2 * sum(
    leaf.size for leaf in jax.tree.leaves(leaves)
  )


def test_a_checkpoint_is_as_large_for_a_larger_backbone(jobs, run, tmp_path):
  large = ["t5x.networks.create.vocab_size = 4096", "TRAIN_STEPS = 1"]
  jobs.train(tmp_path / "large", *large)
  one = size_of(run[0] / "checkpoint_0")
  other = size_of(tmp_path / "large/checkpoint_0")
  # The backbone has half a megabyte more; Orbax's files vary by kilobytes.
  assert abs(one - other) < 10_000


def test_adapters_that_start_from_the_backbone_are_started(jobs, tmp_path):
  _, state = jobs.train(tmp_path / "run", "TRAIN_STEPS = 1", adapter="dora")
  for path, leaf in flatten_dict(state.params.unfreeze(), sep="/").items():
    assert bool(np.isfinite(leaf).all()), path


def test_eval_and_infer_open_what_either_trainer_made(jobs, run, tmp_path):
  folder, _, _ = run
  found = opened.open_adapter(
    folder, bindings=["BACKBONE = 'random'", "EVAL_BATCH_SIZE = 8"]
  )
  [ours] = opened.evaluate_task(found)
  assert ours.metrics
  jobs.use("eval", folder, tmp_path / "eval")
  text = tmp_path / "eval/inference_eval/words-metrics.jsonl"
  [theirs] = [json.loads(line) for line in text.read_text().splitlines()]
  assert {name: theirs[name] for name in ours.metrics} == ours.metrics
  # An exported adapter, as our trainer's are.
  assert cli.main(["export", str(folder), f"--to={tmp_path / 'out'}"]) == 0
  jobs.use("infer", tmp_path / "out", tmp_path / "infer", "NUM_DECODES = 2")
  [path] = (tmp_path / "infer").glob("words-predict.jsonl-*-of-00001")
  rows = [json.loads(line) for line in path.read_text().splitlines()]
  assert len(rows) == 8


@pytest.mark.parametrize(
  ("bindings", "error", "message"),
  [
    (["RANDOM_SEED = None"], ValueError, "expected a seed for the training"),
    (["START_STEP = 'one'"], ValueError, "START_STEP 'zero' or 'checkpoint'"),
    (["INITIAL_CHECKPOINT_PATH = 'nowhere'"], ValueError, "nothing at"),
    (["INITIAL_CHECKPOINT_PATH = 'hf:x'"], ValueError, "peft-jax import"),
    (["REMAT = 'full'"], ValueError, "Set scan_layers=True"),
    (["MODEL_NAME = 't5_1_1_bse'"], ValueError, r"Nearest:.*t5_1_1_base"),
    (["lora/Rule.pattern = 'quer'"], TargetError, "quer"),
    (
      ["utils.RestoreCheckpointConfig.assignment_map = [('a', None)]"],
      ValueError,
      "fill what is missing with noise",
    ),
  ],
)
def test_bad_settings_stop_the_job(jobs, tmp_path, bindings, error, message):
  with pytest.raises(error, match=message):
    jobs.train(tmp_path / "run", *bindings)
  assert not checkpoints.steps_of(tmp_path / "run")


def test_processes_that_jax_has_connected_are_refused(
  jobs, tmp_path, monkeypatch
):
  monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
  with pytest.raises(hosts.HostsError, match="Leave --multiprocess_gpu out"):
    jobs.train(tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_a_fish_mask_is_refused(jobs, tmp_path):
  with pytest.raises(ValueError, match="Train it with `peft-jax train`"):
    jobs.train(tmp_path / "run", adapter="fish_mask")


def test_evaluation_wants_an_adapter(jobs, tmp_path):
  with pytest.raises(ValueError, match="expected an adapter at random"):
    jobs.use("eval", "random", tmp_path / "eval")


def test_another_rank_is_not_resumed(jobs, run, tmp_path):
  shutil.copytree(run[0], tmp_path / "run")
  with pytest.raises(manifests.ManifestError, match="rank=4 given"):
    jobs.train(tmp_path / "run", "lora/LoRA.rank = 4")


def test_another_optimizer_is_not_resumed(jobs, run, tmp_path):
  shutil.copytree(run[0], tmp_path / "run")
  with pytest.raises(ValueError, match="expected the optimizer's state of"):
    jobs.train(tmp_path / "run", "OPTIMIZER = @optimizer.adafactor()")


def test_another_backbone_is_not_resumed(jobs, run, tmp_path):
  shutil.copytree(run[0], tmp_path / "run")
  with pytest.raises(ValueError, match="was trained on backbone 'random'"):
    jobs.train(tmp_path / "run", "RANDOM_SEED = 1")


def test_a_checkpoint_that_was_not_finished_is_passed_over(jobs, run, tmp_path):
  """As it is left in a bucket, where nothing can be renamed."""
  shutil.copytree(run[0], tmp_path / "run")
  (tmp_path / "run/checkpoint_9/adapter.orbax-checkpoint-tmp").mkdir(
    parents=True
  )
  step, _ = jobs.train(tmp_path / "run")
  assert step == 6


def test_warm_start_takes_weights_alone(jobs, run, tmp_path):
  jobs.train(
    tmp_path / "second", f"WARM_START = {str(run[0])!r}", "TRAIN_STEPS = 1"
  )
  assert_same(adapter_of(tmp_path / "second", 0), adapter_of(run[0]))


def test_sharded_over_eight_devices(jobs, devices, run, tmp_path, monkeypatch):
  """Four rows of devices that share the model by two."""
  monkeypatch.setattr(devices, "count", 8)
  _, state = jobs.train(tmp_path / "eight", "MODEL_PARALLEL = 2")
  split = jax.sharding.PartitionSpec(None, "model")
  leaf = state.params["encoder"]["layers_0"]["mlp"]["wi_0"]["kernel"]
  assert leaf.sharding.spec == split
  slots = [
    slot
    for path, slot in jax.tree_util.tree_leaves_with_path(state.param_states)
    if jax.tree_util.keystr(path).endswith("['b']")
  ]
  assert {slot.sharding.spec for slot in slots} == {split}
  found, expected = adapter_of(tmp_path / "eight"), adapter_of(run[0])
  for path, value in expected.items():
    np.testing.assert_allclose(found[path], value, atol=1e-4, err_msg=path)
