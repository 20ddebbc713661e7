"""The Jinja in which prompt templates run: no code, no files, bounded work.

Templates come from other people. They may read the row they are given, and
that is all: attributes other than a few methods of texts, lists and dicts are
refused, and so is what could make a template run for ever or fill the memory.
"""

import contextlib
import contextvars
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jinja2
from jinja2 import filters, nodes, sandbox, visitor
from jinja2.exceptions import SecurityError

# Of one rendering: rounds of all its loops, and characters or items of a value.
# PromptSource's own templates stay far below.
MAX_ROUNDS = 100_000
MAX_SIZE = 1_000_000
_MAX_BITS = 4_096

# What PromptSource's templates call, and what is as harmless.
_METHODS = frozenset(
  """append capitalize count endswith extend find get index insert items join
  keys lower lstrip pop replace reverse rstrip sort split splitlines startswith
  strip swapcase title update upper values""".split()  # noqa: SIM905
)
_FILTERS = frozenset(
  """abs attr capitalize count d default dictsort first float groupby int items
  last length list lower map max min reject rejectattr reverse round select
  selectattr sort sum title trim truncate unique upper
  wordcount""".split()  # noqa: SIM905
)
_GLOBALS = frozenset(("range", "dict", "namespace"))
# They call one another, and so loop without a bound; or they open files.
_FORBIDDEN = (
  nodes.Block,
  nodes.CallBlock,
  nodes.Extends,
  nodes.FromImport,
  nodes.Import,
  nodes.Include,
  nodes.Macro,
)

# What stands in a format that makes it wide: "%999999999d", "%*d".
_WIDE = re.compile(r"%[^a-zA-Z%]*(\d{4,}|\*)")


class _Rendering:
  """What one rendering has left, and what it draws from."""

  def __init__(self, seed: str):
    self.rounds = MAX_ROUNDS
    self.random = random.Random(seed)


_RENDERING: contextvars.ContextVar[_Rendering] = contextvars.ContextVar(
  "rendering"
)


@contextlib.contextmanager
def rendering(seed: str) -> Iterator[None]:
  """Gives what is rendered inside a full allowance and a seed of its own.

  Example:
    >>> template = Environment().from_string("{{ [1, 2, 3] | choice }}")
    >>> with rendering("any text"):
    ...   first = template.render()
    >>> with rendering("any text"):
    ...   template.render() == first
    True

  Args:
    seed: what the filters `choice` and `random` depend on.
  """
  token = _RENDERING.set(_Rendering(seed))
  try:
    yield
  finally:
    _RENDERING.reset(token)


class Environment(sandbox.SandboxedEnvironment):
  """Jinja with PromptSource's filters, in a sandbox, with bounds.

  As PromptSource has them: `zip`, and the filters `choice`, `most_frequent` and
  `highlight`. `enumerate` is there too. `choice` and `random` draw from the
  seed of `rendering`, so that a task is the same at every reading.

  Example:
    >>> Environment().from_string("{{ name.upper() }}!").render(name="ada")
    'ADA!'
  """

  intercepted_binops = frozenset(("+", "*", "**", "%"))

  def __init__(self) -> None:
    """Keeps of Jinja's filters and globals those that are harmless."""
    super().__init__(finalize=_checked)
    self.filters = {
      **{name: self.filters[name] for name in _FILTERS},
      "choice": _choice,
      "highlight": _highlight,
      "format": _format,
      "join": _join_filter,
      "most_frequent": most_frequent,
      "random": _choice,
      "replace": _replace,
      "string": _string,
      "_bounded": _bounded,
    }
    self.globals = {
      **{name: self.globals[name] for name in _GLOBALS},
      "zip": zip,
      "enumerate": enumerate,
    }

  def _parse(
    self, source: str, name: str | None, filename: str | None
  ) -> nodes.Template:
    tree = super()._parse(source, name, filename)
    for node in tree.find_all(_FORBIDDEN):
      word = type(node).__name__.lower()
      raise SecurityError(f"{{% {word} %}} is not allowed")
    for loop in tree.find_all(nodes.For):
      if loop.recursive:
        raise SecurityError("a recursive loop is not allowed")
    return _Bound().visit(tree)

  def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
    """Allows a few methods of data, and no name that begins with `_`."""
    if isinstance(obj, str | list | tuple | dict | set):
      return attr in _METHODS
    return super().is_safe_attribute(obj, attr, value)

  def wrap_str_format(self, value: Any) -> None:
    """Lets `format` be refused as other methods are: it can be very wide."""

  def unsafe_undefined(self, obj: Any, attribute: str) -> Any:
    """Raises: Jinja would render what is not allowed as nothing."""
    raise SecurityError(
      f"access to {attribute!r} of a {type(obj).__name__} is not allowed"
    )

  def call(self, context: Any, obj: Any, /, *args: Any, **kwargs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
    """Calls what is allowed, with a look at what could grow."""
    owner, name = getattr(obj, "__self__", None), getattr(obj, "__name__", "")
    if isinstance(owner, str) and name == "replace":
      return _replace(owner, *args, **kwargs)
    if isinstance(owner, str) and name == "join":
      return _join(*args, d=owner)
    return super().call(context, obj, *args, **kwargs)

  def call_binop(
    self, context: Any, operator: str, left: Any, right: Any
  ) -> Any:
    """Computes `+ * ** %` unless the result would be very large."""
    if operator == "%" and isinstance(left, str):
      _check_format(left)
    _check_size(_size_of(operator, left, right))
    if operator in ("*", "**") and isinstance(left, int):
      bits = left.bit_length()
      factor = right if operator == "**" else 1
      if isinstance(right, int) and operator == "*":
        bits += right.bit_length()
      if isinstance(factor, int) and bits * max(factor, 1) > _MAX_BITS:
        raise SecurityError("a number this large is not allowed")
    return super().call_binop(context, operator, left, right)


class _Bound(visitor.NodeTransformer):
  """Counts the rounds of loops; makes `~` a `+`, whose size is checked."""

  def visit_For(self, node: nodes.For) -> nodes.For:
    self.generic_visit(node)
    node.iter = _filtered(node.iter, "_bounded")
    return node

  def visit_Concat(self, node: nodes.Concat) -> nodes.Expr:
    self.generic_visit(node)
    first, *others = [_filtered(part, "string") for part in node.nodes]
    total: nodes.Expr = first
    for other in others:
      total = nodes.Add(total, other, lineno=node.lineno)
    return total.set_environment(node.environment)  # pyright: ignore


def _filtered(node: Any, name: str) -> nodes.Filter:
  made = nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)
  return made.set_environment(node.environment)  # pyright: ignore


def most_frequent(items: Sequence[Any]) -> list[Any] | None:
  """Returns all items that occur most often, as PromptSource's filter does.

  Example:
    >>> most_frequent(["a", "b", "a", "b", "c"])
    ['a', 'b']
  """
  if not items:
    return None
  counts = Counter(items)
  top = max(counts.values())
  return [item for item, count in counts.items() if count == top]


# Filters that are given the context are not evaluated when a template is read.
@jinja2.pass_context
def _choice(context: Any, items: Sequence[Any]) -> Any:
  del context
  # `random()` is the one draw that Python promises never to change.
  drawn = _RENDERING.get().random.random()
  return list(items)[int(drawn * len(items))]


def _highlight(text: str) -> str:
  return f"<span style='color: #F08080'>{text}</span>"


@jinja2.pass_context
def _bounded(context: Any, items: Iterable[Any]) -> list[Any]:
  """Returns the items of a loop, if it may have so many rounds."""
  del context
  state = _RENDERING.get()
  found = []
  for item in items:
    state.rounds -= 1
    if state.rounds < 0:
      raise SecurityError(
        f"more than {MAX_ROUNDS:,} rounds of loops are not allowed"
      )
    found.append(item)
  return found


def _checked(value: Any) -> Any:
  """Returns what is to be written, if it may be so long."""
  _check_size(_size(value))
  return value


def _string(value: Any) -> str:
  return str(_checked(value))


def _replace(text: Any, old: str, new: str, count: int | None = None) -> str:
  text, old, new = _string(text), str(old), str(new)
  times = text.count(old) if count is None else min(text.count(old), count)
  _check_size(len(text) + times * len(new))
  return text.replace(old, new, -1 if count is None else count)


@jinja2.pass_eval_context
def _join_filter(
  eval_context: Any, value: Any, d: str = "", attribute: Any = None
) -> str:
  items = list(value)
  _check_size(sum(map(_size, items)) + len(items) * len(str(d)))
  return filters.sync_do_join(eval_context, items, d, attribute)


def _join(value: Iterable[Any], d: str = "") -> str:
  items = list(value)
  _check_size(sum(map(_size, items)) + len(items) * len(d))
  return d.join(items)


def _format(text: str, *args: Any, **kwargs: Any) -> str:
  _check_format(text)
  return filters.do_format(text, *args, **kwargs)


def _check_format(text: str) -> None:
  if _WIDE.search(text):
    raise SecurityError(f"the format {text!r} is not allowed")


def _size_of(operator: str, left: Any, right: Any) -> int:
  """Returns how long a sum or product of sequences is; 0 of numbers."""
  sized = (str, list, tuple)
  if operator == "+" and isinstance(left, sized) and isinstance(right, sized):
    return len(left) + len(right)
  for one, other in ((left, right), (right, left)):
    if operator == "*" and isinstance(one, sized) and isinstance(other, int):
      return len(one) * other
  return 0


def _size(value: Any, known: dict[int, int] | None = None) -> int:
  """Returns about how long a value is as text.

  A list may hold another one many times, and that one others: each is counted
  once and its size kept.
  """
  if isinstance(value, str):
    return len(value)
  if not isinstance(value, list | tuple | set | dict):
    return 1
  known = {} if known is None else known
  if id(value) not in known:
    inner = [*value, *value.values()] if isinstance(value, dict) else value
    known[id(value)] = len(value) + sum(_size(item, known) for item in inner)
  return known[id(value)]


def _check_size(size: int) -> None:
  if size > MAX_SIZE:
    raise SecurityError(
      f"a value of more than {MAX_SIZE:,} characters is not allowed"
    )
