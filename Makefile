# Weighbridge. `make` or `make help` lists what there is.
# A machine needs Python 3.11 or newer, git and make; everything else is installed into .venv or started
# from there. DATABASE_URL, REDIS_URL and AMQP_URL name servers to use instead of embedded ones.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# Exact pins with hashes; only what is listed is installed, and this checkout itself is not fetched.
INSTALL = $(PIP) install --quiet --require-hashes -r requirements/$(1).txt && \
	$(PIP) install --quiet --no-deps --no-build-isolation -e .
PIP_COMPILE := $(BIN)/pip-compile --quiet
# More arguments for pytest: make test ARGS="tests/quota -x"
ARGS ?=
# Files of tests run side by side in so many processes, each with servers of its own: much of the
# time is waiting. One after another, in this process: make test PROCESSES=0
PROCESSES ?= 2

.DEFAULT_GOAL := help
.PHONY: help demo test test-unit test-ranges lint dist bench chaos scale up down docs pins clean
.DELETE_ON_ERROR:

help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(BIN)/python:
	@scripts/make-venv $(PYTHON) $(VENV)

$(VENV)/.local: requirements/local.txt pyproject.toml | $(BIN)/python
	@echo "Installing what the demo needs (requirements/local.txt)"
	@$(call INSTALL,local)
	@touch $@

# The dev set has all of the local one, so that afterwards there is nothing left to install for the demo.
$(VENV)/.dev: requirements/dev.txt pyproject.toml | $(BIN)/python
	@echo "Installing what the tests need (requirements/dev.txt)"
	@$(call INSTALL,dev)
	@touch $(VENV)/.local $@

demo: $(VENV)/.local ## Run the main job on real pages, print what happened, stop everything
	@$(BIN)/python -m lab.demo

test: $(VENV)/.dev ## Every test, on real servers
	@$(BIN)/python scripts/ensure_rabbitmq.py
	@$(BIN)/python -m pytest -n $(PROCESSES) --dist loadfile $(ARGS)

test-unit: $(VENV)/.dev ## Only tests that need no server and start no program
	@$(BIN)/python -m pytest -n $(PROCESSES) --dist loadfile \
		-m "not rabbitmq and not redis and not postgres and not worker and not process" $(ARGS)

# ARGS="oldest": one set alone. Environments of these stay in .local/ranges; not part of .ci/run.
test-ranges: $(VENV)/.dev ## The worker's tests at the ends of pyproject.toml's ranges
	@$(BIN)/python scripts/ensure_rabbitmq.py
	@$(BIN)/python scripts/check_ranges.py $(ARGS)

lint: $(VENV)/.dev ## ruff, mypy --strict, import-linter, the rules on names, the configuration page
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python scripts/check_names.py
	@$(BIN)/python scripts/write_configuration.py --check || \
		{ echo "docs/configuration.md is not that of billing/settings.py: make docs"; exit 1; }

# The environment is a new one each time, so that nothing in it is left from before.
dist: $(VENV)/.dev ## Build wheel and sdist into dist/, install the wheel and test it there
	@rm -rf dist .local/dist
	@$(BIN)/python -m hatchling build
	@$(BIN)/python scripts/ensure_rabbitmq.py
	@WEIGHBRIDGE_WHEEL=$$(ls $(CURDIR)/dist/*.whl) $(BIN)/python -m pytest tests/dist $(ARGS)

bench: $(VENV)/.dev ## Measure (ARGS=--quick, --check, --page; lab/bench/README.md)
	@$(BIN)/python -m lab.bench.run $(ARGS)

# ARGS="redis-cluster --seconds 60": one alone; see python -m lab.scale --help.
scale: $(VENV)/.dev ## Several nodes of each server, one lost under load (docs/scaling.md)
	@if [ -n "$(ARGS)" ]; then $(BIN)/python -m lab.scale $(ARGS); else \
		for run in redis-cluster rabbitmq-cluster postgres-replica; do \
		$(BIN)/python -m lab.scale $$run || exit 1; done; fi

chaos: $(VENV)/.dev ## Faults against the real system under load, then the invariants (ARGS=--quick)
	@$(BIN)/python scripts/ensure_rabbitmq.py
	@$(BIN)/python -m lab.chaos $(ARGS)

up: $(VENV)/.local ## Everything in the foreground until Ctrl-C
	@$(BIN)/billing up

down: $(VENV)/.local ## Stop embedded servers that something left running
	@$(BIN)/billing local stop

docs: $(VENV)/.dev ## Write docs/configuration.md from billing/settings.py
	@$(BIN)/python scripts/write_configuration.py

# Pins are made by the oldest Python that is supported, Debian 12's 3.11.2: what it needs beyond newer
# ones (redis-py: async-timeout) does not harm them, the other way round it would be missing.
# Where .venv is of another: make pins PYTHON=/usr/bin/python3 VENV=.local/pins
# The dev set first: the smaller ones are held to its versions, so that all agree. base is the production
# image, worker the core alone, dist what runs the tests of the installed wheel.
PRODUCTION := --extra api --extra stripe --extra flower --extra archive --extra ingestion
CHECKOUT := $(PRODUCTION) --extra local --extra build
pins: $(BIN)/python ## Write requirements/*.txt anew from pyproject.toml (ARGS=--upgrade: newest versions)
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info >= (3, 11, 3))' || \
		{ echo "Use Python 3.11.2: make pins PYTHON=/usr/bin/python3 VENV=.local/pins"; exit 1; }
	@$(PIP) install --quiet --require-hashes -r requirements/dev.txt
	@$(PIP_COMPILE) $(ARGS) $(CHECKOUT) --extra dev -o requirements/dev.txt pyproject.toml
	@$(PIP_COMPILE) -c requirements/dev.txt $(CHECKOUT) -o requirements/local.txt pyproject.toml
	@$(PIP_COMPILE) -c requirements/dev.txt $(PRODUCTION) -o requirements/base.txt pyproject.toml
	@$(PIP_COMPILE) -c requirements/dev.txt -o requirements/worker.txt pyproject.toml
	@$(PIP_COMPILE) -c requirements/dev.txt -o requirements/dist.txt requirements/dist.in pyproject.toml

clean: ## Stop embedded servers, delete .venv, .local and caches
	@if [ -x $(BIN)/billing ] && [ -d .local ]; then $(BIN)/billing local stop; fi
	@rm -rf $(VENV) .local dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
