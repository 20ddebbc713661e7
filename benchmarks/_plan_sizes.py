"""The smallest slice that each size and method trains on: docs/tpu.md's table.

    python benchmarks/_plan_sizes.py --json sizes.json

Compiles the training step for slices of growing size, and of each for meshes of
growing model axis, until one fits, as `peft-jax plan` does; decoding, which
takes less, is not compiled. Slices begin at four chips. Needs `peft_jax[train]`
and libtpu, and no TPU. More than an hour on one core. Rows that the file
already has are not made again, so a run that was stopped goes on.
"""

import argparse
import json
import pathlib
import sys
from typing import Any

import jax

from peft_jax import networks
from peft_jax.plan import command, hardware, report, search, target
from peft_jax.train import config as configs

MODELS = ("t5_1_1_base", "t5_1_1_large", "t5_1_1_xl", "t5_1_1_xxl")
ADAPTERS = ("ia3", "lora", "prompt", "prefix")
LENGTHS = (512, 64)
BATCH = 32
CHIPS = ("v5e", "v6e", "v4")  # the smallest slice of each is looked for
# slice, model, adapter, batch: what larger slices bring.
LARGER = (("v5e:16x16", "t5_1_1_xxl", "ia3", 512),)


def ask(slice_: str, model: str, adapter: str, batch: int) -> search.Ask:
  """Returns what is asked for one row."""
  resolved = configs.resolve(
    ["runs/train.gin", "models/t5.gin", f"adapters/{adapter}.gin"],
    [
      f"MODEL_NAME = {model!r}",
      "BACKBONE = 'random'",
      "MIXTURE_OR_TASK_NAME = 'plan'",
      "MODEL_DIR = 'plan'",
    ],
  )
  assert model in networks.CONFIGS
  return command.ask_of(
    resolved.config,
    target.tpu(slice_),
    model=model,
    adapter=adapter,
    batch=batch,
    lengths=LENGTHS,
    decode=False,
  )


def plan(slices: list[str], model: str, adapter: str, batch: int) -> Any:
  """Returns the plan of the first slice that fits; of the last if none does."""
  found = None
  for slice_ in slices:
    asked = ask(slice_, model, adapter, batch)
    if search.meshes(asked):
      found = report.to_json(search.first_that_fits(asked, command.say))
      if found["fits"]:
        break
  return found


def rows(path: pathlib.Path, only: str = "") -> list[dict[str, Any]]:
  """Makes the rows that the file does not have, and writes each when made."""
  known = json.loads(path.read_text()) if path.exists() else {}
  wanted = [
    (f"{chip}/{model}/{adapter}", _slices(chip), model, adapter, BATCH)
    for chip in CHIPS
    for model in MODELS
    for adapter in ADAPTERS
  ]
  wanted += [
    (f"{slice_}/{model}/{adapter}", [slice_], model, adapter, batch)
    for slice_, model, adapter, batch in LARGER
  ]
  wanted = [row for row in wanted if only in row[0]]
  for name, slices, model, adapter, batch in wanted:
    if name not in known:
      known[name] = plan(slices, model, adapter, batch)
      path.write_text(json.dumps(known, indent=2) + "\n", "utf-8")
      jax.clear_caches()
  return [known[name] for name, *_ in wanted]


def _slices(chip: str) -> list[str]:
  shapes = hardware.SLICES[hardware.CHIPS[chip].axes]
  return [f"{chip}:{shape}" for shape in shapes if shape != "1x1"]


def table(found: list[dict[str, Any]]) -> str:
  """Returns the rows as Markdown."""
  lines = [
    "| model | method | batch | slice | mesh | GiB a chip, of | frozen |"
    " activations | step, ms | tokens/s |",
    "| --- | --- | ---: | --- | --- | ---: | ---: | ---: | ---: | ---: |",
  ]
  for row in found:
    kinds, gib = row["bytes_per_chip"], hardware.GIB
    rate = float(f"{row['tokens_per_second_estimate']:.2g}")
    lines.append(
      f"| {row['model'].removeprefix('t5_1_1_')} | `{row['adapter']}`"
      f" | {row['batch']} | `{row['target']}`"
      f" | {row['mesh']['data']} x {row['mesh']['model']}"
      f" | {row['used_bytes'] / gib:.1f}, {row['hbm_bytes'] / gib:.1f}"
      f" | {kinds['parameters'] / gib:.1f} | {kinds['activations'] / gib:.1f}"
      f" | {1e3 * row['step_seconds_estimate']:.0f}"
      f" | {rate:,.0f} |"
    )
  return "\n".join(lines)


def main() -> None:
  """Prints the table."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--json", required=True, metavar="FILE")
  parser.add_argument(
    "--only", default="", metavar="TEXT", help="rows whose name has it: v5e/"
  )
  args = parser.parse_args()
  jax.config.update("jax_platforms", "cpu")
  try:
    print(table(rows(pathlib.Path(args.json), args.only)))
  except hardware.HardwareError as error:
    print(error, file=sys.stderr)
    sys.exit(1)


if __name__ == "__main__":
  main()
