"""Times an ensemble of prompts beside one batch of the same total size.

    PYTHONPATH=. python benchmarks/ensemble.py

N adapters of one backbone answer B inputs greedily in one batch
(`ensemble.each`). Beside it, in turns: one adapter that answers N x B inputs,
and the N adapters one after another on B inputs each. Ratios are of medians;
that of the processor's own time says more on a busy machine.
Random weights, no end before the last token; the ids of the ensemble and of the
separate runs are compared, and the share that is equal is printed: of random
logits some are equal to the last digit.

Needs jax, flax and numpy alone.
"""

import argparse
import json
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from peft_jax import IA3, LoRA, Prompt, Rule, decoding, ensemble, networks
from peft_jax.inject import Adapted
from peft_jax.partition import join, split

METHODS: dict[str, list[Rule]] = {
  "prompt": [Rule("first_stack", Prompt(length=20, initializer="uniform"))],
  "lora": [Rule("qv", LoRA(rank=4))],
  "ia3": [Rule("kv", IA3()), Rule("mlp_out", IA3(side="input"))],
}


def make_network(kind: str, size: int, layers: int) -> Any:
  """Returns a T5 1.1 or a LLaMA of `size` dimensions."""
  shape: dict[str, Any] = {
    "vocab_size": 8192,
    "emb_dim": size,
    "num_heads": size // 64,
    "head_dim": 64,
    "mlp_dim": 2 * size,
    "num_encoder_layers": layers if kind == "t5" else 0,
    "num_decoder_layers": layers,
  }
  if kind == "llama":
    shape |= {
      "positions": "rotary",
      "attention_scale": 0.0,
      "mlp_activations": ("silu", "linear"),
    }
  return networks.from_config(networks.TransformerConfig(**shape))


def measure(network: Any, rules: list[Rule], args: Any) -> dict[str, Any]:
  """Returns medians in seconds, their ratios, and the share of equal ids."""
  model = Adapted(network, rules)
  blank = jnp.ones((1, 2), jnp.int32)
  params = jax.jit(lambda key: model.init(key, blank, blank, blank)["params"])(
    jax.random.key(0)
  )
  frozen, adapter = split(params, model)
  rng = np.random.default_rng(0)
  draw = lambda x: jnp.asarray(
    0.3 * rng.standard_normal(x.shape).astype(np.float32)
  )
  adapters = [jax.tree.map(draw, adapter) for _ in range(args.members)]
  inputs = jnp.asarray(
    rng.integers(2, 8192, (args.batch, args.inputs)), jnp.int32
  )

  def answer(frozen: Any, adapter: Any, inputs: Any) -> Any:
    return decoding.greedy(
      model,
      join(frozen, adapter),
      inputs,
      max_decode_length=args.targets,
      eos_id=-1,
    )

  one = jax.jit(answer)
  together = jax.jit(ensemble.each(answer))
  stacked = ensemble.stack(adapters)
  repeated = jnp.repeat(inputs, args.members, axis=0)
  ways: dict[str, Callable[[], Any]] = {
    "one_batch": lambda: one(frozen, adapters[0], repeated),
    "ensemble": lambda: together(frozen, stacked, inputs),
    "separate": lambda: [one(frozen, a, inputs) for a in adapters],
  }
  for way in ways.values():
    jax.block_until_ready(way())
  seconds: dict[str, list[float]] = {name: [] for name in ways}
  work: dict[str, list[float]] = {name: [] for name in ways}
  for turn in range(args.repeats):
    # Forth and back: what runs first is not always the same.
    for name in list(ways)[:: -1 if turn % 2 else 1]:
      begun, used = time.perf_counter(), time.process_time()
      jax.block_until_ready(ways[name]())
      seconds[name].append(time.perf_counter() - begun)
      work[name].append(time.process_time() - used)
  median = {name: statistics.median(found) for name, found in seconds.items()}
  busy = {name: statistics.median(found) for name, found in work.items()}
  equal = np.asarray(ways["ensemble"]()) == np.stack(ways["separate"]())
  return {
    **{f"{name}_s": value for name, value in median.items()},
    "to_one_batch": median["ensemble"] / median["one_batch"],
    "to_separate": median["ensemble"] / median["separate"],
    "cpu_to_one_batch": busy["ensemble"] / busy["one_batch"],
    "equal_ids": float(equal.mean()),
  }


def main() -> None:
  """Measures what the flags ask for and prints a row each."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--methods", default="prompt,lora")
  parser.add_argument("--networks", default="t5,llama")
  parser.add_argument("--members", type=int, default=5)
  parser.add_argument("--batch", type=int, default=4)
  parser.add_argument("--inputs", type=int, default=64)
  parser.add_argument("--targets", type=int, default=16)
  parser.add_argument("--size", type=int, default=256)
  parser.add_argument("--layers", type=int, default=4)
  parser.add_argument("--repeats", type=int, default=9)
  parser.add_argument("--json", type=pathlib.Path)
  args = parser.parse_args()
  rows = []
  for kind in args.networks.split(","):
    network = make_network(kind, args.size, args.layers)
    for name in args.methods.split(","):
      row = {"network": kind, "method": name}
      rows.append(row | measure(network, METHODS[name], args))
      print(json.dumps(rows[-1]), flush=True)
  if args.json:
    args.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
  main()
