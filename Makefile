# `make demo` and `make test` each work alone on a fresh clone: they make .venv and install into it.

PYTHON ?= python3
# Installed first and alone: a plain `torch` would pull the newest CUDA build, gigabytes of it.
# A machine with GPUs names the build for its driver: make install TORCH='torch==2.13.0+cu130 ...'
TORCH ?= torch==2.13.0
DEMO ?=
TESTS ?=
# Processes that share the tests, of which most wait most of the time.
JOBS ?= 2

BIN := .venv/bin
PIP := $(BIN)/pip --disable-pip-version-check install -c constraints.txt
TRAIN := .venv/.stamp-train
DEV := .venv/.stamp-dev

.DEFAULT_GOAL := help
.PHONY: help install dev demo test check clean

help:
	@echo 'make demo     Install, then plan, train on 4 local ranks and compare; about 10 minutes the first time.'
	@echo '              make demo DEMO="--steps 60 --ranks 2" passes options on; trimtab demo --help lists them.'
	@echo 'make test     Install, then run the whole test suite; under 15 minutes on 2 cores.'
	@echo '              make test TESTS=tests/planners runs a part of it.'
	@echo 'make check    Lint, formatting, types and layers: what CI runs before the tests.'
	@echo 'make install  Install Trimtab for training and monitoring into .venv, and nothing else.'
	@echo 'make dev      The same with what development needs.'
	@echo 'make clean    Remove .venv and caches. Runs in ~/.trimtab/runs stay.'
	@echo
	@echo 'Variables: PYTHON=python3.12 (3.11 or newer), TORCH="torch==2.13.0" (see the top of the Makefile).'

install: $(TRAIN)

dev: $(DEV)

demo: $(TRAIN)
	@$(BIN)/trimtab demo $(DEMO)

test: $(DEV)
	@echo '==> Tests: the whole suite, under 15 minutes on 2 cores.'
	@$(BIN)/pytest --numprocesses=$(JOBS) --dist=loadscope --no-loadscope-reorder $(TESTS)

check: $(DEV)
	@echo '==> Checks: lint, formatting, types and layers, about a minute.'
	@$(BIN)/pre-commit run --all-files

clean:
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find orchestrator planners launch monitor tests -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/.stamp-python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "error: Trimtab needs Python 3.11 or newer, but $(PYTHON) is $$($(PYTHON) --version 2>&1 || echo missing); name another one: make $(MAKECMDGOALS) PYTHON=python3.11" >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "error: $(PYTHON) cannot make virtual environments; on Debian or Ubuntu: sudo apt-get install python3-venv" >&2; exit 2; }
	@echo '==> [1/3] A virtual environment in .venv, about 5 seconds.'
	@$(PYTHON) -m venv .venv
	@touch $@

.venv/.stamp-torch: .venv/.stamp-python constraints.txt
	@echo '==> [2/3] $(TORCH): the largest download, 1 to 3 minutes.'
	@$(PIP) $(TORCH)
	@touch $@

$(TRAIN): .venv/.stamp-torch pyproject.toml
	@echo '==> [3/3] Trimtab with the train and monitor extras, about a minute.'
	@$(PIP) -e '.[train,monitor]'
	@touch $@

$(DEV): .venv/.stamp-torch pyproject.toml
	@echo '==> [3/3] Trimtab with the train, monitor and dev extras, 1 to 2 minutes.'
	@$(PIP) -e '.[train,monitor,dev]'
	@touch $@ $(TRAIN)
