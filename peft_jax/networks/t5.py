"""The T5 encoder-decoder (1.1 and 1.0), with T5X's tree of names.

Parameters: `token_embedder`, `encoder/layers_N/{attention,mlp}`,
`decoder/layers_N/{self_attention,encoder_decoder_attention,mlp}`, their layer
norms, `{encoder,decoder}/relpos_bias` and `decoder/logits_dense`. With
`scan_layers` the layers of a stack are one module `layers` whose parameters
have a leading axis of that many layers.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen import partitioning as flax_partitioning

from peft_jax import sharding
from peft_jax.networks import layers

Array = jax.Array

REMAT_POLICIES = ("none", "minimal", "full")


@dataclasses.dataclass(frozen=True, kw_only=True)
class T5Config:
  """Sizes and options of a T5 network; field names as in T5X.

  Example:
    >>> T5Config(vocab_size=32128, emb_dim=768, num_heads=12).head_dim
    64

  Attributes:
    vocab_size: V, rows of the embedding table.
    emb_dim: D.
    num_heads: H.
    head_dim: K.
    mlp_dim: F.
    num_encoder_layers: layers of the encoder.
    num_decoder_layers: layers of the decoder.
    mlp_activations: ('gelu', 'linear') is T5 1.1, ('relu',) is T5 1.0.
    dropout_rate: used only where a call enables dropout.
    logits_via_embedding: whether the output layer is the embedding (T5 1.0).
    dtype: dtype of the activations; parameters are float32.
    scan_layers: one compiled layer per stack instead of one per layer.
    remat: what to recompute in the backward pass: 'none', 'minimal' (all but
      matrix products), 'full'.
  """

  vocab_size: int = 32128
  emb_dim: int = 512
  num_heads: int = 6
  head_dim: int = 64
  mlp_dim: int = 1024
  num_encoder_layers: int = 8
  num_decoder_layers: int = 8
  mlp_activations: tuple[str, ...] = ("gelu", "linear")
  dropout_rate: float = 0.0
  logits_via_embedding: bool = False
  dtype: Any = jnp.float32
  scan_layers: bool = False
  remat: str = "none"

  def __post_init__(self) -> None:
    if jnp.dtype(self.dtype) == jnp.float16:
      raise ValueError(
        "expected dtype float32 or bfloat16, found float16: activations of"
        " T5's feed-forward layers overflow in float16. Use bfloat16."
      )
    if self.remat not in REMAT_POLICIES:
      raise ValueError(
        f"expected remat to be one of {REMAT_POLICIES}, found {self.remat!r}."
      )


class EncoderLayer(nn.Module):
  """Self-attention and feed-forward block of the encoder."""

  config: T5Config

  @nn.compact
  def __call__(
    self, x: Array, mask: Array, bias: Array, deterministic: bool
  ) -> Any:
    """x: [B, T, D]; mask: [B, 1, T, T]; bias: [1, H, T, T] -> [B, T, D]."""
    cfg = self.config
    y = _norm(cfg, "pre_attention_layer_norm")(x)
    y = _attention(cfg, "attention")(
      y, y, mask, bias, deterministic=deterministic
    )
    x = _residual(cfg, x, y, deterministic)
    y = _norm(cfg, "pre_mlp_layer_norm")(x)
    y = _mlp(cfg)(y, deterministic=deterministic)
    return _carry(cfg, _residual(cfg, x, y, deterministic))


class DecoderLayer(nn.Module):
  """Self-attention, cross-attention and feed-forward block of the decoder."""

  config: T5Config

  @nn.compact
  def __call__(
    self,
    x: Array,
    encoded: Array | None,
    mask: Array | None,
    cross_mask: Array,
    bias: Array,
    deterministic: bool,
    decode: bool,
    cache_encoded: bool,
  ) -> Any:
    """x: [B, T, D]; encoded: [B, S, D] -> [B, T, D]; see `T5.decode`."""
    cfg = self.config
    y = _norm(cfg, "pre_self_attention_layer_norm")(x)
    y = _attention(cfg, "self_attention")(
      y, y, mask, bias, deterministic=deterministic, decode=decode
    )
    x = _residual(cfg, x, y, deterministic)
    y = _norm(cfg, "pre_cross_attention_layer_norm")(x)
    y = _attention(cfg, "encoder_decoder_attention")(
      y,
      encoded,
      cross_mask,
      deterministic=deterministic,
      cache_once=cache_encoded,
    )
    x = _residual(cfg, x, y, deterministic)
    y = _norm(cfg, "pre_mlp_layer_norm")(x)
    y = _mlp(cfg)(y, deterministic=deterministic)
    return _carry(cfg, _residual(cfg, x, y, deterministic))


def _norm(cfg: T5Config, name: str) -> layers.LayerNorm:
  return layers.LayerNorm(dtype=cfg.dtype, name=name)


def _attention(cfg: T5Config, name: str) -> layers.Attention:
  return layers.Attention(
    num_heads=cfg.num_heads,
    head_dim=cfg.head_dim,
    dropout_rate=cfg.dropout_rate,
    dtype=cfg.dtype,
    name=name,
  )


def _mlp(cfg: T5Config) -> layers.MlpBlock:
  return layers.MlpBlock(
    intermediate_dim=cfg.mlp_dim,
    activations=cfg.mlp_activations,
    dropout_rate=cfg.dropout_rate,
    dtype=cfg.dtype,
    name="mlp",
  )


def _dropout(cfg: T5Config) -> nn.Dropout:
  return nn.Dropout(cfg.dropout_rate, broadcast_dims=(-2,))


def _residual(cfg: T5Config, x: Array, y: Array, deterministic: bool) -> Array:
  total = x + _dropout(cfg)(y, deterministic=deterministic)
  return sharding.constrain(total, ("batch", "length", "embed"))


def _carry(cfg: T5Config, x: Array) -> Any:
  """Returns x [B, T, D] as a scan expects it: with a (no) per-layer output."""
  return (x, None) if cfg.scan_layers else x


def _stack(
  cfg: T5Config,
  layer: type[nn.Module],
  length: int,
  static_argnums: tuple[int, ...],
  x: Array,
  *args: Any,
) -> Array:
  """Applies `length` layers to x [B, T, D]: scanned, or one after the other."""
  if cfg.remat != "none":
    policy = None
    if cfg.remat == "minimal":
      policy = jax.checkpoint_policies.checkpoint_dots_with_no_batch_dims
    layer = nn.remat(
      layer,
      prevent_cse=not cfg.scan_layers,
      policy=policy,
      static_argnums=static_argnums,
    )
  if not cfg.scan_layers:
    for i in range(length):
      x = layer(config=cfg, name=f"layers_{i}")(x, *args)
    return x

  scanned = flax_partitioning.scan_with_axes(
    layer,
    variable_axes={"params": 0, "cache": 0},
    split_rngs={"params": True, "dropout": True},
    in_axes=(nn.broadcast,) * len(args),
    length=length,
    axis_name="layers",
  )
  x, _ = scanned(config=cfg, name="layers")(x, *args)
  return x


class Encoder(nn.Module):
  """The encoder stack."""

  config: T5Config
  embedder: layers.Embed

  @nn.compact
  def __call__(self, tokens: Array, mask: Array, deterministic: bool) -> Array:
    """tokens: [B, T]; mask: [B, 1, T, T] -> [B, T, D]."""
    cfg = self.config
    bias = layers.RelativePositionBiases(
      num_heads=cfg.num_heads,
      bidirectional=True,
      dtype=cfg.dtype,
      name="relpos_bias",
    )
    x = self.embedder(tokens)
    x = _dropout(cfg)(x, deterministic=deterministic)
    x = sharding.constrain(x, ("batch", "length", "embed"))
    length = x.shape[-2]
    x = _stack(
      cfg,
      EncoderLayer,
      cfg.num_encoder_layers,
      (4,),
      x,
      mask,
      bias(length, length),
      deterministic,
    )
    x = _norm(cfg, "encoder_norm")(x)
    return _dropout(cfg)(x, deterministic=deterministic)


class Decoder(nn.Module):
  """The decoder stack and its output layer."""

  config: T5Config
  embedder: layers.Embed

  @nn.compact
  def __call__(
    self,
    encoded: Array | None,
    tokens: Array,
    mask: Array | None,
    cross_mask: Array,
    deterministic: bool,
    decode: bool,
    max_decode_length: int | None,
    cache_encoded: bool,
  ) -> Array:
    """tokens: [B, T]; encoded: [B, S, D] -> [B, T, V] float32 logits."""
    cfg = self.config
    relpos_bias = layers.RelativePositionBiases(
      num_heads=cfg.num_heads,
      bidirectional=False,
      dtype=cfg.dtype,
      name="relpos_bias",
    )
    bias = relpos_bias(*self._positions(tokens, decode, max_decode_length))
    y = self.embedder(tokens)
    y = _dropout(cfg)(y, deterministic=deterministic)
    y = sharding.constrain(y, ("batch", "length", "embed"))
    y = _stack(
      cfg,
      DecoderLayer,
      cfg.num_decoder_layers,
      (6, 7, 8),
      y,
      encoded,
      mask,
      cross_mask,
      bias,
      deterministic,
      decode,
      cache_encoded,
    )
    y = _norm(cfg, "decoder_norm")(y)
    y = _dropout(cfg)(y, deterministic=deterministic)
    if cfg.logits_via_embedding:
      # The shared table has unit variance, an output layer's has 1 / D.
      return self.embedder.attend(y) / jnp.sqrt(jnp.float32(cfg.emb_dim))
    return layers.DenseGeneral(
      cfg.vocab_size,
      kernel_axes=("embed", "vocab"),
      dtype=jnp.float32,  # the loss is computed in float32
      name="logits_dense",
    )(y)

  def _positions(
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


class T5(nn.Module):
  """A T5 encoder-decoder.

  Example:
    >>> network = T5(T5Config(vocab_size=384, emb_dim=64, num_heads=2,
    ...   mlp_dim=128, num_encoder_layers=2, num_decoder_layers=2))
    >>> tokens = jnp.ones((1, 4), jnp.int32)
    >>> variables = network.init(jax.random.key(0), tokens, tokens, tokens)
    >>> network.apply(variables, tokens, tokens, tokens).shape
    (1, 4, 384)
  """

  config: T5Config

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
  ) -> Array:
    """Returns the encoder's output [B, T, D].

    Args:
      encoder_input_tokens: [B, T] ids, 0 is padding.
      encoder_segment_ids: [B, T] example numbers of a packed batch.
      enable_dropout: whether to drop; needs the rng `dropout`.
    """
    present = encoder_input_tokens > 0
    mask = layers.attention_mask(present, present)
    if encoder_segment_ids is not None:
      mask = layers.combine_masks(
        [mask, _same_segment(encoder_segment_ids, encoder_segment_ids)]
      )
    return self.encoder(encoder_input_tokens, mask, not enable_dropout)

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
      decoder_positions: [B, T]; unused, T5's positions are relative.
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
    del decoder_positions
    present = encoder_input_tokens > 0
    if decode:
      if encoder_segment_ids is not None:
        raise ValueError(
          "expected no encoder_segment_ids with decode=True: packed batches"
          " cannot be decoded. Use an unpacked batch."
        )
      mask = None
      cross_mask = layers.attention_mask(
        jnp.ones_like(decoder_target_tokens, dtype=bool), present
      )
    else:
      mask, cross_mask = _decoder_masks(
        present,
        decoder_target_tokens,
        encoder_segment_ids,
        decoder_segment_ids,
      )
    return self.decoder(
      encoded,
      decoder_input_tokens,
      mask,
      cross_mask,
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
    del encoder_positions
    encoded = self.encode(
      encoder_input_tokens, encoder_segment_ids, enable_dropout
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
  return layers.attention_mask(queries, keys, jnp.equal)


def _decoder_masks(
  present: Array,
  targets: Array,
  encoder_segment_ids: Array | None,
  decoder_segment_ids: Array | None,
) -> tuple[Array, Array]:
  """Returns the causal mask [B, 1, T, T] and the cross mask [B, 1, T, S]."""
  steps = jnp.broadcast_to(jnp.arange(targets.shape[1]), targets.shape)
  real = targets > 0
  mask = layers.combine_masks(
    [
      layers.attention_mask(steps, steps, jnp.greater_equal),
      layers.attention_mask(real, real),
    ]
  )
  cross_mask = layers.attention_mask(real, present)
  if decoder_segment_ids is not None:
    mask = layers.combine_masks(
      [mask, _same_segment(decoder_segment_ids, decoder_segment_ids)]
    )
  if encoder_segment_ids is not None and decoder_segment_ids is not None:
    cross_mask = layers.combine_masks(
      [cross_mask, _same_segment(decoder_segment_ids, encoder_segment_ids)]
    )
  return mask, cross_mask
