"""Times greedy generation, beside Hugging Face's `generate` if asked.

    PYTHONPATH=. python benchmarks/generate.py
    PYTHONPATH=. python benchmarks/generate.py --peer hf --peer_python PYTHON

Shapes: a T5 1.1 of 77 million parameters and a LLaMA of 100 million, random
weights, batch 8, an input of 64 tokens, 64 new tokens, no end before that. The
two systems take turns, and ratios are of medians; ours is compiled before.
Tokens per second count the new ones.

Needs jax, flax and numpy alone; the peer's Python torch and transformers.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from peft_jax import decoding, networks

_WORKER = pathlib.Path(__file__).with_name("_hf_generate.py")

SHAPES: dict[str, dict[str, int]] = {
  "t5": {
    "vocab": 32128,
    "d_model": 512,
    "d_ff": 1024,
    "num_heads": 6,
    "num_kv_heads": 6,
    "head_dim": 64,
    "num_layers": 8,
  },
  "llama": {
    "vocab": 32000,
    "d_model": 640,
    "d_ff": 1728,
    "num_heads": 10,
    "num_kv_heads": 5,
    "head_dim": 64,
    "num_layers": 14,
  },
}


def make_network(architecture: str, dtype: str) -> Any:
  """Returns our network of an architecture's shapes."""
  shapes = SHAPES[architecture]
  sizes = {
    "vocab_size": shapes["vocab"],
    "emb_dim": shapes["d_model"],
    "mlp_dim": shapes["d_ff"],
    "num_heads": shapes["num_heads"],
    "num_kv_heads": shapes["num_kv_heads"],
    "head_dim": shapes["head_dim"],
    "num_decoder_layers": shapes["num_layers"],
    "dtype": jnp.dtype(dtype),
  }
  if architecture == "t5":
    sizes["num_encoder_layers"] = shapes["num_layers"]
  else:
    sizes |= {
      "num_encoder_layers": 0,
      "attention_scale": 0.0,
      "positions": "rotary",
      "mlp_activations": ("silu", "linear"),
    }
  return networks.from_config(networks.TransformerConfig(**sizes))


class Ours:
  """Our generation, compiled."""

  def __init__(self, architecture: str, tokens: np.ndarray, args: Any) -> None:
    network = make_network(architecture, args.dtype)
    blank = np.ones((1, 2), np.int32)
    init = lambda key: network.init(key, blank, blank, blank)["params"]
    self._params = jax.jit(init)(jax.random.key(0))
    self.parameters = sum(x.size for x in jax.tree.leaves(self._params))
    generate = lambda params, tokens: decoding.greedy(
      network,
      params,
      tokens,
      max_decode_length=args.new_tokens,
      eos_id=-1,
    )
    self._tokens = jnp.asarray(tokens)
    lowered = jax.jit(generate).lower(self._params, self._tokens)
    self._run = lowered.compile()

  def run(self) -> float:
    """Returns the seconds of one batch."""
    start = time.perf_counter()
    jax.block_until_ready(self._run(self._params, self._tokens))
    return time.perf_counter() - start


class Peer:
  """Hugging Face's generation in a process of its own."""

  def __init__(self, architecture: str, tokens: np.ndarray, args: Any) -> None:
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    self._process = subprocess.Popen(
      [args.peer_python, str(_WORKER)],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
      env=env,
    )
    self._ask(
      {
        "architecture": architecture,
        "shapes": SHAPES[architecture],
        "tokens": tokens.tolist(),
        "new_tokens": args.new_tokens,
      }
    )

  def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
    assert self._process.stdin is not None
    assert self._process.stdout is not None
    self._process.stdin.write(json.dumps(request) + "\n")
    self._process.stdin.flush()
    line = self._process.stdout.readline()
    if not line:
      raise RuntimeError("the peer ended without an answer")
    return json.loads(line)

  def run(self) -> float:
    """Returns the seconds of one batch."""
    return self._ask({"run": 1})["seconds"]

  def close(self) -> None:
    """Ends the process."""
    self._process.kill()


def measure(architecture: str, args: Any) -> list[dict[str, Any]]:
  """Returns one row per system."""
  rng = np.random.default_rng(0)
  vocab = SHAPES[architecture]["vocab"]
  shape = (args.batch, args.input_tokens)
  tokens = rng.integers(3, vocab, shape, dtype=np.int32)
  ours = Ours(architecture, tokens, args)
  systems: dict[str, Any] = {"peft_jax": ours}
  if args.peer:
    systems[args.peer] = Peer(architecture, tokens, args)
  times: dict[str, list[float]] = {name: [] for name in systems}
  for _ in range(args.runs + 1):
    for name, system in systems.items():
      times[name].append(system.run())
  rows = []
  for name, found in times.items():
    median = statistics.median(found[1:])
    rows.append(
      {
        "system": name,
        "architecture": architecture,
        "parameters": ours.parameters,
        "median_s": median,
        "tokens_per_s": args.batch * args.new_tokens / median,
        "ratio_to_peer": None,
      }
    )
  if args.peer:
    systems[args.peer].close()
    ratio = rows[0]["tokens_per_s"] / rows[1]["tokens_per_s"]
    rows[0]["ratio_to_peer"] = ratio
  return rows


def main() -> None:
  """Measures and prints."""
  parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
  parser.add_argument("--architectures", nargs="+", default=list(SHAPES))
  parser.add_argument("--peer", choices=["hf"])
  parser.add_argument("--peer_python", default=sys.executable)
  parser.add_argument("--batch", type=int, default=8)
  parser.add_argument("--input_tokens", type=int, default=64)
  parser.add_argument("--new_tokens", type=int, default=64)
  parser.add_argument("--dtype", default="float32")
  parser.add_argument("--runs", type=int, default=3)
  parser.add_argument("--json", type=pathlib.Path)
  args = parser.parse_args()
  rows = [row for name in args.architectures for row in measure(name, args)]
  for row in rows:
    ratio = row["ratio_to_peer"]
    beside = f"  {ratio:.2f} times the peer's" if ratio else ""
    print(
      f"{row['architecture']:6} {row['system']:9}"
      f" {row['parameters'] / 1e6:6.1f} M  {row['tokens_per_s']:8.1f}"
      f" tokens/s{beside}"
    )
  if args.json:
    args.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
  main()
