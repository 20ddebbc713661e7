# Commands of the project; `make` alone lists them.
#   PYTHON  the interpreter .venv is made from, 3.11 or later
#   VENV    where the environment lies
#   ARGS    more arguments for pytest, e.g. make test ARGS='-k lora'
PYTHON ?= python3
VENV ?= .venv
ARGS ?=

BIN := $(VENV)/bin
SOURCES := peft_jax tasks gin_configs tests benchmarks setup.py

# In an activated .venv `python3` is the .venv's own, which the rebuild below
# deletes: work with the interpreter behind it. pyenv's python3.13 runs only
# where that version is selected, hence the second try. Empty where $(PYTHON)
# does not run.
BASE := $(shell ask='import sys; print(sys._base_executable)'; \
          $(PYTHON) -c "$$ask" 2>/dev/null || \
          PYENV_VERSION='$(patsubst python%,%,$(PYTHON))' \
          $(PYTHON) -c "$$ask" 2>/dev/null)
MINOR := $(shell '$(BASE)' -c \
           'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
PINS := $(wildcard requirements/constraints-py$(subst .,,$(MINOR)).txt)

# The stamp's name holds what the environment was made from: interpreter, place
# and requirements. By content and not by date, so that changing branches back
# and forth, or touching a file, costs nothing.
KEY := $(shell { '$(BASE)' -VV; pwd; cat setup.py $(PINS); } 2>/dev/null \
         | cksum | cut -d ' ' -f 1)
STAMP := $(VENV)/.peft_jax-$(KEY)
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet \
         $(addprefix -c ,$(PINS))

# Compiled programs are kept between runs; tests never reach for a device that
# another process may hold.
TEST_ENV = JAX_PLATFORMS=cpu TF_CPP_MIN_LOG_LEVEL=2 MPLBACKEND=agg \
  JAX_COMPILATION_CACHE_DIR='$(CURDIR)/.cache/jax'

.DEFAULT_GOAL := help
.PHONY: help venv install test lint format types quickstart bench wheel clean

help: ## list these commands
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' \
	  $(firstword $(MAKEFILE_LIST))

venv: $(STAMP) ## make .venv with everything the tests need
install: venv ## the same

test: venv lint types ## format check, lint, types, then all tests
	@$(TEST_ENV) $(BIN)/python -m pytest -n 2 --dist loadgroup $(ARGS)

lint: venv ## ruff format --check, ruff check
	@$(BIN)/ruff format --check $(wildcard $(SOURCES))
	@$(BIN)/ruff check $(wildcard $(SOURCES))

format: venv ## let ruff format and fix what it can
	@$(BIN)/ruff format $(wildcard $(SOURCES))
	@$(BIN)/ruff check --fix $(wildcard $(SOURCES))

# Errors alone are printed: imports that only an installed package resolves are
# warnings. A newer pyright than the tested one is nothing to print about.
types: venv ## pyright
	@PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright \
	  --pythonpath $(BIN)/python --level error

quickstart: venv ## a first adapter, trained on CPU
	@$(BIN)/peft-jax quickstart

bench: venv ## run every script of benchmarks/
	@for script in $(sort $(wildcard benchmarks/[!_]*.py)); do \
	  echo "== $$script"; $(BIN)/python "$$script" || exit 1; \
	done

# A stale build/lib would put deleted files into the wheel.
wheel: venv ## build dist/peft_jax-*.whl
	@rm -rf build
	@$(BIN)/python -m pip --disable-pip-version-check wheel --quiet \
	  --no-deps --no-build-isolation --wheel-dir dist .
	@rm -rf build
	@ls dist/*.whl

clean: ## delete builds and caches, but not .venv
	@rm -rf build dist *.egg-info .cache .hypothesis .pytest_cache .ruff_cache
	@find $(wildcard $(SOURCES)) -name __pycache__ -prune -exec rm -rf {} +

$(STAMP):
	@test -n '$(BASE)' || { echo "Expected a Python 3.11 or later as" \
	  "PYTHON='$(PYTHON)', which does not run here. Set PYTHON, for" \
	  "example: make venv PYTHON=python3.12" >&2; exit 1; }
	@'$(BASE)' -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Expected Python 3.11 or later, found $(MINOR) as" \
	  "PYTHON='$(PYTHON)'. Set PYTHON, for example: make venv" \
	  "PYTHON=python3.12" >&2; exit 1; }
	@'$(BASE)' -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "Expected the modules venv and ensurepip in '$(BASE)', found" \
	  "them missing. On Debian and Ubuntu: apt install" \
	  "python$(MINOR)-venv" >&2; exit 1; }
	@test ! -e '$(VENV)' || test -e '$(VENV)/.made-by-peft_jax' || { \
	  echo "Expected no '$(VENV)' or one that make made, found another," \
	  "which is left alone. Delete it, or set VENV to a new path." >&2; \
	  exit 1; }
	@test -n '$(PINS)' || echo "No tested versions for Python $(MINOR) in" \
	  "requirements/: installing the newest." >&2
	@echo "Installing into $(VENV) for Python $(MINOR): a few minutes," \
	  "once." >&2
	@rm -rf '$(VENV)' && mkdir -p '$(VENV)' && \
	  touch '$(VENV)/.made-by-peft_jax'
	@'$(BASE)' -m venv '$(VENV)'
	@$(PIP) --editable '.[test]'
	@touch '$@'
