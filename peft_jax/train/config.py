"""From gin files and bindings to one frozen `Config`; the only gin code.

The library knows nothing of gin: classes and functions become configurable by
dynamic registration, in the gin files.
"""

import dataclasses
import difflib
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import gin
import numpy as np
import optax
from flax import linen as nn
from gin import config as gin_parser

from peft_jax.rules import Rule, flatten
from peft_jax.train.objective import LanguageModel, Objective
from peft_jax.train.predict import Answering, Decoding


class ConfigError(ValueError):
  """A configuration that cannot be resolved."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Raft:
  """How RAFT's tasks are asked and split; see `peft_jax.tasks.raft.register`.

  Attributes:
    labels: how an input lists the possible labels.
    clean_labels: Banking77's labels with blanks for underscores.
    field_order: the fields in the order of T-Few's settings, or of the file.
    instructions: T-Few's file of settings; empty: what the data folder has, or
      ours.
    validation_start: first of the 10 rows held out of the 50; None: none is.
  """

  labels: Literal["comma", "numbered", "none"] = "comma"
  clean_labels: bool = False
  field_order: Literal["settings", "columns"] = "settings"
  instructions: str = ""
  validation_start: int | None = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class FewShot:
  """Few shots of any task; the rest is for the tasks `tfew_*` alone.

  See `tasks.few_shot.register`.

  Attributes:
    shots: training rows, a sample; 0: all. Default: T-Few's number for its
      tasks, else all.
    seed: of the sample and of the random templates.
    files: T-Few's folder of samples; empty: they are drawn.
    templates: folder in PromptSource's form; empty: the package's own.
    train_template: a template's name or number, `random` or `all`.
    eval_template: the same, for evaluation.
  """

  shots: int | None = None
  seed: int = 42
  files: str = ""
  templates: str = ""
  train_template: str | int = "all"
  eval_template: str | int = "random"

  def __post_init__(self) -> None:
    if self.shots is not None and self.shots < 0:
      raise ConfigError(f"expected SHOTS >= 0 or None, found {self.shots}.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """Everything that a run is told; gin binds these fields from macros.

  Attributes:
    network: the backbone's network.
    adapters: rules, or lists of rules.
    optimizer: for the adapter's leaves.
    learning_rate: schedule, for the log; the optimizer has it already.
    task: name of a SeqIO task or mixture.
    model_dir: the run's folder.
    model_name: name of the network, for the manifest.
    backbone: backbone directory, `.npz` file, `hf:DIR` in Hugging Face's form,
      `t5x:DIR` in T5X's, `tiny` for the one that ships, or `random` to train on
      random weights.
    backbone_dtype: of the parameters that stay frozen; what is trained is
      float32. The activations' dtype costs no accuracy: kernels are rounded to
      it when they are used.
    vocabulary: `bytes`, `t5`, `hf:DIR` for a model's own, or a file of
      SentencePiece or of `tokenizers`.
    data_dir: local files in the place of TFDS; empty: TFDS.
    task_feature_lengths: feature -> tokens; longer inputs are cut.
    train_steps: updates of this run; the backbone's own steps do not count.
    batch_size: B, over all processes.
    micro_batches: parts the batch is cut into to save memory.
    max_train_examples: uses only the first so many training examples; 0: all.
    warm_start: adapter directory or run to take weights from, at step 0.
    random_seed: of initialisation, dropout and shuffling.
    dropout: whether the network drops in training, at its own rate.
    pack: whether several training examples share a row; not under a prompt.
    loss_on: of decoder-only networks, see `features.Text`.
    prefix_lm: of decoder-only networks, see `features.Text`.
    objective: what is minimised, see `objective`.
    answer_by: how evaluation finds answers: `predict.Decoding`, or among the
      answer choices, `predict.Ranking`.
    max_choices: answer choices that an example of training may have; 0: as
      many as one of the first thousand has.
    lora_plus_ratio: see `optim.lora_plus`; 0: one learning rate for all.
    fisher_examples: training examples that a FISH mask is chosen on.
    gradient_clip: largest global norm of the adapter's gradient; 0: none.
    eval_period: steps between evaluations; 0: only at the end.
    eval_split: split that is evaluated; empty: none is.
    eval_batch_size: B in evaluation.
    max_eval_examples: evaluates only so many; 0: all.
    eval_frozen: evaluates the frozen model before training.
    best_metric: task/metric that decides which checkpoint is best; empty: the
      first metric of the first task.
    patience: evaluations in a row without a better `best_metric` after which
      training stops; 0: it goes on.
    checkpoint_period: steps between checkpoints.
    keep: number of latest checkpoints kept, the best one besides.
    log_period: steps between records of the log.
    model_parallel: devices that share one copy of the model.
    answer_choices: the only targets that files of your own may have.
    few_shot: see `FewShot`.
    allow_cut_targets: trains although targets are longer than allowed.
    raft: of the tasks `raft_*`, see `Raft`.
    method: name of the method in `peft-jax report`; empty: the adapters'.
  """

  network: nn.Module
  adapters: Sequence[Rule | Sequence]
  optimizer: optax.GradientTransformation
  task: str
  model_dir: str
  learning_rate: optax.Schedule | float | None = None
  model_name: str = ""
  backbone: str = ""
  backbone_dtype: Any = "float32"
  vocabulary: str = "t5"
  data_dir: str = ""
  task_feature_lengths: Mapping[str, int] = dataclasses.field(
    default_factory=lambda: {"inputs": 512, "targets": 64}
  )
  train_steps: int = 1000
  batch_size: int = 32
  micro_batches: int = 1
  max_train_examples: int = 0
  warm_start: str = ""
  random_seed: int = 0
  dropout: bool = True
  pack: bool = False
  loss_on: Literal["targets", "all"] = "targets"
  prefix_lm: bool = False
  objective: Objective = dataclasses.field(default_factory=LanguageModel)
  answer_by: Answering = dataclasses.field(default_factory=Decoding)
  max_choices: int = 0
  lora_plus_ratio: float = 0.0
  fisher_examples: int = 32
  gradient_clip: float = 0.0
  eval_period: int = 0
  eval_split: str = "validation"
  eval_batch_size: int = 32
  max_eval_examples: int = 0
  eval_frozen: bool = True
  best_metric: str = ""
  patience: int = 0
  checkpoint_period: int = 500
  keep: int = 2
  log_period: int = 10
  model_parallel: int = 1
  allow_cut_targets: bool = False
  answer_choices: Sequence[str] = ()
  raft: Raft = dataclasses.field(default_factory=Raft)
  method: str = ""
  few_shot: FewShot = dataclasses.field(default_factory=FewShot)

  def __post_init__(self) -> None:
    for name in (
      "train_steps",
      "batch_size",
      "micro_batches",
      "eval_batch_size",
      "checkpoint_period",
      "keep",
      "log_period",
      "model_parallel",
    ):
      if getattr(self, name) < 1:
        raise ConfigError(f"expected {name} >= 1, found {getattr(self, name)}.")
    if self.patience and not (self.eval_period and self.eval_split):
      raise ConfigError(
        f"expected EVAL_PERIOD >= 1 and an EVAL_SPLIT with PATIENCE ="
        f" {self.patience}, found {self.eval_period} and {self.eval_split!r}:"
        " training would not be evaluated before its end."
      )
    if np.dtype(self.backbone_dtype).name not in ("float32", "bfloat16"):
      raise ConfigError(
        "expected BACKBONE_DTYPE 'float32' or 'bfloat16', found"
        f" {np.dtype(self.backbone_dtype).name!r}."
      )
    if not self.model_dir:
      raise ConfigError(
        "expected a folder for the run, found none. Pass --model_dir DIR or"
        " --gin.MODEL_DIR=\"'DIR'\"."
      )
    if not {"inputs", "targets"} <= self.task_feature_lengths.keys():
      raise ConfigError(
        "expected task_feature_lengths for inputs and targets, found"
        f" {dict(self.task_feature_lengths)}."
      )

  @property
  def rules(self) -> tuple[Rule, ...]:
    """The rules of all adapters, in order."""
    return flatten(self.adapters)


def pick(*, setting: str, name: str, options: Mapping[str, Any]) -> Any:
  """Returns one of several objects by its name.

  Example:
    >>> pick(setting="LOSS", name="b", options={"a": 1, "b": 2})
    2

  Args:
    setting: the macro that names it, for the error.
    name: which.
    options: name -> object.

  Raises:
    ConfigError: for another name.
  """
  if name not in options:
    raise ConfigError(
      f"expected {setting} to be one of {sorted(options)}, found {name!r}."
    )
  return options[name]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adapters:
  """The rules alone, for what needs no run.

  Attributes:
    rules: rules, or lists of rules.
  """

  rules: Sequence[Rule | Sequence]


# Settings that may change when a run is resumed: they do not change training.
_MAY_CHANGE = (
  "MODEL_DIR",
  "ANSWER_BY",
  "METHOD",
  "EVAL_PERIOD",
  "EVAL_BATCH_SIZE",
  "EVAL_FROZEN",
  "BEST_METRIC",
  "MAX_EVAL_EXAMPLES",
  "CHECKPOINT_PERIOD",
  "KEEP",
  "LOG_PERIOD",
  "MODEL_PARALLEL",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resolved:
  """A configuration and the gin text it came from."""

  config: Config
  gin_text: str
  settings: Mapping[str, str]

  @property
  def fixed_settings(self) -> dict[str, str]:
    """The settings that must agree for a run to be resumed."""
    return {
      name: value
      for name, value in self.settings.items()
      if name not in _MAY_CHANGE and not name.startswith("predict.")
    }


def gin_directory() -> Path:
  """Returns the folder of the gin files that come with the package."""
  return Path(str(resources.files("peft_jax.gin_configs")))


def names_of(kind: str) -> list[str]:
  """Returns the names of the gin files of one kind.

  Example:
    >>> "lora" in names_of("adapters")
    True

  Args:
    kind: a folder of `gin_configs`: adapters, models, recipes or runs.
  """
  return sorted(path.stem for path in (gin_directory() / kind).glob("*.gin"))


def resolve(
  gin_files: Sequence[str],
  bindings: Sequence[str] = (),
  search_paths: Sequence[str] = (),
) -> Resolved:
  """Parses gin files and bindings and makes the `Config`.

  Args:
    gin_files: paths, relative to the search paths or the package's own folder.
    bindings: `NAME = value` lines; they win over the files.
    search_paths: folders to look for gin files in, before the package's.

  Raises:
    ConfigError: for a file that is not found, a syntax error, an unknown name,
      a macro without a value, or a value that does not fit.
  """
  gin.clear_config()
  folders = [*map(Path, search_paths), Path(), gin_directory()]
  # For files that include others; gin keeps the list as long as it runs.
  gin_parser._LOCATION_PREFIXES[:] = [str(folder) for folder in folders[::-1]]
  files = [str(find_file(name, folders)) for name in gin_files]
  try:
    gin.parse_config_files_and_bindings(
      files, list(bindings), finalize_config=False
    )
    _check_macros()
    config = gin.get_configurable(Config)()
  except ConfigError:
    raise
  except (OSError, SyntaxError, ValueError, TypeError, AttributeError) as error:
    raise ConfigError(_explain(error, gin_files)) from error
  return Resolved(config=config, gin_text=gin.config_str(), settings=settings())


def read_adapters(gin_file: str) -> tuple[Rule, ...]:
  """Returns the rules of one adapter file.

  Example:
    >>> len(read_adapters("adapters/ia3.gin"))
    2

  Args:
    gin_file: path, relative to the package's own folder.
  """
  gin.clear_config()
  gin.parse_config_file(str(find_file(gin_file, [gin_directory()])))
  gin.parse_config(
    "from __gin__ import dynamic_registration\n"
    "from peft_jax.train import config\n"
    "config.Adapters.rules = %ADAPTERS\n"
  )
  return flatten(gin.get_configurable(Adapters)().rules)


def find_file(name: str, folders: Sequence[Path]) -> Path:
  """Returns the first file of that name in the folders.

  Raises:
    ConfigError: with the folders and the nearest names that the package has.
  """
  for folder in folders:
    if (folder / name).is_file():
      return folder / name
  own = [
    str(path.relative_to(gin_directory()))
    for path in gin_directory().rglob("*.gin")
  ]
  nearest = difflib.get_close_matches(name, own, n=3, cutoff=0.3)
  raise ConfigError(
    f"expected a gin file {name!r} in {[str(f) for f in folders]}, found none."
    f" Nearest of the package: {', '.join(nearest) or 'none'}."
  )


def _check_macros() -> None:
  """Names every macro that is used but never given a value."""
  used = set(re.findall(r"%([A-Z][A-Z0-9_]*)", gin.config_str()))
  unbound = sorted(name for name in used if not _is_bound(name))
  if unbound:
    hints = {
      "MODEL": "--model NAME",
      "ADAPTERS": "--adapter NAME",
      "MIXTURE_OR_TASK_NAME": "--task NAME",
      "MODEL_DIR": "--model_dir DIR",
    }
    ways = "; ".join(hints.get(name, f"--gin.{name}=value") for name in unbound)
    raise ConfigError(
      f"expected a value for every macro, found none for {', '.join(unbound)}."
      f" Pass {ways}."
    )


def _is_bound(macro: str) -> bool:
  try:
    gin.query_parameter(f"%{macro}")
  except ValueError:
    return False
  return True


def _explain(error: Exception, gin_files: Sequence[str]) -> str:
  text = str(error).strip().replace("\n", " ")
  return (
    f"expected a configuration that resolves, found in {list(gin_files)}:"
    f" {text}"
  )


def settings() -> dict[str, str]:
  """Returns binding -> value as text, for comparing runs and for the report."""
  found: dict[str, str] = {}
  # config_str breaks long values over lines that are indented or follow a '\'.
  text = re.sub(r"(?m)^#.*\n?", "", gin.config_str())
  logical = re.sub(r"\\\n[ \t]*", "", text)
  logical = re.sub(r"\n[ \t]+", " ", logical)
  logical = re.sub(r"\n([\]\)\}])", r" \1", logical)
  for line in logical.splitlines():
    match = re.match(r"([\w/.]+) = (.+)", line)
    # What only passes a macro on says nothing new.
    if match and not match[2].startswith("%"):
      found[match[1]] = match[2].strip()
  return found
