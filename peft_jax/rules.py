"""Rules: which modules get which adapter."""

import dataclasses
import difflib
import re
from collections.abc import Iterable, Mapping, Sequence

from peft_jax.adapters.base import Adapter

# Targets by name, for networks with T5X's module names.
TARGETS: dict[str, str] = {
  "attention": r".*attention/(query|key|value|out)",
  "qkv": r".*attention/(query|key|value)",
  "qv": r".*attention/(query|value)",
  "kv": r".*attention/(key|value)",
  "mlp": r".*mlp/(wi|wi_\d+|wo)",
  "mlp_out": r".*mlp/wo",
  "all_linear": r".*(attention/(query|key|value|out)|mlp/(wi|wi_\d+|wo))",
}

# Targets that depend on the network: see `resolve`.
RESOLVED = ("first_stack", "first_stack_layers", "top_layers:K")


class TargetError(ValueError):
  """A rule that matches nothing, or a site that two rules claim."""


@dataclasses.dataclass(frozen=True)
class Rule:
  """Places an adapter at every module whose path matches.

  Example:
    >>> from peft_jax.adapters import LoRA
    >>> rule = Rule("qv", LoRA(rank=4))
    >>> rule.matches("encoder/layers_0/attention/query")
    True
    >>> rule.matches("encoder/layers_0/attention/out")
    False

  Attributes:
    pattern: a regular expression that must match the whole '/'-joined path of
      the module, or a name of `TARGETS` or of `RESOLVED`.
    adapter: the method and its hyper-parameters.
    name: scope of its parameters under the site; default: the method's name.
      Two rules may share a site only under different names.

  Raises:
    TargetError: if the pattern is no regular expression or the name is not one
      path component.
  """

  pattern: str
  adapter: Adapter
  _: dataclasses.KW_ONLY
  name: str = ""

  def __post_init__(self) -> None:
    if not isinstance(self.adapter, Adapter):
      raise TargetError(
        "expected the second argument of Rule to be an adapter such as"
        f" LoRA(), found {self.adapter!r}."
      )
    if not self.name:
      object.__setattr__(self, "name", self.adapter.default_name)
    if not re.fullmatch(r"\w+", self.name):
      raise TargetError(
        "expected a rule's name to be letters, digits and underscores, found"
        f" {self.name!r} in {self}."
      )
    try:
      re.compile(self.regex)
    except re.error as error:
      raise TargetError(
        "expected a regular expression or a name of"
        f" {sorted((*TARGETS, *RESOLVED))}, found"
        f" {self.pattern!r}: {error}."
      ) from error

  @property
  def regex(self) -> str:
    """The pattern, with a name of `TARGETS` looked up."""
    return TARGETS.get(self.pattern, self.pattern)

  def matches(self, path: str) -> bool:
    """Whether the whole of `path` matches."""
    return re.fullmatch(self.regex, path) is not None


def resolve(rule: Rule, num_layers: Mapping[str, int]) -> Rule:
  r"""Returns the rule with a target that depends on the network written out.

  `first_stack` is the stack that reads the input, `first_stack_layers` its
  layers, `top_layers:K` all parameters of the last K layers of each stack.

  Example:
    >>> from peft_jax.adapters import Prompt, Unfreeze
    >>> depth = {"encoder": 0, "decoder": 24}
    >>> resolve(Rule("first_stack", Prompt()), depth).pattern
    'decoder'
    >>> resolve(Rule("top_layers:2", Unfreeze()), depth).pattern
    '(decoder/layers_(22|23))/.*'

  Args:
    rule: any rule; others are returned as they are.
    num_layers: stack -> number of layers, 0 where there is no such stack.

  Raises:
    TargetError: for K that is no number of layers of every stack.
  """
  stacks = {name: count for name, count in num_layers.items() if count}
  first = next(iter(stacks), "encoder")
  patterns = {
    "first_stack": first,
    "first_stack_layers": rf"{first}/layers_\d+",
  }
  if rule.pattern in patterns:
    return dataclasses.replace(rule, pattern=patterns[rule.pattern])
  match = re.fullmatch(r"top_layers:(\d+)", rule.pattern)
  if not match:
    return rule
  k = int(match[1])
  shallowest = min(stacks.values(), default=0)
  if not 0 < k <= shallowest:
    raise TargetError(
      f"expected 1 to {shallowest} top layers, found {rule.pattern!r}."
    )
  parts = []
  for stack, count in stacks.items():
    numbers = "|".join(str(i) for i in range(count - k, count))
    parts.append(f"{stack}/layers_({numbers})")
  return dataclasses.replace(rule, pattern=f"({'|'.join(parts)})/.*")


def flatten(rules: Iterable[Rule | Sequence]) -> tuple[Rule, ...]:
  """Returns the rules of nested lists in order; several methods compose so.

  Example:
    >>> flatten([])
    ()

  Raises:
    TargetError: for an element that is neither a rule nor a list of rules.
  """
  flat: list[Rule] = []
  for rule in rules:
    if isinstance(rule, Rule):
      flat.append(rule)
    elif isinstance(rule, list | tuple):
      flat.extend(flatten(rule))
    else:
      raise TargetError(f"expected a Rule or a list of them, found {rule!r}.")
  return tuple(flat)


def check_coverage(
  rules: Sequence[Rule],
  sites: dict[Rule, list[str]],
  candidates: Sequence[str],
  kind: str = "modules",
) -> None:
  """Raises for a rule without a site.

  Args:
    rules: the rules.
    sites: rule -> paths it is placed at.
    candidates: paths of all that they could be placed at.
    kind: what these are, 'modules' or 'parameters'.

  Raises:
    TargetError: with the nearest module names.
  """
  for rule in rules:
    if sites.get(rule):
      continue
    nearest = difflib.get_close_matches(
      _collapse(rule.regex), sorted({_collapse(c) for c in candidates}), 3, 0.1
    )
    raise TargetError(
      f"pattern {rule.pattern!r} matched 0 of {len(candidates)} {kind}."
      " Patterns are full-match regular expressions over '/'-joined paths, or"
      f" one of {sorted((*TARGETS, *RESOLVED))}. Nearest:"
      f" {', '.join(nearest) or 'none'}."
    )


def claimants(rules: Sequence[Rule], paths: Sequence[str]) -> list[Rule]:
  """Returns the rules placed at a module, in order.

  Args:
    rules: all rules.
    paths: the module's paths; several if it stands for scanned layers.

  Raises:
    TargetError: if two rules of one name claim the module, if a rule that must
      be first is not, or if a rule claims only some of the layers that a
      scanned module stands for.
  """
  found: list[Rule] = []
  for rule in rules:
    hits = [path for path in paths if rule.matches(path)]
    if hits and len(hits) < len(paths):
      raise TargetError(
        f"pattern {rule.pattern!r} matched {len(hits)} of {len(paths)} layers"
        f" (first {hits[0]}), but the network scans over them as one module."
        " Match all layers, or use scan_layers=False."
      )
    if not hits:
      continue
    rival = next((other for other in found if other.name == rule.name), None)
    if rival is not None:
      raise TargetError(
        f"expected one rule named {rule.name!r} at {hits[0]}, found two:"
        f" {rival.pattern!r} and {rule.pattern!r}. Narrow one of them, or give"
        " one another name=."
      )
    if found and rule.adapter.goes_first:
      raise TargetError(
        f"expected the rule {rule.pattern!r} of {rule.name!r} before all others"
        f" at {hits[0]}, found {found[0].name!r} before it, which would change"
        " the kernel that it computes with. List it first."
      )
    found.append(rule)
  return found


def _collapse(path: str) -> str:
  """Writes all layers of a stack as one, so that hints do not repeat."""
  return re.sub(r"layers_\d+", r"layers_\\d+", path)
