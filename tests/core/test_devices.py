"""The step on eight devices gives the numbers that it gives on one.

`test_step.py` has micro-batches on one device.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny

from peft_jax import IA3, Adapted, LoRA, Rule, optim, sharding, split
from peft_jax.train import step as steps

RULES = (Rule("qv", LoRA(rank=2)), Rule("mlp_out", IA3(side="input")))


@functools.cache
def start():
  """Returns the model, (frozen, adapter), and the optimizer."""
  # As in production: scanned and rematerialised.
  model = Adapted(tiny.t5(scan_layers=True, remat="full"), RULES)
  frozen, adapter = split(tiny.params(model), model)
  return model, frozen, tiny.randomize(adapter), optim.sgd(learning_rate=0.1)


def batch():
  """Returns eight rows, with unequal numbers of real tokens."""
  return tiny.batch(rows=8)


@functools.cache
def expected():
  """Returns state and metrics of a step on one device."""
  model, frozen, adapter, tx = start()
  step = jax.jit(steps.make_train_step(model, tx, dropout=False))
  state = steps.init_state(adapter, tx, jax.random.key(0))
  return step(state, frozen, batch())


def assert_equal_steps(found, wanted):
  (state, metrics), (wanted_state, wanted_metrics) = found, wanted
  for name in ("loss", "accuracy", "tokens", "gradient_norm"):
    np.testing.assert_allclose(
      metrics[name], wanted_metrics[name], rtol=1e-5, atol=1e-5, err_msg=name
    )
  np.testing.assert_array_equal(
    metrics["unreached"], wanted_metrics["unreached"]
  )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
    jax.device_get(state.adapter),
    jax.device_get(wanted_state.adapter),
  )
  assert int(state.step) == int(wanted_state.step) == 1


@pytest.mark.parametrize(
  ("data", "model_axis", "micro_batches"), [(4, 2, 1), (2, 4, 2)]
)
def test_eight_devices_equal_one(data, model_axis, micro_batches):
  """On four there are fewer heads than devices; the mesh must not mind."""
  model, frozen, adapter, tx = start()
  mesh = sharding.make_mesh(data=data, model=model_axis)
  variables = tiny.variables(model)
  placement = sharding.shardings(
    variables["params"], variables["params_axes"], mesh
  )
  frozen_place, adapter_place = split(placement, model)
  with sharding.use(mesh):
    state = steps.init_state(
      jax.device_put(adapter, adapter_place), tx, jax.random.key(0)
    )
    step = jax.jit(
      steps.make_train_step(
        model, tx, dropout=False, micro_batches=micro_batches
      )
    )
    found = step(
      state,
      jax.device_put(frozen, frozen_place),
      jax.device_put(batch(), sharding.batch_sharding(mesh)),
    )
  assert_equal_steps(found, expected())
  for leaf in jax.tree.leaves(found[0].adapter):
    assert len(leaf.sharding.device_set) == 8


def test_cut_deals_rows_out_in_turn():
  """So each part is spread over the data axis, as the whole batch is."""
  cut = steps._cut(jnp.arange(8), 2)
  assert cut.tolist() == [[0, 2, 4, 6], [1, 3, 5, 7]]
