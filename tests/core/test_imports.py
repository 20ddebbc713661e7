"""Imports inside the package go one way, and the core stays light."""

import ast
import subprocess
import sys

import pytest
from helpers.package import CORE, HEAVY, MODULES, ORDER, PACKAGE, stage

import peft_jax


def imports(path):
  """Returns (line, dotted name) of every import, those in functions too."""
  tree = ast.parse(path.read_text())
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      for alias in node.names:
        yield node.lineno, alias.name
    elif isinstance(node, ast.ImportFrom):
      assert not node.level, f"{path}:{node.lineno}: a relative import"
      for alias in node.names:
        name = f"{node.module}.{alias.name}"
        yield node.lineno, name if name in MODULES else node.module


def test_every_module_has_a_place():
  """A new module goes into ORDER, above all that shall import it."""
  stages = {stage(module) for module in MODULES} - {""}
  assert stages <= set(ORDER) | {"assets"}
  assert set(CORE) <= stages


@pytest.mark.parametrize("module", [m for m in MODULES if m != "peft_jax"])
def test_imports_go_one_way(module):
  # What `python -m` runs comes after all, wherever it lies.
  is_main = module.endswith(".__main__")
  own = len(ORDER) if is_main else ORDER.index(stage(module))
  for line, name in imports(MODULES[module]):
    if name.split(".")[0] != "peft_jax":
      continue
    where = f"{MODULES[module]}:{line}"
    if name == "peft_jax":
      # The package itself imports the whole core.
      assert own >= len(CORE), f"{where} imports a name of `peft_jax`"
      continue
    # The tasks and gin files lie at the top of the repository.
    if stage(name) in ("tasks", "gin_configs"):
      assert own >= ORDER.index("train"), f"{where} imports {name}"
      continue
    assert ORDER.index(stage(name)) <= own, f"{where} imports {name}"


@pytest.mark.parametrize("module", [m for m in MODULES if stage(m) in CORE])
def test_the_core_names_nothing_heavy(module):
  found = {name.split(".")[0] for _, name in imports(MODULES[module])}
  assert not found & set(HEAVY)
  # tensorstore is what Orbax reads and writes with, etils has its paths.
  light = {"jax", "flax", "optax", "orbax", "tensorstore", "etils", "numpy"}
  assert found <= light | {"peft_jax"} | set(sys.stdlib_module_names)


@pytest.mark.parametrize("module", [m for m in MODULES if stage(m) != "t5x"])
def test_only_one_package_names_t5x(module):
  assert "t5x" not in {n.split(".")[0] for _, n in imports(MODULES[module])}


def test_importing_the_core_loads_nothing_heavy():
  names = [m for m in MODULES if stage(m) in ("", *CORE)]
  program = f"""
import importlib, sys
for name in {names!r}:
  importlib.import_module(name)
print([name for name in {HEAVY!r} if name in sys.modules])
"""
  done = subprocess.run(
    [sys.executable, "-c", program],
    capture_output=True,
    text=True,
    cwd=PACKAGE.parent,
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout.strip() == "[]"


def test_public_names_exist_and_are_documented():
  assert sorted(set(peft_jax.__all__)) == sorted(peft_jax.__all__)
  for name in peft_jax.__all__:
    value = getattr(peft_jax, name)
    assert isinstance(value, str) or value.__doc__, name


def test_every_module_and_public_function_has_a_docstring():
  for module, path in MODULES.items():
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree) is not None, module
    for node in tree.body:
      is_public = isinstance(node, ast.FunctionDef | ast.ClassDef) and not (
        node.name.startswith("_")
      )
      if is_public:
        assert ast.get_docstring(node), f"{module}.{node.name}"
