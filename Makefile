# Everything a user or a contributor types. Needs Python 3.11 or newer and make; the rest is installed into $(VENV).

PYTHON ?= python3
VENV ?= .venv
ARGS ?=

BIN := $(VENV)/bin
PY := $(BIN)/python
INSTALL := $(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt
SOURCES := dreamer scripts tests
# One process per core, as most of the time is compilation, which keeps one core busy; few, as each takes a gigabyte.
PYTEST := $(PY) -m pytest -n logical --maxprocesses 4 --dist loadscope
TEST_ENV := JAX_PLATFORMS=cpu MPLBACKEND=Agg
# Programs that are compiled in a hurry run slower, and pay off in tests that run them a few times.
HURRY := --xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false
FAST_ENV := $(TEST_ENV) XLA_FLAGS="$$XLA_FLAGS $(HURRY)"

# The stamps are newer than what they were installed from, so an environment that is up to date costs nothing.
USER_STAMP := $(VENV)/.installed
DEV_STAMP := $(VENV)/.installed-dev
INPUTS := pyproject.toml constraints.txt

.DEFAULT_GOAL := help
.PHONY: help run test lint check bench format clean

help: ## list these commands
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16
	@echo
	@echo "  Variables: ARGS (passed on, for example make run ARGS='--config pendulum seed=3'), PYTHON, VENV"

run: $(USER_STAMP) ## train an agent; without ARGS, on CartPole
	@$(PY) -m dreamer.train $(ARGS)

test: $(DEV_STAMP) ## run every test
	$(FAST_ENV) $(PYTEST) -m "not shipped" $(ARGS)
	$(TEST_ENV) $(PYTEST) -m shipped $(ARGS)

lint: $(DEV_STAMP) ## formatting, lint and types
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/mypy

check: lint ## the same, and the fast tests
	$(FAST_ENV) $(PYTEST) -m "not slow" $(ARGS)

bench: $(USER_STAMP) ## measure update, acting, memory, loop, populations and devices (20 minutes)
	@$(INSTALL) -e '.[gymnax]'
	@$(PY) scripts/bench.py $(ARGS)
	@echo; $(PY) scripts/bench_loop.py
	@echo; $(PY) scripts/population.py
	@echo; $(PY) scripts/scaling.py --size 1m --case vector nets.dtype=float32

format: $(DEV_STAMP) ## rewrite the source files in the project's format
	$(BIN)/ruff check --fix-only $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

clean: ## remove caches and build products; keeps runs/ and the environment
	rm -rf build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +

$(PY):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Dreamer needs Python 3.11 or newer, but '$(PYTHON)' is not. Name another: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
		{ rm -rf $(VENV); echo "'$(PYTHON) -m venv' failed. On Debian or Ubuntu: apt-get install python3-venv"; exit 1; }

$(USER_STAMP): $(INPUTS) | $(PY)
	@echo "Installing into $(VENV); the first time takes a few minutes."
	@$(INSTALL) -e .
	@touch $@

$(DEV_STAMP): $(INPUTS) | $(PY)
	@echo "Installing into $(VENV), with development tools; the first time takes a few minutes."
	@$(INSTALL) -e '.[dev]'
	@touch $(USER_STAMP) $@
