"""Places adapters in a network; the only file that knows interceptors.

Flax calls an interceptor around every module call. Ours looks the module's
path up in the rules and, where one matches, makes the adapter as a child of
that module: the backbone's own tree does not change. Rules at one site nest in
their order: the first is innermost, the next adapts the result.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from flax import linen as nn

from peft_jax import layout
from peft_jax.adapters.base import Adapter, Site
from peft_jax.rules import (
  Rule,
  TargetError,
  check_coverage,
  claimants,
  flatten,
)

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
    object.__setattr__(self, "rules", flatten(self.rules))

  def init(self, *args: Any, **kwargs: Any) -> Any:
    """Returns the variables; as `network.init`.

    Raises:
      TargetError: if a rule matches no module, or two claim one.
    """
    record = _Record()
    with nn.intercept_methods(self._interceptor(record)):
      variables = self.network.init(*args, **kwargs)
    check_coverage(self.rules, record.placed(), list(record.candidates))
    return variables

  def apply(self, *args: Any, **kwargs: Any) -> Any:
    """Calls the network on given variables; as `network.apply`."""
    with nn.intercept_methods(self._interceptor(_Record())):
      return self.network.apply(*args, **kwargs)

  def clone(self, **kwargs: Any) -> "Adapted":
    """Returns a copy whose network has some fields replaced."""
    return dataclasses.replace(self, network=self.network.clone(**kwargs))

  def sites(self, *args: Any, **kwargs: Any) -> dict[Rule, list[str]]:
    """Returns rule -> per-layer paths it is placed at, computing nothing.

    Takes the arguments of the network's `__call__`.

    Raises:
      TargetError: as `init`.
    """
    record = _Record()
    with nn.intercept_methods(self._interceptor(record)):
      jax.eval_shape(
        functools.partial(self.network.init, **kwargs), jax.random.key(0), *args
      )
    check_coverage(self.rules, record.placed(), list(record.candidates))
    return record.placed()

  def rule_of(self, path: str) -> tuple[Rule, str, str] | None:
    """Returns what owns a parameter: rule, site and leaf name.

    Args:
      path: '/'-joined path of a leaf, in either view of the layers.

    Returns:
      None for a parameter of the backbone.
    """
    parts = path.split("/")
    for i in range(1, len(parts) - 1):
      site, name, leaf = "/".join(parts[:i]), parts[i], "/".join(parts[i + 1 :])
      for rule in self.rules:
        if rule.name == name and all(
          rule.matches(p) for p in self.layer_paths(site)
        ):
          return rule, site, leaf
    return None

  def __getattr__(self, name: str) -> Any:
    if name.startswith("__") or name in ("network", "rules"):
      raise AttributeError(name)
    if name in _REFUSED:
      raise AttributeError(
        f"expected init or apply, found {name}: adapters would silently be"
        f" left out of it. Use Adapted.init and Adapted.apply."
      )
    return getattr(self.network, name)

  def layer_paths(self, path: str) -> list[str]:
    """Returns the per-layer paths that a module's path stands for."""
    config = getattr(self.network, "config", None)
    num_layers = {
      stack: getattr(config, f"num_{stack}_layers", 1)
      for stack in ("encoder", "decoder")
    }
    return layout.layer_paths(path, num_layers)

  def _interceptor(self, record: "_Record") -> Callable[..., Any]:
    def intercept(
      call: Callable[..., Any],
      args: tuple,
      kwargs: dict,
      context: nn.module.InterceptorContext,
    ) -> Any:
      module = context.module
      if not module.path:
        record.note_dropout(call, args, kwargs)
      if context.method_name != "__call__" or _is_own(module):
        return call(*args, **kwargs)
      paths = self.layer_paths("/".join(module.path))
      record.candidates.update(dict.fromkeys(paths))
      for rule in claimants(self.rules, paths):
        record.sites.setdefault(rule, {}).update(dict.fromkeys(paths))
        call = _adapt(rule, module, call, record.deterministic(module))
      return call(*args, **kwargs)

    return intercept


@dataclasses.dataclass(kw_only=True)
class _Record:
  """What one trace of the network met."""

  sites: dict[Rule, dict[str, None]] = dataclasses.field(default_factory=dict)
  candidates: dict[str, None] = dataclasses.field(default_factory=dict)
  enable_dropout: bool | None = None

  def placed(self) -> dict[Rule, list[str]]:
    """Rule -> paths it is placed at, in the order of the trace."""
    return {rule: list(paths) for rule, paths in self.sites.items()}

  def note_dropout(
    self, call: Callable[..., Any], args: tuple, kwargs: dict
  ) -> None:
    """Reads from the outermost call whether dropout is on.

    Projections are not told, but an adapter that drops needs to know.
    """
    if self.enable_dropout is None:
      bound = inspect.signature(call).bind(*args, **kwargs)
      bound.apply_defaults()
      self.enable_dropout = bound.arguments.get("enable_dropout")

  def deterministic(self, module: nn.Module) -> bool:
    """Whether adapters in `module` must not drop."""
    if self.enable_dropout is None:
      return not module.has_rng("dropout")
    return not self.enable_dropout


def _is_own(module: Any) -> bool:
  """Whether the module is an adapter or lies inside one."""
  while isinstance(module, nn.Module):
    if isinstance(module, Adapter):
      return True
    module = module.parent
  return False


def _adapt(
  rule: Rule, module: nn.Module, call: Callable[..., Any], deterministic: bool
) -> Callable[..., Any]:
  """Returns `call` with the rule's adapter at its position."""
  if not hasattr(type(module).__call__, "compact"):
    raise TargetError(
      f"pattern {rule.pattern!r} matched {'/'.join(module.path)}, whose"
      " __call__ is not @nn.compact: no adapter can be made inside it. Narrow"
      " the pattern."
    )
  position = rule.adapter.position
  adapter = rule.adapter.clone(parent=module, name=rule.name)

  def adapted(x: jax.Array, *args: Any, **kwargs: Any) -> Any:
    if position == "input":
      x = adapter(x, _site(module, x), deterministic)
      return call(x, *args, **kwargs)
    y = call(x, *args, **kwargs)
    site = _site(module, x)
    if position == "output":
      return adapter(y, site, deterministic)
    return y + adapter(x, site, deterministic)

  return adapted


def _site(module: nn.Module, x: jax.Array) -> Site:
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
  return Site(
    inputs=inputs,
    outputs=outputs,
    input_axis=_join(names[:split]),
    output_axis=_join(names[split:]),
  )


def _join(names: Sequence[str]) -> str:
  """Name of several axes joined to one, as T5X names them."""
  return names[0] if len(names) == 1 else "joined_kv"
