# make demo: the whole path on generated images. make check: lint, types and the fast tests, in three minutes on two cores
# (without those of reliability and of hostile files).
# make test: lint, types and all tests but those of the long form. make torture: the long form, such as that of the tests of
# reliability, in more than an hour on two cores (docs/reliability.md). Each of them sets up .venv.
PYTHON ?= python3
BIN := .venv/bin
# One worker more than cores; each takes up to 1.5 GB of memory.
WORKERS ?= auto
PYTEST := $(BIN)/python -m pytest --numprocesses $(WORKERS) --maxprocesses 8

# LOCKED=1 installs exactly the packages of requirements.lock and checks their hashes; `make lock` renews it.
.PHONY: demo check test torture lint lock site

demo: .venv/installed
	$(BIN)/intl-bench demo

check: lint
	$(PYTEST) -m "not slow" --ignore tests/reliability --ignore tests/hostile

# Temporary files are in memory where there is room, because the tests of reliability wait for the disk.
test: lint
	memory=$$(df -Pk /dev/shm 2>/dev/null | awk 'NR == 2 && $$4 > 8e6 { print "/dev/shm" }'); \
		TMPDIR=$${memory:-$$TMPDIR} $(PYTEST) -o tmp_path_retention_policy=failed

# In memory where there is a file system for it, because half of the time on a disk is waiting for `fsync`.
torture: .venv/installed
	INTL_BENCH_TORTURE=1 TMPDIR=$$(test -w /dev/shm && echo /dev/shm || echo $${TMPDIR:-/tmp}) \
		$(PYTEST) --dist worksteal -rsP -o tmp_path_retention_policy=none tests/reliability tests/hostile
	INTL_BENCH_TORTURE=1 $(PYTEST) -m long --ignore tests/reliability --ignore tests/hostile

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The documentation as a site: build/site/site/index.html.
site: .venv/installed
	$(BIN)/python docs/build_site.py

lock: .venv/installed
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile --quiet pyproject.toml --extra dev --universal --python-version 3.11 --generate-hashes \
		--upgrade --no-emit-index-url --no-header --no-annotate --output-file requirements.lock

.venv/installed: pyproject.toml requirements.lock
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(if $(LOCKED),$(BIN)/python -m pip install --quiet --require-hashes --requirement requirements.lock)
	$(BIN)/python -m pip install --quiet $(if $(LOCKED),--no-deps --no-build-isolation) --editable '.[dev]'
	touch $@
