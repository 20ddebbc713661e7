"""The wheel holds what the repository holds, and works where it is alone."""

import email.message
import email.parser
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile

import packaging.requirements
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
CONSTRAINTS = sorted(ROOT.glob("requirements/constraints-py3*.txt"))

# Repository folder -> where its files lie once installed.
FOLDERS = {
  "peft_jax": "peft_jax",
  "tasks": "peft_jax/tasks",
  "gin_configs": "peft_jax/gin_configs",
}

# Runs where only the wheel and its requirements can be found. The tasks are
# found and not imported, which would import TensorFlow.
PROBE = """
import importlib.resources, importlib.util, json
import peft_jax
gin = importlib.resources.files("peft_jax.gin_configs")

def place(name):
  spec = importlib.util.find_spec(name)
  return spec and spec.origin

def walk(folder):
  for entry in folder.iterdir():
    if entry.is_dir():
      yield from walk(entry)
    elif entry.name.endswith(".gin"):
      yield entry.name

print(json.dumps({
  "places": [peft_jax.__file__, place("peft_jax.tasks")],
  "gin": sorted(walk(gin)),
  "top_level": [place("tasks"), place("gin_configs")],
}))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> pathlib.Path:
  """A wheel built from a copy, so that no stale build/ gets into it."""
  source = tmp_path_factory.mktemp("source")
  for folder in FOLDERS:
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / folder, source / folder, ignore=ignore)
  for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
    shutil.copy(ROOT / name, source / name)
  target = tmp_path_factory.mktemp("wheel")
  _pip("wheel", "--no-build-isolation", "-w", str(target), str(source))
  (path,) = target.glob("*.whl")
  return path


@pytest.fixture(scope="module")
def metadata(wheel) -> email.message.Message:
  """The wheel's METADATA."""
  with zipfile.ZipFile(wheel) as archive:
    (name,) = (n for n in archive.namelist() if n.endswith("/METADATA"))
    return email.parser.Parser().parsestr(archive.read(name).decode())


@pytest.fixture(scope="module")
def requirements(metadata) -> list[packaging.requirements.Requirement]:
  """What the wheel requires, of all extras."""
  texts = metadata.get_all("Requires-Dist")
  return [packaging.requirements.Requirement(text) for text in texts]


@pytest.fixture
def version() -> str:
  """The version in `_version.py`, read as text."""
  text = (ROOT / "peft_jax/_version.py").read_text("utf-8")
  found = re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE)
  assert found
  return found[1]


def test_wheel_holds_every_file_of_the_tree(wheel):
  with zipfile.ZipFile(wheel) as archive:
    held = {n for n in archive.namelist() if ".dist-info/" not in n}
  expected = {
    f"{place}/{path.relative_to(ROOT / folder).as_posix()}"
    for folder, place in FOLDERS.items()
    for path in _package_files(folder)
  }
  assert held == expected
  assert any(name.endswith(".gin") for name in held)
  assert "peft_jax/py.typed" in held


def test_wheel_installs_one_top_level_name(wheel, version):
  with zipfile.ZipFile(wheel) as archive:
    roots = {name.partition("/")[0] for name in archive.namelist()}
  assert roots == {"peft_jax", f"peft_jax-{version}.dist-info"}


def test_installed_wheel_imports_alone(wheel, tmp_path):
  target = tmp_path / "target"
  _pip("install", "--target", str(target), str(wheel))
  # Without `site` (-S) an editable install in this environment is not seen.
  paths = [str(target), *_site_packages()]
  environment = os.environ | {
    "PYTHONPATH": os.pathsep.join(paths),
    "JAX_PLATFORMS": "cpu",
  }
  completed = subprocess.run(
    [sys.executable, "-S", "-P", "-c", PROBE],
    cwd=tmp_path,
    env=environment,
    capture_output=True,
    text=True,
    check=False,
  )
  assert completed.returncode == 0, completed.stderr
  found = json.loads(completed.stdout)
  assert all(place.startswith(str(target)) for place in found["places"])
  assert found["gin"] == sorted(
    p.name for p in ROOT.rglob("gin_configs/**/*.gin")
  )
  assert found["top_level"] == [None, None]


def test_metadata(metadata, version):
  # Setuptools before 70 writes the name with a hyphen, which is the same name.
  assert metadata["Name"].replace("-", "_") == "peft_jax"
  assert metadata["Version"] == version
  assert metadata["Requires-Python"] == ">=3.11"
  assert "Apache-2.0" in (
    metadata["License"],
    metadata["License-Expression"],
  )
  extras = metadata.get_all("Provides-Extra")
  assert set(extras) == {"train", "t5x", "test", "tpu"}


def test_command_is_installed(wheel):
  with zipfile.ZipFile(wheel) as archive:
    (name,) = (n for n in archive.namelist() if n.endswith("entry_points.txt"))
    lines = archive.read(name).decode().split("\n")
  assert "peft-jax = peft_jax.cli:main" in lines


def test_core_requirements_are_few_ranges_from_pypi(requirements):
  core = [r for r in requirements if r.marker is None]
  assert {r.name for r in core} == {
    "jax",
    "flax",
    "optax",
    "orbax-checkpoint",
    "numpy",
  }
  assert not any("==" in str(r.specifier) for r in requirements)
  assert not any(r.url for r in requirements)
  assert "t5x" not in {r.name for r in requirements}


@pytest.mark.parametrize("path", CONSTRAINTS, ids=lambda path: path.stem)
def test_constraints_pin_every_requirement_within_its_range(path, requirements):
  lines = path.read_text("utf-8").splitlines()
  pins = dict(line.split("==") for line in lines if not line.startswith("#"))
  assert list(pins) == sorted(pins)
  for requirement in requirements:
    pin = pins[requirement.name]
    assert requirement.specifier.contains(pin), f"{requirement}, pinned {pin}"


def test_there_are_constraints_for_every_supported_python(metadata):
  classifiers = metadata.get_all("Classifier")
  minors = re.findall(r"Python :: 3\.(\d+)", "\n".join(classifiers))
  names = [f"constraints-py3{minor}.txt" for minor in minors]
  assert [path.name for path in CONSTRAINTS] == names


def test_changelog_tells_of_this_version(version):
  text = (ROOT / "CHANGELOG.md").read_text("utf-8")
  headings = re.findall(r"^## \[(.+?)\]", text, re.MULTILINE)
  assert headings[:2] == ["Unreleased", version]


def _package_files(folder: str) -> list[pathlib.Path]:
  """Lists a folder's files, without what Python or an editor left there."""
  return [
    path
    for path in (ROOT / folder).rglob("*")
    if path.is_file() and "__pycache__" not in path.parts
  ]


def _pip(command: str, *arguments: str) -> None:
  """Runs pip without a network, and shows what it said if it fails."""
  call = [sys.executable, "-m", "pip", command, "--no-deps", "--no-index"]
  completed = subprocess.run(
    [*call, "--disable-pip-version-check", *arguments],
    capture_output=True,
    text=True,
    check=False,
  )
  assert completed.returncode == 0, completed.stdout + completed.stderr


def _site_packages() -> set[str]:
  """Returns where this environment keeps its packages."""
  return {sysconfig.get_path(name) for name in ("purelib", "platlib")}
