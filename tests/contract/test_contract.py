"""What every method promises on every network: one test per promise.

The methods are those of `helpers/methods.py`; the networks are our T5, our T5
scanned and rematerialised, so a decoder-only network, and T5X's own where it is
installed.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from helpers import methods, recompute, tiny

from peft_jax import (
  Adapted,
  backbone,
  checkpoint,
  decoding,
  join,
  layout,
  manifest,
  merge,
  optim,
  partition,
  sharding,
  split,
  start,
)
from peft_jax.merge import MergeError
from peft_jax.train import forward
from peft_jax.train import step as steps

NETWORKS = {
  "ours": tiny.t5,
  "scanned": functools.partial(tiny.t5, scan_layers=True, remat="full"),
  "decoder_only": functools.partial(
    tiny.decoder_only, scan_layers=True, remat="full"
  ),
  "t5x": tiny.t5x,
  "t5x_scanned": tiny.t5x_scanned,
}


# Of the module's scope, so that the tests of one model follow one another: they
# share what was compiled for it, and so does a worker of several.
@pytest.fixture(
  scope="module",
  params=[
    "ours",
    "scanned",
    "decoder_only",
    pytest.param("t5x", marks=pytest.mark.t5x),
    pytest.param("t5x_scanned", marks=pytest.mark.t5x),
  ],
)
def kind(request):
  """Name of the network."""
  return request.param


@pytest.fixture(scope="module", params=list(methods.METHODS))
def method(request):
  """Name of the method."""
  return request.param


@pytest.fixture
def network(kind):
  return NETWORKS[kind]()


@pytest.fixture
def model(network, method):
  return Adapted(network, methods.rules(method, network))


@pytest.fixture
def trees(model):
  """Returns (frozen, adapter), the adapter far from the identity."""
  frozen, adapter = split(tiny.params(model), model)
  return frozen, tiny.randomize(adapter)


def difference(found, expected):
  return float(np.abs(np.asarray(found) - np.asarray(expected)).max())


def test_starts_as_the_backbone(model, network, method):
  batch = tiny.batch(model)
  found = tiny.logits(model)(tiny.params(model), batch)
  expected = tiny.logits(network)(tiny.params(network), batch)
  if method in methods.NOT_THE_IDENTITY:
    assert np.isfinite(found).all()
    assert difference(found, expected) > 1e-5
  elif method in methods.ROUNDED:
    tiny.assert_close(found, expected)
  else:
    np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))


def test_backbone_is_a_strict_subset(model, network):
  shapes = tiny.shapes(model)
  backbone = partition.backbone_of(shapes, model)
  assert tiny.spec(backbone) == tiny.spec(tiny.shapes(network))
  frozen, adapter = split(shapes, model)
  assert tiny.spec(frozen).items() <= tiny.spec(backbone).items()
  trained, constant = partition.divide(adapter, model)
  assert {dtype for _, dtype in tiny.spec(trained).values()} == {"float32"}
  assert {dtype for _, dtype in tiny.spec(constant).values()} <= {
    "float32",
    "int32",
  }


def test_init_draws_the_same_backbone(model, network):
  """Adapters take no random numbers from the modules they are placed in."""
  leaves = (
    r"encoder/(layers(_0)?|encoder)/attention/(key|out)/kernel"
    r"|decoder/(layers(_1)?|decoder)/(self_attention/value|mlp/wo)/kernel"
  )
  expected = tiny.initial(network, leaves)
  found = tiny.initial(model, leaves)
  assert len(expected) == (2 if tiny.is_decoder_only(network) else 4)
  # A layer that is trained beside its stack is there a second time.
  tiny.assert_same({path: found[path] for path in expected}, expected)


def test_split_and_join_are_inverse(model):
  params = tiny.params(model)
  frozen, adapter = split(params, model)
  tiny.assert_same(join(frozen, adapter), params)
  assert not flatten_dict(frozen).keys() & flatten_dict(adapter).keys()


def test_every_leaf_has_logical_axes(model):
  variables = tiny.variables(model)
  names = sharding.axis_names(variables["params_axes"])
  ranks = {
    path: leaf.ndim
    for path, leaf in flatten_dict(variables["params"], sep="/").items()
  }
  assert {path: len(axes) for path, axes in names.items()} == ranks
  # Flax refuses to place a parameter that has one name twice.
  assert all(len(set(axes)) == len(axes) for axes in names.values())
  known = {axis for axis, _ in sharding.DEFAULT_RULES}
  assert {axis for axes in names.values() for axis in axes} <= known


def test_axes_are_split_as_the_backbone(model):
  """An adapter's axis of the backbone's length is called as the backbone's."""
  heads = tiny.SIZES["num_heads"] * tiny.SIZES["head_dim"]
  shared = heads // 2 if tiny.is_decoder_only(model) else heads
  lengths = {
    "embed": {tiny.SIZES["emb_dim"]},
    "mlp": {tiny.SIZES["mlp_dim"]},
    "vocab": {tiny.SIZES["vocab_size"]},
    "joined_kv": {heads, shared},
  }
  variables = tiny.variables(model)
  names = sharding.axis_names(variables["params_axes"])
  for path, leaf in flatten_dict(variables["params"], sep="/").items():
    if not model.is_added(path):
      continue
    for size, axis in zip(leaf.shape, names[path], strict=True):
      assert size in lengths.get(axis, {size}), path
      # A head alone is not named, and its length may be that of something.
      assert axis in lengths or size not in set().union(
        *(lengths[name] for name in ("embed", "mlp", "vocab"))
      ), path
    stacked = layout.stack_axis(path)
    assert ("layers" in names[path]) == (stacked is not None)
    if stacked is not None:
      assert names[path].index("layers") == stacked


@functools.cache
def train_step(model):
  tx = optim.adamw(learning_rate=0.1)
  return tx, jax.jit(steps.make_train_step(model, tx, dropout=False))


def is_still(path, before, after):
  """Whether a leaf did not change; of stacked layers, any one of them."""
  same = np.asarray(before[path]) == np.asarray(after[path])
  axis = layout.stack_axis("/".join(path))
  if axis is not None:
    same = np.moveaxis(same, axis, 0)
    return same.reshape(same.shape[0], -1).all(axis=1).any()
  return same.all()


def test_two_steps_change_all_of_the_adapter_and_nothing_else(model, method):
  frozen, adapter = split(tiny.params(model), model)
  before = jax.tree.map(np.array, frozen)
  tx, step = train_step(model)
  state = steps.init_state(adapter, tx, jax.random.key(0), model)
  trained, constant = partition.divide(adapter, model)
  unchanged = []
  for _ in range(2):
    state, metrics = step(state, frozen, tiny.batch(model))
    start, now = flatten_dict(trained), flatten_dict(state.adapter)
    unchanged.append({path for path in start if is_still(path, start, now)})
    assert np.isfinite(metrics["loss"])
    assert metrics["gradient_norm"] > 0
  still = methods.STILL_AT_FIRST.get(method, set())
  assert {path[-1] for path in unchanged[0]} <= still
  assert not unchanged[1]
  tiny.assert_same(frozen, before)
  tiny.assert_same(partition.divide(state.adapter, model)[1], constant)
  # The optimizer holds moments of the adapter only.
  moments = [x for x in jax.tree.leaves(state.opt_state) if x.ndim]
  assert sum(x.size for x in moments) == 2 * sum(
    x.size for x in jax.tree.leaves(trained)
  )


def test_learns_a_label(model, network):
  """The backbone repeats its input; the answer shall be one of two labels."""
  first = jnp.arange(6, 10)[:, None]
  batch = tiny.question(
    network, first, jnp.where(first % 2 == 0, jnp.int32(3), jnp.int32(4))
  )
  params = partition.overlay(tiny.params(model), tiny.taught(network))
  params = start.from_backbone(params, model, jax.random.key(0))
  frozen, adapter = split(params, model)
  tx, step = train_step(model)
  state = steps.init_state(adapter, tx, jax.random.key(0), model)
  history = []
  for _ in range(60):
    state, metrics = step(state, frozen, batch)
    history.append(float(metrics["loss"]))
  assert min(history) < history[0] / 2, history[::10]


def test_saved_and_restored_are_bit_equal(model, network, trees, tmp_path):
  _, adapter = trees
  checkpoint.save(
    tmp_path / "adapter",
    adapter,
    model.rules,
    model=backbone.describe(network),
    backbone={"source": "tiny", "fingerprint": "f"},
  )
  spec = split(tiny.shapes(model), model)[1]
  found = checkpoint.restore(tmp_path / "adapter", model, spec, fingerprint="f")
  tiny.assert_same(found, adapter)
  # The rules in the manifest are enough to build the model again.
  read = manifest.read(tmp_path / "adapter")
  rebuilt = Adapted(network, [manifest.rule_from_json(r) for r in read.rules])
  manifest.check_rules(read, rebuilt.rules)
  found = checkpoint.restore(tmp_path / "adapter", rebuilt, spec)
  tiny.assert_same(found, adapter)


def test_one_adapter_fits_both_views_of_the_layers(method, tmp_path):
  unscanned, scanned = (
    Adapted(NETWORKS[kind](), methods.METHODS[method])
    for kind in ("ours", "scanned")
  )
  params = tiny.params(unscanned)
  _, adapter = split(params, unscanned)
  adapter = tiny.randomize(adapter)
  checkpoint.save(
    tmp_path / "adapter", adapter, unscanned.rules, model={}, backbone={}
  )
  shapes = tiny.shapes(scanned)
  stacked = checkpoint.restore(
    tmp_path / "adapter", scanned, split(shapes, scanned)[1]
  )
  backbone = layout.like(
    partition.backbone_of(params, unscanned),
    partition.backbone_of(shapes, scanned),
  )
  batch = tiny.batch()
  found = tiny.logits(scanned)(partition.overlay(backbone, stacked), batch)
  expected = tiny.logits(unscanned)(partition.overlay(params, adapter), batch)
  tiny.assert_close(found, expected)


def test_acts_in_a_warm_jit(model, network, trees):
  """An interceptor around a function that is compiled already does nothing."""
  batch = tiny.batch(model)
  base = tiny.params(network)
  plain = tiny.logits(network)(base, batch)  # the backbone is compiled now
  params = join(*trees)
  first = tiny.logits(model)(params, batch)
  second = tiny.logits(model)(params, batch)
  assert difference(first, plain) > 1e-2
  np.testing.assert_array_equal(np.asarray(first), np.asarray(second))
  np.testing.assert_array_equal(
    np.asarray(tiny.logits(network)(base, batch)), np.asarray(plain)
  )


def intermediate_dtypes(model, params):
  """Returns the dtype of every module's output, of the backbone's alone."""
  _, state = jax.eval_shape(
    lambda params, inputs: model.apply(
      {"params": params},
      **inputs,
      enable_dropout=False,
      capture_intermediates=True,
      mutable=["intermediates"],
    ),
    params,
    forward.network_inputs(tiny.batch(model)),
  )
  return {
    jax.tree_util.keystr(path): leaf.dtype
    for path, leaf in jax.tree_util.tree_leaves_with_path(state)
  }


def test_bfloat16_activations_stay_bfloat16(kind, method):
  network = NETWORKS[kind](dtype=jnp.bfloat16)
  model = Adapted(network, methods.rules(method, network))
  params = tiny.shapes(model)
  frozen, adapter = split(params, model)
  expected = intermediate_dtypes(network, partition.backbone_of(params, model))
  found = intermediate_dtypes(model, params)
  assert jnp.dtype("bfloat16") in expected.values()
  assert {path: found[path] for path in expected} == expected
  # A scan keeps no intermediates, but checks its carry.
  if kind in ("ours", "t5x"):
    given = {found[path] for path in found.keys() - expected.keys()}
    if {rule.adapter.position for rule in model.rules} <= {"input", "output"}:
      assert given == {jnp.dtype("bfloat16")}
  # An adapter is kept, and differentiated, in float32; a backbone need not be.
  frozen = jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16), frozen
  )
  tx, step = train_step(model)
  state = jax.eval_shape(
    lambda adapter: steps.init_state(adapter, tx, jax.random.key(0), model),
    adapter,
  )
  after, _ = jax.eval_shape(step, state, frozen, tiny.batch(model))
  assert tiny.spec(after.adapter) == tiny.spec(adapter)


@pytest.mark.parametrize("style", ["ours", "t5x"])
def test_cached_decoding_equals_teacher_forcing(
  model, trees, kind, method, style
):
  if style == "t5x" and "t5x" not in kind and method not in ("ia3", "prefix"):
    pytest.skip("two methods are enough to hold T5X's way to call our networks")
  if kind == "decoder_only":
    pytest.skip("see test_cached_text_equals_recomputation")
  if style == "ours" and kind.startswith("t5x"):
    pytest.skip("T5X's network keeps no keys and values of the encoder")
  if kind.startswith("t5x") and any(
    getattr(rule.adapter, "gated", False)
    and rule.adapter.position == "attention"
    for rule in model.rules
  ):
    pytest.skip("T5X's decoding takes one bias for all rows, gates are per row")
  batch = tiny.batch()
  # The targets mask nothing in decoding, so here they have no padding.
  batch |= {"decoder_target_tokens": jnp.ones((4, 5), jnp.int32)}
  params = join(*trees)
  expected = tiny.logits(model)(params, batch)
  found = recompute.stepwise(model, style)(params, batch)
  tiny.assert_close(found, expected)


def test_cached_text_equals_recomputation(model, trees, kind):
  """Rows padded on either side, read at once, then token by token."""
  if kind != "decoder_only":
    pytest.skip("an encoder-decoder reads its input otherwise")
  batch = tiny.batch(model)
  inputs, mask = batch["decoder_input_tokens"], batch["decoder_segment_ids"]
  following = tiny.batch(model, seed=5)["decoder_input_tokens"][:, :5]
  params = join(*trees)
  expected = recompute.text(model, params, inputs, mask, following)
  found = recompute.cached_text(model)(params, inputs, mask, following)
  tiny.assert_close(found, expected)


def test_beam_search_scores_equal_teacher_forcing(model, trees, kind, method):
  """Every beam's score is the sum of its tokens' log-probabilities."""
  if kind not in ("scanned", "decoder_only"):
    pytest.skip("scanned networks stand for all: compiling takes long")
  if kind == "decoder_only" and method not in ("prompt", "all_together"):
    pytest.skip("two methods are enough to hold that beams share a text")
  params, batch = join(*trees), tiny.batch(model)
  text = kind == "decoder_only"
  mask = batch["decoder_segment_ids"] if text else None
  inputs = batch["decoder_input_tokens" if text else "encoder_input_tokens"]
  tokens, scores = jax.jit(
    lambda params, inputs, mask: decoding.beam_search(
      model,
      params,
      inputs,
      inputs_mask=mask,
      max_decode_length=5,
      length_penalty=0.0,
    )
  )(params, inputs, mask)
  assert tokens.shape == (4, 4, 5)
  for beam in range(4):
    targets = tokens[:, beam]
    if text:
      # The next token follows the last real one, wherever that stands.
      logits = recompute.text(model, params, inputs, mask, targets)
    else:
      logits = tiny.logits(model)(
        params,
        batch
        | {
          "decoder_input_tokens": jnp.pad(targets, ((0, 0), (1, 0)))[:, :-1],
          "decoder_target_tokens": jnp.ones_like(targets),
        },
      )
    chances = jnp.take_along_axis(
      jax.nn.log_softmax(logits), targets[..., None], axis=-1
    )[..., 0]
    ended = np.asarray(targets) == 1
    alive = np.cumsum(ended, axis=1) - ended == 0
    expected = np.where(alive, chances, 0.0).sum(axis=1)
    tiny.assert_close(scores[:, beam], expected)


def test_merged_equals_unmerged(model, network, trees):
  params = join(*trees)
  stuck = [rule for rule in model.rules if not rule.adapter.mergeable]
  if stuck:
    with pytest.raises(MergeError) as error:
      merge(params, model)
    for rule in stuck:
      assert f"{rule.name!r} at {rule.pattern!r}" in str(error.value)
    return
  before = jax.tree.map(np.array, params)
  merged = merge(params, model)
  assert tiny.spec(merged) == tiny.spec(tiny.params(network))
  batch = tiny.batch(model)
  expected = tiny.logits(model)(params, batch)
  found = tiny.logits(network)(merged, batch)
  backbone = tiny.params(network)
  assert difference(expected, tiny.logits(network)(backbone, batch)) > 1e-2
  tiny.assert_close(found, expected)
  tiny.assert_same(params, before)
