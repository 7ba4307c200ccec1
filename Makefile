# make demo   install, train five emulated boards over the emulated air, say where the output is
# make test   install, then lint, types, import contracts and tests
# make validate   statistics of modem and closed loop: over an hour on two cores, results in tests/validation
#
# Everything goes into $(VENV); a second call finds it and installs nothing.  Variables:
#   PYTHON=/path/to/python3.12    the interpreter to make the environment with, 3.11 or newer
#   TORCH_PIP_ARGS="..."          pip's arguments for PyTorch alone, for instance an index with CPU builds

SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help install demo validate test lint types contracts pytest warmup bench clean

VENV ?= .venv
PYTHON ?=
TORCH_PIP_ARGS ?=
PYTEST_ARGS ?=
# Processes that share the tests, a file at a time; 0 runs them in this one.
PYTEST_WORKERS ?= 2

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip --disable-pip-version-check
# The pins were found with 3.11, so it is asked for first.  Some Pythons come without venv or pip:
# such a one is passed over too.
CANDIDATES := $(if $(PYTHON),$(PYTHON),python3.11 python3.12 python3.13 python3.14 python3 python)
USABLE := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))

help:
	@sed -n '/^#/!q;s/^# \{0,1\}//p' Makefile

$(BIN)/python:
	@for python in $(CANDIDATES); do \
	    if "$$python" -c '$(USABLE)' 2>/dev/null; then \
	        echo "making $(VENV) with $$("$$python" -c 'import sys; print(sys.executable)')"; \
	        exec "$$python" -m venv $(VENV); \
	    fi; \
	done; \
	echo "No Python 3.11 or newer with venv and pip was found (tried: $(CANDIDATES))." >&2; \
	echo "Name one: make PYTHON=/path/to/python3.11" >&2; \
	exit 1

# PyTorch comes first and pinned: asked for by another package, pip would take the newest build
# with gigabytes of CUDA libraries.  The stamp is written last, so a broken install is repeated.
$(STAMP): pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install --quiet $(TORCH_PIP_ARGS) -c constraints.txt "$$(grep '^torch==' constraints.txt)"
	$(PIP) install --quiet -c constraints.txt -e '.[dev,pluto]'
	@touch $@

install: $(STAMP)

# Statistics that take longer than a test may; an interrupted call goes on where it was.
validate: $(STAMP)
	@for script in tests/validation/*.py; do \
	    echo "$$script" >&2; $(BIN)/python "$$script" || exit 1; \
	done

demo: $(STAMP)
	$(BIN)/testbed run --preset laptop

test: lint types contracts pytest

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

contracts: $(STAMP)
	$(BIN)/lint-imports --no-logo

pytest: $(STAMP)
	$(BIN)/python -m pytest -n $(PYTEST_WORKERS) --dist loadfile $(PYTEST_ARGS)

# Compiles every kernel once; the cache outlives the process, and later runs start at once.
warmup: $(STAMP)
	$(BIN)/python -c 'from radio.warmup import warm_up; warm_up(print)'

# Each benchmark is a script that prints JSON.
bench: $(STAMP)
	@for script in tests/benchmarks/*.py; do \
	    [ -e "$$script" ] || { echo "no benchmarks in tests/benchmarks" >&2; exit 1; }; \
	    echo "$$script" >&2; $(BIN)/python "$$script" || exit 1; \
	done

# Runs and the environment stay: both are dear to make again.
clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
