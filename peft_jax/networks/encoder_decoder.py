"""Encoder-decoders: T5 in all its forms, and BART; T5X's tree of names.

Parameters: `token_embedder`, `encoder/layers_N/{attention,mlp}`,
`decoder/layers_N/{self_attention,encoder_decoder_attention,mlp}`, their layer
norms, `{encoder,decoder}/relpos_bias` and `decoder/logits_dense`. With
`scan_layers` the layers of a stack are one module `layers` whose parameters
have a leading axis of that many layers.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from peft_jax.networks import layers, stack
from peft_jax.networks.attention import attention_mask, combine_masks
from peft_jax.networks.config import TransformerConfig

Array = jax.Array


class Encoder(nn.Module):
  """The encoder stack."""

  config: TransformerConfig
  embedder: layers.Embed

  @nn.compact
  def __call__(
    self,
    tokens: Array,
    mask: Array | None,
    positions: Array,
    deterministic: bool,
  ) -> Array:
    """tokens: [B, T]; mask: [B, 1, T, T]; positions: [B, T] -> [B, T, D]."""
    cfg = self.config
    x = stack.embed(cfg, self.embedder, tokens, positions, deterministic)
    length = x.shape[-2]
    bias = None
    if cfg.positions == "relative":
      bias = stack.relative_biases(cfg, "encoder")(length, length)
    x = stack.apply_layers(
      cfg,
      "encoder",
      cfg.num_encoder_layers,
      x,
      None,
      mask,
      None,
      bias,
      positions,
      0,
      length,
      deterministic,
      False,
      False,
    )
    if not cfg.final_norm:
      return x
    x = stack.norm(cfg, "encoder_norm")(x)
    return stack.dropout(cfg)(x, deterministic=deterministic)


class Decoder(nn.Module):
  """The decoder stack and its output layer."""

  config: TransformerConfig
  embedder: layers.Embed

  @nn.compact
  def __call__(
    self,
    encoded: Array | None,
    tokens: Array,
    mask: Array | None,
    cross_mask: Array | None,
    positions: Array | None,
    deterministic: bool,
    decode: bool,
    max_decode_length: int | None,
    cache_encoded: bool,
  ) -> Array:
    """tokens: [B, T]; encoded: [B, S, D] -> [B, T, V] float32 logits."""
    cfg = self.config
    steps, length, first = self._span(tokens, decode, max_decode_length)
    bias = None
    if cfg.positions == "relative":
      bias = stack.relative_biases(cfg, "decoder")(steps, length, first)
    if positions is None:
      row = first + jnp.arange(steps)
      positions = jnp.broadcast_to(row[None], tokens.shape)
    y = stack.embed(cfg, self.embedder, tokens, positions, deterministic)
    y = stack.apply_layers(
      cfg,
      "decoder",
      cfg.num_decoder_layers,
      y,
      encoded,
      mask,
      cross_mask,
      bias,
      positions,
      first,
      length,
      deterministic,
      decode,
      cache_encoded,
    )
    if cfg.final_norm:
      y = stack.norm(cfg, "decoder_norm")(y)
      y = stack.dropout(cfg)(y, deterministic=deterministic)
    return stack.logits(cfg, self.embedder, y)

  def _span(
    self, tokens: Array, decode: bool, max_decode_length: int | None
  ) -> tuple[int, int, Array | int]:
    """Returns query length, key length and the first query's position."""
    steps = tokens.shape[1]
    if not decode:
      return steps, steps, 0
    is_filling = self.has_variable("cache", "cache_index")
    index = self.variable("cache", "cache_index", lambda: jnp.int32(0))
    if not is_filling:
      return steps, steps, 0
    if max_decode_length is None:
      raise ValueError(
        "expected max_decode_length on every call that extends the cache,"
        " found None. Pass the length the cache was made with."
      )
    position = index.value
    index.value = position + steps
    return steps, max_decode_length, position


class EncoderDecoder(nn.Module):
  """An encoder-decoder.

  Example:
    >>> network = EncoderDecoder(TransformerConfig(vocab_size=384, emb_dim=64,
    ...   num_heads=2, mlp_dim=128, num_encoder_layers=2, num_decoder_layers=2))
    >>> tokens = jnp.ones((1, 4), jnp.int32)
    >>> variables = network.init(jax.random.key(0), tokens, tokens, tokens)
    >>> network.apply(variables, tokens, tokens, tokens).shape
    (1, 4, 384)
  """

  config: TransformerConfig

  def setup(self) -> None:
    cfg = self.config
    self.token_embedder = layers.Embed(
      num_embeddings=cfg.vocab_size, features=cfg.emb_dim, dtype=cfg.dtype
    )
    self.encoder = Encoder(cfg, self.token_embedder)
    self.decoder = Decoder(cfg, self.token_embedder)

  @property
  def scan_layers(self) -> bool:
    """Whether cache leaves have a leading layer axis; T5X's decoding asks."""
    return self.config.scan_layers

  def encode(
    self,
    encoder_input_tokens: Array,
    encoder_segment_ids: Array | None = None,
    enable_dropout: bool = False,
    encoder_positions: Array | None = None,
  ) -> Array:
    """Returns the encoder's output [B, T, D].

    Args:
      encoder_input_tokens: [B, T] ids, `pad_id` is padding.
      encoder_segment_ids: [B, T] example numbers of a packed batch.
      enable_dropout: whether to drop; needs the rng `dropout`.
      encoder_positions: [B, T] of a packed batch, for learned positions.
    """
    present = encoder_input_tokens != self.config.pad_id
    mask = attention_mask(present, present)
    if encoder_segment_ids is not None:
      mask = combine_masks(
        [mask, _same_segment(encoder_segment_ids, encoder_segment_ids)]
      )
    positions = encoder_positions
    if positions is None:
      row = jnp.arange(encoder_input_tokens.shape[1])[None]
      positions = jnp.broadcast_to(row, encoder_input_tokens.shape)
    return self.encoder(
      encoder_input_tokens, mask, positions, not enable_dropout
    )

  def decode(
    self,
    encoded: Array | None,
    encoder_input_tokens: Array,
    decoder_input_tokens: Array,
    decoder_target_tokens: Array,
    encoder_segment_ids: Array | None = None,
    decoder_segment_ids: Array | None = None,
    decoder_positions: Array | None = None,
    enable_dropout: bool = False,
    decode: bool = False,
    max_decode_length: int | None = None,
    cache_encoded: bool = False,
  ) -> Array:
    """Returns logits [B, T, V] of the decoder.

    Args:
      encoded: [B, S, D] output of `encode`; None reads the keys and values
        that an earlier call with `cache_encoded` stored.
      encoder_input_tokens: [B, S], for the padding mask only.
      decoder_input_tokens: [B, T] ids, the targets shifted right by one.
      decoder_target_tokens: [B, T] ids, for the padding mask only.
      encoder_segment_ids: [B, S] example numbers of a packed batch.
      decoder_segment_ids: [B, T] example numbers of a packed batch.
      decoder_positions: [B, T] of a packed batch, for learned positions.
      enable_dropout: whether to drop; needs the rng `dropout`.
      decode: reads and extends the cache. The first call, with as many tokens
        as the cache shall hold, makes an empty one.
      max_decode_length: length of the cache, on the calls that extend it.
      cache_encoded: stores the cross-attention's keys and values, so that
        later calls need no `encoded`.

    Raises:
      ValueError: for a packed batch in decoding, or a call that extends the
        cache without `max_decode_length`.
    """
    present = encoder_input_tokens != self.config.pad_id
    if decode:
      if encoder_segment_ids is not None:
        raise ValueError(
          "expected no encoder_segment_ids with decode=True: packed batches"
          " cannot be decoded. Use an unpacked batch."
        )
      mask = None
      cross_mask = attention_mask(
        jnp.ones_like(decoder_target_tokens, dtype=bool), present
      )
    else:
      mask, cross_mask = _decoder_masks(
        present,
        decoder_target_tokens != self.config.pad_id,
        encoder_segment_ids,
        decoder_segment_ids,
      )
    return self.decoder(
      encoded,
      decoder_input_tokens,
      mask,
      cross_mask,
      decoder_positions,
      not enable_dropout,
      decode,
      max_decode_length,
      cache_encoded,
    )

  def __call__(
    self,
    encoder_input_tokens: Array,
    decoder_input_tokens: Array,
    decoder_target_tokens: Array,
    encoder_segment_ids: Array | None = None,
    decoder_segment_ids: Array | None = None,
    encoder_positions: Array | None = None,
    decoder_positions: Array | None = None,
    *,
    enable_dropout: bool = False,
    decode: bool = False,
  ) -> Array:
    """Returns logits [B, T, V]; arguments as in `encode` and `decode`."""
    encoded = self.encode(
      encoder_input_tokens,
      encoder_segment_ids,
      enable_dropout,
      encoder_positions,
    )
    return self.decode(
      encoded,
      encoder_input_tokens,
      decoder_input_tokens,
      decoder_target_tokens,
      encoder_segment_ids,
      decoder_segment_ids,
      decoder_positions,
      enable_dropout=enable_dropout,
      decode=decode,
    )


def _same_segment(queries: Array, keys: Array) -> Array:
  return attention_mask(queries, keys, jnp.equal)


def _decoder_masks(
  present: Array,
  real: Array,
  encoder_segment_ids: Array | None,
  decoder_segment_ids: Array | None,
) -> tuple[Array | None, Array | None]:
  """Returns the causal mask [B, 1, T, T] and the cross mask [B, 1, T, S]."""
  steps = jnp.broadcast_to(jnp.arange(real.shape[1]), real.shape)
  mask = combine_masks(
    [
      attention_mask(steps, steps, jnp.greater_equal),
      attention_mask(real, real),
    ]
  )
  cross_mask = attention_mask(real, present)
  if decoder_segment_ids is not None:
    mask = combine_masks(
      [mask, _same_segment(decoder_segment_ids, decoder_segment_ids)]
    )
  if encoder_segment_ids is not None and decoder_segment_ids is not None:
    cross_mask = combine_masks(
      [cross_mask, _same_segment(decoder_segment_ids, encoder_segment_ids)]
    )
  return mask, cross_mask
