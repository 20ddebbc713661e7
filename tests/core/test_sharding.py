"""Meshes, logical axes and the placement of leaves, on eight CPU devices."""

import jax
import jax.numpy as jnp
import pytest
from flax.traverse_util import flatten_dict
from helpers import tiny
from jax.sharding import PartitionSpec

from peft_jax import IA3, Adapted, LoRA, Rule, sharding
from peft_jax.sharding import ShardingError

RULES = (Rule("all_linear", LoRA(rank=3)), Rule("kv", IA3()))


def test_there_are_eight_devices():
  assert jax.device_count() == 8


@pytest.mark.parametrize(
  ("sizes", "shape"),
  [
    ({}, {"data": 8, "model": 1}),
    ({"model": 2}, {"data": 4, "model": 2}),
    ({"data": 2, "model": 4}, {"data": 2, "model": 4}),
    ({"data": 1, "model": 8}, {"data": 1, "model": 8}),
  ],
)
def test_mesh(sizes, shape):
  assert dict(sharding.make_mesh(**sizes).shape) == shape


def test_mesh_of_some_devices():
  mesh = sharding.make_mesh(data=1, model=2, devices=jax.devices()[:2])
  assert dict(mesh.shape) == {"data": 1, "model": 2}


@pytest.mark.parametrize(
  ("sizes", "found"),
  [
    ({"data": 3, "model": 2}, "3 x 2 = 6"),
    ({"model": 3}, "2 x 3 = 6"),
    ({"data": 8, "model": 2}, "8 x 2 = 16"),
    ({"model": 16}, "1 x 16 = 16"),
    ({"model": 0}, "8 x 0 = 0"),
  ],
)
def test_a_mesh_that_does_not_fit_says_what_would(sizes, found):
  with pytest.raises(ShardingError) as error:
    sharding.make_mesh(**sizes)
  assert f"expected data x model = 8 devices, found {found}" in str(error.value)
  assert "product is 8" in str(error.value)


def test_check_batch():
  mesh = sharding.make_mesh(data=4, model=2)
  sharding.check_batch(8, mesh=mesh)
  sharding.check_batch(24, mesh=mesh, micro_batches=3)
  with pytest.raises(ShardingError) as error:
    sharding.check_batch(10, mesh=mesh, micro_batches=2)
  message = str(error.value)
  assert "4 x 2 = 8, found 10. Use 8 or 16." in message
  # Smaller than one row for each: there is no batch size below.
  with pytest.raises(ShardingError, match=r"= 4, found 3\. Use 4\.$"):
    sharding.check_batch(3, mesh=mesh)


@pytest.mark.parametrize(
  ("axes", "expected"),
  [
    (("embed", "mlp"), PartitionSpec(None, "model")),
    (("layers", "embed", "joined_kv"), PartitionSpec(None, None, "model")),
    # A mesh axis splits one axis of an array only.
    (("heads", "mlp"), PartitionSpec("model", None)),
    (("batch", "length", "heads", "kv"),
      PartitionSpec("data", None, "model", None)),
    ((None, "unheard_of"), PartitionSpec(None, None)),
    ((), PartitionSpec()),
  ],
)  # fmt: skip
def test_spec(axes, expected):
  assert sharding.spec(axes) == expected


def test_spec_follows_other_rules():
  rules = [("embed", "data"), ("mlp", "model")]
  assert sharding.spec(("embed", "mlp"), rules) == PartitionSpec(
    "data", "model"
  )


def specs(network, mesh):
  variables = tiny.variables(Adapted(network, RULES))
  found = sharding.shardings(
    variables["params"], variables["params_axes"], mesh
  )
  flat = flatten_dict(found, sep="/")
  assert flat.keys() == flatten_dict(variables["params"], sep="/").keys()
  return {path: sharding.spec for path, sharding in flat.items()}


def test_leaves_are_placed_by_their_axes():
  mesh = sharding.make_mesh(data=4, model=2)
  found = specs(tiny.t5(), mesh)
  model, whole = "model", None
  attention, mlp = "encoder/layers_0/attention", "decoder/layers_1/mlp"
  expected = {
    "token_embedder/embedding": (model, whole),
    "encoder/relpos_bias/rel_embedding": (model, whole),
    "encoder/encoder_norm/scale": (whole,),
    f"{attention}/key/kernel": (whole, model),
    f"{attention}/key/ia3/scaling": (model,),
    f"{attention}/key/lora/a": (whole, whole),
    f"{attention}/key/lora/b": (whole, model),
    f"{attention}/out/kernel": (model, whole),
    f"{attention}/out/lora/a": (model, whole),
    f"{attention}/out/lora/b": (whole, whole),
    f"{mlp}/wi_0/kernel": (whole, model),
    f"{mlp}/wo/kernel": (model, whole),
    f"{mlp}/wo/lora/a": (model, whole),
  }
  assert {path: tuple(found[path]) for path in expected} == expected


def test_stacked_leaves_are_not_split_over_layers():
  mesh = sharding.make_mesh(data=4, model=2)
  layers = specs(tiny.t5(), mesh)
  for path, spec in specs(tiny.t5(scan_layers=True), mesh).items():
    if "/layers/" in path:
      first = path.replace("/layers/", "/layers_0/")
      assert tuple(spec) == (None, *layers[first]), path


def test_an_axis_that_does_not_divide_stays_whole():
  """H*K is 12 and F 20 here: neither divides by eight, the vocabulary does."""
  found = specs(tiny.t5(), sharding.make_mesh(data=1, model=8))
  layers = {tuple(found[path]) for path in found if "/layers_" in path}
  assert layers == {(None,), (None, None)}
  assert tuple(found["token_embedder/embedding"]) == ("model", None)


def test_a_leaf_without_axes_is_named():
  variables = tiny.variables(tiny.t5())
  axes = dict(variables["params_axes"])
  del axes["token_embedder"]
  with pytest.raises(ShardingError) as error:
    sharding.shardings(variables["params"], axes, sharding.make_mesh())
  message = str(error.value)
  assert "none for 1 of" in message
  assert "first 'token_embedder/embedding'" in message
  assert "param_with_axes" in message


def test_batch_and_replicated():
  mesh = sharding.make_mesh(data=4, model=2)
  x = jnp.arange(16.0).reshape(8, 2)
  placed = jax.device_put(x, sharding.batch_sharding(mesh))
  assert {shard.data.shape for shard in placed.addressable_shards} == {(2, 2)}
  placed = jax.device_put(x, sharding.replicated(mesh))
  assert placed.is_fully_replicated


def test_names_of_activations_act_inside_use_only():
  """Outside of a mesh a constraint is nothing, inside it is in the program."""
  mesh = sharding.make_mesh(data=4, model=2)
  call = lambda x: sharding.constrain(x, ("batch", "length", "embed"))
  x = jnp.zeros((8, 3, 2))
  assert "sharding" not in str(jax.make_jaxpr(call)(x))
  with sharding.use(mesh):
    assert "sharding_constraint" in str(jax.make_jaxpr(call)(x))
    placed = jax.jit(call)(x)
  assert {s.data.shape for s in placed.addressable_shards} == {(2, 3, 2)}
