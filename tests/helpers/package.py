"""The modules of the package, in the order in which they may import."""

import pathlib

import peft_jax

PACKAGE = pathlib.Path(peft_jax.__file__).parent

# A module may import those above it. A package counts as one, and its files
# may import one another.
CORE = (
  "_version",
  "trees",
  "precision",
  "sharding",
  "networks",
  "adapters",
  "rules",
  "layout",
  "places",
  "inject",
  "partition",
  "start",
  "reparametrization",
  "optim",
  "losses",
  "choices",
  "decoding",
  "orbax_io",
  "manifest",
  "checkpoint",
  "backbone",
  "ensemble",
  "merge",
  "formats",
  "cost",
  "interpret",
)
ORDER = (*CORE, "doctor", "train", "t5x", "plan", "cli")
HEAVY = ("tensorflow", "seqio", "gin", "t5x")


def stage(module):
  """Returns the part of `peft_jax` that a module's dotted name is in."""
  return module.split(".")[1] if "." in module else ""


def sources():
  """Returns dotted name -> file of all modules of the package."""
  found = {}
  for path in sorted(PACKAGE.rglob("*.py")):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    found[".".join(p for p in parts if p != "__init__")] = path
  return found


MODULES = sources()
