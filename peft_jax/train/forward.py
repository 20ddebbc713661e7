"""From a batch to logits, for training and for evaluation alike."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

Array = jax.Array
Batch = Mapping[str, Any]

# What the network is called with, if the batch has it; all [B, T].
_NETWORK_INPUTS = (
  "encoder_input_tokens",
  "decoder_input_tokens",
  "decoder_target_tokens",
  "encoder_segment_ids",
  "decoder_segment_ids",
  "encoder_positions",
  "decoder_positions",
  "decoder_causal_attention",
)


def network_inputs(batch: Batch) -> dict[str, Array]:
  """Returns the entries of a batch that the network takes.

  Example:
    >>> network_inputs({"decoder_loss_weights": None})
    {}
  """
  return {name: batch[name] for name in _NETWORK_INPUTS if name in batch}


def choice_logits(
  model: Any, params: Any, batch: Batch, **options: Any
) -> Array:
  """Returns the logits of every token of every answer choice.

  An encoder reads an example once, whatever the number of its choices. A
  decoder-only network reads the input again with each choice.

  Example:
    >>> from peft_jax import networks
    >>> network = networks.create("tiny", num_encoder_layers=1,
    ...   num_decoder_layers=1)
    >>> x, choices = jnp.ones((2, 4), jnp.int32), jnp.ones((2, 3, 5), jnp.int32)
    >>> params = network.init(jax.random.key(0), x, x, x)["params"]
    >>> choice_logits(network, params, {
    ...   "encoder_input_tokens": x,
    ...   "decoder_input_tokens": choices,
    ...   "decoder_target_tokens": choices,
    ... }).shape
    (2, 3, 5, 384)

  Args:
    model: network or network with adapters.
    params: its parameters.
    batch: `encoder_input_tokens` [B, S] of an encoder-decoder; `decoder_*`
      features [B, C, T].
    options: `enable_dropout` and `rngs`, as `apply` takes them.

  Returns:
    [B, C, T, V] float32.
  """
  given = network_inputs(batch)
  shape = given["decoder_input_tokens"].shape
  rows = {
    name: x.reshape(-1, shape[-1])
    for name, x in given.items()
    if name.startswith("decoder_")
  }
  variables = {"params": params}
  tokens = given.get("encoder_input_tokens")
  if tokens is None:
    logits = model.apply(variables, **rows, **options)
  else:
    encoded = model.apply(variables, tokens, method=model.encode, **options)
    logits = model.apply(
      variables,
      jnp.repeat(encoded, shape[1], axis=0),
      jnp.repeat(tokens, shape[1], axis=0),
      **rows,
      method=model.decode,
      **options,
    )
  return logits.reshape(*shape, logits.shape[-1])
