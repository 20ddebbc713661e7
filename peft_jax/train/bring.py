"""Brings backbones and adapters of others into this project's form."""

from collections.abc import Iterator
from pathlib import Path

import jax

from peft_jax import backbone, checkpoint, manifest, networks
from peft_jax.formats import google_prompt, hugging_face, peft, t5x, tfew
from peft_jax.train.config import ConfigError


def bring(
  kind: str, source: str, to: str, model: str | None = None
) -> Iterator[str]:
  """Reads what lies in `source`, writes it to `to`, and says what it did.

  Args:
    kind: 'hf', a backbone of Hugging Face; 't5x', one of T5X; 'peft', an
      adapter of Hugging Face PEFT or LLM-Adapters; 'tfew', (IA)3 vectors of
      T-Few; 'prompt', a prompt of Google's prompt tuning.
    source: its folder or file.
    to: a new folder.
    model: of 'peft', `hf:DIR`; of all others but 'hf', the network's name.

  Raises:
    ConfigError: if the model is missing.
    FormatError: for what cannot be read.
    BackboneError: if the folder is taken, or the network is another one.
  """
  if kind == "hf":
    network = hugging_face.network(source)
    params = hugging_face.load(source, network)
    name = Path(source).name
    backbone.save(to, params, model=backbone.describe(network, name))
    yield f"{to}: a {type(network).__name__} of {_size(params):,} parameters"
  elif kind == "t5x":
    network = networks.create(_needed(model, "NAME of its size"))
    params = t5x.load(source, hugging_face.shapes(network))
    backbone.save(to, params, model=backbone.describe(network, str(model)))
    yield f"{to}: {model} of {_size(params):,} parameters"
  elif kind in ("tfew", "prompt"):
    network = networks.create(_needed(model, "NAME of its size"))
    rules, adapter = tfew.RULES, {}
    if kind == "tfew":
      adapter = tfew.read(source, network)
    else:
      rules, adapter = google_prompt.read(source, network)
    checkpoint.save(
      to,
      adapter,
      rules,
      model=backbone.describe(network, str(model)),
      backbone={"source": "", "fingerprint": ""},
    )
    yield f"{to}: {rules[0].name}, {_size(adapter):,} parameters"
    yield (
      "The file does not say for which weights: --gin.BACKBONE=\"'DIR'\" does,"
      " wherever it is used."
    )
  else:
    base = _needed(model, "hf:DIR of its backbone")
    network = hugging_face.network(base)
    found = peft.read(source, base, network)
    params = hugging_face.load(base, network)
    checkpoint.save(
      to,
      found.adapter,
      found.rules,
      model=backbone.describe(network, Path(base).name),
      backbone={
        "source": f"{hugging_face.PREFIX}{hugging_face.folder_of(base)}",
        "fingerprint": manifest.fingerprint(params),
      },
    )
    methods = ", ".join(sorted({rule.name for rule in found.rules}))
    yield f"{to}: {methods}, {_size(found.adapter):,} parameters"
    yield from found.notes


def _needed(model: str | None, what: str) -> str:
  if not model:
    raise ConfigError(f"expected --model with the {what}, found none.")
  return model


def _size(tree: object) -> int:
  return sum(leaf.size for leaf in jax.tree.leaves(tree))
