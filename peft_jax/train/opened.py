"""Opens a trained adapter again, with the backbone it belongs to."""

import ast
import dataclasses
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from peft_jax import (
  backbone,
  checkpoint,
  layout,
  partition,
  reparametrization,
  sharding,
)
from peft_jax import manifest as manifests
from peft_jax.inject import Adapted
from peft_jax.manifest import Manifest
from peft_jax.rules import Rule
from peft_jax.tasks import vocabularies
from peft_jax.tasks.preprocessors import CHOICES
from peft_jax.tasks.sources import DataError
from peft_jax.train import checkpoints, data, evaluate, features
from peft_jax.train import config as configs
from peft_jax.train.config import Config
from peft_jax.train.data import Asked
from peft_jax.train.evaluate import Evaluation
from peft_jax.train.predict import Answering, Ranking
from peft_jax.train.setup import configured_backbone, shapes_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class Opened:
  """An adapter and its backbone, on a mesh.

  Attributes:
    config: the configuration that the adapter was trained with.
    manifest: what the adapter says of itself.
    model: the network with its adapters.
    frozen: the backbone's parameters.
    adapter: the adapter's leaves.
    mesh: where they are.
  """

  config: Config
  manifest: Manifest
  model: Adapted
  frozen: Any
  adapter: Any
  mesh: Mesh

  @property
  def params(self) -> dict:
    """Backbone and adapter in one tree."""
    return partition.join(self.frozen, self.adapter)


def open_adapter(
  directory: str | Path,
  *,
  bindings: Sequence[str] = (),
  search_paths: Sequence[str] = (),
  backbone_dtype: Any = None,
) -> Opened:
  """Opens a run or an exported adapter; settings come from its manifest.

  Args:
    directory: a run's folder or an adapter directory.
    bindings: gin bindings to change, such as the backbone's place.
    search_paths: see `config.resolve`.
    backbone_dtype: in the place of the configuration's.

  Raises:
    AdapterError: if the adapter is damaged or does not fit the backbone.
    ManifestError: if a binding disagrees with the adapter.
    BackboneError: if the backbone is not as expected.
  """
  manifest, leaves = checkpoints.load_adapter(directory)
  config = _config(manifest, bindings, search_paths)
  if backbone_dtype is not None:
    config = dataclasses.replace(config, backbone_dtype=backbone_dtype)
  model = Adapted(config.network, config.rules)
  if not any(map(reparametrization.is_reparametrized, _rules(manifest))):
    model = reparametrization.plain(model)  # as export leaves it
  manifests.check_rules(manifest, model.rules)
  mesh = sharding.make_mesh(model=config.model_parallel)
  with sharding.use(mesh):
    variables = shapes_of(model)
    places = sharding.shardings(
      variables["params"], variables["params_axes"], mesh
    )
    shapes = variables["params"]
    frozen_spec, adapter_spec = partition.split(shapes, model)
    checkpoint.check_fits(leaves, adapter_spec, source=str(directory))
    whole = configured_backbone(config, model, shapes, places)
    checkpoint.check_backbone(
      manifest, manifests.fingerprint(whole), source=str(directory)
    )
    frozen = partition.select(whole, frozen_spec)
    adapter = jax.tree.map(
      jax.device_put,
      layout.like(leaves, adapter_spec),
      partition.select(places, adapter_spec),
    )
  return Opened(
    config=config,
    manifest=manifest,
    model=model,
    frozen=frozen,
    adapter=adapter,
    mesh=mesh,
  )


def _rules(manifest: Manifest) -> list[Rule]:
  return [manifests.rule_from_json(rule) for rule in manifest.rules]


def _config(
  manifest: Manifest, bindings: Sequence[str], search_paths: Sequence[str]
) -> Config:
  text = manifest.training.get("gin", "")
  if not text:
    return _without_run(manifest, bindings)
  with tempfile.NamedTemporaryFile("w", suffix=".gin") as file:
    file.write(text)
    file.flush()
    return configs.resolve([file.name], bindings, search_paths).config


# What a manifest may say of the task, and bindings may change, of adapters that
# no run of ours has made: macro -> field of `Config`.
_SETTINGS = {
  "MIXTURE_OR_TASK_NAME": "task",
  "BACKBONE": "backbone",
  "VOCABULARY": "vocabulary",
  "TASK_FEATURE_LENGTHS": "task_feature_lengths",
  "DATA_DIR": "data_dir",
  "ANSWER_CHOICES": "answer_choices",
  "EVAL_SPLIT": "eval_split",
  "EVAL_BATCH_SIZE": "eval_batch_size",
  "MAX_EVAL_EXAMPLES": "max_eval_examples",
  "MODEL_PARALLEL": "model_parallel",
}


def _without_run(manifest: Manifest, bindings: Sequence[str]) -> Config:
  """Returns what is known of an adapter that no run of ours has made.

  Raises:
    ManifestError: for bindings of other settings than those of evaluation.
    BackboneError: for a network that is not ours.
  """
  source = str(manifest.backbone.get("source", ""))
  known = {
    name: value
    for name, value in manifest.training.items()
    if name in _SETTINGS.values()
  }
  fields = {
    "task": "",
    "backbone": source,
    "vocabulary": source if source.startswith("hf:") else "t5",
    **known,
    **dict(map(_setting, bindings)),
  }
  return Config(
    network=backbone.network_of(manifest.model),
    adapters=_rules(manifest),
    optimizer=optax.identity(),
    model_dir="unused",
    model_name=str(manifest.model.get("name", "")),
    **fields,
  )


def _setting(binding: str) -> tuple[str, Any]:
  """Returns the field of `Config` and its value of `NAME = literal`."""
  name, _, text = (part.strip() for part in binding.partition("="))
  if name not in _SETTINGS:
    raise manifests.ManifestError(
      f"expected one of {sorted(_SETTINGS)} with an adapter that no run of"
      f" `peft-jax train` made, found {name!r}: its manifest has no gin text"
      " that others could change."
    )
  try:
    return _SETTINGS[name], ast.literal_eval(text)
  except (SyntaxError, ValueError) as error:
    raise manifests.ManifestError(
      f"expected a Python literal for {name}, found {text!r}."
    ) from error


def answers(
  opened: Opened,
  sets: Sequence[Asked],
  how: Answering,
  *,
  params: Any = None,
  network: Any = None,
) -> list[tuple[list[str], list[list[float]] | None]]:
  """Returns what `evaluate.answers` does of each set; compiles once.

  Args:
    opened: the adapter.
    sets: what is asked.
    how: answers are found.
    params: parameters in the place of backbone and adapter, e.g. merged ones.
    network: the network that takes them.

  Raises:
    DataError: see `evaluate.check`.
  """
  evaluate.check(how, sets)
  frozen, adapter = (params, {}) if params else (opened.frozen, opened.adapter)
  model = opened.model if network is None else network
  with sharding.use(opened.mesh):
    compiled = evaluate.answering(how, model, mesh=opened.mesh, sets=sets)
    return [
      evaluate.answers(
        lambda inputs: compiled(frozen, adapter, inputs),
        asked,
        how,
        batch_size=opened.config.eval_batch_size,
        mesh=opened.mesh,
      )
      for asked in sets
    ]


def evaluate_task(
  opened: Opened,
  *,
  params: Any = None,
  network: Any = None,
  how: Answering | None = None,
) -> list[Evaluation]:
  """Returns one evaluation per task of the run's task or mixture.

  Args:
    opened: the adapter.
    params: see `answers`.
    network: see `answers`.
    how: answers are found; default: as the run's evaluations did.
  """
  config = opened.config
  sets = data.configured_sets(config, data.get_task(config))
  found = answers(
    opened, sets, how or config.answer_by, params=params, network=network
  )
  return [
    evaluate.judge(eval_set, texts, scores)
    for eval_set, (texts, scores) in zip(sets, found, strict=True)
  ]


def infer(
  opened: Opened,
  rows: Sequence[Mapping[str, Any]],
  *,
  how: Answering | None = None,
) -> list[dict[str, Any]]:
  """Returns the rows with a `prediction` each, and `scores` of a ranking.

  Args:
    opened: the adapter.
    rows: dicts with `inputs`, the text as the task's preprocessor makes it, and
      for a ranking `choices`, a list of texts.
    how: answers are found; default: as the run's evaluations did.

  Raises:
    DataError: if rows that shall be ranked lack choices.
  """
  how = how or opened.config.answer_by
  [(texts, scores)] = answers(opened, [asked_of(opened.config, rows, how)], how)
  answered = [
    {**row, "prediction": text} for row, text in zip(rows, texts, strict=True)
  ]
  if scores is None:
    return answered
  return [
    {**row, "scores": found}
    for row, found in zip(answered, scores, strict=True)
  ]


def asked_of(
  config: Config, rows: Sequence[Mapping[str, Any]], how: Answering
) -> Asked:
  """Returns rows as a task would ask them.

  Args:
    config: of the adapter that answers.
    rows: see `infer`.
    how: answers are found.

  Raises:
    DataError: see `infer`.
  """
  vocabulary = vocabularies.resolve(config.vocabulary)
  lengths, ranks = config.task_feature_lengths, isinstance(how, Ranking)
  return Asked(
    examples=[_example(row, vocabulary, lengths, ranks) for row in rows],
    vocabulary=vocabulary,
    lengths=lengths,
    features=features.for_network(config, vocabulary),
  )


def _example(
  row: Mapping[str, Any],
  vocabulary: Any,
  lengths: Mapping[str, int],
  ranks: bool,
) -> dict[str, Any]:
  """Returns the ids that a task would make of a row."""
  ids = vocabulary.encode(row["inputs"])[: lengths["inputs"] - 1]
  example = {"inputs": [*ids, vocabulary.eos_id]}
  if not ranks:
    return example
  texts = row.get("choices")
  if not isinstance(texts, list) or not texts:
    raise DataError(
      "expected a list 'choices' of texts in every row that is ranked, found"
      f" {texts!r} beside {row['inputs'][:60]!r}. Add it, or pass --answer_by"
      " decoding."
    )
  flat: list[int] = []
  for text in texts:
    flat += [*vocabulary.encode(text), vocabulary.eos_id]
  return {
    **example,
    CHOICES: np.array(flat, np.int32),
    f"{CHOICES}_pretokenized": [text.encode() for text in texts],
  }


def read_inputs(path: str | Path) -> list[dict[str, Any]]:
  """Reads JSON-lines rows with a text `inputs`.

  Raises:
    DataError: naming the line that is not such a row.
  """
  rows = list(_parsed(Path(path)))
  if not rows:
    raise DataError(f"expected rows in {path}, found an empty file.")
  return rows


def _parsed(path: Path) -> Iterator[dict[str, Any]]:
  if not path.is_file():
    raise DataError(f"expected a JSON-lines file at {path}, found none.")
  for number, line in enumerate(path.read_text().splitlines(), start=1):
    if not line.strip():
      continue
    try:
      row = json.loads(line)
    except ValueError:
      row = None
    if not isinstance(row, dict) or not isinstance(row.get("inputs"), str):
      raise DataError(
        f"{path}:{number}: expected a JSON object with a text 'inputs', found"
        f" {line[:60]!r}."
      )
    yield row
