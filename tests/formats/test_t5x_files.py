"""T5X's checkpoints, read without T5X."""

import jax
import numpy as np
import pytest
import tensorstore
from flax import serialization
from flax.traverse_util import flatten_dict, unflatten_dict
from helpers import tiny

from peft_jax import layout, networks, orbax_io
from peft_jax.backbone import BackboneError
from peft_jax.formats import hugging_face, t5x
from peft_jax.formats.safetensors_io import FormatError


@pytest.fixture
def params():
  tree = tiny.params(tiny.t5())
  return jax.tree.map(np.asarray, tree)


def write_zarr(path, array):
  spec = {"driver": "zarr", "kvstore": {"driver": "file", "path": str(path)}}
  store = tensorstore.open(
    spec, create=True, dtype=array.dtype.name, shape=array.shape
  )
  store.result().write(array).result()


def write_folder(folder, params, large):
  """Writes leaves that `large` names as zarr arrays, the rest in the index."""
  flat = flatten_dict(params, sep="/")
  index = {}
  for path, leaf in flat.items():
    if large(path):
      name = f"target.{path.replace('/', '.')}"
      write_zarr(folder / name, leaf)
      index[path] = {"driver": "zarr", "kvstore": {"path": name}}
    else:
      index[path] = leaf
  tree = {"version": 3, "optimizer": {"target": unflatten_dict(index, sep="/")}}
  (folder / "checkpoint").write_bytes(serialization.msgpack_serialize(tree))


def test_one_file(params, tmp_path):
  path = tmp_path / "model"
  tree = {"optimizer": {"target": params, "state": {"step": np.int32(7)}}}
  path.write_bytes(serialization.msgpack_serialize(tree))
  tiny.assert_same(t5x.load(path, params), params)


def test_folder_with_arrays(params, tmp_path):
  write_folder(tmp_path, params, lambda path: path.endswith("kernel"))
  tiny.assert_same(t5x.load(tmp_path, params), params)


def test_orbax(params, tmp_path):
  tree = {"target": params, "state": {"step": np.int32(1)}}
  orbax_io.write(tmp_path / "state", tree)
  tiny.assert_same(t5x.load(tmp_path, params), params)


def test_layers_stacked_along_the_second_axis(params, tmp_path):
  """As scalable_t5 writes them, the heads of attention kernels apart."""
  flat = {}
  stacked = layout.to_scanned(params)
  for path, leaf in flatten_dict(stacked, sep="/").items():
    stack = path.split("/")[0]
    if not path.startswith(f"{stack}/layers/"):
      flat[path] = np.asarray(leaf)
      continue
    name = path.replace(f"{stack}/layers/", f"{stack}/{stack}/")
    leaf = np.asarray(leaf)
    if path.endswith(("query/kernel", "key/kernel", "value/kernel")):
      leaf = leaf.reshape(*leaf.shape[:2], tiny.SIZES["num_heads"], -1)
    if path.endswith("out/kernel"):
      leaf = leaf.reshape(
        leaf.shape[0], tiny.SIZES["num_heads"], -1, leaf.shape[-1]
      )
    flat[name] = np.moveaxis(leaf, 0, 1)
  write_folder(
    tmp_path, unflatten_dict(flat, sep="/"), lambda path: "relpos" not in path
  )
  tiny.assert_same(t5x.load(tmp_path, params), params)
  # And into a network that scans.
  scanned = tiny.shapes(tiny.t5(scan_layers=True))
  tiny.assert_same(t5x.load(tmp_path, scanned), stacked)


def test_what_is_no_checkpoint(params, tmp_path):
  with pytest.raises(FormatError, match="found nothing at"):
    t5x.load(tmp_path / "nowhere", params)
  with pytest.raises(FormatError, match="found another folder at"):
    t5x.load(tmp_path, params)
  path = tmp_path / "model"
  path.write_bytes(b"\xc1")
  with pytest.raises(FormatError, match="does not parse"):
    t5x.load(path, params)
  path.write_bytes(serialization.msgpack_serialize({"weights": {}}))
  with pytest.raises(FormatError, match="under `target`"):
    t5x.load(path, params)


def test_another_model(params, tmp_path):
  path = tmp_path / "model"
  del params["decoder"]["logits_dense"]
  tree = {"target": params}
  path.write_bytes(serialization.msgpack_serialize(tree))
  with pytest.raises(BackboneError, match="1 of them missing"):
    t5x.load(path, tiny.shapes(tiny.t5()))


REAL = {
  "t5x/testdata/test_t5_tiny.checkpoint_0": (8, 4, 3, 16, 32, 518_240),
  "prompt_tuning/test_data/test_t5_1_1_tiny/checkpoint_3": (
    *(4, 2, 2, 8, 4, 257_856),
  ),
}


def real_network(name):
  emb_dim, heads, head_dim, mlp_dim, buckets, _ = REAL[name]
  return networks.EncoderDecoder(
    networks.TransformerConfig(
      vocab_size=32128,
      emb_dim=emb_dim,
      num_heads=heads,
      head_dim=head_dim,
      mlp_dim=mlp_dim,
      num_encoder_layers=2,
      num_decoder_layers=2,
      relative_buckets=buckets,
    )
  )


@pytest.mark.parametrize("name", REAL)
def test_real_checkpoints(name, shared_data):
  network = real_network(name)
  found = t5x.load(shared_data(name), hugging_face.shapes(network))
  assert sum(leaf.size for leaf in jax.tree.leaves(found)) == REAL[name][-1]


@pytest.mark.t5x
def test_real_checkpoint_in_t5xs_own_network(shared_data):
  """Of the two, the other has buckets that T5X's network has no field for."""
  from t5x.examples.t5 import network as t5x_network

  name = next(iter(REAL))
  ours = real_network(name)
  params = t5x.load(shared_data(name), hugging_face.shapes(ours))
  fields = (
    *("vocab_size", "emb_dim", "num_heads", "head_dim", "mlp_dim"),
    *("num_encoder_layers", "num_decoder_layers", "mlp_activations"),
  )
  config = {field: getattr(ours.config, field) for field in fields}
  theirs = t5x_network.Transformer(
    t5x_network.T5Config(**config, dropout_rate=0.0)
  )
  inputs = tiny.network_inputs(tiny.batch())
  tiny.assert_close(
    ours.apply({"params": params}, **inputs),
    theirs.apply({"params": params}, **inputs, enable_dropout=False),
  )
