"""Reads templates in the form of PromptSource (arXiv 2202.01279).

A folder holds `<data set>/templates.yaml` or `<data set>/<subset>/
templates.yaml`. The package's own templates, in `prompts/`, have that form too;
PromptSource's are at https://github.com/bigscience-workshop/promptsource, in
`promptsource/templates`.
"""

import difflib
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import yaml

from peft_jax.tasks.templates import Template, TemplateError

OWN = pathlib.Path(__file__).parent / "prompts"
_FILE = "templates.yaml"


# The one in C is as safe, and ten times as fast; not every build has it.
_Safe: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_Safe):
  """Reads plain values, and PromptSource's two tags as dictionaries."""


for _tag in ("!Template", "!TemplateMetadata"):
  _Loader.add_constructor(
    _tag, lambda loader, node: loader.construct_mapping(node, deep=True)
  )


def read(
  dataset: str,
  *,
  subset: str = "",
  folder: str | os.PathLike[str] = OWN,
) -> tuple[Template, ...]:
  """Returns the templates of a data set, in the order of their names.

  T-Few gives templates by their place in this order.

  Example:
    >>> [t.name for t in read("super_glue", subset="rte")][:2]
    ['conclude', 'follows']

  Args:
    dataset: its name at Hugging Face, e.g. `super_glue`.
    subset: e.g. `rte`; empty: there is none.
    folder: of the templates. Default: those that come with the package.

  Raises:
    TemplateError: if there is no such file, or it holds no templates.
  """
  path = pathlib.Path(folder, dataset, subset, _FILE)
  if not path.is_file():
    wanted = "/".join(filter(None, (dataset, subset)))
    held = ["/".join(filter(None, names)) for names in list_datasets(folder)]
    nearest = difflib.get_close_matches(wanted, held, n=3, cutoff=0.3)
    raise TemplateError(
      f"expected templates of {wanted} at {path}, found none. Nearest of"
      f" {len(held)}: {', '.join(nearest) or 'none'}. Give a folder in"
      " PromptSource's form that has them."
    )
  return read_file(path)


def list_datasets(folder: str | os.PathLike[str]) -> list[tuple[str, str]]:
  """Returns (data set, subset) of every file of a folder, in order.

  Example:
    >>> ("super_glue", "rte") in list_datasets(OWN)
    True

  Raises:
    TemplateError: if there is no such folder.
  """
  root = pathlib.Path(folder)
  if not root.is_dir():
    raise TemplateError(
      f"expected a folder of templates, found none at {root}. Give the folder"
      " promptsource/templates of PromptSource, or one like it."
    )
  found = []
  for path in sorted(root.rglob(_FILE)):
    names = path.parent.relative_to(root).parts
    # PromptSource's users have folders of their own: Zaid/coqa_expanded.
    found.append((names[0], "/".join(names[1:])) if names else (root.name, ""))
  return found


def read_file(path: str | os.PathLike[str]) -> tuple[Template, ...]:
  """Returns the templates of one file, in the order of their names.

  Nothing in the file is run: other tags than PromptSource's are an error, and
  templates run in `sandbox`.

  Raises:
    TemplateError: if the file does not read as templates.
  """
  path = pathlib.Path(path)
  try:
    content = yaml.load(path.read_text("utf-8"), _Loader)
  except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
    found = " ".join(str(error).split())
    raise _error(path, f"{type(error).__name__}: {found}") from error
  entries = content.get("templates") if isinstance(content, dict) else None
  if not isinstance(entries, dict) or not entries:
    raise _error(path, "no `templates`")
  parts = [str(content.get(key) or "") for key in ("dataset", "subset")]
  dataset = "/".join(filter(None, parts))
  templates = [
    _template(entry, path=path, dataset=dataset) for entry in entries.values()
  ]
  names = [template.name for template in templates]
  twice = sorted({name for name in names if names.count(name) > 1})
  if twice:
    raise _error(path, f"two of the name {twice[0]!r}")
  return tuple(sorted(templates, key=lambda template: template.name))


def _template(entry: Any, *, path: pathlib.Path, dataset: str) -> Template:
  if not isinstance(entry, Mapping):
    raise _error(path, f"a template that is {entry!r}")
  for name in ("name", "jinja"):
    if not isinstance(entry.get(name), str):
      raise _error(path, f"a template whose {name} is {entry.get(name)!r}")
  metadata = entry.get("metadata") or {}
  template = Template(
    name=entry["name"],
    jinja=entry["jinja"],
    answer_choices=entry.get("answer_choices"),
    original_task=bool(metadata.get("original_task")),
    choices_in_prompt=bool(metadata.get("choices_in_prompt")),
    metrics=tuple(metadata.get("metrics") or ()),
    languages=tuple(metadata.get("languages") or ()),
    reference=str(entry.get("reference") or ""),
    dataset=dataset,
  )
  # Parses the Jinja: what is not allowed is told before a row is read.
  _ = template.fields
  return template


def _error(path: pathlib.Path, found: str) -> TemplateError:
  return TemplateError(
    f"{path}: expected templates in PromptSource's form, found {found}."
    " Correct the file."
  )
