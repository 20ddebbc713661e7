"""Backbone files: all of them fits, or the error names what does not."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from helpers import tiny

from peft_jax import backbone, layout, sharding
from peft_jax.backbone import BackboneError

NETWORK = tiny.t5()
MODEL = {"name": "small"}


def params():
  return tiny.params(NETWORK)


def write(path, edit=None, tree=None):
  """Writes an `.npz` backbone, after an edit of its flat tree."""
  flat = flatten_dict(params() if tree is None else tree, sep="/")
  flat = {name: np.asarray(leaf) for name, leaf in flat.items()}
  if edit:
    edit(flat)
  np.savez(path, **flat)
  return path


def restore(path, network=NETWORK, **options):
  return backbone.restore(path, tiny.shapes(network), **options)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  directory = tmp_path_factory.mktemp("backbones") / "backbone"
  backbone.save(directory, params(), model=backbone.describe(NETWORK, "small"))
  return directory


def test_round_trip(saved):
  tiny.assert_same(restore(saved), params())
  text = json.loads((saved / "backbone.json").read_text())
  assert text["model"]["name"] == "small"
  assert text["leaves"]["decoder/logits_dense/kernel"] == {
    "shape": [16, 32],
    "dtype": "float32",
  }
  assert text["leaves"].keys() == flatten_dict(params(), sep="/").keys()


def test_npz_round_trip(tmp_path):
  tiny.assert_same(restore(write(tmp_path / "b.npz")), params())


def test_either_view(saved, tmp_path):
  scanned = tiny.t5(scan_layers=True)
  stacked = layout.to_scanned(params())
  tiny.assert_same(restore(saved, scanned), stacked)
  backbone.save(tmp_path / "b", stacked, model=MODEL)
  tiny.assert_same(restore(tmp_path / "b"), params())


def test_dtype(tmp_path):
  path = write(tmp_path / "b.npz")
  found = restore(path, dtype=jnp.bfloat16)
  expected = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params())
  tiny.assert_same(found, expected)


def test_placed_on_a_mesh(tmp_path):
  mesh = sharding.make_mesh(data=4, model=2)
  axes = tiny.variables(NETWORK)["params_axes"]
  placement = sharding.shardings(tiny.shapes(NETWORK), axes, mesh)
  found = restore(write(tmp_path / "b.npz"), shardings=placement)
  tiny.assert_same(found, params())
  jax.tree.map(lambda x, s: x.sharding.is_equivalent_to(s, x.ndim), found,
               placement)  # fmt: skip
  kernel = found["decoder"]["logits_dense"]["kernel"]
  assert {s.data.shape for s in kernel.addressable_shards} == {(16, 16)}


def test_missing_leaves(tmp_path):
  def edit(flat):
    del flat["encoder/layers_0/mlp/wo/kernel"]

  path = write(tmp_path / "b.npz", edit)
  with pytest.raises(BackboneError) as error:
    restore(path)
  message = str(error.value)
  total = len(flatten_dict(params()))
  assert f"expected {total} parameters in {path}, found 1 of them" in message
  assert "would be random: encoder/layers_0/mlp/wo/kernel." in message
  assert "Nothing was loaded" in message


def test_extra_leaves(tmp_path):
  def edit(flat):
    flat["encoder/layers_0/mlp/wi_2/kernel"] = np.zeros(3)

  with pytest.raises(BackboneError) as error:
    restore(write(tmp_path / "b.npz", edit))
  message = str(error.value)
  assert "found 1 that the network does not have" in message
  assert "encoder/layers_0/mlp/wi_2/kernel" in message


def test_a_misshapen_leaf(tmp_path):
  def edit(flat):
    flat["decoder/logits_dense/kernel"] = np.zeros((16, 33), np.float32)

  with pytest.raises(BackboneError) as error:
    restore(write(tmp_path / "b.npz", edit))
  message = str(error.value)
  assert "decoder/logits_dense/kernel of shape (16, 32), found (16, 33)" in (
    message
  )


def test_a_tied_output_layer_is_explained(tmp_path):
  """T5 1.0 files have no output layer: random logits would be the result."""
  tied = tiny.t5(logits_via_embedding=True)
  path = write(tmp_path / "b.npz", tree=tiny.params(tied))
  tiny.assert_same(restore(path, tied), tiny.params(tied))
  with pytest.raises(BackboneError) as error:
    restore(path)
  assert "set logits_via_embedding=True" in str(error.value)


@pytest.mark.parametrize(
  ("overrides", "expected"),
  [
    ({"num_decoder_layers": 3}, "found 14 of them missing"),
    ({"num_decoder_layers": 1}, "found 14 that the network does not have"),
    ({"emb_dim": 24}, "found (16"),
    ({"mlp_activations": ("relu",)}, "mlp/wi/kernel"),
  ],
)
@pytest.mark.parametrize("scanned", [False, True])
def test_another_network(tmp_path, overrides, expected, scanned):
  """Also where layers are stacked: a deeper stack is misshapen there."""
  if scanned and "num_decoder_layers" in overrides:
    expected = f"of shape ({overrides['num_decoder_layers']}, "
  path = write(tmp_path / "b.npz")
  with pytest.raises(BackboneError) as error:
    restore(path, tiny.t5(scan_layers=scanned, **overrides))
  assert expected in str(error.value)


def test_no_backbone_there(tmp_path):
  with pytest.raises(BackboneError, match="found nothing at"):
    restore(tmp_path / "absent")
  with pytest.raises(BackboneError, match="found another directory at"):
    restore(tmp_path)


def test_a_damaged_file(tmp_path):
  path = write(tmp_path / "b.npz")
  path.write_bytes(path.read_bytes()[:1000])
  with pytest.raises(ValueError, match="Nothing was loaded"):
    restore(path)


def test_a_directory_that_is_taken(tmp_path):
  (tmp_path / "mine.txt").write_text("precious")
  with pytest.raises(BackboneError, match="expected a new or empty directory"):
    backbone.save(tmp_path, params(), model=MODEL)
  assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_description_is_of_the_parameters_only():
  """How a network runs is not what it is."""
  other = tiny.t5(
    scan_layers=True, remat="full", dropout_rate=0.1, dtype=jnp.bfloat16
  )
  assert backbone.describe(other) == backbone.describe(NETWORK)
  assert backbone.describe(NETWORK) != backbone.describe(tiny.t5(emb_dim=24))
  described = json.loads(json.dumps(backbone.describe(NETWORK, "small")))
  assert described["class"] == "EncoderDecoder"
  assert described["config"]["mlp_activations"] == ["gelu", "linear"]
