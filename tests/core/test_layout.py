"""The two views of layers are one tree, whatever its depth and leaves."""

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from helpers import tiny
from hypothesis import given
from hypothesis import strategies as st

from peft_jax import layout

SHAPES = st.lists(st.integers(1, 3), max_size=3).map(tuple)
LEAVES = st.dictionaries(
  st.sampled_from(["mlp/wo/kernel", "attention/key/lora/a", "norm/scale"]),
  st.tuples(SHAPES, st.sampled_from(["float32", "int32"])),
  min_size=1,
)
STACKS = st.dictionaries(
  st.sampled_from(["encoder", "decoder"]),
  # More than ten layers, because layers_10 sorts before layers_2.
  st.tuples(st.integers(1, 12), LEAVES),
  min_size=1,
)


def build(stacks, extra=True):
  """Returns a tree with one module per layer; every value is different."""
  flat, count = {}, 0
  for stack, (depth, leaves) in stacks.items():
    for i in range(depth):
      for path, (shape, dtype) in leaves.items():
        size = int(np.prod(shape))
        values = np.arange(count, count + size, dtype=dtype).reshape(shape)
        flat[f"{stack}/layers_{i}/{path}"] = values
        count += size
  if extra:
    flat["token_embedder/embedding"] = np.arange(6.0).reshape(2, 3)
    flat["decoder/logits_dense/kernel"] = np.arange(4.0).reshape(2, 2)
  return unflatten_dict(flat, sep="/")


@given(STACKS, st.booleans())
def test_round_trip(stacks, extra):
  tree = build(stacks, extra)
  scanned = layout.to_scanned(tree)
  assert layout.is_scanned(scanned)
  assert not layout.is_scanned(tree)
  assert not any("layers_" in path for path in flatten_dict(scanned, sep="/"))
  tiny.assert_same(layout.to_layers(scanned), tree)
  # What is in the view already is left as it is.
  tiny.assert_same(layout.to_scanned(scanned), scanned)
  tiny.assert_same(layout.to_layers(tree), tree)


@given(STACKS)
def test_layers_are_rows_in_order(stacks):
  tree = build(stacks)
  scanned = flatten_dict(layout.to_scanned(tree), sep="/")
  layers = flatten_dict(tree, sep="/")
  for stack, (depth, leaves) in stacks.items():
    for path, (shape, dtype) in leaves.items():
      stacked = scanned[f"{stack}/layers/{path}"]
      assert stacked.shape == (depth, *shape)
      assert stacked.dtype == dtype
      assert layout.is_stacked(f"{stack}/layers/{path}")
      for i in range(depth):
        np.testing.assert_array_equal(
          stacked[i], layers[f"{stack}/layers_{i}/{path}"]
        )


@given(STACKS)
def test_like_takes_the_view_of_the_target(stacks):
  tree = build(stacks)
  scanned = layout.to_scanned(tree)
  for start in (tree, scanned):
    tiny.assert_same(layout.like(start, tree), tree)
    tiny.assert_same(layout.like(start, scanned), scanned)


def test_keeps_numpy_arrays_and_jax_arrays():
  """A backbone is not copied to the device by changing the view."""
  tree = build({"encoder": (2, {"mlp/wo/kernel": ((2,), "float32")})})
  for kind, convert in ((np.ndarray, np.asarray), (jax.Array, jnp.asarray)):
    as_kind = jax.tree.map(lambda x, to=convert: to(x, np.float32), tree)
    for view in (layout.to_scanned, layout.to_layers):
      found = jax.tree.leaves(view(as_kind))
      assert {isinstance(leaf, kind) for leaf in found} == {True}


def rows(path, *shape):
  return layout.rows_of(path, np.zeros(shape))


def test_rows():
  assert rows("encoder/layers/a/b", 2, 3) == [
    ("encoder/layers_0/a/b", (3,)),
    ("encoder/layers_1/a/b", (3,)),
  ]
  # T5X's scalable_t5 has the layers as axis 1.
  assert rows("decoder/decoder/a/b", 3, 2, 4) == [
    ("decoder/layers_0/a/b", (3, 4)),
    ("decoder/layers_1/a/b", (3, 4)),
  ]
  assert rows("encoder/encoder_norm/scale", 2) == [
    ("encoder/encoder_norm/scale", (2,))
  ]
  # Near misses: another stack, a module that begins alike, the stack itself.
  for path in (
    "other/layers/a",
    "encoder/layers_norm/a",
    "encoder/layers",
    "encoder/decoder/a",
  ):
    assert not layout.is_stacked(path)
    assert rows(path, 2) == [(path, (2,))]


def test_views_agree_on_both_networks():
  """The tree our scanned network has is the stacked view of the other."""
  unscanned = tiny.params(tiny.t5())
  scanned = tiny.params(tiny.t5(scan_layers=True))
  tiny.assert_same(layout.to_scanned(unscanned), scanned)
  tiny.assert_same(layout.to_layers(scanned), unscanned)
