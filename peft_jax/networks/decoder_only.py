"""Decoder-only networks: GPT-2, GPT-J, BLOOM, LLaMA, Mistral, Qwen.

Parameters: `token_embedder`, `decoder/layers_N/{self_attention,mlp}`, their
norms, `decoder/decoder_norm` and `decoder/logits_dense`; where the architecture
has them, `decoder/position_embedder` and `decoder/embedding_norm`.

Axis letters: B batch, T length, S cache length, D model, V vocabulary.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from peft_jax.networks import layers, stack
from peft_jax.networks.attention import attention_mask
from peft_jax.networks.config import TransformerConfig

Array = jax.Array


class Decoder(nn.Module):
  """The stack and its output layer."""

  config: TransformerConfig
  embedder: layers.Embed

  @nn.compact
  def __call__(
    self,
    tokens: Array,
    segment_ids: Array,
    positions: Array | None,
    bidirectional: Array | None,
    deterministic: bool,
    decode: bool,
    prefill: bool,
  ) -> Array:
    """tokens: [B, T] -> [B, T, V] float32 logits; see `DecoderOnly`."""
    del prefill  # those that put something in front of the tokens ask
    cfg = self.config
    first, keys = self._extend(segment_ids, decode)
    if positions is None:
      # Padding takes no position, on whichever side it is.
      before = jnp.sum(keys > 0, axis=1, keepdims=True)
      before = before - jnp.sum(segment_ids > 0, axis=1, keepdims=True)
      positions = before + jnp.cumsum(segment_ids > 0, axis=1) - 1
      positions = jnp.maximum(positions, 0)
    key_positions = positions
    if decode:
      key_positions = jnp.maximum(jnp.cumsum(keys > 0, axis=1) - 1, 0)
    mask = self._mask(segment_ids, keys, first, bidirectional)
    if cfg.sliding_window:
      behind = positions[:, None, :, None] - key_positions[:, None, None, :]
      mask = jnp.logical_and(mask, behind < cfg.sliding_window)
    bias = None
    if cfg.positions == "alibi":
      bias = stack.alibi_biases(cfg)(key_positions)
    x = stack.embed(cfg, self.embedder, tokens, positions, deterministic)
    if cfg.positions == "relative":
      relpos_bias = stack.relative_biases(cfg, "decoder")
      bias = relpos_bias(tokens.shape[1], keys.shape[1], first)
    x = stack.apply_layers(
      cfg,
      "decoder",
      cfg.num_decoder_layers,
      x,
      None,
      mask,
      None,
      bias,
      positions,
      first,
      keys.shape[1],
      deterministic,
      decode,
      False,
    )
    if cfg.final_norm:
      x = stack.norm(cfg, "decoder_norm")(x)
      x = stack.dropout(cfg)(x, deterministic=deterministic)
    return stack.logits(cfg, self.embedder, x)

  def _extend(
    self, segment_ids: Array, decode: bool
  ) -> tuple[Array | int, Array]:
    """Returns the first query's slot and the segments of all keys [B, S]."""
    if not decode:
      return 0, segment_ids
    is_filling = self.has_variable("cache", "cached_segments")
    cached = self.variable(
      "cache", "cached_segments", jnp.zeros_like, segment_ids
    )
    index = self.variable("cache", "cache_index", lambda: jnp.int32(0))
    first = index.value
    if not is_filling:
      return 0, segment_ids
    cached.value = lax.dynamic_update_slice(
      cached.value, segment_ids, (0, first)
    )
    index.value = first + segment_ids.shape[1]
    return first, cached.value

  def _mask(
    self,
    segment_ids: Array,
    keys: Array,
    first: Array | int,
    bidirectional: Array | None,
  ) -> Array:
    """Returns the mask [B, 1, T, S]; keys: [B, S] segments."""
    queries = first + jnp.arange(segment_ids.shape[1])
    distance = queries[:, None] - jnp.arange(keys.shape[1])[None, :]
    allowed = (distance >= 0)[None, None]
    if bidirectional is not None:
      both = attention_mask(bidirectional > 0, bidirectional > 0)
      allowed = jnp.logical_or(allowed, both)
    return jnp.logical_and(
      allowed, attention_mask(segment_ids, keys, jnp.equal)
    )


class DecoderOnly(nn.Module):
  """A decoder-only network.

  Example:
    >>> network = DecoderOnly(TransformerConfig(vocab_size=384, emb_dim=64,
    ...   num_heads=2, head_dim=32, mlp_dim=128, num_encoder_layers=0,
    ...   num_decoder_layers=2, positions="rotary", attention_scale=0.0))
    >>> tokens = jnp.ones((1, 4), jnp.int32)
    >>> variables = network.init(jax.random.key(0), tokens)
    >>> network.apply(variables, tokens).shape
    (1, 4, 384)
  """

  config: TransformerConfig

  def setup(self) -> None:
    cfg = self.config
    self.token_embedder = layers.Embed(
      num_embeddings=cfg.vocab_size, features=cfg.emb_dim, dtype=cfg.dtype
    )
    self.decoder = Decoder(cfg, self.token_embedder)

  @property
  def scan_layers(self) -> bool:
    """Whether cache leaves have a leading layer axis."""
    return self.config.scan_layers

  def __call__(
    self,
    decoder_input_tokens: Array,
    decoder_target_tokens: Array | None = None,
    decoder_segment_ids: Array | None = None,
    decoder_positions: Array | None = None,
    decoder_causal_attention: Array | None = None,
    *,
    enable_dropout: bool = False,
    decode: bool = False,
    prefill: bool = False,
  ) -> Array:
    """Returns logits [B, T, V].

    Tokens behind the text need no mask, nothing real sees them; any id may be a
    real one.

    Args:
      decoder_input_tokens: [B, T] ids.
      decoder_target_tokens: unused; T5X's models pass it.
      decoder_segment_ids: [B, T], 0 is padding; default all 1. A token sees its
        own segment only.
      decoder_positions: [B, T]; default: counted over what is not padding. A
        packed batch brings them.
      decoder_causal_attention: [B, T], 1 where tokens see one another in both
        directions (prefix LM); default none.
      enable_dropout: whether to drop; needs the rng `dropout`.
      decode: reads and extends the cache. The first call, with as many tokens
        as the cache shall hold, makes an empty one.
      prefill: whether this is the first call that extends the cache.
    """
    del decoder_target_tokens
    if decoder_segment_ids is None:
      decoder_segment_ids = jnp.ones_like(decoder_input_tokens)
    return self.decoder(
      decoder_input_tokens,
      decoder_segment_ids,
      decoder_positions,
      decoder_causal_attention,
      not enable_dropout,
      decode,
      prefill,
    )
