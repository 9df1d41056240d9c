# SPDX-License-Identifier: Apache-2.0
# Thin names over pip, pytest and a few scripts. `make help` lists them.

PYTHON ?= python3
PEERS := .cache/peers
BIN := .venv/bin
SITE = $(shell $(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
PIP := $(BIN)/python -m pip install -qq
PYTEST := $(BIN)/python -m pytest
SOURCES := $(shell find ckpt -name '*.py' 2>/dev/null)

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1
# With it in the environment every start would compile every module again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help build test check format demo bench bench-lazy bench-live bench-redis bench-tree soak protos dev \
	peers clean
.DELETE_ON_ERROR:

help: ## This list
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

build: .venv/.compiled $(BIN)/ckpt ## Make .venv and in it a working .venv/bin/ckpt

test: build dev peers ## Everything CI runs; ARGS="-k eventfd" to choose
	$(PYTEST) $(ARGS) </dev/null

check: build dev ## Lint, format, types, import layers: seconds, no root
	$(PYTEST) -q tests/test_style.py tests/test_layers.py $(ARGS) </dev/null

format: dev ## Let ruff format and mend what it can
	$(BIN)/ruff check --fix-only -q .
	$(BIN)/ruff format .

demo: build ## See it work: a live dump and a restore, with figures
	$(BIN)/python -m tests.demo $(ARGS)

bench: build dev peers ## Measure freeze, dump and restore against CRIU and fork
	$(BIN)/python -m tests.bench.bench $(ARGS)

bench-lazy: build dev peers .venv/.bench ## Measure lazy restores against eager ones and CRIU; docs/bench-lazy.md
	$(BIN)/python -m tests.bench.lazy $(ARGS)

bench-tree: build dev peers ## Measure the restore of a hundred small processes against CRIU
	$(BIN)/python -m tests.bench.tree $(ARGS)

bench-live: build dev peers .venv/.bench ## Measure what dumps cost a process that writes; docs/bench-live.md
	$(BIN)/python -m tests.bench.live $(ARGS)

bench-redis: build dev peers .venv/.bench ## Measure what a live dump costs redis under load; docs/bench-redis.md
	$(BIN)/python -m tests.bench.redis $(ARGS)

soak: build dev ## Dump and restore for an hour; ARGS="--minutes 5" for less
	PYTHONPATH=tests/process $(BIN)/python -m tests.soak $(ARGS)

protos: dev ## Generate ckpt/image/pb anew from protos/
	$(BIN)/python protos/generate.py

clean: ## Remove all that the other targets made
	rm -rf .venv .cache build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
	rm -f ckpt/kernel/_core.c ckpt/kernel/_core*.so
	find . -name __pycache__ -prune -exec rm -rf {} +

# --- what they are made of -------------------------------------------------------------------

dev: .venv/.dev

peers: ## Real CRIU, redis and others for the tests, unpacked into .cache/peers
	@tests/install-peers $(PEERS) || echo "==> tests that need them will be skipped"

$(BIN)/python:
	tools/install-packages $(PYTHON)
	@echo "==> virtual environment (.venv)"
	$(PYTHON) -m venv --clear .venv

# "compat" is a plain .pth file: the import hook of the default costs each start 8 ms.
.venv/.installed: pyproject.toml setup.py ckpt/kernel/build.py $(wildcard ckpt/kernel/core/*) | $(BIN)/python
	@echo "==> Python packages and the C core"
	@$(PYTHON) tools/requirements build | $(PIP) -r /dev/stdin
	@$(PIP) --no-build-isolation --config-settings editable_mode=compat -e .
	@touch $@

.venv/.dev: pyproject.toml | .venv/.installed
	@echo "==> Python packages for tests and checks"
	@$(BIN)/python tools/requirements dev | $(PIP) -r /dev/stdin
	@touch $@

.venv/.bench: pyproject.toml | .venv/.installed
	@echo "==> Python packages for plots"
	@$(BIN)/python tools/requirements bench | $(PIP) -r /dev/stdin
	@touch $@

.venv/.compiled: $(SOURCES) .venv/.installed
	@$(BIN)/python -m compileall -q ckpt
	@touch $@

# Without `site` and the environment our main() begins after 7 ms; pip's own script needs 15 to 23.
define LAUNCHER
#!$(CURDIR)/$(BIN)/python -IS
# Made by `make build`.
import gc
import sys

gc.disable()  # a collection among the imports takes 4 ms
sys.path += ["$(CURDIR)", "$(SITE)"]
from ckpt.cli import main

sys.exit(main())
endef

$(BIN)/ckpt: .venv/.installed Makefile
	$(file >$@,$(LAUNCHER))
	@chmod +x $@
