"""The maths of each method against numpy, and its settings."""

import math
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from peft_jax import IA3, LoRA
from peft_jax.adapters import METHODS, Adapter, Site
from peft_jax.adapters.base import Position
from peft_jax.adapters.lora import INITIALIZERS

# The attention output: two input axes, one output axis.
OUT = Site(
  inputs=(2, 6), outputs=(16,), input_axis="joined_kv", output_axis="embed"
)
# A query: one input axis, two output axes.
QUERY = Site(
  inputs=(16,), outputs=(2, 6), input_axis="embed", output_axis="joined_kv"
)


def draw(*shape, seed=0):
  noise = np.random.default_rng(seed).standard_normal(shape)
  return noise.astype(np.float32)


def given(adapter, x, site):
  """Returns (x, y) as the site gives them: y is zero, or not there yet."""
  if adapter.position == "input":
    return x, None
  if isinstance(adapter, IA3):
    return x, x
  return x, jnp.zeros((*x.shape[:2], *site.outputs), x.dtype)


def init(adapter, x, site):
  variables = adapter.init(
    jax.random.key(0), *given(adapter, x, site), site, True
  )
  return variables["params"], variables["params_axes"]


def call(adapter, params, x, site, deterministic=True, **options):
  return adapter.apply(
    {"params": params}, *given(adapter, x, site), site, deterministic, **options
  )


@pytest.mark.parametrize("site", [OUT, QUERY])
def test_lora_is_a_low_rank_product(site):
  adapter = LoRA(rank=3, alpha=7)
  x = draw(4, 5, *site.inputs)
  a, b = draw(site.input_size, 3, seed=1), draw(3, site.output_size, seed=2)
  found = call(adapter, {"a": a, "b": b}, x, site)
  expected = x.reshape(4, 5, -1) @ a @ b * 7 / 3
  assert found.shape == (4, 5, *site.outputs)
  np.testing.assert_allclose(
    found, expected.reshape(found.shape), rtol=1e-4, atol=1e-4
  )


def test_lora_starts_at_zero():
  x = draw(4, 5, 16)
  for convention in INITIALIZERS:
    adapter = LoRA(rank=3, initializer=convention)
    params, _ = init(adapter, x, QUERY)
    assert not np.any(params["b"])
    assert np.all(params["a"] != 0)
    assert not np.any(call(adapter, params, x, QUERY))


@pytest.mark.parametrize(
  ("convention", "uniform", "std"),
  [
    # n = 400 inputs, rank 20. A uniform draw's deviation is bound / sqrt(3).
    ("microsoft", True, 1 / 20 / math.sqrt(3)),
    ("hugging_face", True, 1 / 20 / math.sqrt(3)),
    ("hugging_face_gaussian", False, 1 / 20),
    ("gemma", True, math.sqrt(2 / 400)),
    ("tfew", False, 0.01),
  ],
)
def test_lora_initializers_draw_what_the_originals_draw(
  convention, uniform, std
):
  draw = INITIALIZERS[convention](400, 20)
  a = np.asarray(draw(jax.random.key(0), (400, 20), jnp.float32))
  assert a.dtype == np.float32
  # 8,000 draws: the deviation is known to 1 in 125, the mean to std / 90.
  assert abs(a.std() / std - 1) < 0.03
  assert abs(a.mean()) < std / 20
  kurtosis = ((a / a.std()) ** 4).mean()
  assert kurtosis == pytest.approx(1.8 if uniform else 3.0, abs=0.25)
  if uniform:
    bound = std * math.sqrt(3)
    assert bound * 0.99 < np.abs(a).max() <= bound * 1.00001


def test_all_initializers_are_tested():
  assert set(INITIALIZERS) == {
    "microsoft",
    "hugging_face",
    "hugging_face_gaussian",
    "gemma",
    "tfew",
  }


@pytest.mark.parametrize(
  ("settings", "scaling"),
  [
    ({}, 1.0),
    ({"rank": 4}, 1.0),
    ({"rank": 4, "alpha": 16}, 4.0),
    ({"rank": 4, "alpha": 1}, 0.25),
    ({"rank": 4, "alpha": 16, "rank_stabilized": True}, 8.0),
    ({"rank": 4, "rank_stabilized": True}, 2.0),
  ],
)
def test_lora_scaling(settings, scaling):
  adapter = LoRA(**settings)
  assert adapter.scaling == scaling
  rank = adapter.rank
  a, b = draw(16, rank, seed=1), draw(rank, 12, seed=2)
  x = draw(1, 3, 16)
  found = call(adapter, {"a": a, "b": b}, x, QUERY)
  np.testing.assert_allclose(
    found.reshape(3, 12), x[0] @ a @ b * scaling, rtol=1e-4, atol=1e-4
  )
  kernel = draw(16, 12, seed=3)
  np.testing.assert_allclose(
    adapter.fold(kernel, {"a": a, "b": b}),
    kernel + a @ b * scaling,
    rtol=1e-4,
    atol=1e-4,
  )


def test_lora_drops_its_input():
  """Inputs are dropped or scaled by 1 / (1 - rate), here each 0 or 4 times."""
  adapter = LoRA(rank=16, dropout_rate=0.75)
  x = jnp.ones((1, 200, 16))
  # With `a` and the first columns of `b` the identity, the output shows what
  # of the input was kept.
  params = {"a": jnp.eye(16), "b": jnp.eye(16, 12)}
  run = lambda deterministic, seed: np.asarray(
    call(
      adapter,
      params,
      x,
      QUERY,
      deterministic,
      rngs={"dropout": jax.random.key(seed)},
    )
  )
  np.testing.assert_array_equal(run(True, 0), 1)
  dropped = run(False, 0)
  assert set(np.unique(dropped)) == {0.0, 4.0}
  assert abs((dropped == 0).mean() - 0.75) < 0.04
  assert np.any(dropped != run(False, 1))
  np.testing.assert_array_equal(dropped, run(False, 0))


@pytest.mark.parametrize(
  ("side", "site", "size", "axis"),
  [
    ("output", QUERY, 12, "joined_kv"),
    ("input", QUERY, 16, "embed"),
    ("output", OUT, 16, "embed"),
    ("input", OUT, 12, "joined_kv"),
  ],
)
def test_ia3_rescales(side, site, size, axis):
  adapter = IA3(side=side)
  shape = site.inputs if side == "input" else site.outputs
  x = draw(4, 5, *shape)
  params, axes = init(adapter, x, site)
  np.testing.assert_array_equal(params["scaling"], np.ones(size, np.float32))
  assert axes["scaling_axes"].names == (axis,)
  scaling = draw(size)
  found = call(adapter, {"scaling": scaling}, x, site)
  expected = x.reshape(4, 5, size) * scaling
  np.testing.assert_array_equal(found, expected.reshape(x.shape))


def test_ia3_folds_into_rows_or_columns():
  kernel, rows, columns = draw(16, 12), draw(16), draw(12)
  np.testing.assert_array_equal(
    IA3(side="input").fold(kernel, {"scaling": rows}), kernel * rows[:, None]
  )
  np.testing.assert_array_equal(
    IA3().fold(kernel, {"scaling": columns}), kernel * columns
  )


def test_outputs_keep_the_dtype_of_the_activations():
  x = jnp.ones((1, 2, 16), jnp.bfloat16)
  y = jnp.ones((1, 2, 2, 6), jnp.bfloat16)
  for adapter, value in ((LoRA(rank=2), x), (IA3(), y)):
    params, _ = init(adapter, value, QUERY)
    assert {p.dtype for p in jax.tree.leaves(params)} == {np.dtype("float32")}
    found = call(adapter, params, value, QUERY)
    assert found.dtype == jnp.bfloat16


@pytest.mark.parametrize(
  ("make", "message"),
  [
    (lambda: LoRA(rank=0), "expected rank > 0, found rank=0"),
    (lambda: LoRA(rank=-1), "expected rank > 0, found rank=-1"),
    (lambda: LoRA(alpha=0), "expected alpha > 0, found alpha=0"),
    (lambda: LoRA(dropout_rate=1.0), "dropout_rate < 1, found 1.0"),
    (lambda: LoRA(dropout_rate=-0.1), "dropout_rate < 1, found -0.1"),
    (lambda: LoRA(initializer="pissa"), r"\['gemma', .*found 'pissa'"),
    (lambda: IA3(side="both"), r"\['input', 'output'\], found 'both'"),
  ],
)
def test_refuses_bad_settings(make, message):
  with pytest.raises(ValueError, match=message):
    make()


@pytest.mark.parametrize("make", [lambda: LoRA(4), lambda: IA3("input")])
def test_settings_are_keyword_only(make):
  """So that a new setting never changes what an old call means."""
  with pytest.raises(TypeError):
    make()


def test_methods_derive_from_the_abstract_adapter_only():
  for name, method in METHODS.items():
    assert method.__bases__ == (Adapter,), name
    assert method().default_name == name
    assert method().position in typing.get_args(Position)


def test_an_adapter_without_fold_is_not_mergeable():
  class Nonlinear(Adapter):
    pass

  assert not Nonlinear().mergeable
  with pytest.raises(NotImplementedError):
    Nonlinear().fold(jnp.ones((1, 1)), {})
