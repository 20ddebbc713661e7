"""The examples in the docstrings of the core run, and give what they show."""

import doctest
import importlib

import jax
import numpy as np
import pytest
from helpers.package import CORE, MODULES, stage

NAMES = [m for m in MODULES if stage(m) in ("", *CORE)] + [
  "peft_jax.train.step"
]


@pytest.mark.parametrize("name", NAMES)
def test_examples(name):
  module = importlib.import_module(name)
  # Examples speak of jax, jnp and np without importing what all readers have.
  results = doctest.testmod(
    module, extraglobs={"jax": jax, "jnp": jax.numpy, "np": np}
  )
  assert results.failed == 0


def test_there_are_examples():
  finder = doctest.DocTestFinder()
  modules = [importlib.import_module(name) for name in NAMES]
  tests = [test for m in modules for test in finder.find(m) if test.examples]
  assert len(tests) > 30
