"""Attention kernels: which is taken, what is refused, and the same results.

Neither cuDNN nor a TPU is here. What surrounds cuDNN is run with XLA behind it,
and the Pallas kernel in its interpreter.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import methods, tiny
from jax.experimental.pallas import tpu as pltpu

from peft_jax import Adapted, networks, sharding
from peft_jax.networks import kernels


def shape(*dims, dtype=jnp.bfloat16):
  return jax.ShapeDtypeStruct(dims, dtype)


QUERY = shape(2, 8, 4, 64)
BIAS = shape(1, 4, 8, 8)


@pytest.mark.parametrize(
  "kernel, platform, query, bias, expected",
  [
    ("auto", "cpu", QUERY, BIAS, "xla"),
    ("auto", "gpu", QUERY, None, "xla"),
    ("auto", "tpu", QUERY, None, "xla"),
    ("xla", "tpu", QUERY, BIAS, "xla"),
    ("cudnn", "gpu", QUERY, None, "cudnn"),
    ("cudnn", "gpu", QUERY, BIAS, "cudnn"),
    ("flash", "tpu", QUERY, BIAS, "flash"),
    ("flash", "tpu", shape(2, 8, 4, 256, dtype=jnp.float32), BIAS, "flash"),
    # A step over a cache.
    ("cudnn", "cpu", shape(2, 1, 4, 64), None, "xla"),
    ("flash", "tpu", shape(2, 1, 4, 64), None, "xla"),
  ],
)
def test_choice(kernel, platform, query, bias, expected):
  found = kernels.choose(kernel, query, bias, platform=platform)
  assert found == expected


@pytest.mark.parametrize(
  "kernel, platform, query, bias, dropout_rate, reason",
  [
    ("cudnn", "tpu", QUERY, None, 0.0, "kind 'tpu', and it runs on 'gpu'"),
    ("flash", "gpu", QUERY, None, 0.0, "kind 'gpu', and it runs on 'tpu'"),
    ("cudnn", "gpu", QUERY, None, 0.1, r"dropout of the weights \(0.1\)"),
    ("flash", "tpu", QUERY, None, 0.1, r"dropout of the weights \(0.1\)"),
    (
      *("cudnn", "gpu", shape(2, 8, 4, 64, dtype=jnp.float32), None, 0.0),
      "dtype float32",
    ),
    ("cudnn", "gpu", shape(2, 8, 4, 20), None, 0.0, "head_dim=20"),
    ("cudnn", "gpu", shape(2, 8, 4, 256), None, 0.0, "head_dim=256"),
    ("flash", "tpu", shape(2, 8, 4, 192), None, 0.0, "head_dim=192"),
    (
      *("cudnn", "gpu", QUERY, shape(1, 4, 1, 8, dtype=jnp.float32), 0.0),
      "a bias in float32",
    ),
  ],
)
def test_refusals(kernel, platform, query, bias, dropout_rate, reason):
  with pytest.raises(kernels.KernelError, match=reason):
    kernels.choose(
      kernel, query, bias, dropout_rate=dropout_rate, platform=platform
    )


def test_a_network_refuses_a_kernel_of_another_device():
  network = tiny.t5(attention_kernel="cudnn")
  with pytest.raises(kernels.KernelError, match="Set attention_kernel='xla'"):
    tiny.shapes(network)
  with pytest.raises(ValueError, match="expected attention_kernel"):
    networks.TransformerConfig(attention_kernel="fast")


def arguments(steps, length, heads, kv_heads, bias, mask, blind=False):
  """Query, key, value and what of bias and mask is asked for."""
  rng = np.random.default_rng(0)
  draw = lambda *dims: jnp.asarray(rng.standard_normal(dims), jnp.float32)
  allowed = None
  if mask:
    allowed = rng.random((2, 1, steps, length)) < 0.7
    # Every query sees something, but for a padded one.
    allowed[..., 0] = True
    allowed[:, :, 0] &= not blind
  return (
    draw(2, steps, heads, 8),
    draw(2, length, kv_heads, 8),
    draw(2, length, kv_heads, 8),
    draw(1, heads, steps, length) if bias else None,
    None if allowed is None else jnp.asarray(allowed),
  )


def results(function, args):
  """What it returns, and the gradients of all that is not a mask."""

  def total(*floats):
    found = function(*floats, args[-1])
    return jnp.sum(jnp.sin(found)), found

  argnums = tuple(i for i in range(4) if args[i] is not None)
  both = jax.value_and_grad(total, argnums=argnums, has_aux=True)
  (_, found), gradients = jax.jit(both)(*args[:4])
  return found, gradients


def xla(query, key, value, bias, mask):
  return kernels.attend(query, key, value, bias, mask, kernel="xla")


def through_cudnn(*args):
  return kernels.cudnn(*args, implementation="xla")


CASES = {
  "plain": (128, 128, 1, 1, False, False),
  "odd": (3, 7, 2, 2, False, False),
  "bias": (3, 7, 2, 2, True, False),
  "mask": (3, 7, 2, 2, False, True),
  "all_grouped": (5, 7, 4, 2, True, True),
}


@pytest.mark.parametrize(
  "kernel, case",
  [(through_cudnn, case) for case in CASES]
  # Its interpreter is slow: a case for each of its ways.
  + [(kernels.flash, case) for case in ("plain", "odd", "all_grouped")],
)
def test_same_results_and_gradients(kernel, case):
  args = arguments(*CASES[case], blind=kernel is kernels.flash)
  expected = results(xla, args)
  with pltpu.force_tpu_interpret_mode():
    found = results(kernel, args)
  jax.tree.map(tiny.assert_close, found, expected)


def test_several_blocks():
  args = arguments(140, 260, 1, 1, True, True)
  expected = results(xla, args)
  with pltpu.force_tpu_interpret_mode():
    found = results(kernels.flash, args)
  jax.tree.map(tiny.assert_close, found, expected)


def test_each_device_takes_its_rows_and_heads():
  args = arguments(3, 5, 2, 2, True, True)
  expected = results(xla, args)
  mesh = sharding.make_mesh(data=2, model=2, devices=jax.devices()[:4])
  with sharding.use(mesh), pltpu.force_tpu_interpret_mode():
    found = results(kernels.flash, args)
  jax.tree.map(tiny.assert_close, found, expected)


def test_a_network_with_prefixes(monkeypatch):
  """Grouped queries and relative biases; gradients of all there is."""
  monkeypatch.setitem(kernels._PLATFORMS, "flash", "cpu")

  def run(kernel):
    network = tiny.decoder_only(
      num_decoder_layers=1, positions="relative", attention_kernel=kernel
    )
    model = Adapted(network, methods.METHODS["prefix_direct"])
    batch = tiny.batch(model)
    # What a padded query gives is read by nobody.
    real = (batch["decoder_segment_ids"] > 0)[..., None]

    def total(params):
      logits = tiny.logits(model)(params, batch)
      return jnp.sum(jnp.where(real, jnp.sin(logits), 0))

    return jax.jit(jax.value_and_grad(total))(tiny.params(model))

  expected = run("xla")
  with pltpu.force_tpu_interpret_mode():
    found = run("flash")
  jax.tree.map(tiny.assert_close, found, expected)
  prefix = found[1]["decoder"]["layers_0"]["self_attention"]["prefix"]
  assert jnp.abs(prefix["key"]).max() > 1e-3
