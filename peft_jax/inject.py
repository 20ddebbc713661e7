"""Places adapters in a network; the only file that enters interceptors.

Flax calls an interceptor around every module call. Ours looks the module's
path up in the rules and, where one matches, lets `places` wrap the call. Rules
at one site nest in their order: the first is innermost, the next adapts the
result.
"""

import dataclasses
import functools
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.core import FrozenDict, unfreeze
from flax.linen.partitioning import AxisMetadata

from peft_jax import layout, places, sharding, trees
from peft_jax.adapters.base import Adapter, Leaf
from peft_jax.places import Trace
from peft_jax.rules import (
  Rule,
  TargetError,
  check_coverage,
  claimants,
  flatten,
  resolve,
)

_INTERCEPTED = ("__call__", "attend")

# Positions of adapters that act on parameters and not on a module's call.
_ON_PARAMETERS = ("leaves", "backbone")

# Methods of nn.Module that trace the network some other way, for which no
# interceptor can be entered here: an adapter would silently be left out.
_REFUSED = ("bind", "lazy_init", "init_with_output", "tabulate")


@dataclasses.dataclass(frozen=True)
class Adapted:
  """A network with adapters: use it wherever the network was used.

  `init` returns the backbone's parameters and the adapters' in one tree; all
  other attributes are the network's own.

  Example:
    >>> import jax.numpy as jnp
    >>> from peft_jax import IA3, Rule, networks
    >>> network = networks.create("tiny", num_encoder_layers=1,
    ...   num_decoder_layers=1)
    >>> model = Adapted(network, [Rule("kv", IA3())])
    >>> tokens = jnp.ones((1, 4), jnp.int32)
    >>> params = model.init(jax.random.key(0), tokens, tokens, tokens)["params"]
    >>> key = params["encoder"]["layers_0"]["attention"]["key"]
    >>> key["ia3"]["scaling"].shape
    (128,)

  Attributes:
    network: a Linen module.
    rules: rules, or lists of rules; several methods at once are several rules.
  """

  network: nn.Module
  rules: Sequence[Rule] = ()

  def __post_init__(self) -> None:
    rules = [resolve(rule, self._depths) for rule in flatten(self.rules)]
    object.__setattr__(self, "rules", tuple(rules))

  def init(self, rngs: Any, *args: Any, **kwargs: Any) -> Any:
    """Returns the variables; as `network.init`.

    Adapters that start from the backbone's parameters hold NaN until
    `start.from_backbone` has seen these.

    Raises:
      TargetError: if a rule matches no module, or two claim one.
    """
    wanted = self._wanted(args, kwargs)
    several = isinstance(rngs, Mapping)
    root = rngs["params"] if several else rngs
    external = {path: _draw(root, path, leaf) for path, leaf in wanted.items()}
    trace = self._trace(external)
    with nn.intercept_methods(self._interceptor(trace)):
      variables = self.network.init(rngs, *args, **kwargs)
    own = trees.flatten(_plain(variables["params"]))
    self._check_coverage(trace, own)
    beside = self.layers_beside(own)
    if not external and not beside:
      return variables
    names = sharding.axis_names(_plain(variables["params_axes"]))
    axes = {path: leaf.axes for path, leaf in wanted.items()}
    for layer, (path, _) in beside.items():
      axes[layer] = tuple(name for name in names[path] if name != "layers")
    copies = {layer: own[p][index] for layer, (p, index) in beside.items()}
    return _extended(variables, external | copies, axes)

  def apply(self, variables: Any, *args: Any, **kwargs: Any) -> Any:
    """Calls the network on given variables; as `network.apply`."""
    trace = self._trace({})
    if any(map(_needs_parameters, self.rules)):
      params = trees.flatten(_plain(variables["params"]))
      trace.values = params
      variables = {**variables, "params": self.effective(params)}
    with nn.intercept_methods(self._interceptor(trace)):
      return self.network.apply(variables, *args, **kwargs)

  def effective(self, flat: Mapping[str, Any]) -> dict:
    """Returns the tree that the network is to see.

    Adapters that act on parameters have acted, and layers that stand beside
    their stack have replaced its rows.

    Args:
      flat: leaf path -> array, of backbone and adapters.
    """
    beside = self.layers_beside(flat)
    result = {path: x for path, x in flat.items() if path not in beside}
    for layer, (path, index) in beside.items():
      stack = jnp.asarray(result[path])
      row = jnp.asarray(flat[layer], stack.dtype)
      result[path] = stack.at[index].set(row)
    for rule in self.rules:
      if rule.adapter.position == "leaves":
        scope = f"{rule.name}_shared/all/"
        own = {
          path.removeprefix(scope): leaf
          for path, leaf in flat.items()
          if path.startswith(scope)
        }
        targets = {p: x for p, x in result.items() if self.targets(rule, p)}
        tree = trees.unflatten(targets)
        rows = trees.flatten(layout.to_layers(tree))
        rows = rule.adapter.transform(rows, own)  # pyright: ignore
        tree = layout.like(trees.unflatten(rows), tree)
        result |= trees.flatten(tree)
    return trees.unflatten(result)

  def clone(self, **kwargs: Any) -> "Adapted":
    """Returns a copy whose network has some fields replaced."""
    return dataclasses.replace(self, network=self.network.clone(**kwargs))

  def sites(self, *args: Any, **kwargs: Any) -> dict[Rule, list[str]]:
    """Returns rule -> per-layer paths it is placed at, computing nothing.

    Takes the arguments of the network's `__call__`.

    Raises:
      TargetError: as `init`.
    """
    trace, params = self._dry_run(args, kwargs)
    self._check_coverage(trace, params)
    return {rule: list(paths) for rule, paths in trace.sites.items()}

  def rule_of(self, path: str) -> tuple[Rule, str, str] | None:
    """Returns what owns a parameter: rule, site and leaf name.

    Args:
      path: '/'-joined path of a leaf, in either view of the layers.

    Returns:
      None for a frozen parameter of the backbone. A parameter of the backbone
      that is trained is its own site, with an empty leaf name.
    """
    parts = path.split("/")
    for rule in self.rules:
      if parts[0] == f"{rule.name}_shared":
        return rule, parts[0], "/".join(parts[1:])
    for i in range(1, len(parts) - 1):
      site, name, leaf = "/".join(parts[:i]), parts[i], "/".join(parts[i + 1 :])
      for rule in self.rules:
        if rule.name == name and all(
          rule.matches(p) for p in self.layer_paths(site)
        ):
          return rule, site, leaf
    for rule in self.rules:
      if rule.adapter.position == "backbone" and self.targets(rule, path):
        return rule, path, ""
    return None

  @functools.cached_property
  def slots(self) -> dict[str, int]:
    """Stack -> number of vectors that prompts put in front of its tokens.

    Raises:
      TargetError: if prompts disagree.
    """
    lengths = {
      rule.adapter.length  # pyright: ignore
      for rule in self.rules
      if rule.adapter.fills_slots
    }
    if len(lengths) > 1:
      raise TargetError(
        "expected the prompts of one stack to have one length, found"
        f" {sorted(lengths)}. Give them the same length."
      )
    return {self._first_stack: max(lengths, default=0)}

  @functools.cached_property
  def shifts(self) -> dict[str, int]:
    """Stack -> number of positions that prefixes take in front of its tokens.

    Raises:
      TargetError: if they take them in some layers of a stack only.
    """
    result = {}
    for stack, name in (
      ("encoder", "attention"),
      ("decoder", "self_attention"),
    ):
      paths = self.layer_paths(f"{stack}/layers/{name}")
      found = set()
      for path in paths:
        found.add(sum(map(self._positions_taken, self._prefixes_at(path))))
      if len(found) > 1:
        raise TargetError(
          f"expected prefixes with own positions at every layer of the {stack}"
          f" or at none, found {sorted(found)} positions. Widen the pattern, or"
          " set own_positions=False."
        )
      result[stack] = max(found, default=0)
    return result

  @property
  def _depths(self) -> dict[str, int]:
    """Stack -> number of its layers."""
    config = getattr(self.network, "config", None)
    if self._is_t5x_decoder:
      return {"encoder": 0, "decoder": config.num_layers}  # pyright: ignore
    return {
      stack: getattr(config, f"num_{stack}_layers", 1)
      for stack in ("encoder", "decoder")
    }

  @property
  def _is_t5x_decoder(self) -> bool:
    """T5X's decoder-only example, whose relative biases cannot start later."""
    return hasattr(getattr(self.network, "config", None), "num_layers")

  @property
  def _first_stack(self) -> str:
    """The stack that reads the input."""
    return "encoder" if self._depths["encoder"] else "decoder"

  def _prefixes_at(self, path: str) -> list[Rule]:
    return [
      rule
      for rule in self.rules
      if rule.adapter.position == "attention" and rule.matches(path)
    ]

  def _positions_taken(self, rule: Rule) -> int:
    own = rule.adapter.own_positions  # pyright: ignore
    if own is None:  # as the authors' code: GPT-2's text moves, BART's does not
      own = self._first_stack == "decoder" and not self._is_t5x_decoder
    return rule.adapter.length if own else 0  # pyright: ignore

  def __getattr__(self, name: str) -> Any:
    if name.startswith("__") or name in ("network", "rules", "slots", "shifts"):
      raise AttributeError(name)
    if name in _REFUSED:
      raise AttributeError(
        f"expected init or apply, found {name}: adapters would silently be"
        f" left out of it. Use Adapted.init and Adapted.apply."
      )
    return getattr(self.network, name)

  def layer_paths(self, path: str) -> list[str]:
    """Returns the per-layer paths that a module's path stands for."""
    return layout.layer_paths(path, self._depths)

  def _trace(self, values: Mapping[str, Any] | None) -> Trace:
    return Trace(values=values, slots=self.slots, shifts=self.shifts)

  def _interceptor(self, trace: Trace) -> Callable[..., Any]:
    modules = [
      r for r in self.rules if r.adapter.position not in _ON_PARAMETERS
    ]

    def intercept(
      call: Callable[..., Any],
      args: tuple,
      kwargs: dict,
      context: nn.module.InterceptorContext,
    ) -> Any:
      module = context.module
      if _is_own(module):
        return call(*args, **kwargs)
      if not module.path:
        trace.note_call(call, args, kwargs)
      if context.method_name not in _INTERCEPTED:
        return call(*args, **kwargs)
      path = "/".join(module.path)
      paths = self.layer_paths(path)
      claimed = claimants(modules, paths)
      if context.method_name == "attend":
        claimed = [r for r in claimed if r.adapter.position == "embedding"]
      trace.candidates.update(dict.fromkeys(paths))
      call = places.with_slots(module, call, trace)
      for rule in claimed:
        trace.sites.setdefault(rule, {}).update(dict.fromkeys(paths))
        call = places.place(rule, module, call, trace)
      call = places.with_shift(module, call, trace)
      call = places.with_prefix(path, call, trace)
      call = places.with_prompt(path, call, trace)
      return call(*args, **kwargs)

    return intercept

  def _dry_run(self, args: tuple, kwargs: dict) -> tuple[Trace, dict]:
    """Traces the network; returns what was met and its parameters' shapes."""
    trace = self._trace(None)
    with nn.intercept_methods(self._interceptor(trace)):
      variables = jax.eval_shape(
        functools.partial(self.network.init, **kwargs), jax.random.key(0), *args
      )
    return trace, trees.flatten(_plain(variables["params"]))

  def _wanted(self, args: tuple, kwargs: dict) -> dict[str, Leaf]:
    """Returns path -> leaf of all that lies outside of modules."""
    if not any(map(_has_external, self.rules)):
      return {}
    trace, params = self._dry_run(args, kwargs)
    wanted = dict(trace.wanted)
    for rule in self.rules:
      if rule.adapter.position == "leaves":
        rows = {
          layer: shape
          for path, leaf in params.items()
          if self.targets(rule, path)
          for layer, shape in layout.rows_of(path, leaf)
        }
        if rows:
          own = rule.adapter.own_leaves(rows)  # pyright: ignore
          scope = f"{rule.name}_shared/all"
          wanted |= {f"{scope}/{name}": leaf for name, leaf in own.items()}
    return wanted

  def _check_coverage(self, trace: Trace, params: Mapping[str, Any]) -> None:
    """Raises for a rule without a site, be it a module or a parameter."""
    sites = {rule: list(paths) for rule, paths in trace.sites.items()}
    modules, leaves = [], []
    for rule in self.rules:
      on_parameters = rule.adapter.position in _ON_PARAMETERS
      (leaves if on_parameters else modules).append(rule)
    check_coverage(modules, sites, list(trace.candidates), "modules")
    rows = [
      layer
      for path, leaf in params.items()
      for layer, _ in layout.rows_of(path, leaf)
    ]
    for rule in leaves:
      sites[rule] = [path for path in rows if rule.matches(path)]
    check_coverage(leaves, sites, rows, "parameters")
    trace.sites |= {rule: dict.fromkeys(sites[rule]) for rule in leaves}

  def targets(self, rule: Rule, path: str) -> bool:
    """Whether the rule claims a whole leaf of the backbone.

    Raises:
      TargetError: if it claims some layers of a stack only, and cannot.
    """
    paths = self.layer_paths(path)
    hits = [rule.matches(layer) for layer in paths]
    if rule.adapter.position == "leaves" and any(hits) and not all(hits):
      raise TargetError(
        f"pattern {rule.pattern!r} matched {sum(hits)} of {len(paths)} layers"
        f" of {path}, which the network keeps as one. Match all layers, or use"
        " scan_layers=False."
      )
    return all(hits) and not self.is_added(path)

  def is_added(self, path: str) -> bool:
    """Whether an adapter made the leaf."""
    parts = path.split("/")
    names = {rule.name for rule in self.rules}
    return parts[0].removesuffix("_shared") in names or bool(
      names & set(parts[:-1])
    )

  def layers_beside(
    self, params: Mapping[str, Any]
  ) -> dict[str, tuple[str, tuple]]:
    """Returns the layers that are trained while their stack is frozen.

    Returns:
      per-layer path -> path of the stack's leaf and index of the row in it.
    """
    found = {}
    rules = [r for r in self.rules if r.adapter.position == "backbone"]
    for path, leaf in params.items() if rules else ():
      axis = layout.stack_axis(path)
      if axis is None or self.is_added(path):
        continue
      layers = [layer for layer, _ in layout.rows_of(path, leaf)]
      hits = [any(rule.matches(layer) for rule in rules) for layer in layers]
      if not all(hits):
        for i, layer in enumerate(layers):
          if hits[i]:
            found[layer] = path, (slice(None),) * axis + (i,)
    return found


def _is_own(module: Any) -> bool:
  """Whether the module is an adapter or lies inside one."""
  while isinstance(module, nn.Module):
    if isinstance(module, Adapter):
      return True
    module = module.parent
  return False


def _needs_parameters(rule: Rule) -> bool:
  """Whether the rule acts on, or reads, what lies outside of modules."""
  return _has_external(rule) or rule.adapter.position == "backbone"


def _has_external(rule: Rule) -> bool:
  """Whether the rule has leaves that no module of the network holds."""
  shares = type(rule.adapter).shared_leaves is not Adapter.shared_leaves
  return shares or rule.adapter.position == "leaves"


def _draw(key: jax.Array, path: str, leaf: Leaf) -> jax.Array:
  key = jax.random.fold_in(key, zlib.crc32(path.encode()))
  return leaf.initializer(key, leaf.shape, jnp.dtype(leaf.dtype))


def _plain(tree: Any) -> dict:
  return unfreeze(tree) if isinstance(tree, FrozenDict) else dict(tree)


def _extended(variables: Any, leaves: Mapping[str, Any], axes: Any) -> Any:
  """Returns the variables with more leaves and their logical axes."""
  result = _plain(variables)
  params = trees.flatten(_plain(result["params"]))
  result["params"] = trees.unflatten(params | dict(leaves))
  names = trees.flatten(_plain(result["params_axes"]))
  for path in leaves:
    names[f"{path}_axes"] = AxisMetadata(axes[path])
  result["params_axes"] = trees.unflatten(names)
  return type(variables)(result)
