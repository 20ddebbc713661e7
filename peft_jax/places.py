"""How an adapter acts at each position: one function per position.

`inject` calls `place` for every module that a rule claims. The result is called
in the module's place: it makes the adapter as a child of the module, so that
the backbone's own tree does not change.
"""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from peft_jax.adapters.base import Adapter, Leaf, Site
from peft_jax.rules import Rule, TargetError

Array = jax.Array
Call = Callable[..., Any]

# How the self-attention of a layer is called in the encoder and the decoder.
_SELF = ("/attention", "/self_attention")
# Modules that make something of positions.
_POSITIONAL = ("position_embedder", "alibi_bias", "relpos_bias")


@dataclasses.dataclass(kw_only=True)
class Trace:
  """What one trace of the network needs to know, and what it met.

  Attributes:
    values: path -> leaf of what was made outside of modules; None while these
      are only being asked for.
    wanted: path -> what was asked for.
    sites: rule -> per-layer paths it was placed at.
    candidates: per-layer paths of all modules.
    slots: stack -> vectors that prompts put in front of it.
    shifts: stack -> positions that prefixes take in front of its tokens.
    enable_dropout: whether the outermost call drops; None if it does not say.
    prompts: what the stack that runs now puts in front of its tokens.
    in_front: whether the tokens of the stack that runs now have slots in front.
    prefixes: of the attention that runs now: module path -> what joins its
      output.
  """

  values: Mapping[str, Array] | None
  wanted: dict[str, Leaf] = dataclasses.field(default_factory=dict)
  sites: dict[Rule, dict[str, None]] = dataclasses.field(default_factory=dict)
  candidates: dict[str, None] = dataclasses.field(default_factory=dict)
  slots: Mapping[str, int] = dataclasses.field(default_factory=dict)
  shifts: Mapping[str, int] = dataclasses.field(default_factory=dict)
  enable_dropout: bool | None = None
  in_front: bool = False
  prompts: list[Array] = dataclasses.field(default_factory=list)
  prefixes: list[dict[str, Array]] = dataclasses.field(default_factory=list)

  def note_call(self, call: Call, args: tuple, kwargs: dict) -> None:
    """Reads the outermost call: projections are not told what it says.

    Raises:
      TargetError: for a packed batch under a prompt.
    """
    if self.enable_dropout is not None:
      return
    bound = inspect.signature(call).bind(*args, **kwargs)
    bound.apply_defaults()
    self.enable_dropout = bound.arguments.get("enable_dropout")
    packed = bound.arguments.get("encoder_segment_ids") is not None
    if packed and any(self.slots.values()):
      raise TargetError(
        "expected unpacked batches under a prompt, found encoder_segment_ids:"
        " one prompt cannot stand in front of every example of a packed row."
        " Turn packing off."
      )

  def deterministic(self, module: nn.Module) -> bool:
    """Whether adapters in `module` must not drop."""
    if self.enable_dropout is None:
      return not module.has_rng("dropout")
    return not self.enable_dropout

  def shared(self, rule: Rule, path: str, site: Site) -> dict[str, Array]:
    """Returns the rule's leaves that were made outside of modules."""
    found = {}
    for name, leaf in rule.adapter.shared_leaves(site).items():
      full = f"{external_scope(rule, path)}/{name}"
      self.wanted[full] = leaf
      if self.values is None:
        found[name] = jnp.zeros(leaf.shape, leaf.dtype)
      else:
        found[name] = self.values[full]
    return found


def external_scope(rule: Rule, path: str) -> str:
  """Returns where a rule's leaves lie that no module of the network holds."""
  if rule.adapter.position == "embedding":
    return f"{path}/{rule.name}"
  return f"{rule.name}_shared/{rule.adapter.group(path)}"


def place(rule: Rule, module: nn.Module, call: Call, trace: Trace) -> Call:
  """Returns `call` with the rule's adapter at its position.

  Raises:
    TargetError: if the module is none that the position is for.
  """
  position = rule.adapter.position
  if position == "embedding":
    return _on_embedding(rule, module, call, trace)
  if not hasattr(type(module).__call__, "compact"):
    raise TargetError(
      f"pattern {rule.pattern!r} matched {_path(module)}, whose __call__ is not"
      " @nn.compact: no adapter can be made inside it. Narrow the pattern."
    )
  wrap = {
    "input": _on_input,
    "output": _on_output,
    "attention": _in_attention,
    "stack": _in_stack,
  }[position]
  return wrap(rule, module, call, trace)


def _path(module: nn.Module) -> str:
  return "/".join(module.path)


def _child(rule: Rule, module: nn.Module) -> Adapter:
  return rule.adapter.clone(parent=module, name=rule.name)


def _on_input(rule: Rule, module: nn.Module, call: Call, trace: Trace) -> Call:
  adapter, deterministic = _child(rule, module), trace.deterministic(module)

  def adapted(x: Array, *args: Any, **kwargs: Any) -> Any:
    if rule.adapter.fills_slots and not trace.in_front:
      return call(x, *args, **kwargs)
    site = _with_shared(rule, module, trace, _projection(module, x))
    return call(adapter(x, None, site, deterministic), *args, **kwargs)

  return adapted


def _on_output(rule: Rule, module: nn.Module, call: Call, trace: Trace) -> Call:
  adapter, deterministic = _child(rule, module), trace.deterministic(module)

  def adapted(x: Array, *args: Any, **kwargs: Any) -> Any:
    y = call(x, *args, **kwargs)
    site = _with_shared(rule, module, trace, _projection(module, x))
    return adapter(x, y, site, deterministic)

  return adapted


def _projection(module: nn.Module, x: Array) -> Site:
  """Reads the site's shape off the module's fields and its input."""
  axis = np.atleast_1d(getattr(module, "axis", -1))
  inputs = tuple(x.shape[-len(axis) :])
  features = getattr(module, "features", None)
  outputs = inputs
  if features is not None:
    outputs = tuple(int(size) for size in np.atleast_1d(features))
  names = getattr(module, "kernel_axes", None) or ("embed", "embed")
  # A kernel has one name per axis, or one per side where the axes are joined.
  split = len(inputs) if len(names) == len(inputs) + len(outputs) else 1
  site = Site(
    inputs=inputs,
    outputs=outputs,
    input_axis=_join(names[:split]),
    output_axis=_join(names[split:]),
  )
  kernel = module.get_variable("params", "kernel")
  if kernel is None:
    return site
  kernel = kernel.reshape(site.input_size, site.output_size)
  bias = module.get_variable("params", "bias")
  return dataclasses.replace(site, kernel=kernel, bias=bias)


def _join(names: Any) -> str:
  """Name of several axes joined to one, as T5X names them."""
  return names[0] if len(names) == 1 else "joined_kv"


def _with_shared(
  rule: Rule, module: nn.Module, trace: Trace, site: Site
) -> Site:
  shared = trace.shared(rule, _path(module), site)
  return dataclasses.replace(site, shared=shared) if shared else site


def _in_attention(
  rule: Rule, module: nn.Module, call: Call, trace: Trace
) -> Call:
  """Puts keys and values in front of the attention's own.

  They join the output of its projections `key` and `value`; mask and bias grow
  by as many columns. A cache holds them in its first slots: there they are
  written once, when it is made.
  """
  heads = getattr(module, "num_heads", None)
  if heads is None:
    raise TargetError(
      f"pattern {rule.pattern!r} matched {_path(module)}, which is no attention"
      " module. A prefix belongs to .*attention."
    )
  adapter, path = _child(rule, module), _path(module)
  heads = getattr(module, "num_kv_heads", 0) or heads
  shifts = path.endswith(_SELF) and trace.shifts.get(path.split("/")[0], 0) > 0
  # Keys that are normalised are so before they join: a prefix is as it is.
  key_name = "key_norm" if getattr(module, "norm_epsilon", 0) else "key"

  def adapted(*args: Any, **kwargs: Any) -> Any:
    bound = _bind(module, args, kwargs)
    x, given = bound.arguments["inputs_q"], bound.arguments
    site = Site(
      inputs=(x.shape[-1],),
      outputs=(heads, module.head_dim),
      input_axis="embed",
      output_axis="joined_kv",
    )
    site = _with_shared(rule, module, trace, site)
    key, value, gate = adapter(x, site)  # [P, H, K] twice, [B, 1, T, P] or None
    decodes = given.get("decode", False)
    extends = decodes and module.has_variable("cache", "cached_key")
    cached = None
    if extends:
      axis = getattr(module, "cache_length_axis", -1)
      cached = module.get_variable("cache", "cached_key").shape[axis]
    _count_slots(given, key.shape[0])
    _widen(given, x, key.shape[0], gate, shifts, cached)
    _shift_positions(given, key.shape[0], shifts, joins=not extends)
    if not extends:
      trace.prefixes.append({f"{path}/{key_name}": key, f"{path}/value": value})
    y = call(*bound.args[1:], **bound.kwargs)
    if not extends:
      trace.prefixes.pop()
    if decodes and not extends:
      _fill_cache(module, key, value)
    return y

  return adapted


def _count_slots(given: dict[str, Any], length: int) -> None:
  """Tells T5X's decoder-only network that a read text has slots in front.

  It reads a text at once, its prefix with it, and keeps that many slots.
  """
  if not given.get("prefill"):
    return
  lengths = given.get("prefill_lengths")
  if lengths is None:
    lengths = jnp.sum(given["mask"][:, 0, 0, :], axis=-1).astype(jnp.int32)
  given["prefill_lengths"] = lengths + length


def _bind(module: nn.Module, args: tuple, kwargs: dict) -> Any:
  """Returns the arguments of a module's call by name."""
  return inspect.signature(type(module).__call__).bind(module, *args, **kwargs)


def _widen(
  given: dict[str, Any],
  x: Array,
  length: int,
  gate: Array | None,
  shifts: bool,
  cached: int | None,
) -> None:
  """Adds the prefix's columns to the mask and the bias of a call.

  `cached` is the length of the cache that the call extends, prefix included.
  A bias of positions has them already where the prefix takes positions.
  """
  mask, bias = given.get("mask"), given.get("bias")
  if mask is not None:
    given["mask"] = _pad(mask, length, 0, value=1)
  if bias is not None and not shifts:
    # T5X hands over the bias of all steps while it decodes, and slices it at
    # the cache's index, which counts the prefix.
    rows = 0 if bias.shape[-2] in (1, x.shape[-2]) else length
    given["bias"] = _pad(bias, length, rows, value=0)
  if gate is not None:
    base = given.get("bias")
    if base is not None:
      width = base.shape[-1]
    elif mask is not None:
      width = given["mask"].shape[-1]
    else:
      width = cached or length + given["inputs_kv"].shape[-2]
    grown = jnp.pad(gate, [(0, 0)] * 3 + [(0, width - length)])
    given["bias"] = grown if base is None else base + grown.astype(base.dtype)


def _shift_positions(
  given: dict[str, Any], length: int, shifts: bool, *, joins: bool
) -> None:
  """Makes room in the positions that an attention turns its keys by.

  The prefix's own are negative, which turns nothing: it is kept as it is used.
  """
  for name in ("query_positions", "key_positions"):
    positions = given.get(name)
    if positions is None:
      continue
    if shifts:
      positions = positions + length
    if joins and name == "key_positions":
      positions = jnp.pad(positions, ((0, 0), (length, 0)), constant_values=-1)
    given[name] = positions


def with_shift(module: nn.Module, call: Call, trace: Trace) -> Call:
  """Returns the call of what knows positions, moved behind the prefix."""
  path = _path(module)
  stack, name = path.split("/")[0], path.split("/")[-1]
  length = trace.shifts.get(stack, 0)
  if not length or name not in _POSITIONAL:
    return call

  def learned(positions: Array) -> Array:
    return call(positions + length)

  def alibi(positions: Array) -> Array:
    own = jnp.broadcast_to(jnp.arange(length), (positions.shape[0], length))
    return call(jnp.concatenate([own, positions + length], axis=1))

  def relative(queries: int, keys: int, *args: Any, **kwargs: Any) -> Array:
    if "offset" not in inspect.signature(type(module).__call__).parameters:
      raise TargetError(
        "expected own_positions=False on T5X's networks, found True: their"
        " relative biases cannot start later. Use it on peft_jax's networks."
      )
    offset = args[0] if args else kwargs.get("offset", 0)
    return call(queries, keys + length, offset + length)

  return {
    "position_embedder": learned,
    "alibi_bias": alibi,
    "relpos_bias": relative,
  }[name]


def _pad(x: Array, columns: int, rows: int, *, value: int) -> Array:
  """x: [..., T, S] -> [..., rows + T, columns + S], filled at the front."""
  widths = [(0, 0)] * (x.ndim - 2) + [(rows, 0), (columns, 0)]
  return jnp.pad(x, widths, constant_values=np.array(value, x.dtype))


def _fill_cache(module: nn.Module, key: Array, value: Array) -> None:
  """Writes the prefix into the first slots of a cache that was just made."""
  length = key.shape[0]
  # T5X keeps the length last, [B, H, K, S]; ours is [B, S, H, K].
  last = getattr(module, "cache_length_axis", -1) == -1
  for name, prefix in (("cached_key", key), ("cached_value", value)):
    cache = module.get_variable("cache", name)
    if last:
      filled = cache.at[..., :length].set(
        jnp.moveaxis(prefix, 0, -1).astype(cache.dtype)
      )
    else:
      filled = cache.at[..., :length, :, :].set(prefix.astype(cache.dtype))
    module.put_variable("cache", name, filled)
  module.put_variable("cache", "cache_index", jnp.int32(length))


def with_prefix(path: str, call: Call, trace: Trace) -> Call:
  """Returns a projection's call with the prefix in front, if it has one."""
  if not trace.prefixes:
    return call
  prefix = trace.prefixes[-1].get(path)
  if prefix is None:
    return call

  def projected(*args: Any, **kwargs: Any) -> Array:
    own = call(*args, **kwargs)  # [B, S, H, K]
    rows = jnp.broadcast_to(prefix, (*own.shape[:-3], *prefix.shape))
    return jnp.concatenate([rows.astype(own.dtype), own], axis=-3)

  return projected


def _in_stack(rule: Rule, module: nn.Module, call: Call, trace: Trace) -> Call:
  """Puts the prompt in front of the embedded tokens, before any dropout."""
  if _path(module) not in trace.slots:
    raise TargetError(
      f"pattern {rule.pattern!r} matched {_path(module)}, which is no stack of"
      f" layers that takes a prompt. Use one of {sorted(trace.slots)}."
    )
  adapter = _child(rule, module)

  def adapted(*args: Any, **kwargs: Any) -> Any:
    size = module.config.emb_dim
    site = Site(
      inputs=(size,), outputs=(size,), input_axis="embed", output_axis="embed"
    )
    site = _with_shared(rule, module, trace, site)
    trace.prompts.append(adapter(site))
    return call(*args, **kwargs)

  return adapted


def with_slots(module: nn.Module, call: Call, trace: Trace) -> Call:
  """Returns the call of a stack with room for prompts, if there are any."""
  path = _path(module)
  if path == "encoder" and trace.slots.get("encoder"):
    return _widened_encoder(module, call, trace)
  if path == "decoder" and trace.slots.get("encoder"):
    return _widened_cross_attention(module, call, trace)
  if path == "decoder" and trace.slots.get("decoder"):
    return _widened_decoder(module, call, trace)
  if path == "decoder/decoder_norm" and trace.slots.get("decoder"):
    return _without_slots(call, trace)
  return call


def with_prompt(path: str, call: Call, trace: Trace) -> Call:
  """Returns the embedder's call with the prompt in front, if there is one."""
  if path != "token_embedder" or not trace.prompts:
    return call

  def embedded(*args: Any, **kwargs: Any) -> Array:
    y = call(*args, **kwargs)  # [B, T, D]
    prompt = jnp.concatenate(trace.prompts)
    trace.prompts.clear()
    rows = jnp.broadcast_to(prompt, (*y.shape[:-2], *prompt.shape))
    return jnp.concatenate([rows.astype(y.dtype), y], axis=-2)

  return embedded


def _fill(module: nn.Module, trace: Trace, slots: int) -> None:
  """Puts zeros where no prompt is: the layers fill the slots themselves."""
  trace.in_front = True
  if not trace.prompts:
    trace.prompts.append(jnp.zeros((slots, module.config.emb_dim)))


def _widened_encoder(module: nn.Module, call: Call, trace: Trace) -> Call:
  slots = trace.slots["encoder"]

  def adapted(*args: Any, **kwargs: Any) -> Any:
    bound = _bind(module, args, kwargs)
    for name, given in bound.arguments.items():
      if "mask" in name and given is not None:
        bound.arguments[name] = _with_rows(given, slots)
      if name == "positions" and given is not None:
        bound.arguments[name] = _counted(given, slots)
    _fill(module, trace, slots)
    return call(*bound.args[1:], **bound.kwargs)

  return adapted


def _with_rows(mask: Array, slots: int) -> Array:
  """mask: [B, 1, T, T] -> [B, 1, P + T, P + T]; a prompt sees all but padding.

  What no token may attend to is padding, and the prompt may not either.
  """
  mask = _pad(mask, slots, 0, value=1)
  seen = jnp.max(mask, axis=-2, keepdims=True)
  rows = jnp.broadcast_to(seen, (*mask.shape[:-2], slots, mask.shape[-1]))
  return jnp.concatenate([rows, mask], axis=-2)


def _counted(positions: Array, slots: int) -> Array:
  """positions: [B, T] -> [B, P + T]; the slots count from 0."""
  own = jnp.broadcast_to(jnp.arange(slots), (positions.shape[0], slots))
  return jnp.concatenate([own, positions + slots], axis=1)


def _widened_cross_attention(
  module: nn.Module, call: Call, trace: Trace
) -> Call:
  slots = trace.slots["encoder"]

  def adapted(*args: Any, **kwargs: Any) -> Any:
    bound = _bind(module, args, kwargs)
    for name in ("cross_mask", "encoder_decoder_mask"):
      given = bound.arguments.get(name)
      if given is not None:
        bound.arguments[name] = _pad(given, slots, 0, value=1)
    return call(*bound.args[1:], **bound.kwargs)

  return adapted


def _widened_decoder(module: nn.Module, call: Call, trace: Trace) -> Call:
  """The decoder of a decoder-only network, whose prompt is text like any.

  A cache holds the prompt from the first call that extends it on.
  """
  slots = trace.slots["decoder"]
  if "segment_ids" not in inspect.signature(type(module).__call__).parameters:
    raise TargetError(
      "expected a decoder of peft_jax's under a prompt, found T5X's"
      f" {type(module).__name__}, which has no room for one. Use a prefix."
    )

  def adapted(*args: Any, **kwargs: Any) -> Any:
    bound = _bind(module, args, kwargs)
    given = bound.arguments
    if given["positions"] is not None:
      raise TargetError(
        "expected unpacked batches under a prompt, found decoder_positions: one"
        " prompt cannot stand in front of every example of a packed row. Turn"
        " packing off."
      )
    extends = given["decode"] and module.has_variable("cache", "cache_index")
    if extends and not given["prefill"]:
      trace.in_front = False
      trace.prompts.clear()
      return call(*args, **kwargs)
    for name in ("segment_ids", "bidirectional"):
      if given[name] is not None:
        widths = ((0, 0), (slots, 0))
        given[name] = jnp.pad(given[name], widths, constant_values=1)
    _fill(module, trace, slots)
    return call(*bound.args[1:], **bound.kwargs)

  return adapted


def _without_slots(call: Call, trace: Trace) -> Call:
  """Nothing is predicted from the prompt alone."""

  def adapted(x: Array, *args: Any, **kwargs: Any) -> Array:
    if trace.in_front:
      x = x[:, trace.slots["decoder"] :]
    return call(x, *args, **kwargs)

  return adapted


def _on_embedding(
  rule: Rule, module: nn.Module, call: Call, trace: Trace
) -> Call:
  rows = getattr(module, "num_embeddings", None)
  if rows is None:
    raise TargetError(
      f"pattern {rule.pattern!r} matched {_path(module)}, which is no embedder."
      " Use token_embedder."
    )
  site = Site(
    inputs=(rows,),
    outputs=(module.features,),
    input_axis="vocab",
    output_axis="embed",
  )
  leaves = trace.shared(rule, _path(module), site)

  def adapted(x: Array) -> Array:
    y = call(x)
    if jnp.issubdtype(x.dtype, jnp.integer):
      return y + rule.adapter.embed(leaves, x).astype(y.dtype)
    return y + rule.adapter.attend(leaves, x).astype(y.dtype)

  return adapted
