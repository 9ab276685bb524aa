# Every target sets up what it needs: a virtual environment in .venv, dependencies, the node image.
# Variables: PYTHON (3.10 to 3.13), BACKEND (auto, docker, process), NAME and WORKERS of a cluster,
# ARGS for whatever the target runs.

PYTHON ?= python3
VENV ?= .venv
BACKEND ?= auto
NAME ?= ray-sim
WORKERS ?=
ARGS ?=

BIN := $(VENV)/bin
SIMULATOR := $(BIN)/python -m simulator
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help demo up down status doctor report-latest test lint format wheel engine image acceptance bench clean ready

help: ## Show this list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: ready ## The main job: a node dies in the middle of its work; ends by naming the HTML report
	@$(SIMULATOR) run node_failure --backend $(BACKEND) $(ARGS)

up: ready ## Start a cluster by hand (NAME=ray-sim WORKERS=3)
	@$(SIMULATOR) up --backend $(BACKEND) --name $(NAME) $(if $(WORKERS),--workers $(WORKERS)) $(ARGS)

down: $(VENV)/.core ## Remove that cluster (ARGS=--all without NAME: all of them)
	@$(SIMULATOR) down $(if $(findstring --all,$(ARGS)),,--name $(NAME)) $(ARGS)

status: $(VENV)/.core ## Show the cluster: desired, running, alive
	@$(SIMULATOR) status $(if $(findstring --name,$(ARGS)),,--name $(NAME)) $(ARGS)

doctor: $(VENV)/.core ## Look whether this machine can do it
	@$(SIMULATOR) doctor $(ARGS)

report-latest: $(VENV)/.core ## Write the latest run's HTML report again and print its path
	@$(SIMULATOR) report latest $(ARGS)

# Tests of the first kind take a core each. Those that need a cluster mostly wait for Ray, so two go side by side
# on two cores too; the tests of one file share clusters and stay together.
REAL := real_process or real_docker or real_gpu
test: $(VENV)/.dev ## All tests, or ARGS; Docker tests skip, with the reason, where no engine answers
ifdef ARGS
	@$(BIN)/python -m pytest $(ARGS)
else
	@$(BIN)/python -m pytest -n auto --dist loadfile -m "not ($(REAL))"; fast=$$?; \
	$(BIN)/python -m pytest -n 2 --dist loadfile --durations=40 -m "$(REAL)"; real=$$?; exit $$((fast ? fast : real))
endif

lint: $(VENV)/.dev ## Format and lint (ruff), types (mypy strict), layers (import-linter)
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache

format: $(VENV)/.dev ## Format the code and apply ruff's safe fixes
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

wheel: $(BIN)/python ## Build the wheel into dist/
	@$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .
	@ls dist/*.whl

engine: ## Install and start a Docker engine where none answers (Debian, as root)
	@scripts/engine.sh

image: $(VENV)/.core ## Build the node image
	@$(SIMULATOR) image build $(ARGS)

acceptance: $(VENV)/.dev ## Long repeats, resumable; results in benchmarks/results
	@$(BIN)/python scripts/acceptance.py $(ARGS)

bench: $(VENV)/.dev ## Measure speed beside the peers; results in benchmarks/results (ARGS="--only start")
	@$(BIN)/python benchmarks/bench.py $(ARGS)

clean: ## Remove caches and build outputs; clusters, runs and .venv stay
	@rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +

# ---- set-up; a stamp is as new as what it was made from

# Without an engine, nodes are processes of this machine and need a Ray here.
ready: $(VENV)/.core
	@if [ "$$($(BIN)/python -c 'from simulator.backends.select import choose; print(choose("$(BACKEND)").backend.name)' 2>/dev/null)" = process ]; \
	then $(MAKE) --no-print-directory $(VENV)/.ray; fi

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' || \
	  { echo "$(PYTHON) is not Python 3.10 to 3.13; name one, such as: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "no virtual environment could be made; on Debian: apt-get install python3-venv" >&2; exit 1; }

$(VENV)/.core: $(BIN)/python pyproject.toml
	@echo "installing the simulator into $(VENV)" >&2
	@$(PIP) -e .
	@touch $@

$(VENV)/.ray: $(BIN)/python pyproject.toml
	@echo "installing Ray into $(VENV) (a minute or two)" >&2
	@$(PIP) -e '.[ray]'
	@touch $@ $(VENV)/.core

$(VENV)/.dev: $(BIN)/python pyproject.toml
	@echo "installing Ray and the tools of development into $(VENV) (a minute or two)" >&2
	@$(PIP) -e '.[local,dev]'
	@touch $@ $(VENV)/.ray $(VENV)/.core
