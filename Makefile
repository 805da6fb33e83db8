SHELL := /bin/bash
# One command a chore, the same on a laptop and in CI. `make help` lists them.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

# Nothing we run may phone home, reach a model hub, or start more threads than it was given.
export ORT_DISABLE_TELEMETRY = 1
export DO_NOT_TRACK = 1
export HF_HUB_OFFLINE = 1
export TOKENIZERS_PARALLELISM = false
export OMP_NUM_THREADS ?= 1

.PHONY: help setup demo demo-fast check check-images test test-faults proto format clean

help:  ## list the chores
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

setup: $(READY)  ## make .venv and install everything at tested versions (about 7 GB, a few minutes the first time)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "relearnd needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>&1). Say which one: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || $(MAKE) --no-print-directory install-venv
	@echo "==> 1/3 virtual environment in $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@echo "==> 2/3 pip"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip -c constraints.txt
	@echo "==> 3/3 packages: torch, transformers, evidently, duckdb, onnxruntime and the rest; about 7 GB, 3 to 10 minutes the first time"
	@PYTHONWARNINGS=ignore $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev]' | \
	  grep --line-buffered -E '^(Collecting|Downloading|  Downloading|Installing|Successfully|ERROR)' | cut -c1-100; test $${PIPESTATUS[0]} -eq 0
	@touch $@
	@echo "==> ready"

# Debian and Ubuntu keep venv in a package of its own.
.PHONY: install-venv
install-venv:
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  echo "==> installing python3-venv"; apt-get update -qq && apt-get install -y -qq python3-venv >/dev/null; \
	else echo "Python's venv module is missing. Install it (Debian, Ubuntu: sudo apt-get install python3-venv) and run make again."; exit 1; fi

demo: $(READY)  ## the whole loop on this machine: broker, learner, server, real tweets, real model
	@$(BIN)/relearnd demo

demo-fast: $(READY)  ## the same with two rounds, in about two minutes
	@$(BIN)/relearnd demo --fast

bench-serve: $(READY)  ## requests a second against raw onnxruntime and four other servers (about ten minutes; the first time it installs them)
	@$(BIN)/python -m tests.benchmarks.serve $(ARGS)

bench-ingest: $(READY)  ## ingest against the bare client and Quix Streams, memory over 10 million rows (about ten minutes)
	@$(BIN)/python -m tests.benchmarks.ingest $(ARGS)

bench-store: $(READY)  ## what a cycle asks of a store with 10 million rows, and how large its file is
	@$(BIN)/python -m tests.benchmarks.store $(ARGS)

bench-swap: $(READY)  ## a thousand swaps of a real model under a million requests (about three quarters of an hour; ARGS=--short for less)
	@$(BIN)/python -m tests.benchmarks.swap $(ARGS)

bench-restart: $(READY)  ## kill -9 of a server until it answers again, twenty times
	@$(BIN)/python -m tests.benchmarks.restart $(ARGS)

check: $(READY)  ## ruff, mypy in strict mode, import rules
	$(BIN)/ruff check daemon tests docker
	$(BIN)/ruff format --check daemon tests docker
	$(BIN)/mypy
	$(BIN)/lint-imports

test: $(READY) compiler  ## every test, on real parts
	$(BIN)/python -m pytest

test-faults: $(READY) compiler  ## thousands of faults on disk, broker and processes: 0 lost, 0 twice (about 25 minutes; ARGS=--help for less)
	@$(BIN)/python -m tests.faults $(ARGS)

# The storage faults come from a small C library. Without a compiler they are left out; with CI=true that is a failure.
.PHONY: compiler
compiler:
	@command -v cc >/dev/null || command -v gcc >/dev/null || command -v clang >/dev/null || { \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    echo "==> installing gcc"; apt-get update -qq && apt-get install -y -qq gcc libc6-dev >/dev/null; \
	  else echo "No C compiler: the storage faults are not tested. Install one (Debian, Ubuntu: sudo apt-get install gcc libc6-dev)."; \
	    test "$$CI" != true; fi; }

check-images: $(READY)  ## what the images do, as far as it can be done without a container engine
	@$(BIN)/python docker/check_images.py

proto: $(READY)  ## generate the gRPC messages from daemon/serve/oip/open_inference.proto
	$(BIN)/python -m grpc_tools.protoc -I daemon/serve/oip --python_out=daemon/serve/oip --pyi_out=daemon/serve/oip open_inference.proto
	@# In a pool of their own, for a process that also loads another client's messages of the same names.
	sed -i 's/_descriptor_pool\.Default()/_descriptor_pool.DescriptorPool()/' daemon/serve/oip/open_inference_pb2.py

format: $(READY)  ## let ruff lay out the code
	$(BIN)/ruff check --fix daemon tests docker
	$(BIN)/ruff format daemon tests docker

clean:  ## remove what was built; .venv stays
	rm -rf build data .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
