"""T-Few's (IA)3 vectors."""

import jax
import numpy as np
import pytest
from helpers import tiny

from peft_jax import Adapted, merge, networks, partition, trees
from peft_jax.formats import hugging_face, tfew, torch_file
from peft_jax.formats.safetensors_io import FormatError


@pytest.fixture
def vectors(tmp_path):
  """Writes a file for the tiny T5, some names changed; returns its path."""

  def write(change=lambda tensors: tensors):
    found = tfew.names(tiny.t5())
    rng = np.random.default_rng(0)
    tensors = {
      name: rng.standard_normal((size, 1)).astype(np.float32)
      for name, size in found.values()
    }
    torch_file.write(tmp_path / "x.pt", change(tensors))
    return tmp_path / "x.pt"

  return write


def test_acts_as_tfew(vectors):
  """Merged by hand as T-Few places its vectors, in numpy."""
  network, path = tiny.t5(), vectors()
  model = Adapted(network, tfew.RULES)
  adapter = tfew.read(path, network)
  frozen, fresh = partition.split(tiny.params(model), model)
  assert tiny.spec(adapter) == tiny.spec(fresh)
  kernels = trees.flatten(jax.tree.map(np.array, frozen))
  for name, vector in torch_file.read(path).items():
    stack, _, layer, _, number, module, part, _ = name.split(".")
    module = {
      ("encoder", "0"): "attention",
      ("encoder", "1"): "mlp",
      ("decoder", "0"): "self_attention",
      ("decoder", "1"): "encoder_decoder_attention",
      ("decoder", "2"): "mlp",
    }[stack, number]
    part = {"k": "key", "v": "value"}.get(part, part)
    kernel = kernels[f"{stack}/layers_{layer}/{module}/{part}/kernel"]
    kernel *= vector.reshape(kernel.shape[1:])
  batch = tiny.batch()
  expected = tiny.logits(network)(trees.unflatten(kernels), batch)
  found = tiny.logits(model)(partition.join(frozen, adapter), batch)
  tiny.assert_close(found, expected)


def test_comes_out_as_it_went_in(vectors, tmp_path):
  path = vectors()
  tfew.write(tmp_path / "out.pt", tfew.read(path, tiny.t5()))
  went, came = torch_file.read(path), torch_file.read(tmp_path / "out.pt")
  assert went.keys() == came.keys()
  for name, vector in went.items():
    np.testing.assert_array_equal(came[name], vector)
    assert came[name].shape == vector.shape


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (
      lambda t: t | {"encoder.final.layer_norm": np.ones(2)},
      "found 1 other tensors, first encoder.final.layer_norm",
    ),
    (
      lambda t: dict(list(t.items())[1:]),
      r"found 1 missing \(first .*multi_lora_b\), 0 extra",
    ),
    (
      lambda t: t | {"encoder.block.9.layer.0.x.multi_lora_b": np.ones((3, 1))},
      r"found 0 missing, 1 extra \(first encoder.block.9",
    ),
    (
      lambda t: {k: v[1:] for k, v in t.items()},
      r"of shape \(\d+, 1\) in .*, found \(\d+, 1\)",
    ),
  ],
)
def test_other_files_are_refused(vectors, change, message):
  with pytest.raises(FormatError, match=message):
    tfew.read(vectors(change), tiny.t5())


def test_a_block_without_a_gate_is_refused(vectors):
  with pytest.raises(FormatError, match=r"gated feed-forward block \(T5 1.1"):
    tfew.read(vectors(), tiny.t5(mlp_activations=("relu",)))


def test_other_methods_are_not_written(tmp_path):
  leaves = {"encoder": {"layers_0": {"mlp": {"wi_0": {"lora": {"a": 1}}}}}}
  with pytest.raises(FormatError, match="found encoder/layers_0/mlp/wi_0/lora"):
    tfew.write(tmp_path / "x.pt", leaves)
  assert not (tmp_path / "x.pt").exists()


def test_the_real_vectors_of_t0_3b(shared_data, tmp_path):
  path = shared_data("tfew/pretrained_checkpoints/t03b_ia3_finish.pt")
  network = networks.create("t5_1_1_xl")
  adapter = tfew.read(path, network)
  assert sum(leaf.size for leaf in jax.tree.leaves(adapter)) == 540_672
  tfew.write(tmp_path / "out.pt", adapter)
  went, came = torch_file.read(path), torch_file.read(tmp_path / "out.pt")
  assert len(went) == 192
  assert {k: v.tobytes() for k, v in went.items()} == {
    k: v.tobytes() for k, v in came.items()
  }
  # They merge: of shapes alone, the real ones have 11 GB.
  model = Adapted(network, tfew.RULES)
  backbone = hugging_face.shapes(network)
  merged = jax.eval_shape(
    lambda frozen, adapter: merge(partition.join(frozen, adapter), model),
    backbone,
    adapter,
  )
  assert tiny.spec(merged) == tiny.spec(backbone)
