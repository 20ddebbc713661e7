"""Prompt templates: from a row of a data set to inputs, target and choices.

Templates are written in Jinja, as PromptSource's are, and run in `sandbox`.
"""

import copy
import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
from jinja2 import meta

from peft_jax.tasks import sandbox

# Between the input and the target, and between the choices.
SEPARATOR = "|||"
# Longer values of a row are cut, as PromptSource does (promptsource/
# templates.py, TEXT_VAR_LENGTH), and so T0 and T-Few.
MAX_CHARS = 2048
# Stands for the separator where it is part of a row.
_PROTECTED = "\x00|\x00"


class TemplateError(ValueError):
  """A template that cannot be read, or does not fit a row."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rendered:
  """A row as text.

  Attributes:
    inputs: the prompt.
    target: the right answer, empty if the row has no label.
    choices: the answers to choose from; empty: any text.
  """

  inputs: str
  target: str
  choices: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Template:
  """How a row of one data set is put into words.

  Example:
    >>> template = Template(
    ...   name="plain",
    ...   jinja="{{text}} Good? ||| {{answer_choices[label]}}",
    ...   answer_choices="no ||| yes",
    ... )
    >>> template.render({"text": "Fine.", "label": 1})
    Rendered(inputs='Fine. Good?', target='yes', choices=('no', 'yes'))

  Attributes:
    name: the only one of its data set.
    jinja: the input, `|||`, and the target. The fields of the row are
      variables, and so is the list `answer_choices`.
    answer_choices: Jinja for the choices, `|||` between them. Default: any text
      is an answer.
    original_task: whether it asks what the data set was made for.
    choices_in_prompt: whether the input names the choices.
    metrics: PromptSource's names of the metrics.
    languages: of the text that the template adds.
    reference: who wrote it.
    dataset: where it belongs, for messages.
  """

  name: str
  jinja: str
  answer_choices: str | None = None
  original_task: bool = False
  choices_in_prompt: bool = False
  metrics: tuple[str, ...] = ()
  languages: tuple[str, ...] = ()
  reference: str = ""
  dataset: str = ""

  @property
  def fields(self) -> frozenset[str]:
    """The variables that are used; some of them perhaps only if they are there.

    Raises:
      TemplateError: if it is not Jinja, or not allowed.
    """
    names = self._parsed(self.jinja) | self._parsed(self.answer_choices or "")
    return names - {"answer_choices"}

  def render(
    self,
    row: Mapping[str, Any],
    *,
    seed: object = 0,
    max_chars: int = MAX_CHARS,
  ) -> Rendered | None:
    """Returns a row as text, None if the template is not meant for it.

    A template is not meant for a row that it gives no separator for: some are
    for a part of the rows only.

    Args:
      row: the fields of the data set's row.
      seed: of what the template draws, if it does.
      max_chars: characters of a value; longer ones are cut and end in `...`.
        0: they are not cut. Default: PromptSource's.

    Raises:
      TemplateError: if it does not fit the row, or does what is not allowed.
    """
    if "answer_choices" in row:
      raise self._error("a row without `answer_choices`, its own name for them")
    values = {name: _protected(value) for name, value in row.items()}
    with sandbox.rendering(f"{seed}/{self.name}"):
      choices = self._choices(values)
      text = self._run(
        _cutting(self.jinja, max_chars), {**values, "answer_choices": choices}
      )
    parts = [_restored(part) for part in text.split(SEPARATOR)]
    if len(parts) == 1:
      return None
    if len(parts) != 2:
      raise self._error(
        f"one {SEPARATOR} between input and target", found=f"{len(parts) - 1}"
      )
    return Rendered(
      inputs=parts[0],
      target=parts[1],
      choices=tuple(map(_restored, choices or ())),
    )

  def check_fields(self, row: Mapping[str, Any]) -> None:
    """Raises if the row lacks a field: Jinja would write nothing for it.

    Raises:
      TemplateError: with both sets of names.
    """
    missing = sorted(self.fields - row.keys())
    if missing:
      raise self._error(
        f"rows with the fields {', '.join(sorted(self.fields))}",
        found=f"{', '.join(sorted(row))}: {', '.join(missing)} missing",
      )

  def _choices(self, values: Mapping[str, Any]) -> list[str] | None:
    if self.answer_choices is None:
      return None
    text = self._run(self.answer_choices, values)
    return [choice.strip() for choice in text.split(SEPARATOR)]

  def _run(self, source: str, values: Mapping[str, Any]) -> str:
    try:
      # Templates may append to a list; the row is not theirs.
      return _compiled(source).render(copy.deepcopy(dict(values)))
    # Whatever a template does may fail in its own way.
    except Exception as error:
      raise self._failure(error) from error

  def _parsed(self, source: str) -> frozenset[str]:
    try:
      return _variables(source)
    except jinja2.TemplateError as error:
      raise self._failure(error) from error

  def _failure(self, error: Exception) -> TemplateError:
    return self._error(
      "a template that renders", found=f"{type(error).__name__}: {error}"
    )

  def _error(self, expected: str, *, found: str = "one") -> TemplateError:
    place = f" of {self.dataset}" if self.dataset else ""
    return TemplateError(
      f"template {self.name!r}{place}: expected {expected}, found {found}."
      " Correct the template, or choose another one."
    )


def named(templates: Sequence[Template], choice: str | int) -> Template:
  """Returns the template of that name, or at that place in the order of names.

  Example:
    >>> both = [Template(name=name, jinja="a ||| b") for name in ("x", "y")]
    >>> named(both, "y").name, named(both, 0).name
    ('y', 'x')

  Raises:
    TemplateError: with the names that there are.
  """
  ordered = sorted(templates, key=lambda template: template.name)
  if isinstance(choice, int) and 0 <= choice < len(ordered):
    return ordered[choice]
  for template in ordered:
    if template.name == choice:
      return template
  names = ", ".join(f"{i} {t.name!r}" for i, t in enumerate(ordered))
  raise TemplateError(
    f"expected one of the templates {names}, found {choice!r}. Give a name or"
    " a number."
  )


@functools.cache
def _environment() -> sandbox.Environment:
  return sandbox.Environment()


# Each is used once for every row.
@functools.lru_cache(maxsize=4096)
def _compiled(source: str) -> jinja2.Template:
  return _environment().from_string(source)


@functools.lru_cache(maxsize=4096)
def _variables(source: str) -> frozenset[str]:
  environment = _environment()
  names = meta.find_undeclared_variables(environment.parse(source))
  return frozenset(names) - environment.globals.keys()


def _cutting(source: str, max_chars: int) -> str:
  """Adds what cuts long values, in the way and at the places PromptSource does.

  The filter binds more tightly than an operator: of `{{ a + b }}` it cuts b.
  """
  if not max_chars:
    return source
  return re.sub(
    r"(-?)\}\}", rf" | string | truncate({max_chars}) \1}}}}", source
  )


def _protected(value: Any) -> Any:
  return (
    value.replace(SEPARATOR, _PROTECTED) if isinstance(value, str) else value
  )


def _restored(text: str) -> str:
  return text.replace(_PROTECTED, SEPARATOR).strip()
