"""Hugging Face's configurations and module names of every architecture.

One table per architecture: our module -> theirs, `{}` is the layer. It serves
backbones and adapters alike.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

from peft_jax.networks.config import Rotary, TransformerConfig

Fields = dict[str, Any]


class ArchitectureError(ValueError):
  """A configuration that these networks cannot be."""


@dataclasses.dataclass(frozen=True)
class Module:
  """Where a module of ours lies in Hugging Face's tree.

  Attributes:
    name: their dotted name; `{}` is the layer.
    part: which third of a fused query, key and value it is.
    fused: how those are joined: 'blocks', one behind the other (GPT-2), or
      'heads', head by head (BLOOM); '' if they are not.
  """

  name: str
  part: int = 0
  fused: Literal["", "blocks", "heads"] = ""


@dataclasses.dataclass(frozen=True)
class Architecture:
  """One `model_type`.

  Attributes:
    fields: configuration -> fields of `TransformerConfig`.
    modules: our module -> theirs.
    leaves: our leaf -> their tensor, for those that are no module's.
    prefix: of their names, which files of the bare model leave out.
    transposed: whether kernels lie as [outputs, inputs] (torch's Linear; not
      GPT-2's Conv1D).
    ignored: tensors that hold nothing of their own, as suffixes.
  """

  fields: Callable[[Mapping[str, Any]], Fields]
  modules: Mapping[str, Module]
  leaves: Mapping[str, str] = dataclasses.field(default_factory=dict)
  prefix: str = ""
  transposed: bool = True
  ignored: tuple[str, ...] = ()


_ACTIVATIONS = {
  "gelu": "gelu_exact",
  "gelu_new": "gelu",
  "gelu_pytorch_tanh": "gelu",
  "gelu_fast": "gelu",
  "relu": "relu",
  "silu": "silu",
  "swish": "silu",
  "tanh": "tanh",
}


def _activation(name: str) -> str:
  if name not in _ACTIVATIONS:
    raise ArchitectureError(
      f"expected an activation of {sorted(_ACTIVATIONS)}, found {name!r}."
    )
  return _ACTIVATIONS[name]


def _refuse(config: Mapping[str, Any], **defaults: Any) -> None:
  """Raises for a setting that these networks do not have.

  Raises:
    ArchitectureError: naming it.
  """
  for name, default in defaults.items():
    found = config.get(name, default)
    if found != default:
      raise ArchitectureError(
        f"expected {name}={default!r} in config.json, found {found!r}, which"
        " these networks do not have."
      )


def _t5_fields(config: Mapping[str, Any]) -> Fields:
  form = config.get("feed_forward_proj", "relu")
  activation = form.removeprefix("gated-")
  # Their `gated-gelu` is T5 1.1's, the approximation.
  activation = "gelu_new" if form == "gated-gelu" else activation
  activations: tuple[str, ...] = (_activation(activation),)
  if form.startswith("gated-"):
    activations = (*activations, "linear")
  tied = config.get("tie_word_embeddings", True)
  scaled = config.get("scale_decoder_outputs", tied)
  layers = config["num_layers"]
  each = config["model_type"] == "umt5"
  return {
    "vocab_size": config["vocab_size"],
    "emb_dim": config["d_model"],
    "num_heads": config["num_heads"],
    "head_dim": config["d_kv"],
    "mlp_dim": config["d_ff"],
    "num_encoder_layers": layers,
    "num_decoder_layers": config.get("num_decoder_layers") or layers,
    "mlp_activations": activations,
    "dropout_rate": config.get("dropout_rate", 0.1),
    "norm_epsilon": config.get("layer_norm_epsilon", 1e-6),
    "positions": "relative_per_layer" if each else "relative",
    "relative_buckets": config.get("relative_attention_num_buckets", 32),
    "relative_max_distance": config.get("relative_attention_max_distance", 128),
    "logits_via_embedding": tied,
    "logits_scale": 0.0 if scaled else 1.0,
    "pad_id": config.get("pad_token_id", 0),
    "start_id": config.get("decoder_start_token_id") or 0,
  }


def _t5_modules(*, per_layer: bool) -> dict[str, Module]:
  result = {
    "token_embedder": "shared",
    "decoder/logits_dense": "lm_head",
    "encoder/encoder_norm": "encoder.final_layer_norm",
    "decoder/decoder_norm": "decoder.final_layer_norm",
  }
  parts = {
    "encoder": (("attention", "SelfAttention"),),
    "decoder": (
      ("self_attention", "SelfAttention"),
      ("encoder_decoder_attention", "EncDecAttention"),
    ),
  }
  norms = {
    "encoder": ("attention", "mlp"),
    "decoder": ("self_attention", "cross_attention", "mlp"),
  }
  for stack, attentions in parts.items():
    ours, theirs = f"{stack}/layers_{{}}", f"{stack}.block.{{}}.layer"
    for i, (name, hf_name) in enumerate(attentions):
      for ours_leaf, hf_leaf in zip(
        ("query", "key", "value", "out"), "qkvo", strict=True
      ):
        result[f"{ours}/{name}/{ours_leaf}"] = (
          f"{theirs}.{i}.{hf_name}.{hf_leaf}"
        )
    for i, name in enumerate(norms[stack]):
      result[f"{ours}/pre_{name}_layer_norm"] = f"{theirs}.{i}.layer_norm"
    for name in ("wi", "wi_0", "wi_1", "wo"):
      last = len(attentions)
      result[f"{ours}/mlp/{name}"] = f"{theirs}.{last}.DenseReluDense.{name}"
    biases = f"{stack}.block.{{}}.layer.0.SelfAttention.relative_attention_bias"
    if per_layer:
      result[f"{ours}/relpos_bias"] = biases
    else:
      result[f"{stack}/relpos_bias"] = biases.format(0)
  return {path: Module(name) for path, name in result.items()}


def _bart_fields(config: Mapping[str, Any]) -> Fields:
  if config["encoder_attention_heads"] != config["decoder_attention_heads"]:
    raise ArchitectureError(
      "expected as many heads in the decoder as in the encoder, found"
      f" {config['decoder_attention_heads']} and"
      f" {config['encoder_attention_heads']}."
    )
  if config["encoder_ffn_dim"] != config["decoder_ffn_dim"]:
    raise ArchitectureError(
      "expected one size of feed-forward blocks, found"
      f" {config['encoder_ffn_dim']} and {config['decoder_ffn_dim']}."
    )
  _refuse(config, normalize_before=False, add_final_layer_norm=False)
  size, heads = config["d_model"], config["encoder_attention_heads"]
  return {
    "vocab_size": config["vocab_size"],
    "emb_dim": size,
    "num_heads": heads,
    "head_dim": size // heads,
    "mlp_dim": config["encoder_ffn_dim"],
    "num_encoder_layers": config["encoder_layers"],
    "num_decoder_layers": config["decoder_layers"],
    "mlp_activations": (_activation(config["activation_function"]),),
    "mlp_bias": True,
    "attention_bias": "all",
    "attention_scale": 0.0,
    "norm": "layer",
    "norm_epsilon": 1e-5,
    "block": "post_norm",
    "embedding_norm": True,
    "embedding_scale": size**0.5 if config.get("scale_embedding") else 1.0,
    "final_norm": False,
    "positions": "learned",
    # Two rows in front are no position's.
    "max_positions": config["max_position_embeddings"] + 2,
    "first_position": 2,
    "dropout_rate": config.get("dropout", 0.1),
    "logits_via_embedding": True,
    "logits_scale": 1.0,
    "logits_bias": True,
    "pad_id": config.get("pad_token_id", 1),
    "start_id": config.get("decoder_start_token_id", 2),
  }


def _bart_modules() -> dict[str, Module]:
  result = {"token_embedder": "model.shared"}
  for stack in ("encoder", "decoder"):
    ours, theirs = f"{stack}/layers_{{}}", f"model.{stack}.layers.{{}}"
    first = "attention" if stack == "encoder" else "self_attention"
    attentions = [(first, first, "self_attn")]
    if stack == "decoder":
      attentions.append(
        ("encoder_decoder_attention", "cross_attention", "encoder_attn")
      )
    for name, norm, hf_name in attentions:
      result[f"{ours}/post_{norm}_layer_norm"] = (
        f"{theirs}.{hf_name}_layer_norm"
      )
      for leaf, hf_leaf in _PROJECTIONS:
        hf_leaf = "out_proj" if leaf == "out" else hf_leaf
        result[f"{ours}/{name}/{leaf}"] = f"{theirs}.{hf_name}.{hf_leaf}"
    result |= {
      f"{stack}/position_embedder": f"model.{stack}.embed_positions",
      f"{stack}/embedding_norm": f"model.{stack}.layernorm_embedding",
      f"{ours}/post_mlp_layer_norm": f"{theirs}.final_layer_norm",
      f"{ours}/mlp/wi": f"{theirs}.fc1",
      f"{ours}/mlp/wo": f"{theirs}.fc2",
    }
  return {path: Module(name) for path, name in result.items()}


_PROJECTIONS = (
  ("query", "q_proj"),
  ("key", "k_proj"),
  ("value", "v_proj"),
  ("out", "o_proj"),
)
_LAYER = "decoder/layers_{}"
_NORM = f"{_LAYER}/pre_self_attention_layer_norm"
_MLP_NORM = f"{_LAYER}/pre_mlp_layer_norm"
_SELF = f"{_LAYER}/self_attention"


def _modules(
  layer: str, inner: Mapping[str, str], outer: Mapping[str, str]
) -> dict[str, Module]:
  """Returns the table of a decoder-only architecture.

  Args:
    layer: their name of a layer.
    inner: our module -> theirs within a layer.
    outer: our module -> theirs.
  """
  found = {path: Module(f"{layer}.{name}") for path, name in inner.items()}
  return found | {path: Module(name) for path, name in outer.items()}


def _fused(name: str, kind: Literal["blocks", "heads"]) -> dict[str, Module]:
  return {
    f"{_SELF}/{leaf}": Module(name, part, kind)
    for part, leaf in enumerate(("query", "key", "value"))
  }


def _gpt_fields(config: Mapping[str, Any]) -> Fields:
  """What GPT-2's and GPT-J's configurations have in common."""
  size = config["n_embd"]
  return {
    "vocab_size": config["vocab_size"],
    "emb_dim": size,
    "num_heads": config["n_head"],
    "head_dim": size // config["n_head"],
    "mlp_dim": config.get("n_inner") or 4 * size,
    "num_decoder_layers": config["n_layer"],
    "mlp_activations": (_activation(config["activation_function"]),),
    "mlp_bias": True,
    "norm": "layer",
    "norm_epsilon": config.get("layer_norm_epsilon", 1e-5),
    "logits_scale": 1.0,
  }


def _gpt2_fields(config: Mapping[str, Any]) -> Fields:
  _refuse(
    config,
    scale_attn_by_inverse_layer_idx=False,
    scale_attn_weights=True,
    add_cross_attention=False,
  )
  return _gpt_fields(config) | {
    "attention_bias": "all",
    "positions": "learned",
    "max_positions": config["n_positions"],
    "dropout_rate": config.get("resid_pdrop", 0.1),
    "logits_via_embedding": config.get("tie_word_embeddings", True),
  }


def _gptj_fields(config: Mapping[str, Any]) -> Fields:
  return _gpt_fields(config) | {
    "block": "parallel",
    "positions": "rotary",
    "rotary": Rotary(dim=config.get("rotary_dim") or 0, interleaved=True),
    "dropout_rate": config.get("resid_pdrop", 0.0),
    "logits_via_embedding": config.get("tie_word_embeddings", False),
    "logits_bias": True,
  }


def _bloom_fields(config: Mapping[str, Any]) -> Fields:
  _refuse(config, apply_residual_connection_post_layernorm=False)
  size = config.get("hidden_size") or config["n_embed"]
  heads = config.get("n_head") or config["num_attention_heads"]
  return {
    "vocab_size": config["vocab_size"],
    "emb_dim": size,
    "num_heads": heads,
    "head_dim": size // heads,
    "mlp_dim": 4 * size,
    "num_decoder_layers": config.get("n_layer") or config["num_hidden_layers"],
    "mlp_activations": ("gelu",),
    "mlp_bias": True,
    "attention_bias": "all",
    "norm": "layer",
    "norm_epsilon": config.get("layer_norm_epsilon", 1e-5),
    "embedding_norm": True,
    "positions": "alibi",
    "dropout_rate": config.get("hidden_dropout", 0.0),
    "logits_via_embedding": config.get("tie_word_embeddings", True),
    "logits_scale": 1.0,
  }


def _llama_fields(config: Mapping[str, Any]) -> Fields:
  kind = config["model_type"]
  size, heads = config["hidden_size"], config["num_attention_heads"]
  bias = "none"
  if kind == "qwen2":
    bias = "qkv"
  elif config.get("attention_bias"):
    bias = "all"
  window = config.get("sliding_window") or 0
  if kind in ("qwen2", "qwen3") and not config.get("use_sliding_window"):
    window = 0
  kinds = config.get("layer_types") or []
  if len(set(kinds)) > 1:
    raise ArchitectureError(
      "expected one kind of attention in all layers, found layer_types"
      f" {sorted(set(kinds))}."
    )
  if kinds and kinds[0] == "full_attention":
    window = 0
  return {
    "vocab_size": config["vocab_size"],
    "emb_dim": size,
    "num_heads": heads,
    "num_kv_heads": config.get("num_key_value_heads") or heads,
    "head_dim": config.get("head_dim") or size // heads,
    "mlp_dim": config["intermediate_size"],
    "num_decoder_layers": config["num_hidden_layers"],
    "mlp_activations": (_activation(config["hidden_act"]), "linear"),
    "mlp_bias": bool(config.get("mlp_bias")),
    "attention_bias": bias,
    "qk_norm": kind == "qwen3",
    "norm_epsilon": config["rms_norm_eps"],
    "positions": "rotary",
    "rotary": _rotary(config),
    "sliding_window": window,
    "logits_via_embedding": bool(config.get("tie_word_embeddings")),
    "logits_scale": 1.0,
  }


def _rotary(config: Mapping[str, Any]) -> Rotary:
  """Reads `rope_parameters` (transformers 5) or `rope_scaling`."""
  found = dict(
    config.get("rope_parameters") or config.get("rope_scaling") or {}
  )
  theta = found.get("rope_theta", config.get("rope_theta", 10000.0))
  kind = found.get("rope_type") or found.get("type") or "default"
  length = found.get("original_max_position_embeddings") or config.get(
    "max_position_embeddings", 8192
  )
  match kind:
    case "default":
      return Rotary(theta=theta)
    case "linear":
      return Rotary(theta=theta, scaling="linear", factor=found["factor"])
    case "llama3":
      return Rotary(
        theta=theta,
        scaling="llama3",
        factor=found["factor"],
        original_length=length,
        low_frequency_factor=found["low_freq_factor"],
        high_frequency_factor=found["high_freq_factor"],
      )
    case "yarn":
      return Rotary(
        theta=theta,
        scaling="yarn",
        factor=found["factor"],
        original_length=length,
        beta_fast=found.get("beta_fast") or 32.0,
        beta_slow=found.get("beta_slow") or 1.0,
        attention_factor=found.get("attention_factor") or 0.0,
      )
  raise ArchitectureError(
    "expected rotary embeddings of type default, linear, llama3 or yarn, found"
    f" {kind!r}."
  )


def _llama_modules() -> dict[str, Module]:
  inner = {
    _NORM: "input_layernorm",
    _MLP_NORM: "post_attention_layernorm",
    f"{_SELF}/query_norm": "self_attn.q_norm",
    f"{_SELF}/key_norm": "self_attn.k_norm",
    f"{_LAYER}/mlp/wi_0": "mlp.gate_proj",
    f"{_LAYER}/mlp/wi_1": "mlp.up_proj",
    f"{_LAYER}/mlp/wo": "mlp.down_proj",
  }
  for leaf, name in _PROJECTIONS:
    inner[f"{_SELF}/{leaf}"] = f"self_attn.{name}"
  outer = {
    "token_embedder": "model.embed_tokens",
    "decoder/decoder_norm": "model.norm",
    "decoder/logits_dense": "lm_head",
  }
  return _modules("model.layers.{}", inner, outer)


_T5 = Architecture(
  fields=_t5_fields,
  modules=_t5_modules(per_layer=False),
  ignored=("coder.embed_tokens.weight",),
)
_UMT5 = dataclasses.replace(_T5, modules=_t5_modules(per_layer=True))
_BART = Architecture(
  fields=_bart_fields,
  modules=_bart_modules(),
  leaves={"decoder/logits_bias": "final_logits_bias"},
  prefix="model.",
  ignored=("coder.embed_tokens.weight", "lm_head.weight"),
)
_GPT2 = Architecture(
  fields=_gpt2_fields,
  modules=_modules(
    "transformer.h.{}",
    {
      _NORM: "ln_1",
      _MLP_NORM: "ln_2",
      f"{_SELF}/out": "attn.c_proj",
      f"{_LAYER}/mlp/wi": "mlp.c_fc",
      f"{_LAYER}/mlp/wo": "mlp.c_proj",
    },
    {
      "token_embedder": "transformer.wte",
      "decoder/position_embedder": "transformer.wpe",
      "decoder/decoder_norm": "transformer.ln_f",
      "decoder/logits_dense": "lm_head",
    },
  )
  | _fused("transformer.h.{}.attn.c_attn", "blocks"),
  prefix="transformer.",
  transposed=False,
  ignored=(".attn.bias", ".attn.masked_bias"),
)
_GPTJ = Architecture(
  fields=_gptj_fields,
  modules=_modules(
    "transformer.h.{}",
    {
      _NORM: "ln_1",
      f"{_SELF}/query": "attn.q_proj",
      f"{_SELF}/key": "attn.k_proj",
      f"{_SELF}/value": "attn.v_proj",
      f"{_SELF}/out": "attn.out_proj",
      f"{_LAYER}/mlp/wi": "mlp.fc_in",
      f"{_LAYER}/mlp/wo": "mlp.fc_out",
    },
    {
      "token_embedder": "transformer.wte",
      "decoder/decoder_norm": "transformer.ln_f",
      "decoder/logits_dense": "lm_head",
    },
  ),
  prefix="transformer.",
  ignored=(".attn.bias", ".attn.masked_bias", ".attn.embed_positions"),
)
_BLOOM = Architecture(
  fields=_bloom_fields,
  modules=_modules(
    "transformer.h.{}",
    {
      _NORM: "input_layernorm",
      _MLP_NORM: "post_attention_layernorm",
      f"{_SELF}/out": "self_attention.dense",
      f"{_LAYER}/mlp/wi": "mlp.dense_h_to_4h",
      f"{_LAYER}/mlp/wo": "mlp.dense_4h_to_h",
    },
    {
      "token_embedder": "transformer.word_embeddings",
      "decoder/embedding_norm": "transformer.word_embeddings_layernorm",
      "decoder/decoder_norm": "transformer.ln_f",
      "decoder/logits_dense": "lm_head",
    },
  )
  | _fused("transformer.h.{}.self_attention.query_key_value", "heads"),
  prefix="transformer.",
)
_LLAMA = Architecture(
  fields=_llama_fields,
  modules=_llama_modules(),
  prefix="model.",
  ignored=(".rotary_emb.inv_freq",),
)

ARCHITECTURES: dict[str, Architecture] = {
  "t5": _T5,
  "mt5": _T5,
  "umt5": _UMT5,
  "bart": _BART,
  "gpt2": _GPT2,
  "gptj": _GPTJ,
  "bloom": _BLOOM,
  "llama": _LLAMA,
  "mistral": _LLAMA,
  "qwen2": _LLAMA,
  "qwen3": _LLAMA,
}


def of(config: Mapping[str, Any]) -> Architecture:
  """Returns the architecture of a `config.json`.

  Raises:
    ArchitectureError: for an unknown `model_type`.
  """
  kind = config.get("model_type")
  if kind not in ARCHITECTURES:
    raise ArchitectureError(
      f"expected a model_type of {sorted(ARCHITECTURES)} in config.json, found"
      f" {kind!r}."
    )
  return ARCHITECTURES[kind]


def network_config(
  config: Mapping[str, Any], **overrides: Any
) -> TransformerConfig:
  """Returns the configuration of our network for a `config.json`.

  Example:
    >>> network_config({"model_type": "gpt2", "vocab_size": 50257,
    ...   "n_embd": 768, "n_head": 12, "n_layer": 12, "n_positions": 1024,
    ...   "activation_function": "gelu_new"}).mlp_dim
    3072

  Args:
    config: the parsed file.
    **overrides: fields of `TransformerConfig` to replace.

  Raises:
    ArchitectureError: for what these networks cannot be.
  """
  architecture = of(config)
  fields = architecture.fields(config)
  if "num_encoder_layers" not in fields:
    # Decoder-only: what the defaults, which are T5's, would make wrong.
    fields = {"num_encoder_layers": 0, "attention_scale": 0.0} | fields
  return TransformerConfig(**(fields | overrides))
