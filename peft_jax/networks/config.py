"""What a network is made of: sizes, the architecture's choices, how it runs."""

import dataclasses
import math
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp

REMAT_POLICIES = ("none", "minimal", "full")

Norm = Literal["rms", "layer"]
Block = Literal["pre_norm", "post_norm", "parallel"]
Positions = Literal[
  "relative", "relative_per_layer", "learned", "rotary", "alibi"
]
Biases = Literal["none", "qkv", "all"]
Scaling = Literal["none", "linear", "llama3", "yarn"]
Kernel = Literal["auto", "xla", "cudnn", "flash"]

_CHOICES = {
  "norm": get_args(Norm),
  "block": get_args(Block),
  "attention_bias": get_args(Biases),
  "positions": get_args(Positions),
  "attention_kernel": get_args(Kernel),
  "remat": REMAT_POLICIES,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rotary:
  """Rotary position embeddings (arXiv 2104.09864) and their extensions.

  Example:
    >>> Rotary(theta=500000.0, scaling="llama3", factor=8.0).theta
    500000.0

  Attributes:
    theta: base of the wave lengths; default 10000 (section 3.4).
    dim: components of a head that turn, the first ones; 0: all (GPT-J: 64).
    interleaved: whether components 2i and 2i + 1 turn together (the paper,
      GPT-J), or i and i + dim / 2 (LLaMA as Hugging Face keeps it).
    scaling: how positions beyond the trained length are reached: 'none';
      'linear', positions / factor; 'llama3', long waves / factor; 'yarn'
      (arXiv 2309.00071).
    factor: by how much the length grows.
    original_length: the trained length.
    low_frequency_factor: 'llama3': waves longer than original_length / this are
      stretched whole.
    high_frequency_factor: 'llama3': waves shorter than original_length / this
      are left as they are.
    beta_fast: 'yarn': turns in the original length above which a wave is left.
    beta_slow: 'yarn': turns below which a wave is stretched whole.
    attention_factor: 'yarn': multiplies queries and keys; 0: 0.1 ln factor + 1.
  """

  theta: float = 10000.0
  dim: int = 0
  interleaved: bool = False
  scaling: Scaling = "none"
  factor: float = 1.0
  original_length: int = 8192
  low_frequency_factor: float = 1.0
  high_frequency_factor: float = 4.0
  beta_fast: float = 32.0
  beta_slow: float = 1.0
  attention_factor: float = 0.0

  @property
  def magnitude(self) -> float:
    """What turned queries and keys are multiplied with."""
    if self.scaling != "yarn":
      return 1.0
    return self.attention_factor or 0.1 * math.log(self.factor) + 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerConfig:
  """Sizes and options of a network; the defaults are T5 1.1 small.

  Example:
    >>> TransformerConfig(vocab_size=32128, emb_dim=768, num_heads=12).head_dim
    64

  Attributes:
    vocab_size: V, rows of the embedding table.
    emb_dim: D.
    num_heads: H.
    num_kv_heads: heads of keys and values; 0: H. Fewer are shared by groups of
      queries (arXiv 2305.13245).
    head_dim: K.
    mlp_dim: F.
    num_encoder_layers: layers of the encoder; 0: a decoder-only network.
    num_decoder_layers: layers of the decoder.
    mlp_activations: two make the gated form: ('gelu', 'linear') is T5 1.1,
      ('silu', 'linear') LLaMA, ('relu',) T5 1.0.
    mlp_bias: whether the feed-forward block has biases.
    attention_bias: which projections have biases: 'none', 'qkv' or 'all'.
    attention_scale: multiplies the logits; 0: 1 / sqrt(K). T5: 1.
    attention_kernel: 'auto', 'xla', 'cudnn' or 'flash', see `kernels`; one that
      is named and cannot be used is an error.
    qk_norm: whether queries and keys are normalised per head (Qwen3).
    norm: 'rms' or 'layer', the one with mean and bias.
    norm_epsilon: of all norms.
    block: 'pre_norm'; 'post_norm' (BART); 'parallel', attention and
      feed-forward block read one norm (GPT-J).
    embedding_norm: whether the embedded tokens are normalised (BLOOM, BART).
    embedding_scale: multiplies the embedded tokens.
    final_norm: whether each stack ends in a norm.
    positions: 'relative' biases, 'relative_per_layer' (UMT5), 'learned',
      'rotary' or 'alibi'.
    relative_buckets: buckets of the relative biases.
    relative_max_distance: distances from here on share a bucket.
    max_positions: rows of the table of learned positions.
    first_position: row of the first token (BART: 2).
    rotary: settings of 'rotary'.
    sliding_window: how many keys a query of the decoder sees; 0: all.
    logits_via_embedding: whether the output layer is the embedding.
    logits_scale: multiplies the output of a tied layer; 0: 1 / sqrt(D) (T5).
    logits_bias: whether the output layer has a bias.
    pad_id: id that is padding in an encoder-decoder's batches.
    start_id: id that the decoder of an encoder-decoder starts with.
    dropout_rate: used only where a call enables dropout.
    dtype: dtype of the activations; parameters are float32. float64, with
      parameters loaded so, is for comparisons with other code.
    scan_layers: one compiled layer per stack instead of one per layer.
    remat: what to recompute in the backward pass: 'none', 'minimal' (all but
      matrix products), 'full'.

  Raises:
    ValueError: for an unknown choice, float16, float64 where JAX has it
      turned off, or heads that do not divide.
  """

  vocab_size: int = 32128
  emb_dim: int = 512
  num_heads: int = 6
  num_kv_heads: int = 0
  head_dim: int = 64
  mlp_dim: int = 1024
  num_encoder_layers: int = 8
  num_decoder_layers: int = 8
  mlp_activations: tuple[str, ...] = ("gelu", "linear")
  mlp_bias: bool = False
  attention_bias: Biases = "none"
  attention_scale: float = 1.0
  attention_kernel: Kernel = "auto"
  qk_norm: bool = False
  norm: Norm = "rms"
  norm_epsilon: float = 1e-6
  block: Block = "pre_norm"
  embedding_norm: bool = False
  embedding_scale: float = 1.0
  final_norm: bool = True
  positions: Positions = "relative"
  relative_buckets: int = 32
  relative_max_distance: int = 128
  max_positions: int = 0
  first_position: int = 0
  rotary: Rotary = Rotary()
  sliding_window: int = 0
  logits_via_embedding: bool = False
  logits_scale: float = 0.0
  logits_bias: bool = False
  pad_id: int = 0
  start_id: int = 0
  dropout_rate: float = 0.0
  dtype: Any = jnp.float32
  scan_layers: bool = False
  remat: str = "none"

  def __post_init__(self) -> None:
    if jnp.dtype(self.dtype) == jnp.float16:
      raise ValueError(
        "expected dtype float32 or bfloat16, found float16: activations of"
        " T5's feed-forward layers overflow in float16. Use bfloat16."
      )
    can_double = jax.config.jax_enable_x64  # pyright: ignore
    if jnp.dtype(self.dtype) == jnp.float64 and not can_double:
      raise ValueError(
        "expected jax_enable_x64 to be on with dtype float64, found it off:"
        " JAX would compute in float32. Set JAX_ENABLE_X64=1."
      )
    for name, choices in _CHOICES.items():
      if getattr(self, name) not in choices:
        raise ValueError(
          f"expected {name} to be one of {choices}, found"
          f" {getattr(self, name)!r}."
        )
    if self.num_heads % self.kv_heads:
      raise ValueError(
        f"expected num_kv_heads to divide num_heads={self.num_heads}, found"
        f" {self.num_kv_heads}."
      )
    if self.positions == "learned" and not self.max_positions:
      raise ValueError(
        "expected max_positions with positions='learned', found 0. Set the"
        " rows of the table of positions."
      )

  @property
  def kv_heads(self) -> int:
    """Heads of keys and values."""
    return self.num_kv_heads or self.num_heads

  @property
  def query_scale(self) -> float:
    """What the attention's logits are multiplied with."""
    return self.attention_scale or self.head_dim**-0.5
