# make demo: the whole path on generated images. make check: lint, types and the fast tests, in two minutes on two cores.
# make test: lint, types and all tests, in ten minutes on two cores. Each of them sets up .venv.
PYTHON ?= python3
BIN := .venv/bin
# One worker for each core; each takes up to 1.5 GB of memory.
WORKERS ?= auto
PYTEST := $(BIN)/python -m pytest --numprocesses $(WORKERS) --maxprocesses 8

.PHONY: demo check test lint

demo: .venv/installed
	$(BIN)/intl-bench demo

check: lint
	$(PYTEST) -m "not slow"

test: lint
	$(PYTEST)

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.venv/installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@
