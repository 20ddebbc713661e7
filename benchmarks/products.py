"""Times every matrix product of a training step alone: what is the best case?

    PYTHONPATH=. python benchmarks/products.py [--method ia3]

`train_step.py` compares a step with the fastest product the machine can do.
This script asks how much of the gap lies in the products themselves: it reads
their shapes off the compiled step, runs each alone and adds up the medians. As
long as XLA does the products, nothing takes a step below that sum.
"""

import argparse
import collections
import re
import statistics
import time

import jax
import jax.numpy as jnp
import train_step
from jax import lax

_DOT = re.compile(r"= f32\[[\d,]*\]\S* dot\((%[\w.\-]+), (%[\w.\-]+)\), (.*)")
_SHAPE = re.compile(r"(%[\w.\-]+) = f32\[([\d,]*)\]")


def products(hlo: str) -> collections.Counter:
  """Counts the products of a program: (shape, shape, dimension numbers)."""
  found: collections.Counter = collections.Counter()
  shapes: dict[str, tuple[int, ...]] = {}
  for line in hlo.splitlines():
    if match := _SHAPE.search(line):
      shapes[match[1]] = tuple(int(n) for n in match[2].split(",") if n)
    if match := _DOT.search(line):
      numbers = tuple(
        tuple(int(n) for n in re.findall(r"\d+", part[1])) if part else ()
        for part in (
          re.search(name + r"=\{([\d,]*)\}", match[3])
          for name in (
            "lhs_contracting_dims",
            "rhs_contracting_dims",
            "lhs_batch_dims",
            "rhs_batch_dims",
          )
        )
      )
      found[shapes[match[1]], shapes[match[2]], numbers] += 1
  return found


def seconds(
  left: tuple[int, ...], right: tuple[int, ...], numbers: tuple, repeats: int
) -> float:
  """Returns the median time of one product, run alone."""
  lc, rc, lb, rb = numbers
  run = jax.jit(lambda x, y: lax.dot_general(x, y, ((lc, rc), (lb, rb))))
  x, y = jnp.ones(left), jnp.ones(right)
  run(x, y).block_until_ready()
  times = []
  for _ in range(repeats):
    start = time.perf_counter()
    run(x, y).block_until_ready()
    times.append(time.perf_counter() - start)
  return statistics.median(times)


def main() -> None:
  """Prints the sum, the step and the floor, from one run."""
  parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
  parser.add_argument("--method", default="ia3", choices=train_step.METHODS)
  parser.add_argument("--repeats", type=int, default=15)
  args = parser.parse_args()
  shapes = train_step.Shapes()
  ours = train_step.Ours(shapes, args.method, "float32")
  ours.step()
  whole = statistics.median(ours.step() for _ in range(7))
  total = sum(
    count * seconds(left, right, numbers, args.repeats)
    for (left, right, numbers), count in products(ours.program()).items()
  )
  limit = train_step.matmul_limit(shapes, "float32", (1024, 2048))
  floor = train_step.step_flops(shapes, args.method) / limit
  print(f"floor {floor:.3f} s at {limit / 1e9:.0f} GFLOP/s")
  print(f"products alone {total:.3f} s, {total / floor:.2f} of the floor")
  print(f"step {whole:.3f} s, {whole / floor:.2f} of the floor")


if __name__ == "__main__":
  main()
