"""Measures the peak memory of reading a large model of Hugging Face.

    PYTHONPATH=. python benchmarks/load.py [--gigabytes 3]

Writes a LLaMA of that many bytes in bfloat16, with zeros in it, to a temporary
folder, and reads it in a process of its own: into bfloat16 on one CPU device,
layers stacked and not. Printed are the process's peak of resident memory over
what it had before reading, in sizes of the model, and its largest tensor; pages
of the file that are mapped count while they are resident.

Needs jax, flax and numpy alone, and twice the space on disk and in memory.
"""

import argparse
import json
import pathlib
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from peft_jax.formats import hugging_face, safetensors_io

CONFIG = {
  "model_type": "llama",
  "vocab_size": 32000,
  "hidden_size": 2048,
  "intermediate_size": 5632,
  "num_attention_heads": 32,
  "num_key_value_heads": 4,
  "hidden_act": "silu",
  "rms_norm_eps": 1e-5,
  "tie_word_embeddings": False,
}


class _Zeros(Mapping[str, np.ndarray]):
  """Tensor name -> zeros, made when asked for."""

  def __init__(self, shapes: dict[str, tuple[int, ...]]) -> None:
    self._shapes = shapes

  def __getitem__(self, name: str) -> np.ndarray:
    return np.zeros(self._shapes[name], jnp.bfloat16)

  def __iter__(self) -> Iterator[str]:
    return iter(self._shapes)

  def __len__(self) -> int:
    return len(self._shapes)


def shapes_of(layers: int) -> dict[str, tuple[int, ...]]:
  """Returns the tensors of a LLaMA of that many layers."""
  size, hidden = CONFIG["hidden_size"], CONFIG["intermediate_size"]
  shared = size // 32 * 4
  inner = {
    "self_attn.q_proj": (size, size),
    "self_attn.k_proj": (shared, size),
    "self_attn.v_proj": (shared, size),
    "self_attn.o_proj": (size, size),
    "mlp.gate_proj": (hidden, size),
    "mlp.up_proj": (hidden, size),
    "mlp.down_proj": (size, hidden),
    "input_layernorm": (size,),
    "post_attention_layernorm": (size,),
  }
  found = {
    f"model.layers.{i}.{name}.weight": shape
    for i in range(layers)
    for name, shape in inner.items()
  }
  table = (CONFIG["vocab_size"], size)
  return found | {
    "model.embed_tokens.weight": table,
    "lm_head.weight": table,
    "model.norm.weight": (size,),
  }


def write(folder: pathlib.Path, gigabytes: float) -> None:
  """Writes a model of about that size."""
  per_layer = sum(
    2 * int(np.prod(shape))
    for name, shape in shapes_of(1).items()
    if ".layers." in name
  )
  layers = max(1, round(gigabytes * 1e9 / per_layer))
  config = CONFIG | {"num_hidden_layers": layers}
  (folder / "config.json").write_text(json.dumps(config))
  arrays = _Zeros(shapes_of(layers))
  safetensors_io.write(folder / "model.safetensors", arrays)


def peak() -> int:
  """Returns this process's peak of resident memory in bytes."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def read(folder: str, scan: bool) -> dict[str, Any]:
  """Reads a model; returns its size and what reading cost."""
  network = hugging_face.network(folder, scan_layers=scan)
  jax.block_until_ready(jnp.zeros(1))
  before, start = peak(), time.perf_counter()
  params = hugging_face.load(folder, network, dtype=jnp.bfloat16)
  jax.block_until_ready(params)
  leaves = jax.tree.leaves(params)
  return {
    "scan": scan,
    "model_gb": sum(leaf.nbytes for leaf in leaves) / 1e9,
    "largest_gb": max(leaf.nbytes for leaf in leaves) / 1e9,
    "peak_gb": (peak() - before) / 1e9,
    "seconds": time.perf_counter() - start,
  }


def main() -> None:
  """Writes, reads in other processes, prints."""
  parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
  parser.add_argument("--gigabytes", type=float, default=3.0)
  parser.add_argument("--read", help=argparse.SUPPRESS)
  parser.add_argument("--scan", action="store_true", help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.read:
    print(json.dumps(read(args.read, args.scan)))
    return
  with tempfile.TemporaryDirectory() as folder:
    write(pathlib.Path(folder), args.gigabytes)
    for scan in ([], ["--scan"]):
      command = [sys.executable, __file__, "--read", folder, *scan]
      done = subprocess.run(command, check=True, capture_output=True, text=True)
      row = json.loads(done.stdout.splitlines()[-1])
      print(
        f"{'stacked' if row['scan'] else 'one module per layer':21}"
        f" model {row['model_gb']:.2f} GB, largest leaf"
        f" {row['largest_gb']:.2f} GB, peak {row['peak_gb']:.2f} GB"
        f" = {row['peak_gb'] / row['model_gb']:.2f} x,"
        f" {row['seconds']:.1f} s"
      )


if __name__ == "__main__":
  main()
