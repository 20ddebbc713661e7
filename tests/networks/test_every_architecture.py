"""Every architecture decodes with every method as it computes without a cache.

`pytest -m exhaustive` runs all pairs; otherwise each architecture runs with the
composition of all positions.
"""

import pathlib

import jax.numpy as jnp
import pytest
from helpers import methods, recompute, tiny

from peft_jax import Adapted, join, split
from peft_jax.formats import hugging_face

MODELS = pathlib.Path(__file__).parents[1] / "fixtures" / "hugging_face"
NAMES = sorted(path.name for path in MODELS.iterdir())
BY_DEFAULT = [
  *((name, "all_together") for name in NAMES),
  # A gate is the only bias there while it decodes.
  ("bart", "unipelt"),
]
PAIRS = [
  pytest.param(
    name,
    method,
    marks=() if (name, method) in BY_DEFAULT else pytest.mark.exhaustive,
  )
  for name in NAMES
  for method in methods.METHODS
]


@pytest.mark.parametrize("name, method", PAIRS)
def test_cached_equals_recomputed(name, method):
  network = hugging_face.network(MODELS / name)
  model = Adapted(network, methods.rules(method, network))
  frozen, adapter = split(tiny.params(model), model)
  params = join(frozen, tiny.randomize(adapter))
  batch = tiny.batch(model)
  if tiny.is_decoder_only(model):
    inputs, mask = batch["decoder_input_tokens"], batch["decoder_segment_ids"]
    following = tiny.batch(model, seed=5)["decoder_input_tokens"][:, :5]
    expected = recompute.text(model, params, inputs, mask, following)
    found = recompute.cached_text(model)(params, inputs, mask, following)
  else:
    # The targets mask nothing in decoding, so here they have no padding.
    batch |= {"decoder_target_tokens": jnp.ones((4, 5), jnp.int32)}
    expected = tiny.logits(model)(params, batch)
    found = recompute.stepwise(model, "ours")(params, batch)
  tiny.assert_close(found, expected, atol=1e-4)
