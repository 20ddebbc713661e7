"""Rows through templates: which template a row gets, and its answers."""

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from peft_jax.tasks.metrics import UNLABELED
from peft_jax.tasks.templates import Rendered, Template, TemplateError, named

RANDOM, ALL = "random", "all"


def prompts(
  rows: Iterable[Mapping[str, Any]],
  *,
  templates: Sequence[Template],
  choice: str | int,
  seed: int = 0,
  first: int = 0,
) -> Iterator[dict[str, Any]]:
  """Yields what a task is made of: each row as text, by one template or all.

  Rows without a label (-1) get the target `<unk>`.

  Example:
    >>> template = Template(
    ...   name="ask",
    ...   jinja="{{text}} ||| {{answer_choices[label]}}",
    ...   answer_choices="no ||| yes",
    ...   original_task=True,
    ... )
    >>> rows = [{"text": "Is it?", "label": 1, "idx": 7}]
    >>> next(prompts(rows, templates=[template], choice="random"))["targets"]
    'yes'

  Args:
    rows: with `idx` and `label` besides the fields that the templates read.
    templates: of the data set.
    choice: a template's name, or its place in the order of names; or `random`,
      one of those for the original task, drawn from the seed and the row's
      `idx`; or `all`, each of those in turn. Templates that a row is not meant
      for are passed over.
    seed: of the draw.
    first: draws from so many only, the first in the order of names; 0: all.

  Raises:
    TemplateError: if no template is meant for a row, or one does not fit.
  """
  candidates = _candidates(templates, choice=choice, first=first)
  checked = False
  for row in rows:
    if not checked:
      for template in candidates:
        template.check_fields(row)
      checked = True
    found = _rendered(row, candidates, choice=choice, seed=seed)
    if not found:
      names = ", ".join(repr(template.name) for template in candidates)
      raise TemplateError(
        f"expected a template that is meant for the row with idx {row['idx']},"
        f" found none among {names}. Choose another one, or 'random'."
      )
    for template, rendered in found:
      yield _prompt(row, template=template, rendered=rendered)


def _candidates(
  templates: Sequence[Template], *, choice: str | int, first: int
) -> list[Template]:
  if choice not in (RANDOM, ALL):
    return [named(templates, choice)]
  original = [template for template in templates if template.original_task]
  if not original:
    raise TemplateError(
      "expected templates for the original task, found none among"
      f" {', '.join(repr(template.name) for template in templates)}. Choose one"
      " by its name."
    )
  ordered = sorted(original, key=lambda template: template.name)
  return ordered[: first or None]


def _rendered(
  row: Mapping[str, Any],
  candidates: Sequence[Template],
  *,
  choice: str | int,
  seed: int,
) -> list[tuple[Template, Rendered]]:
  """Returns the templates that a row gets, with what they make of it."""
  order = list(candidates)
  if choice == RANDOM:
    order = _drawn_order(order, seed=seed, idx=row["idx"])
  found = []
  for template in order:
    rendered = template.render(row, seed=f"{seed}/{row['idx']}")
    if rendered is not None:
      found.append((template, rendered))
      if choice == RANDOM:
        break
  return found


def _drawn_order(
  templates: list[Template], *, seed: int, idx: Any
) -> list[Template]:
  """Returns the templates in an order that depends on seed and row alone.

  Python promises that `random()` of a seed never changes.
  """
  draw = random.Random(f"{seed}/{idx}").random
  left, order = list(templates), []
  while left:
    order.append(left.pop(int(draw() * len(left))))
  return order


def _prompt(
  row: Mapping[str, Any], *, template: Template, rendered: Rendered
) -> dict[str, Any]:
  if not rendered.choices:
    raise TemplateError(
      f"template {template.name!r} of {template.dataset}: expected one with"
      " answer choices, found one without. Choose another one."
    )
  label = _label(row["label"], template=template, rendered=rendered)
  return {
    "inputs": rendered.inputs,
    "targets": UNLABELED if label < 0 else rendered.target,
    "choices": list(rendered.choices),
    "label": label,
    "idx": row["idx"],
    "template": template.name,
  }


def _label(label: int, *, template: Template, rendered: Rendered) -> int:
  """Returns where the target stands among the choices.

  That is the row's label, but for templates that ask something else. Two
  choices may be the same text.
  """
  if label < 0:
    return -1
  choices = rendered.choices
  if label < len(choices) and choices[label] == rendered.target:
    return label
  if rendered.target in choices:
    return choices.index(rendered.target)
  raise TemplateError(
    f"template {template.name!r} of {template.dataset}: expected a target that"
    f" is one of the choices {list(choices)}, found {rendered.target!r}."
    " Correct the template, or choose another one."
  )
