# One command each; every one makes .venv first if it is not there. `make help` lists them.

VENV := .venv
BIN := $(VENV)/bin
CONFIG ?= configs/demo.yaml
ARGS ?=
# Where other engines are installed, outside the repository.
PEERS ?= $(HOME)/.cache/weft-peers

.DEFAULT_GOAL := help
.PHONY: help serve demo test check lint types fast bench peers bench-peers bench-kernels bench-gpu test-gpu clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

serve: $(VENV)/serve.stamp  ## serve CONFIG (configs/demo.yaml); ARGS="--port 9000" overrides options
	$(BIN)/weft serve $(CONFIG) $(ARGS)

demo: $(VENV)/dev.stamp  ## ask every adapter the same things at once, show the answers side by side
	$(BIN)/python -m configs.demo.ask $(ARGS)

test: $(VENV)/dev.stamp check  ## everything that runs without a GPU
	$(BIN)/python -m pytest -n auto -m "slow and not system and not gpu" $(ARGS)
	$(BIN)/python -m pytest -m "system and not gpu" $(ARGS)

check: $(VENV)/dev.stamp  ## format, lint, types, fast tests: beside each other
	@$(MAKE) --no-print-directory -j lint types fast

lint: $(VENV)/dev.stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/dev.stamp
	$(BIN)/mypy

fast: $(VENV)/dev.stamp
	$(BIN)/python -m pytest -n auto -m "not slow and not system and not gpu" $(ARGS)

bench: $(VENV)/dev.stamp  ## measure; results go to stdout
	$(BIN)/python -m tests.bench $(ARGS)

peers: $(VENV)/bench.stamp  ## install vLLM's build for CPUs and llama.cpp into PEERS (3.5 GB)
	$(BIN)/python -m tests.bench.peers.install $(PEERS)

bench-peers: $(VENV)/bench.stamp  ## measure weft beside vLLM, llama.cpp and PEFT on this CPU (20 minutes)
	$(BIN)/python -m tests.bench peers --peers $(PEERS) $(ARGS)

bench-kernels: $(VENV)/bench.stamp  ## measure LoRA's kernels on a GPU, beside torch and peers' kernels
	$(BIN)/python -m tests.bench lora $(ARGS)

bench-gpu: $(VENV)/bench.stamp  ## bench-kernels, and whole decode steps of 0.5 and 8 billion parameters
	$(BIN)/python -m tests.bench gpu $(ARGS)

test-gpu: $(VENV)/dev.stamp  ## what needs a CUDA device
	$(BIN)/python -m pytest -m gpu $(ARGS)

clean:  ## remove everything that was made here
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.git/*' -exec rm -rf {} +

# A shim of a version manager may exist without a Python behind it, so each candidate is tried.
define FIND_PYTHON
for python in $(PYTHON) python3.13 python3.12 python3.11 python3; do \
    if $$python -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' \
        >/dev/null 2>&1; then echo $$python; exit; fi; \
done
endef

$(BIN)/python:
	@python=$$($(FIND_PYTHON)); \
	if [ -z "$$python" ]; then \
	    echo "weft needs Python 3.11 or later with its venv module (Debian: python3-venv)." >&2; \
	    echo "Install it, or name one: make PYTHON=/path/to/python3" >&2; \
	    exit 1; \
	fi; \
	echo "making $(VENV) with $$python"; \
	$$python -m venv $(VENV)

$(VENV)/serve.stamp: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet -c constraints.txt -e .
	@touch $@

$(VENV)/dev.stamp: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	@touch $@ $(VENV)/serve.stamp

$(VENV)/bench.stamp: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev,bench]"
	@touch $@ $(VENV)/dev.stamp $(VENV)/serve.stamp
