"""Freezing, and the thin optimizers."""

from collections.abc import Callable
from typing import Any

import flax.core
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from peft_jax.optim import adafactor, adamw, freeze, sgd, with_clipping

Tree = dict[str, Any]

OPTIMIZERS = {
  "adafactor_hugging_face": adafactor(
    learning_rate=0.1, variant="hugging_face", beta1=0.9
  ),
  "adafactor_t5x": adafactor(learning_rate=0.1, weight_decay_rate=0.1),
  "adamw": adamw(learning_rate=0.1, weight_decay=0.1),
  "sgd": sgd(learning_rate=0.1, momentum=0.9),
  "clipped": with_clipping(adamw(learning_rate=0.1), max_norm=1.0),
}


def make_params() -> Tree:
  return {
    "encoder": {
      "query": {"kernel": jnp.ones((64, 64)), "ia3": {"scale": jnp.ones(64)}},
      "notia3": {"bias": jnp.ones(32)},
    },
    "token_embedder": {"embedding": jnp.ones((100, 64))},
  }


def ia3_only(params: Any) -> Any:
  def trained(path: tuple[Any, ...], leaf: Any) -> bool:
    del leaf
    return "ia3" in jax.tree_util.keystr(
      path, simple=True, separator="/"
    ).split("/")

  return jax.tree_util.tree_map_with_path(trained, params)


def train(tx: optax.GradientTransformation, params: Any, steps: int = 3) -> Any:
  @jax.jit
  def step(params: Any, state: Any) -> tuple[Any, Any]:
    gradients = jax.tree.map(lambda leaf: leaf * 3.0 + 0.5, params)
    updates, state = tx.update(gradients, state, params)
    return optax.apply_updates(params, updates), state

  state = tx.init(params)
  for _ in range(steps):
    params, state = step(params, state)
  return params


@pytest.mark.parametrize("as_function", [False, True])
@pytest.mark.parametrize("make", [dict, flax.core.freeze])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_only_the_chosen_leaves_move(
  name: str, make: Callable[[Tree], Any], as_function: bool
) -> None:
  params = make(make_params())
  mask = ia3_only if as_function else ia3_only(params)
  after = train(freeze(OPTIMIZERS[name], mask), params)
  assert jax.tree.structure(after) == jax.tree.structure(params)
  moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), after, params)
  assert moved == ia3_only(params)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_no_state_is_held_for_frozen_leaves(name: str) -> None:
  params = make_params()
  state = freeze(OPTIMIZERS[name], ia3_only).init(params)
  alone = OPTIMIZERS[name].init({"scale": jnp.ones(64)})
  sizes = sorted(leaf.size for leaf in jax.tree.leaves(state))
  assert sizes == sorted(leaf.size for leaf in jax.tree.leaves(alone))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_trained_leaves_move_as_if_alone(name: str) -> None:
  params = make_params()
  after = train(freeze(OPTIMIZERS[name], ia3_only), params)
  alone = train(OPTIMIZERS[name], {"scale": jnp.ones(64)})
  np.testing.assert_allclose(
    after["encoder"]["query"]["ia3"]["scale"], alone["scale"], rtol=1e-6
  )


def test_a_mask_may_end_early() -> None:
  params = make_params()
  mask = {"encoder": True, "token_embedder": False}
  after = train(freeze(sgd(learning_rate=0.1), mask), params)
  embedding = after["token_embedder"]["embedding"]
  np.testing.assert_array_equal(
    embedding, params["token_embedder"]["embedding"]
  )
  assert float(after["encoder"]["notia3"]["bias"][0]) < 1.0


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_types_are_kept(name: str, dtype: Any) -> None:
  params = jax.tree.map(lambda leaf: leaf.astype(dtype), make_params())
  after = train(freeze(OPTIMIZERS[name], ia3_only), params)
  dtypes = {leaf.dtype for leaf in jax.tree.leaves(after)}
  assert dtypes == {jnp.dtype(dtype)}


def test_refuses_to_train_nothing() -> None:
  params = make_params()
  nothing = jax.tree.map(lambda leaf: False, params)
  message = (
    "found 4 leaves and none of them True.*such as 'encoder/notia3/bias'"
  )
  with pytest.raises(ValueError, match=message):
    freeze(sgd(learning_rate=0.1), nothing)
  tx = freeze(sgd(learning_rate=0.1), lambda _: nothing)
  with pytest.raises(ValueError, match=message):
    tx.init(params)
  with pytest.raises(ValueError, match="found 0 leaves"):
    freeze(sgd(learning_rate=0.1), {})


def test_refuses_a_mask_of_something_else() -> None:
  with pytest.raises(ValueError, match="found 1 of type int at 'a/b'"):
    freeze(sgd(learning_rate=0.1), {"a": {"b": 1}})


def test_refuses_a_mask_of_another_structure() -> None:
  params = make_params()
  tx = freeze(sgd(learning_rate=0.1), {"encoder": True})
  with pytest.raises(ValueError, match="structure of the parameters"):
    tx.init(params)
  tx = freeze(sgd(learning_rate=0.1), ia3_only(params))
  with pytest.raises(ValueError, match="found a dict for a FrozenDict"):
    tx.init(flax.core.freeze(params))


def test_adamw_is_the_papers_formula() -> None:
  tx = adamw(learning_rate=0.1, b1=0.8, b2=0.9, eps=1e-3, weight_decay=0.05)
  gradients = np.array([[1.0, -2.0], [0.25, 3.0], [-1.0, 0.5]])
  value, mean, square = np.array([1.0, -1.0]), np.zeros(2), np.zeros(2)
  params = {"b": jnp.asarray(value, jnp.float32)}
  state = tx.init(params)
  for step, gradient in enumerate(gradients, start=1):
    mean = 0.8 * mean + 0.2 * gradient
    square = 0.9 * square + 0.1 * gradient**2
    direction = (mean / (1 - 0.8**step)) / (
      np.sqrt(square / (1 - 0.9**step)) + 1e-3
    )
    value = value - 0.1 * (direction + 0.05 * value)
    updates, state = tx.update(
      {"b": jnp.asarray(gradient, jnp.float32)}, state, params
    )
    params = optax.apply_updates(params, updates)
  np.testing.assert_allclose(params["b"], value, rtol=1e-6)


def test_sgd_adds_up_its_momentum() -> None:
  tx = sgd(learning_rate=0.5, momentum=0.5)
  gradients = {"b": jnp.ones(2)}
  state, taken = tx.init(gradients), []
  for _ in range(3):
    updates, state = tx.update(gradients, state)
    taken.append(float(updates["b"][0]))
  assert taken == [-0.5, -0.75, -0.875]


def test_sgd_holds_nothing_without_momentum() -> None:
  state = sgd(learning_rate=0.5).init({"b": jnp.ones(2)})
  assert not jax.tree.leaves(state)


def test_clipping_ignores_frozen_gradients() -> None:
  params = make_params()
  tx = freeze(with_clipping(sgd(learning_rate=1.0), max_norm=1.0), ia3_only)
  updates, _ = tx.update(params, tx.init(params), params)
  norm = np.linalg.norm(updates["encoder"]["query"]["ia3"]["scale"])
  np.testing.assert_allclose(norm, 1.0, rtol=1e-6)


def test_clipping_leaves_small_gradients_alone() -> None:
  tx = with_clipping(sgd(learning_rate=1.0), max_norm=10.0)
  gradients = {"b": jnp.array([3.0, -4.0])}
  updates, _ = tx.update(gradients, tx.init(gradients))
  np.testing.assert_array_equal(updates["b"], [-3.0, 4.0])


@pytest.mark.parametrize(
  ("make", "options", "message"),
  [
    (adamw, {"learning_rate": -1.0}, "A function of the step will do too"),
    (adamw, {"b1": 1.0}, "b1: expected a number from 0"),
    (adamw, {"b2": -0.1}, "b2: expected a number from 0"),
    (adamw, {"eps": 0.0}, "eps: expected a number above 0.0, found 0.0"),
    (adamw, {"weight_decay": -1.0}, "weight_decay: expected"),
    (sgd, {"momentum": 1.0}, "momentum: expected"),
  ],
)
def test_optimizers_refuse_options(
  make: Callable[..., Any], options: Tree, message: str
) -> None:
  with pytest.raises(ValueError, match=message):
    make(**{"learning_rate": 0.1, **options})


def test_clipping_refuses_a_norm_of_zero() -> None:
  with pytest.raises(ValueError, match=r"max_norm: .* Leave it out"):
    with_clipping(sgd(learning_rate=0.1), max_norm=0.0)
