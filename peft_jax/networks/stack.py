"""One layer of a transformer, and stacks of them.

Axis letters: B batch, T length, S key length, D model, H heads.
"""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen import partitioning as flax_partitioning

from peft_jax import sharding
from peft_jax.networks import layers
from peft_jax.networks.attention import Attention
from peft_jax.networks.config import TransformerConfig
from peft_jax.networks.positions import (
  AlibiBiases,
  PositionEmbed,
  RelativePositionBiases,
)
from peft_jax.precision import wide

Array = jax.Array
Stack = Literal["encoder", "decoder"]

# Arguments of `Layer.__call__` that are no arrays, `self` counted.
_STATIC = (8, 9, 10, 11)


class Layer(nn.Module):
  """Attention, cross-attention where there is an encoder, feed-forward block.

  Attributes:
    config: of the network.
    stack: the encoder's attention is called `attention`, the decoder's
      `self_attention`.
  """

  config: TransformerConfig
  stack: Stack

  @nn.compact
  def __call__(
    self,
    x: Array,
    encoded: Array | None,
    mask: Array | None,
    cross_mask: Array | None,
    bias: Array | None,
    positions: Array | None,
    offset: Array | int,
    key_length: int,
    deterministic: bool,
    decode: bool,
    cache_encoded: bool,
  ) -> Any:
    """x: [B, T, D] -> [B, T, D].

    Args:
      x: [B, T, D].
      encoded: [B, S, D] of the encoder; None: its keys and values are cached.
      mask: [B, 1, T, S].
      cross_mask: [B, 1, T, S]; None: there is no encoder.
      bias: [1 or B, H, 1 or T, S].
      positions: [B, T].
      offset: [] position of the first query, for relative biases per layer.
      key_length: S of the self-attention.
      deterministic: turns dropout off.
      decode: reads and extends the cache.
      cache_encoded: stores the cross-attention's keys and values.
    """
    cfg = self.config
    if cfg.positions == "relative_per_layer":
      relpos_bias = relative_biases(cfg, self.stack)
      bias = relpos_bias(x.shape[-2], key_length, offset)
    name = "attention" if self.stack == "encoder" else "self_attention"

    def attend(y: Array) -> Array:
      return _attention(cfg, name)(
        y,
        y,
        mask,
        bias,
        positions,
        positions,
        deterministic=deterministic,
        decode=decode,
      )

    def attend_encoded(y: Array) -> Array:
      return _attention(cfg, "encoder_decoder_attention", cross=True)(
        y,
        encoded,
        cross_mask,
        deterministic=deterministic,
        cache_once=cache_encoded,
      )

    def feed(y: Array) -> Array:
      return _mlp(cfg)(y, deterministic=deterministic)

    if cfg.block == "parallel":
      y = norm(cfg, f"pre_{name}_layer_norm")(x)
      x = self._residual(x, attend(y) + feed(y), deterministic)
    else:
      x = self._sublayer(name, x, attend, deterministic)
      if cross_mask is not None:
        x = self._sublayer("cross_attention", x, attend_encoded, deterministic)
      x = self._sublayer("mlp", x, feed, deterministic)
    return (x, None) if cfg.scan_layers else x

  def _sublayer(
    self,
    name: str,
    x: Array,
    function: Callable[[Array], Array],
    deterministic: bool,
  ) -> Array:
    """x: [B, T, D] -> [B, T, D], with the norm before or behind."""
    if self.config.block == "post_norm":
      x = self._residual(x, function(x), deterministic)
      return norm(self.config, f"post_{name}_layer_norm")(x)
    y = norm(self.config, f"pre_{name}_layer_norm")(x)
    return self._residual(x, function(y), deterministic)

  def _residual(self, x: Array, y: Array, deterministic: bool) -> Array:
    total = x + dropout(self.config)(y, deterministic=deterministic)
    return sharding.constrain(total, ("batch", "length", "embed"))


def norm(cfg: TransformerConfig, name: str) -> layers.LayerNorm:
  """Returns a norm of the network's kind."""
  return layers.LayerNorm(
    kind=cfg.norm, epsilon=cfg.norm_epsilon, dtype=cfg.dtype, name=name
  )


def dropout(cfg: TransformerConfig) -> nn.Dropout:
  """Returns dropout that T5 shares along the length."""
  return nn.Dropout(cfg.dropout_rate, broadcast_dims=(-2,))


def relative_biases(
  cfg: TransformerConfig, stack: Stack
) -> RelativePositionBiases:
  """Returns the relative biases of a stack, or of one of its layers."""
  return RelativePositionBiases(
    num_heads=cfg.num_heads,
    bidirectional=stack == "encoder",
    num_buckets=cfg.relative_buckets,
    max_distance=cfg.relative_max_distance,
    dtype=cfg.dtype,
    name="relpos_bias",
  )


def alibi_biases(cfg: TransformerConfig) -> AlibiBiases:
  """Returns ALiBi's biases of a stack."""
  return AlibiBiases(
    num_heads=cfg.num_heads, dtype=wide(cfg.dtype), name="alibi_bias"
  )


def _attention(
  cfg: TransformerConfig, name: str, cross: bool = False
) -> Attention:
  rotary = cfg.rotary if cfg.positions == "rotary" and not cross else None
  return Attention(
    num_heads=cfg.num_heads,
    num_kv_heads=cfg.num_kv_heads,
    head_dim=cfg.head_dim,
    scale=cfg.query_scale,
    use_bias=cfg.attention_bias != "none",
    use_out_bias=cfg.attention_bias == "all",
    rotary=rotary,
    norm_epsilon=cfg.norm_epsilon if cfg.qk_norm else 0.0,
    dropout_rate=cfg.dropout_rate,
    kernel=cfg.attention_kernel,
    dtype=cfg.dtype,
    name=name,
  )


def _mlp(cfg: TransformerConfig) -> layers.MlpBlock:
  return layers.MlpBlock(
    intermediate_dim=cfg.mlp_dim,
    activations=cfg.mlp_activations,
    use_bias=cfg.mlp_bias,
    dropout_rate=cfg.dropout_rate,
    dtype=cfg.dtype,
    name="mlp",
  )


def embed(
  cfg: TransformerConfig,
  embedder: layers.Embed,
  tokens: Array,
  positions: Array | None,
  deterministic: bool,
) -> Array:
  """Returns the input of the first layer, [B, T, D].

  Call inside a stack's `__call__`.

  Args:
    cfg: the network's.
    embedder: of the tokens.
    tokens: [B, T] ids.
    positions: [B, T], for those that are learned.
    deterministic: turns dropout off.
  """
  x = embedder(tokens)
  if cfg.embedding_scale != 1.0:
    x = x * jnp.asarray(cfg.embedding_scale, x.dtype)
  if cfg.positions == "learned":
    assert positions is not None
    x = x + PositionEmbed(
      num_embeddings=cfg.max_positions,
      features=cfg.emb_dim,
      first=cfg.first_position,
      dtype=cfg.dtype,
      name="position_embedder",
    )(positions)
  if cfg.embedding_norm:
    x = norm(cfg, "embedding_norm")(x)
  x = dropout(cfg)(x, deterministic=deterministic)
  return sharding.constrain(x, ("batch", "length", "embed"))


def apply_layers(
  cfg: TransformerConfig, stack: Stack, length: int, x: Array, *args: Any
) -> Array:
  """Applies `length` layers to x [B, T, D]: scanned, or one after the other.

  Call inside a stack's `__call__`; `args` are those of `Layer` behind `x`.
  """
  layer = Layer
  if cfg.remat != "none":
    policy = None
    if cfg.remat == "minimal":
      policy = jax.checkpoint_policies.checkpoint_dots_with_no_batch_dims
    layer = nn.remat(
      layer,
      prevent_cse=not cfg.scan_layers,
      policy=policy,
      static_argnums=_STATIC,
    )
  if not cfg.scan_layers:
    for i in range(length):
      x = layer(config=cfg, stack=stack, name=f"layers_{i}")(x, *args)
    return x

  scanned = flax_partitioning.scan_with_axes(
    layer,
    variable_axes={"params": 0, "cache": 0},
    split_rngs={"params": True, "dropout": True},
    in_axes=(nn.broadcast,) * len(args),  # pyright: ignore
    length=length,
    axis_name="layers",
  )
  x, _ = scanned(config=cfg, stack=stack, name="layers")(x, *args)
  return x


def logits(cfg: TransformerConfig, embedder: layers.Embed, y: Array) -> Array:
  """y: [B, T, D] -> [B, T, V] float32.

  Call inside the decoder's `__call__`. The loss is computed in float32.
  """
  if not cfg.logits_via_embedding:
    return layers.DenseGeneral(
      cfg.vocab_size,
      kernel_axes=("embed", "vocab"),
      use_bias=cfg.logits_bias,
      dtype=wide(cfg.dtype),
      name="logits_dense",
    )(y)
  # T5's shared table has unit variance, an output layer's has 1 / D.
  scale = cfg.logits_scale or cfg.emb_dim**-0.5
  found = embedder.attend(y)
  found = found * jnp.asarray(scale, found.dtype)
  if cfg.logits_bias:
    bias = sharding.param_with_axes(
      "logits_bias",
      nn.initializers.zeros,
      (cfg.vocab_size,),
      jnp.float32,
      axes=("vocab",),
    )
    found = found + bias.astype(found.dtype)[None, None, :]
  return found
