"""Adafactor against the numbers of transformers' and T5X's own classes.

Two sets of trajectories: a small one in the repository (see
`fixtures/make_adafactor_small.py`), with every option and the slots, and a
larger one beside the checkout, skipped where it is absent.
"""

import importlib.util
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import flax.core
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from peft_jax.optim import (
  AdafactorSlots,
  adafactor,
  constant,
  linear_decay,
  starting_at,
)

ROOT = Path(__file__).resolve().parents[2]
FIXTURES = ROOT / "tests" / "fixtures"
PARITY = ROOT.parent / "shared" / "data" / "parity"

PROMPT_TUNING = {
  "variant": "t5x",
  "learning_rate": 0.3,
  "multiply_by_parameter_scale": False,
  "weight_decay_rate": 1e-5,
}
TFEW = {"variant": "hugging_face", "learning_rate": 3e-3}

# The options of make_adafactor_fixtures.py, in our words.
LARGE = {
  ("hf", "tfew"): {**TFEW, "weight_decay_rate": 0.0},
  ("hf", "unscaled"): {**PROMPT_TUNING, "variant": "hugging_face"},
  ("t5x", "default"): {"variant": "t5x", "learning_rate": 1e-3},
  ("t5x", "prompt_tuning"): PROMPT_TUNING,
  ("t5x", "prompt_tuning_at_step_1100000"): {
    **PROMPT_TUNING,
    "initial_step": 1_100_000,
  },
}

# The options of make_adafactor_small.py, in our words.
SMALL = {
  **LARGE,
  ("hf", "momentum"): {
    "variant": "hugging_face",
    "learning_rate": 0.1,
    "weight_decay_rate": 0.1,
    "beta1": 0.9,
    "clipping_threshold": 0.5,
    "decay_rate": 0.7,
    "epsilon1": 1e-6,
    "epsilon2": 0.5,
  },
  ("t5x", "momentum"): {
    "variant": "t5x",
    "learning_rate": 0.1,
    "weight_decay_rate": 0.01,
    "beta1": 0.9,
    "clipping_threshold": None,
    "decay_rate": 0.7,
    "step_offset": 3,
    "initial_step": 5,
    "epsilon1": 1e-6,
    "epsilon2": 0.5,
    "min_dim_size_to_factor": 8,
  },
}
BFLOAT16 = {
  "variant": "hugging_face",
  "learning_rate": 0.1,
  "weight_decay_rate": 0.1,
}

Tree = dict[str, Any]


def load_script() -> ModuleType:
  path = FIXTURES / "make_adafactor_small.py"
  spec = importlib.util.spec_from_file_location(path.stem, path)
  assert spec is not None and spec.loader is not None
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


SCRIPT = load_script()


def rule(name: str, shape: tuple[int, ...]) -> tuple[str, ...] | None:
  del shape
  return SCRIPT.RULES.get(name)


def make_step(
  tx: optax.GradientTransformation, *, jit: bool = True
) -> Callable[..., tuple[Tree, Any]]:
  def step(params: Tree, slots: Any, gradients: Tree) -> tuple[Tree, Any]:
    updates, slots = tx.update(gradients, slots, params)
    return optax.apply_updates(params, updates), slots

  return jax.jit(step) if jit else step


def trajectory(
  tx: optax.GradientTransformation,
  params: Tree,
  gradients: Callable[[int], Tree],
  steps: int,
  *,
  jit: bool = True,
) -> Iterator[tuple[Tree, Any]]:
  step, slots = make_step(tx, jit=jit), tx.init(params)
  for number in range(steps):
    params, slots = step(params, slots, gradients(number))
    yield params, slots


def assert_close(ours: Any, theirs: np.ndarray, message: str = "") -> None:
  """To 1e-6 of the tensor's largest value.

  Not of each value: where a step of 0.3 carries a value through zero, what is
  left is the rounding of the two that cancelled, in the originals as in ours.
  """
  ours = np.asarray(ours, np.float64)
  bound = 1e-6 * np.abs(theirs).max()
  np.testing.assert_allclose(ours, theirs, rtol=0, atol=bound, err_msg=message)


@pytest.mark.parametrize(("source", "setting"), LARGE)
def test_matches_the_originals_over_twenty_steps(
  source: str, setting: str
) -> None:
  path = PARITY / f"adafactor_{source}.npz"
  if not path.exists():
    pytest.skip(f"needs the trajectories of the originals at {path}")
  with np.load(path) as data:
    reference = dict(data)
  names = [k.removeprefix("start/") for k in reference if k.startswith("start")]
  assert len(names) == 5

  def gradients(step: int) -> Tree:
    return {k: jnp.asarray(reference[f"gradient/{k}"][step]) for k in names}

  start = {name: jnp.asarray(reference[f"start/{name}"]) for name in names}
  tx = adafactor(**LARGE[source, setting])
  compared = 0
  for step, (params, _) in enumerate(
    trajectory(tx, start, gradients, 20), start=1
  ):
    for name in names:
      key = f"{setting}/{name}/step_{step}"
      if key in reference:
        assert_close(params[name], reference[key], key)
        compared += 1
  assert compared == 4 * len(names)


def small_start(dtype: Any = jnp.float32) -> Tree:
  return {
    name: jnp.asarray(SCRIPT.start(name), dtype) for name in SCRIPT.SHAPES
  }


def small_gradients(step: int, dtype: Any = jnp.float32) -> Tree:
  return {
    name: jnp.asarray(SCRIPT.gradient(name, step), dtype)
    for name in SCRIPT.SHAPES
  }


def assert_packed_close(
  leaves: Mapping[str, Any], packed: np.ndarray, message: str
) -> None:
  used = 0
  for name in SCRIPT.SHAPES:
    if name in leaves:
      ours = SCRIPT.sample(np.asarray(leaves[name])).ravel()
      theirs = packed[used : used + ours.size]
      assert_close(ours, theirs, f"{message}/{name}")
      used += ours.size
  assert used == packed.size


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize(("source", "setting"), SMALL)
def test_matches_the_originals_on_the_small_trajectories(
  source: str, setting: str, jit: bool
) -> None:
  with np.load(FIXTURES / f"adafactor_{source}_small.npz") as data:
    reference = dict(data)
  options = SMALL[source, setting]
  if source == "t5x":
    options = {**options, "factor_rule": rule}
  tx = adafactor(**options)
  states = list(trajectory(tx, small_start(), small_gradients, 5, jit=jit))
  compared = set()
  for step in SCRIPT.KEPT_STEPS:
    key = f"{setting}/step_{step}"
    assert_packed_close(states[step - 1][0], reference[key], key)
    compared.add(key)
  slots = states[-1][1]
  for kind in ("row", "column", "full", "momentum"):
    leaves = {
      name: leaf
      for name, leaf in getattr(slots, kind).items()
      if not isinstance(leaf, optax.MaskedNode)
    }
    if leaves:
      key = f"{setting}/{kind}"
      assert_packed_close(leaves, reference[key], key)
      compared.add(key)
  assert compared == {k for k in reference if k.startswith(f"{setting}/")}


def test_bfloat16_parameters_follow_hugging_face() -> None:
  with np.load(FIXTURES / "adafactor_hf_small.npz") as data:
    reference = {k: data[k] for k in data if k.startswith("bfloat16/")}
  for step, (params, _) in enumerate(
    trajectory(
      adafactor(**BFLOAT16),
      small_start(jnp.bfloat16),
      lambda step: small_gradients(step, jnp.bfloat16),
      5,
    ),
    start=1,
  ):
    assert {leaf.dtype for leaf in params.values()} == {jnp.dtype("bfloat16")}
    if step in SCRIPT.KEPT_STEPS:
      ours = SCRIPT.pack(
        {k: np.asarray(leaf, np.float32) for k, leaf in params.items()}
      )
      theirs = reference[f"bfloat16/step_{step}"]
      # A bfloat16 update is off by up to half a unit of the value before,
      # 2**-9 of it, at each step. Few are: only those that end close to zero.
      bound = step * 2.0**-9 * np.abs(theirs).max()
      np.testing.assert_allclose(ours, theirs, rtol=0, atol=bound)
      assert np.mean(ours == theirs) > 0.95


def slot_shapes(tx: optax.GradientTransformation, params: Tree) -> Tree:
  """Every array of the slots, as path -> shape."""
  leaves, _ = jax.tree_util.tree_flatten_with_path(tx.init(params))
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
    for path, leaf in leaves
  }


def test_hugging_face_factors_the_last_two_axes() -> None:
  params = {
    "vector": jnp.ones(5),
    "column": jnp.ones((5, 1)),
    "stack": jnp.ones((2, 3, 4)),
  }
  assert slot_shapes(adafactor(**TFEW), params) == {
    "count": (),
    "row/column": (5,),
    "column/column": (1,),
    "row/stack": (2, 3),
    "column/stack": (2, 4),
    "full/vector": (5,),
  }


def test_t5x_factors_two_axes_of_128_or_more() -> None:
  params = {
    "wide": jnp.ones((128, 200)),
    "tall": jnp.ones((200, 128)),
    "prompt": jnp.ones((127, 200)),
    "vector": jnp.ones(400),
  }
  assert slot_shapes(adafactor(learning_rate=0.1), params) == {
    "count": (),
    "row/wide": (128,),
    "column/wide": (200,),
    "row/tall": (128,),
    "column/tall": (200,),
    "full/prompt": (127, 200),
    "full/vector": (400,),
  }


def test_t5x_keeps_every_square_when_asked() -> None:
  params = {"wide": jnp.ones((128, 128)), "heads": jnp.ones((2, 3, 4))}
  tx = adafactor(learning_rate=0.1, factored=False)
  assert slot_shapes(tx, params) == {
    "count": (),
    "full/heads": (2, 3, 4),
    "full/wide": (128, 128),
  }


def test_a_rule_sees_the_whole_path_and_half_a_factoring_is_none() -> None:
  seen = {}

  def half(path: str, shape: tuple[int, ...]) -> tuple[str, ...]:
    seen[path] = shape
    return ("row", "none", "none")

  params = {"decoder": {"prefix": {"key": jnp.ones((2, 3, 4))}}}
  tx = adafactor(learning_rate=0.1, factor_rule=half)
  assert slot_shapes(tx, params) == {
    "count": (),
    "full/decoder/prefix/key": (2, 3, 4),
  }
  assert seen == {"decoder/prefix/key": (2, 3, 4)}


def test_slots_are_float32_and_updates_keep_the_type() -> None:
  params = {
    "half": jnp.ones((3, 4), jnp.bfloat16),
    "single": jnp.ones(4, jnp.float32),
  }
  tx = adafactor(**TFEW, beta1=0.9)
  slots = tx.init(params)
  updates, slots = tx.update(params, slots, params)
  assert updates["half"].dtype == jnp.bfloat16
  assert updates["single"].dtype == jnp.float32
  assert slots.count.dtype == jnp.int32
  dtypes = {leaf.dtype for leaf in jax.tree.leaves(slots[1:])}
  assert dtypes == {jnp.dtype("float32")}


def test_no_momentum_is_held_unless_asked_for() -> None:
  params = {"b": jnp.ones((4, 2))}
  without, with_it = adafactor(**TFEW), adafactor(**TFEW, beta1=0.0)
  assert not jax.tree.leaves(without.init(params).momentum)
  assert with_it.init(params).momentum["b"].shape == (4, 2)


@pytest.mark.parametrize("make", [dict, flax.core.FrozenDict])
def test_trees_keep_their_type(make: Callable[[Tree], Any]) -> None:
  params = make({"layer": {"b": jnp.ones((4, 2)), "g": jnp.ones(())}})
  tx = adafactor(**TFEW)
  slots = tx.init(params)
  updates, new_slots = jax.jit(tx.update)(params, slots, params)
  assert jax.tree.structure(updates) == jax.tree.structure(params)
  assert jax.tree.structure(new_slots) == jax.tree.structure(slots)
  shapes = jax.tree.map(jnp.shape, (slots, params))
  assert jax.tree.map(jnp.shape, (new_slots, updates)) == shapes
  assert isinstance(new_slots, AdafactorSlots)


def test_an_empty_tree_is_left_alone() -> None:
  tx = adafactor(**TFEW)
  updates, slots = tx.update({}, tx.init({}), {})
  assert updates == {} and int(slots.count) == 1


def test_slots_survive_serialization() -> None:
  params = {"b": jnp.ones((4, 2)), "scale": jnp.ones(4)}
  tx = adafactor(**TFEW)
  _, slots = tx.update(params, tx.init(params), params)
  state = flax.serialization.to_state_dict(slots)
  restored = flax.serialization.from_state_dict(tx.init(params), state)
  jax.tree.map(np.testing.assert_array_equal, restored, slots)


def test_the_schedule_sees_the_step_that_is_taken() -> None:
  seen = []

  def schedule(step: jax.Array) -> float:
    seen.append(int(step))
    return 0.1

  tx = adafactor(learning_rate=schedule, initial_step=7)
  params = {"scale": jnp.ones(4)}
  _, slots = tx.update(params, tx.init(params), params)
  tx.update(params, slots, params)
  assert seen == [7, 8]


def test_a_warm_up_from_the_initial_step() -> None:
  options = {**PROMPT_TUNING, "weight_decay_rate": None}
  options["initial_step"] = 1_100_000
  options["learning_rate"] = starting_at(
    constant(learning_rate=0.3, warmup_steps=3), step=1_100_000
  )
  start = {"prompt": jnp.zeros((2, 3))}
  changed = [
    float(jnp.abs(params["prompt"]).max())
    for params, _ in trajectory(
      adafactor(**options), start, lambda _: {"prompt": jnp.ones((2, 3))}, 3
    )
  ]
  np.testing.assert_allclose(changed, [0.0, 0.1, 0.3], rtol=1e-5)


def test_tfew_leaves_the_parameters_alone_at_step_0() -> None:
  schedule = linear_decay(learning_rate=3e-3, total_steps=1000, warmup_steps=60)
  tx = adafactor(variant="hugging_face", learning_rate=schedule)
  params = {"ia3": jnp.ones(4)}
  gradients = {"ia3": jnp.array([1.0, -1.0, 1.0, -1.0])}
  first, slots = tx.update(gradients, tx.init(params), params)
  second, _ = tx.update(gradients, slots, params)
  np.testing.assert_array_equal(first["ia3"], np.zeros(4))
  np.testing.assert_allclose(
    second["ia3"], 3e-3 / 60 * np.array([-1, 1, -1, 1]), rtol=2e-3
  )


def test_works_with_injected_hyperparameters() -> None:
  tx = optax.inject_hyperparams(
    lambda learning_rate: adafactor(
      learning_rate=learning_rate, variant="hugging_face"
    )
  )(learning_rate=0.5)
  params = {"scale": jnp.ones(4)}
  state = tx.init(params)
  state.hyperparams["learning_rate"] = jnp.asarray(0.25)
  updates, _ = jax.jit(tx.update)(params, state, params)
  np.testing.assert_allclose(updates["scale"], np.full(4, -0.25), rtol=1e-6)


def test_training_lowers_a_loss() -> None:
  target = jnp.arange(12.0).reshape(4, 3) / 6.0

  def loss(params: Tree) -> jax.Array:
    return jnp.sum((params["a"] @ params["b"] - target) ** 2)

  start = {"a": jnp.ones((4, 2)) * 0.5, "b": jnp.eye(2, 3)}
  for variant in ("t5x", "hugging_face"):
    tx = adafactor(learning_rate=0.05, variant=variant)
    params, slots, step = start, tx.init(start), make_step(tx)
    for _ in range(100):
      params, slots = step(params, slots, jax.grad(loss)(params))
    assert float(loss(params)) < 0.05 * float(loss(start))


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"variant": "adam"}, "variant to be one of.*found 'adam'"),
    (
      {"learning_rate": -1.0},
      "learning_rate: expected a number of 0.0 or more",
    ),
    ({"learning_rate": "0.3"}, "learning_rate: expected .* found '0.3'"),
    ({"learning_rate": float("nan")}, "learning_rate: .* found nan"),
    ({"decay_rate": -0.8}, "Hugging Face's -0.8 is 0.8 here"),
    ({"clipping_threshold": 0.0}, "clipping_threshold: .* None is no limit"),
    ({"weight_decay_rate": -0.1}, "weight_decay_rate: expected"),
    ({"beta1": 1.0}, "beta1: expected a number from 0 up to"),
    ({"epsilon1": -1.0}, "epsilon1: expected"),
    ({"epsilon2": None}, "epsilon2: expected .* found None"),
    ({"step_offset": -1}, "step_offset: expected a whole number"),
    ({"initial_step": 1.5}, "initial_step: expected a whole number of 0"),
    (
      {"initial_step": 9, "step_offset": 10},
      "initial_step: expected a whole number of 10 or more, found 9. The first",
    ),
    ({"min_dim_size_to_factor": 0}, "min_dim_size_to_factor: expected"),
    ({"factored": False, "factor_rule": rule}, "Drop one of them"),
    (
      {"variant": "hugging_face", "factored": True},
      r"without T5X's options.*found \['factored'\]",
    ),
    (
      {"variant": "hugging_face", "min_dim_size_to_factor": 64},
      r"found \['min_dim_size_to_factor'\].*variant='t5x'",
    ),
  ],
)
def test_refuses_options(options: Tree, message: str) -> None:
  with pytest.raises(ValueError, match=message):
    adafactor(**{"learning_rate": 0.1, **options})


def test_refuses_an_update_without_parameters() -> None:
  tx = adafactor(learning_rate=0.1)
  params = {"scale": jnp.ones(4)}
  with pytest.raises(
    ValueError, match=r"found no params\. Pass the parameters"
  ):
    tx.update(params, tx.init(params))


@pytest.mark.parametrize(
  ("roles", "message"),
  [
    (None, "three axes or more .* 'prefix/key' of shape"),
    (("row", "column"), "each of the 3 axes, found .'row', 'column'"),
    (("row", "column", "depth"), "found .'row', 'column', 'depth'"),
    (("row", "column", "none"), "Give the 'none' axes another role"),
  ],
)
def test_refuses_a_leaf_that_it_cannot_factor(
  roles: tuple[str, ...] | None, message: str
) -> None:
  tx = adafactor(learning_rate=0.1, factor_rule=lambda path, shape: roles)
  with pytest.raises(ValueError, match=message):
    tx.init({"prefix": {"key": jnp.ones((2, 3, 4))}})


@pytest.mark.parametrize("variant", ["t5x", "hugging_face"])
@pytest.mark.parametrize("stack, axis", [("layers", 0), ("decoder", 1)])
def test_a_scanned_stack_is_its_layers(variant, stack, axis):
  """T5X's own place of the layers' axis is 1, under the stack's name."""
  rng = np.random.default_rng(0)
  shapes = {"kernel": (130, 140), "scaling": (160,)}
  layers = [
    {
      name: jnp.asarray(rng.normal(size=s), jnp.float32)
      for name, s in shapes.items()
    }
    for _ in range(3)
  ]

  def stacked(rows):
    place = {name: min(axis, len(shape)) for name, shape in shapes.items()}
    return {
      name: jnp.stack([row[name] for row in rows], place[name])
      for name in shapes
    }

  tx = adafactor(learning_rate=0.1, variant=variant, weight_decay_rate=1e-2)
  whole = {"decoder": {stack: stacked(layers)}}
  apart = {"decoder": {f"layers_{i}": row for i, row in enumerate(layers)}}
  states = [tx.init(whole), tx.init(apart)]
  for _ in range(3):
    gradients = [
      {
        n: jnp.asarray(rng.normal(size=s), jnp.float32)
        for n, s in shapes.items()
      }
      for _ in layers
    ]
    updates, states[0] = tx.update(
      {"decoder": {stack: stacked(gradients)}}, states[0], whole
    )
    whole = optax.apply_updates(whole, updates)
    rows = {f"layers_{i}": row for i, row in enumerate(gradients)}
    updates, states[1] = tx.update({"decoder": rows}, states[1], apart)
    apart = optax.apply_updates(apart, updates)
  found = stacked([apart["decoder"][f"layers_{i}"] for i in range(3)])
  for name in shapes:
    np.testing.assert_allclose(
      whole["decoder"][stack][name], found[name], rtol=1e-6, atol=1e-7
    )
