# Every target sets itself up in .venv; nothing global is touched.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# without bytecode: Python compiles what it imports, which is a small part
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test lint smoke paper clean

help:  ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) --editable '.[dev]'
	@touch $@

demo: smoke  ## a grid on the bundled encoder and data: the table and the figure, no network
	$(BIN)/lora-bench report --results results/smoke

smoke: $(STAMP)  ## train the smoke preset, two seeds
	$(BIN)/lora-bench run --preset smoke --seed 0 --seed 1

paper: $(STAMP)  ## the LoRA-Mini grid on roberta-base (a GPU and the Hub, or --model and --data-dir)
	$(BIN)/lora-bench run --preset paper
	$(BIN)/lora-bench report --results results/paper

test: $(STAMP)  ## all tests, a process a core
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder

lint: $(STAMP)  ## style, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:  ## remove the environment and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
