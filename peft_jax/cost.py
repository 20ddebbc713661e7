"""What a prediction costs: examples in the prompt, or an adapter.

As T-Few counts (arXiv 2205.05638, section 4.2): a token costs 2 N FLOPs in a
decoder-only network of N parameters and N in an encoder-decoder, whose tokens
pass one of two stacks; training costs three times as much. Attention over the
tokens themselves is left out: next to the products with the parameters it is
small.
"""

import dataclasses

from peft_jax.networks.config import TransformerConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class InContext:
  """Costs of a prompt of examples, with every prediction.

  Attributes:
    prompt_tokens: of the examples.
    flops_per_prediction: all tokens read anew.
    flops_per_prediction_cached: only the query's; the examples' keys and values
      are kept.
    cached_bytes: what keeping these takes.
    storage_bytes: of the examples, 4 for a token.
  """

  prompt_tokens: int
  flops_per_prediction: int
  flops_per_prediction_cached: int
  cached_bytes: int
  storage_bytes: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adapter:
  """Costs of an adapter: training once, then the query alone.

  Attributes:
    flops_per_prediction: of the query's tokens.
    training_flops: of all updates.
    storage_bytes: of the adapter.
    predictions_to_break_even: after so many, training has paid for itself
      against a prompt that is read anew; None: it never does.
  """

  flops_per_prediction: int
  training_flops: int
  storage_bytes: int
  predictions_to_break_even: int | None


def flops_per_token(config: TransformerConfig, parameters: int) -> int:
  """Returns the FLOPs of one token, forward.

  Example:
    >>> flops_per_token(TransformerConfig(num_encoder_layers=0), 1000)
    2000

  Args:
    config: of the network.
    parameters: N.
  """
  return parameters * (1 if config.num_encoder_layers else 2)


def in_context(
  config: TransformerConfig,
  parameters: int,
  *,
  shots: int,
  tokens_per_example: int,
  query_tokens: int,
  cache_itemsize: int = 4,
) -> InContext:
  """Returns the costs of examples in the prompt.

  Example:
    >>> config = TransformerConfig(num_encoder_layers=0, num_decoder_layers=2,
    ...   num_heads=2, head_dim=4)
    >>> in_context(config, 1000, shots=3, tokens_per_example=10,
    ...   query_tokens=5).cached_bytes  # 30 tokens, 2 x 2 x 8 values of 4 bytes
    3840

  Args:
    config: of the network.
    parameters: N.
    shots: examples in the prompt.
    tokens_per_example: of each.
    query_tokens: of what is asked.
    cache_itemsize: bytes of a cached value; default 4, the paper's.
  """
  prompt = shots * tokens_per_example
  each = flops_per_token(config, parameters)
  heads = config.num_kv_heads or config.num_heads
  per_token = 2 * config.num_decoder_layers * heads * config.head_dim
  return InContext(
    prompt_tokens=prompt,
    flops_per_prediction=each * (prompt + query_tokens),
    flops_per_prediction_cached=each * query_tokens,
    cached_bytes=prompt * per_token * cache_itemsize,
    storage_bytes=4 * prompt,
  )


def adapter(
  config: TransformerConfig,
  parameters: int,
  *,
  adapter_bytes: int,
  query_tokens: int,
  steps: int,
  batch_size: int,
  against: InContext,
) -> Adapter:
  """Returns the costs of an adapter.

  Example:
    >>> config = TransformerConfig(num_encoder_layers=0)
    >>> prompt = in_context(config, 1000, shots=9, tokens_per_example=10,
    ...   query_tokens=10)
    >>> found = adapter(config, 1000, adapter_bytes=8, query_tokens=10, steps=5,
    ...   batch_size=3, against=prompt)
    >>> found.training_flops, found.predictions_to_break_even
    (900000, 5)

  Args:
    config: of the network.
    parameters: N of the backbone; an adapter's own are few.
    adapter_bytes: what is stored.
    query_tokens: of what is asked, and of a training example.
    steps: updates.
    batch_size: examples of an update.
    against: the prompt that it takes the place of.
  """
  each = flops_per_token(config, parameters) * query_tokens
  training = 3 * each * steps * batch_size
  saved = against.flops_per_prediction - each
  return Adapter(
    flops_per_prediction=each,
    training_flops=training,
    storage_bytes=adapter_bytes,
    predictions_to_break_even=-(-training // saved) if saved > 0 else None,
  )
