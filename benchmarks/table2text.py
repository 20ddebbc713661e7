"""Adapts a real language model to E2E with several methods; prints one table.

    python benchmarks/table2text.py --model hf:DIR --data_dir DIR [--steps 200]

The model is any decoder-only one in Hugging Face's form, the data E2E's
official zip file. Every method starts from the same backbone, sees the same
batches and is tried with two learning rates, of which the one with the lowest
validation loss counts. The prefix starts as the first words of a training
example. Columns: validation loss per token; BLEU of
greedy texts against all references; trained parameters.

Each adapter is then saved and read again: the texts must be the same, or the
script fails. Where the method can be, it is merged: logits of the answers must
be within 1e-3. The last column says how many texts are then the same; others
have a token at which the two likeliest were closer than rounding.
"""

import argparse
import dataclasses
import json
import pathlib
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from peft_jax import (
  IA3,
  Adapted,
  Bottleneck,
  LoRA,
  Prefix,
  Prompt,
  Rule,
  Unfreeze,
  backbone,
  checkpoint,
  decoding,
  losses,
  merge,
  optim,
  partition,
  start,
)
from peft_jax.formats import hugging_face
from peft_jax.tasks import metrics, table2text, vocabularies
from peft_jax.train import data, features
from peft_jax.train.forward import network_inputs
from peft_jax.train.step import init_state, make_train_step

PREFIX = 10

# Rules, and the learning rates that are tried.
METHODS = {
  "lora": ([Rule("all_linear", LoRA(rank=8, alpha=16))], (3e-3, 1e-2)),
  "ia3": (
    [Rule("kv", IA3()), Rule("mlp_out", IA3(side="input"))],
    (3e-2, 2e-1),
  ),
  "prefix": (
    [Rule(".*attention", Prefix(length=PREFIX, hidden_size=0))],
    (3e-2, 1e-1),
  ),
  "prompt": ([Rule("decoder", Prompt(length=20))], (3e-2, 1e-1)),
  "series": ([Rule(".*(attention|mlp)", Bottleneck(size=16))], (3e-3, 1e-2)),
  "parallel": (
    [Rule(".*mlp", Bottleneck(size=16, placement="parallel"))],
    (3e-3, 1e-2),
  ),
  "full": ([Rule(".*", Unfreeze())], (1e-3, 3e-3)),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
  """What all methods share."""

  network: Any
  backbone: Any
  train: list[dict[str, jax.Array]]
  validation: list[dict[str, jax.Array]]
  inputs: dict[str, jax.Array]
  references: list[list[str]]
  vocabulary: Any
  length: int


def prepare(args: argparse.Namespace) -> Setting:
  """Reads model and data."""
  network = hugging_face.network(args.model, scan_layers=True)
  vocabulary = vocabularies.load(args.model)
  task = table2text.register(data_dir=args.data_dir, vocabulary=vocabulary)
  lengths = {"inputs": args.inputs, "targets": args.targets}
  text = features.Text(
    begin=features.begin_id(vocabulary), end=vocabulary.eos_id
  )
  batches = data.train_batches(
    task,
    lengths=lengths,
    batch_size=args.batch_size,
    seed=0,
    features=text,
  )
  train = [next(batches) for _ in range(args.steps)]
  [examples] = data.eval_sets(
    task,
    lengths=lengths,
    split="validation",
    max_examples=args.examples,
    features=text,
  )
  dataset = task.get_dataset(lengths, "validation", shuffle=False)
  rows = text.train(dataset.take(args.examples), lengths)
  place = lambda batch: {k: jnp.asarray(v) for k, v in batch.items()}
  return Setting(
    network=network,
    backbone=hugging_face.load(args.model, network),
    train=[place(batch) for batch in train],
    validation=[
      place(batch)
      for batch in rows.batch(
        args.batch_size, drop_remainder=True
      ).as_numpy_iterator()
    ],
    inputs=place(examples.inputs),
    references=[
      example["references"].decode().split(table2text.SEPARATOR)
      for example in examples.examples
    ],
    vocabulary=vocabulary,
    length=args.targets,
  )


def validation_loss(setting: Setting, model: Any, params: Any) -> float:
  """Returns the mean loss of a token of the answers."""

  @jax.jit
  def total(params: Any, batch: Any) -> Any:
    logits = model.apply({"params": params}, **network_inputs(batch))
    weights = batch["decoder_loss_weights"].astype(jnp.float32)
    targets = batch["decoder_target_tokens"]
    return losses.language_model(logits, targets, weights)[0], weights.sum()

  sums = [total(params, batch) for batch in setting.validation]
  loss, tokens = np.sum(np.asarray(sums, np.float64), axis=0)
  return float(loss / tokens)


def texts(setting: Setting, model: Any, params: Any) -> list[str]:
  """Returns the model's greedy texts."""
  ids = jax.jit(
    lambda params, inputs: decoding.greedy(
      model,
      params,
      **inputs,
      max_decode_length=setting.length,
      eos_id=setting.vocabulary.eos_id,
    )
  )(params, setting.inputs)
  return [setting.vocabulary.decode(row) for row in np.asarray(ids).tolist()]


def bleu(setting: Setting, found: list[str]) -> float:
  """Returns BLEU against all references."""
  return metrics.bleu(setting.references, found)["bleu"]


def train(setting: Setting, rules: list[Rule], rate: float) -> Any:
  """Returns the model and its parameters after training."""
  model = Adapted(setting.network, rules)
  example = network_inputs(setting.train[0])
  init = lambda key: model.init(key, **example)["params"]
  added = partition.added_of(jax.jit(init)(jax.random.key(0)), model)
  params = partition.assemble(setting.backbone, added, model)
  params = start.from_backbone(params, model, jax.random.key(1))
  # From noise, made by a network, its loss stayed above the frozen model's.
  words = setting.train[0]["decoder_input_tokens"][0, :PREFIX]
  params = start.prefix_from_words(params, model, words, words)
  frozen, adapter = partition.split(params, model)
  steps = len(setting.train)
  tx = optim.adamw(
    learning_rate=optim.linear_decay(
      learning_rate=rate, total_steps=steps, warmup_steps=steps // 10
    )
  )
  state = init_state(adapter, tx, jax.random.key(2), model)
  step = jax.jit(make_train_step(model, tx, dropout=False), donate_argnums=0)
  state = jax.tree.map(jnp.copy, state)
  for batch in setting.train:
    state, _ = step(state, frozen, batch)
  return model, partition.join(frozen, state.adapter)


def check_the_rest(
  setting: Setting, model: Any, params: Any, found: list[str]
) -> str:
  """Saves, reads and merges; returns what was compared."""
  frozen, adapter = partition.split(params, model)
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / "adapter"
    checkpoint.save(
      path,
      adapter,
      model.rules,
      model=backbone.describe(setting.network),
      backbone={"source": "hf"},
    )
    read = checkpoint.restore(path, model, adapter)
  assert texts(setting, model, partition.join(frozen, read)) == found
  if not all(rule.adapter.mergeable for rule in model.rules):
    return "read"
  merged = merge(params, model)
  gap = logits_gap(setting, model, params, merged)
  assert gap <= 1e-3, gap
  said = texts(setting, setting.network, merged)
  same = sum(a == b for a, b in zip(said, found, strict=True))
  return f"read; merged {same} of {len(found)}, logits {gap:.0e}"


def logits_gap(setting: Setting, model: Any, params: Any, merged: Any) -> float:
  """Returns the largest difference of an answer's logits by merging."""

  @jax.jit
  def gap(params: Any, merged: Any, batch: Any) -> Any:
    inputs = network_inputs(batch)
    ours = model.apply({"params": params}, **inputs)
    plain = setting.network.apply({"params": merged}, **inputs)
    real = batch["decoder_loss_weights"][..., None] > 0
    return jnp.max(jnp.where(real, jnp.abs(ours - plain), 0.0))

  return max(float(gap(params, merged, batch)) for batch in setting.validation)


def main() -> None:
  """Trains and prints."""
  parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
  parser.add_argument("--model", metavar="hf:DIR")
  parser.add_argument("--data_dir")
  parser.add_argument("--methods", nargs="+", default=list(METHODS))
  parser.add_argument("--steps", type=int, default=200)
  parser.add_argument("--batch_size", type=int, default=8)
  parser.add_argument("--inputs", type=int, default=128)
  parser.add_argument("--targets", type=int, default=112)
  parser.add_argument("--examples", type=int, default=64)
  parser.add_argument("--json", type=pathlib.Path)
  args = parser.parse_args()
  if not args.model or not args.data_dir:  # `make bench` runs every script
    print("needs --model hf:DIR and --data_dir DIR: nothing was measured")
    return
  setting = prepare(args)
  frozen = validation_loss(setting, setting.network, setting.backbone)
  said = texts(setting, setting.network, setting.backbone)
  rows = [
    {
      "method": "frozen",
      "loss": frozen,
      "bleu": bleu(setting, said),
      "parameters": 0,
      "rate": 0.0,
      "same texts": "",
    }
  ]
  for name in args.methods:
    tried = []
    rules, rates = METHODS[name]
    for rate in rates:
      model, params = train(setting, rules, rate)
      loss = validation_loss(setting, model, params)
      print(f"{name} {rate:g}: {loss:.4f}", flush=True)
      tried.append((loss, rate, model, params))
    loss, rate, model, params = min(tried, key=lambda found: found[0])
    said = texts(setting, model, params)
    _, adapter = partition.split(params, model)
    rows.append(
      {
        "method": name,
        "loss": loss,
        "bleu": bleu(setting, said),
        "parameters": sum(x.size for x in jax.tree.leaves(adapter)),
        "rate": rate,
        "same texts": check_the_rest(setting, model, params, said),
      }
    )
  beaten = [row["method"] for row in rows[1:] if row["loss"] < frozen]
  print("| method | loss | BLEU | trained parameters | rate | same texts |")
  print("| --- | ---: | ---: | ---: | ---: | --- |")
  for row in rows:
    print(
      f"| {row['method']} | {row['loss']:.4f} | {row['bleu']:.1f} |"
      f" {row['parameters']:,} | {row['rate']:g} | {row['same texts']} |"
    )
  if args.json:
    args.json.write_text(json.dumps(rows, indent=2) + "\n")
  print(f"{len(beaten)} of {len(rows) - 1} methods beat the frozen model")


if __name__ == "__main__":
  main()
