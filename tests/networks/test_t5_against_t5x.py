"""Our T5 and T5X's give the same logits from the same parameters."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from helpers import methods, tiny

from peft_jax import Adapted, backbone, checkpoint, join, split

pytestmark = pytest.mark.t5x

FORMS = {
  "t5_1_1": {},
  "t5_1_0": {"mlp_activations": ("relu",), "logits_via_embedding": True},
}


@pytest.mark.parametrize("form", FORMS)
def test_same_tree_and_axes(form):
  ours, theirs = tiny.t5(**FORMS[form]), tiny.t5x(**FORMS[form])
  assert tiny.spec(tiny.shapes(ours)) == tiny.spec(tiny.shapes(theirs))
  axes = [tiny.variables(net)["params_axes"] for net in (ours, theirs)]
  names = [
    {path: tuple(meta.names) for path, meta in flatten_dict(a).items()}
    for a in axes
  ]
  assert names[0] == names[1]


@pytest.mark.parametrize("form", FORMS)
def test_same_logits(form):
  ours, theirs = tiny.t5(**FORMS[form]), tiny.t5x(**FORMS[form])
  params = tiny.params(ours)
  batch = tiny.batch(inputs=40)  # past the buckets of one distance each
  found = tiny.logits(ours)(params, batch)
  tiny.assert_close(found, tiny.logits(theirs)(params, batch))


def test_same_logits_of_a_packed_batch():
  segments = lambda tokens: jnp.where(
    tokens > 0, 1 + (jnp.arange(tokens.shape[1]) > 2), 0
  )
  batch = tiny.batch()
  for name in ("encoder_input", "decoder_target"):
    prefix = name.split("_")[0]
    batch[f"{prefix}_segment_ids"] = segments(batch[f"{name}_tokens"])
  params = tiny.params(tiny.t5())
  found = tiny.logits(tiny.t5())(params, batch)
  expected = tiny.logits(tiny.t5x())(params, batch)
  real = np.asarray(batch["decoder_target_tokens"]) > 0
  tiny.assert_close(found[real], expected[real])


@pytest.mark.parametrize("method", methods.METHODS)
def test_one_adapter_fits_both(method, tmp_path):
  """The same rules, the same files; scanned on our side, as we would run."""
  ours = Adapted(tiny.t5(scan_layers=True), methods.METHODS[method])
  theirs = Adapted(tiny.t5x(), methods.METHODS[method])
  frozen, adapter = split(tiny.params(theirs), theirs)
  adapter = tiny.randomize(adapter)
  batch = tiny.batch()
  expected = tiny.logits(theirs)(join(frozen, adapter), batch)
  for network in (ours, theirs):
    assert backbone.describe(network)["config"]["emb_dim"] == 16
  checkpoint.save(
    tmp_path / "adapter", adapter, theirs.rules, model={}, backbone={}
  )
  spec = split(tiny.shapes(ours), ours)[1]
  restored = checkpoint.restore(tmp_path / "adapter", ours, spec)
  base = split(tiny.params(ours), ours)[0]
  tiny.assert_close(tiny.logits(ours)(join(base, restored), batch), expected)


def test_same_gradients():
  batch = tiny.batch()

  def gradients(network):
    model = Adapted(network, methods.METHODS["lora+ia3"])
    frozen, adapter = split(tiny.params(model), model)

    def total(adapter):
      logits = tiny.logits(model)(join(frozen, adapter), batch)
      # At padding the two give different gradients, which no loss asks for.
      weights = batch["decoder_loss_weights"]
      return jnp.sum(jnp.sin(logits) * weights[..., None])

    return jax.jit(jax.grad(total))(tiny.randomize(adapter))

  found, expected = gradients(tiny.t5()), gradients(tiny.t5x())
  assert tiny.spec(found) == tiny.spec(expected)
  jax.tree.map(functools.partial(tiny.assert_close, atol=1e-4), found, expected)
