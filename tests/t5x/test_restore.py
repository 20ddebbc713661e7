"""T5X's own checkpoints without adapters: exactly the adapter may be new."""

import re

import gin
import jax
import numpy as np
import pytest
from flax.core import freeze
from flax.traverse_util import flatten_dict, unflatten_dict
from helpers import methods, tiny

from peft_jax import Adapted, layout
from peft_jax.backbone import BackboneError
from peft_jax.checkpoint import AdapterError
from peft_jax.train import checkpoints, opened

pytestmark = pytest.mark.t5x


@pytest.fixture(scope="module")
def partitioner(devices):
  from t5x import partitioning

  del devices
  return partitioning.PjitPartitioner(num_partitions=1)


def state_of(module, params=None):
  """Returns T5X's state, as shapes if there are no parameters."""
  from t5x import train_state

  from peft_jax.t5x import optimizer

  variables = freeze(dict(tiny.variables(module)))
  if params is not None:
    variables = variables.copy({"params": freeze(params)})
  if isinstance(module, Adapted):
    tx = optimizer.adafactor(module, learning_rate=1e-3)
  else:
    from t5x import adafactor

    rules = adafactor.standard_logical_factor_rules()
    tx = adafactor.Adafactor(1e-3, logical_factor_rules=rules)
  make = lambda v: train_state.FlaxOptimTrainState.create(tx, v)
  return (
    make(variables) if params is not None else jax.eval_shape(make, variables)
  )


def write(network, params, folder, kind, partitioner, step=7):
  """Writes a checkpoint of the plain network with T5X's own code."""
  from t5x import checkpoints as theirs

  state = state_of(network, jax.tree.map(jax.numpy.asarray, params))
  state = state.replace_step(jax.numpy.int32(step))
  folder.mkdir()
  if kind == "zarr":
    writer = theirs.Checkpointer(state, partitioner, str(folder))
  else:
    writer = theirs.OrbaxCheckpointManagerInterface(
      str(folder), state, partitioner
    )
  writer.save(state)
  if kind == "orbax":
    writer.close()
  return f"{folder}/checkpoint_{step}"


def checkpointer(module, partitioner, backbone, **options):
  from peft_jax.t5x.checkpointer import AdapterCheckpointer

  gin.clear_config()
  return AdapterCheckpointer(
    state_of(module),
    partitioner,
    module=module,
    backbone=backbone,
    **options,
  )


def flat(params):
  return flatten_dict(params.unfreeze(), sep="/")


@pytest.mark.parametrize(
  ("kind", "scanned", "into"),
  [
    ("zarr", False, False),
    ("orbax", False, False),
    ("zarr", False, True),  # the published ones in scalable_t5
    ("zarr", True, True),
  ],
)
def test_the_backbone_is_the_checkpoints(
  kind, scanned, into, tmp_path, partitioner
):
  networks = {False: tiny.t5x, True: tiny.t5x_scanned}
  plain = networks[scanned]()
  path = write(plain, tiny.params(plain), tmp_path / "x", kind, partitioner)
  module = Adapted(networks[into](), methods.METHODS["lora"])
  found = checkpointer(module, partitioner, path).restore(path=path)
  expected = flatten_dict(layout.to_layers(tiny.params(plain)), sep="/")
  rows = flatten_dict(layout.to_layers(found.params.unfreeze()), sep="/")
  for name, leaf in rows.items():
    if "/lora/" in name:
      assert np.isfinite(leaf).all()
      continue
    shared = re.sub(r"layers_\d+/relpos", "relpos", name)
    value = expected.get(name, expected.get(shared))
    np.testing.assert_array_equal(
      np.reshape(leaf, value.shape), value, err_msg=name
    )
  assert int(found.step) == 0
  old = checkpointer(module, partitioner, path, start_step="checkpoint")
  assert int(old.restore(path=path).step) == 7


def test_t5xs_own_msgpack_file(shared_data, partitioner):
  path = str(shared_data("t5x/testdata/test_t5_tiny.checkpoint_0"))
  from flax import serialization

  with open(path, "rb") as file:
    stored = serialization.msgpack_restore(file.read())["optimizer"]["target"]
  sizes = {
    "vocab_size": 32128, "emb_dim": 8, "num_heads": 4, "head_dim": 3,
    "mlp_dim": 16, "num_encoder_layers": 2, "num_decoder_layers": 2,
  }  # fmt: skip
  module = Adapted(tiny.t5x(**sizes), methods.METHODS["ia3"])
  state = checkpointer(module, partitioner, path).restore(path=path)
  for name, leaf in flatten_dict(stored, sep="/").items():
    np.testing.assert_array_equal(flat(state.params)[name], leaf)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (
      lambda flat: flat.pop("encoder/encoder_norm/scale"),
      r"1 of them missing.*encoder/encoder_norm/scale",
    ),
    (
      lambda flat: flat.update({"encoder/more/scale": np.ones(3)}),
      r"1 that the network does not have.*encoder/more/scale",
    ),
    (
      lambda flat: flat.update({"encoder/encoder_norm/scale": np.ones(3)}),
      r"encoder/encoder_norm/scale of shape \(16,\), found \(3,\)",
    ),
  ],
)
def test_anything_else_stops_the_job(change, message, tmp_path, partitioner):
  from flax import serialization

  tree = flatten_dict(
    jax.tree.map(np.asarray, tiny.params(tiny.t5x())), sep="/"
  )
  change(tree)
  path = tmp_path / "model"
  content = {"optimizer": {"target": unflatten_dict(tree, sep="/")}}
  path.write_bytes(serialization.msgpack_serialize(content))
  module = Adapted(tiny.t5x(), methods.METHODS["lora"])
  with pytest.raises(BackboneError, match=message):
    checkpointer(module, partitioner, str(path)).restore(path=str(path))


@pytest.mark.parametrize("method", ["top_layer", "pissa", "compacter"])
def test_what_is_saved_comes_back(method, tmp_path, partitioner):
  """In T5X's scanned network, and into ours that it is described as."""
  plain = tiny.t5x_scanned()
  path = write(
    plain, tiny.params(plain), tmp_path / "x", "zarr", partitioner, step=7
  )
  scanned = Adapted(plain, methods.METHODS[method])
  job = checkpointer(
    scanned, partitioner, path, checkpoints_dir=str(tmp_path / "job")
  )
  state = job.restore(path=path)
  job.save(state)
  assert checkpoints.steps_of(tmp_path / "job") == [0]
  reader = checkpointer(scanned, partitioner, path)
  again = reader.restore(path=str(tmp_path / "job/checkpoint_0"))
  tiny.assert_same(again.params.unfreeze(), state.params.unfreeze())
  found = opened.open_adapter(tmp_path / "job")
  assert found.manifest.backbone["source"] == f"t5x:{path}"
  batch = tiny.batch()
  tiny.assert_close(
    tiny.logits(found.model)(found.params, batch),
    tiny.logits(scanned)(state.params.unfreeze(), batch),
  )


def test_an_adapter_alone_is_not_trained_on(tmp_path, partitioner):
  from peft_jax import checkpoint, manifest

  network = tiny.t5x()
  path = write(
    network, tiny.params(network), tmp_path / "x", "zarr", partitioner
  )
  module = Adapted(network, methods.METHODS["lora"])
  from peft_jax import partition

  frozen, adapter = partition.split(tiny.params(module), module)
  checkpoint.save(
    tmp_path / "adapter",
    adapter,
    module.rules,
    model={},
    backbone={"source": path, "fingerprint": manifest.fingerprint(frozen)},
  )
  with pytest.raises(checkpoints.CheckpointError, match="set WARM_START"):
    checkpointer(module, partitioner, path).restore(
      path=str(tmp_path / "adapter")
    )
  with pytest.raises(AdapterError, match="expected an adapter at"):
    checkpointer(module, partitioner, path).restore(path=str(tmp_path))


def test_no_tensorflow_checkpoints(partitioner):
  module = Adapted(tiny.t5x(), methods.METHODS["lora"])
  with pytest.raises(ValueError, match="convert_tf_checkpoint"):
    checkpointer(module, partitioner, "random").restore_from_tf_checkpoint("x")
