"""One strict world for all tests, set before JAX starts.

A mix of dtypes or ranks that JAX would silently promote is an error, and there
are eight devices. The marker `t5x` is for tests that run T5X's own code: they
skip where T5X is absent, and its code, which promotes, is let promote.
"""

import contextlib
import importlib.util
import os
import pathlib

import hypothesis
import jax
import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
SHARED_DATA = REPOSITORY.parent / "shared" / "data"
T5X_PACKAGES = ("t5x", "airio", "jestimator")

# Read when the first array is made, so importing JAX before is no harm.
# Compiling takes most of the time of the tests: LLVM need not optimise, nor get
# each fusion as a module of its own (a train step compiles in 0.8 s for 3.4 s).
_XLA_FLAGS = {
  "--xla_force_host_platform_device_count": 8,
  "--xla_backend_optimization_level": 0,
  "--xla_cpu_parallel_codegen_split_count": 1,
}
if jax.__version_info__ < (0, 11):  # later ones do not know it, and stop
  _XLA_FLAGS["--xla_cpu_use_fusion_emitters"] = "false"
for _flag, _value in _XLA_FLAGS.items():
  if _flag not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = (
      f"{os.environ.get('XLA_FLAGS', '')} {_flag}={_value}".strip()
    )

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
if os.environ.get("JAX_COMPILATION_CACHE_DIR"):
  # Programs of tests are small: keep those of a few hundred milliseconds too.
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)

# The same examples in every run: a failure can be run again.
hypothesis.settings.register_profile(
  "peft_jax", deadline=None, derandomize=True, database=None
)
hypothesis.settings.load_profile("peft_jax")


def pytest_configure(config):
  """Lets workers that share the cache of compiled programs meet there."""
  # One worker may read what another is still writing; JAX then compiles.
  config.addinivalue_line(
    "filterwarnings", "ignore:Error reading persistent compilation cache"
  )


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
  """Keeps each file on one worker, and skips T5X's where it is missing."""
  for item in items:
    # What one test compiled, its neighbours need not.
    if not item.get_closest_marker("xdist_group"):
      item.add_marker(pytest.mark.xdist_group(item.path.name))
  missing = list(filter(_is_missing, T5X_PACKAGES))
  for item in items:
    if item.get_closest_marker("t5x"):
      if missing:
        reason = f"needs {', '.join(missing)}: see `peft-jax doctor`"
        item.add_marker(pytest.mark.skip(reason=reason))
      # T5X's own code and imports warn; ours may not, here neither.
      item.add_marker(pytest.mark.filterwarnings("ignore"))


def _is_missing(package):
  spec = importlib.util.find_spec(package)
  # The folder tests/t5x looks like a package of that name.
  own = [str(REPOSITORY / "tests" / package)]
  return spec is None or list(spec.submodule_search_locations or ()) == own


@pytest.fixture(autouse=True)
def forget():
  """Drops what was compiled before there is too much of it.

  Each program takes some memory maps, and Linux gives a process 65,530 of them;
  without one, LLVM ends the process.
  """
  yield
  _finished[0] += 1
  if _finished[0] % 20 == 0 and _memory_maps() > 25_000:
    jax.clear_caches()


_finished = [0]


def _memory_maps():
  try:
    with open("/proc/self/maps", "rb") as file:
      return sum(1 for _ in file)
  except OSError:  # not on Linux
    return 0


@pytest.fixture(autouse=True)
def promotion(request):
  """Lets the code of T5X promote dtypes and ranks."""
  with contextlib.ExitStack() as stack:
    if request.node.get_closest_marker("t5x"):
      stack.enter_context(jax.numpy_dtype_promotion("standard"))
      stack.enter_context(jax.numpy_rank_promotion("allow"))
    yield


@pytest.fixture(scope="session")
def shared_data():
  """Returns a function from a name to its path, which skips if it is absent."""

  def find(name):
    path = SHARED_DATA / name
    if not path.exists():
      pytest.skip(f"needs {path}, which is not part of the repository")
    return path

  return find
