"""From short names to gin files, and a configuration."""

import os
from pathlib import Path
from typing import Any

from peft_jax import networks


def resolve(args: Any) -> Any:
  """Turns short names into gin files and bindings, and resolves them."""
  from peft_jax.train import config

  files: list[str] = []
  bindings: list[str] = []
  if args.recipe:
    files.append(named("recipes", args.recipe))
  elif not any("runs/" in name for name in args.gin_file):
    files.append("runs/train.gin")
  if args.model:
    if args.model.startswith("hf:"):
      files.append("models/hugging_face.gin")
      bindings.append(f"MODEL_NAME = {args.model!r}")
    elif (Path(args.model) / "backbone.json").is_file():
      files.append("models/directory.gin")
      bindings.append(f"MODEL_NAME = {args.model!r}")
    elif args.model in _named_models():
      files.append(f"models/{args.model}.gin")
    else:
      networks.create(args.model)  # raises for an unknown name
      files.append("models/t5.gin")
      bindings.append(f"MODEL_NAME = {args.model!r}")
  if args.adapter:
    files.append(named("adapters", args.adapter))
  files += args.gin_file
  macros = {
    "MIXTURE_OR_TASK_NAME": _task(args.task, args.recipe),
    "BACKBONE": args.backbone,
    "DATA_DIR": args.data_dir,
    "VOCABULARY": args.vocabulary,
    "TEMPLATES": args.templates,
    "MODEL_DIR": args.model_dir or _default_model_dir(args),
    "WARM_START": args.warm_start,
    "METHOD": args.adapter or args.recipe,
  }
  bindings += [f"{name} = {v!r}" for name, v in macros.items() if v]
  return config.resolve(files, [*bindings, *args.bindings], search_paths(args))


def _task(name: str | None, recipe: str | None) -> str | None:
  """Returns the full name of a task that a recipe's short name stands for.

  With the recipes of T-Few `rte` is T-Few's task, with others SuperGLUE's.
  """
  if not (name and recipe):
    return name
  prefixes = (recipe.split("_")[0], "superglue")
  known = task_names()
  return next((f"{p}_{name}" for p in prefixes if f"{p}_{name}" in known), name)


def task_names() -> list[str]:
  """Returns the names of the tasks."""
  from peft_jax.train import host_tensorflow

  host_tensorflow.import_tensorflow()

  from peft_jax.tasks import prepare

  return prepare.names()


def _named_models() -> list[str]:
  """Models that have a gin file of their own."""
  return [name for name in gin_names("models") if name in networks.CONFIGS]


def named(kind: str, name: str) -> str:
  """Returns the gin file of a short name.

  Raises:
    ConfigError: with the names there are.
  """
  from peft_jax.train import config

  known = config.names_of(kind)
  if name not in known:
    raise config.ConfigError(
      f"expected one of the {kind} {known}, found {name!r}. For a file of your"
      " own use --gin_file."
    )
  return f"{kind}/{name}.gin"


def _default_model_dir(args: Any) -> str:
  names = [args.recipe, args.task, args.model, args.adapter]
  known = [name for name in names if name]
  return os.path.join("runs", "-".join(known)) if known else ""


def search_paths(args: Any) -> list[str]:
  """Returns the folders that gin files are looked for in first."""
  return [path for path in args.gin_search_paths.split(",") if path]


def gin_names(kind: str) -> list[str]:
  """Returns the names of the package's gin files of one kind."""
  from peft_jax.train import config

  return config.names_of(kind)
