"""Packaging of `peft_jax`.

The repository keeps `tasks/` and `gin_configs/` at its top level, where people
look for them. Installed, they are `peft_jax.tasks` and `peft_jax.gin_configs`,
so that nothing called `tasks` lands in site-packages.

Example:
  pip install .            # the core: jax, flax, optax, orbax, numpy
  pip install ".[train]"   # with SeqIO, TensorFlow and gin, to train
  pip install -e ".[test]" -c requirements/constraints-py313.txt
"""

import pathlib
import re

import setuptools

_ROOT = pathlib.Path(__file__).resolve().parent

# Installed package -> folder at the top of the repository.
_FOLDERS = {"peft_jax.tasks": "tasks", "peft_jax.gin_configs": "gin_configs"}

# `flax.nnx` of flax 0.12.8, the last one for Python 3.11, fails on jax 0.11.1
# and later. Python 3.11 has no such jax, and newer Pythons resolve a newer
# flax, so the ranges stay wide here and `peft-jax doctor` names a pair that
# other pins made bad. jax is capped because flax follows it late.
_CORE = [
  "jax>=0.10.2,<0.13",
  "flax>=0.12.8",
  "optax>=0.2.8",
  "orbax-checkpoint>=0.12",
  "numpy",
]

_TRAIN = [
  "seqio>=0.0.20",
  "tensorflow>=2.21",
  "tensorflow-text>=2.21",
  "tensorflow-datasets>=4.9.10",
  "sentencepiece>=0.2",
  "tokenizers>=0.20",
  "sacrebleu>=2.4",
  "jinja2>=3.1.6",
  "pyyaml>=6.0",
  "gin-config>=0.5",
  "clu>=0.0.12",
  "tensorboard>=2.21",
  "matplotlib",
]

# What T5X, airio and jestimator import besides `train`. The three themselves
# are not here: T5X is not on PyPI, and its own requirements follow the moving
# heads of six repositories. `peft-jax doctor` prints the three commands that
# install them at tested commits.
_T5X = [
  *_TRAIN,
  "absl-py",
  "cached-property>=2.0",
  "chex>=0.1.92",
  "fiddle>=0.3.1",
  "grain>=0.2.18",
  "jaxtyping>=0.3",
  "tensorstore>=0.1.84",
]

_TEST = [
  *_TRAIN,
  "hypothesis",
  "pyright[nodejs]>=1.1.400",
  "pytest>=8",
  "pytest-xdist>=3.6",
  "ruff",
  # One test builds the wheel without build isolation, so without a network.
  "setuptools>=77",
  "wheel",
]


def read_version() -> str:
  """Reads `__version__` without importing, e.g. `"0.1.0"`."""
  text = (_ROOT / "peft_jax/_version.py").read_text("utf-8")
  found = re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE)
  if found is None:
    raise ValueError(
      'Expected a line `__version__ = "0.1.0"` in peft_jax/_version.py, found'
      " none. Write the version there, in double quotes."
    )
  return found[1]


def read_description() -> str:
  """Returns the README, which package indexes show."""
  return (_ROOT / "README.md").read_text("utf-8")


def find_packages() -> list[str]:
  """Lists the packages, e.g. `peft_jax`, `peft_jax.train`, `peft_jax.tasks`."""
  packages = setuptools.find_packages(include=["peft_jax", "peft_jax.*"])
  for package, folder in _FOLDERS.items():
    inner = setuptools.find_packages(folder)
    packages += [package, *(f"{package}.{name}" for name in inner)]
  return packages


setuptools.setup(
  name="peft_jax",
  version=read_version(),
  description="Parameter-efficient fine-tuning for JAX: T5X, SeqIO, Flax Linen",
  long_description=read_description(),
  long_description_content_type="text/markdown",
  author="The peft_jax authors",
  license="Apache-2.0",
  license_files=["LICENSE"],
  classifiers=[
    "Development Status :: 4 - Beta",
    "Intended Audience :: Developers",
    "Intended Audience :: Science/Research",
    "Programming Language :: Python :: 3 :: Only",
    "Programming Language :: Python :: 3.11",
    "Programming Language :: Python :: 3.12",
    "Programming Language :: Python :: 3.13",
    "Topic :: Scientific/Engineering :: Artificial Intelligence",
  ],
  keywords="jax flax t5x seqio peft lora ia3 prompt-tuning adapters tpu",
  python_requires=">=3.11",
  packages=find_packages(),
  package_dir=dict(_FOLDERS),
  package_data={
    "peft_jax": ["py.typed", "assets/**/*"],
    "peft_jax.gin_configs": ["**/*.gin"],
    "peft_jax.tasks": ["**/*.json", "**/*.jsonl", "**/*.yaml", "**/*.txt"],
  },
  install_requires=_CORE,
  extras_require={
    "train": _TRAIN,
    "t5x": _T5X,
    "test": _TEST,
    "tpu": ["jax[tpu]"],
  },
  entry_points={"console_scripts": ["peft-jax = peft_jax.cli:main"]},
  zip_safe=False,
)
