# Every target sets itself up in .venv; nothing global is touched.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# without bytecode: Python compiles what it imports, which is a small part, and keeps it even where the environment says
# otherwise: without it every start takes three times as long
unexport PYTHONDONTWRITEBYTECODE
INSTALL := -m pip install --quiet --quiet --disable-pip-version-check --no-compile
PIP := $(BIN)/python $(INSTALL) --constraint constraints.txt
# `make lock` keeps the versions of these (a regular expression of names); HELD='.*' only adds what is missing.
# torch: a looser request brings the CUDA build on Linux, gigabytes that a CPU cannot use.
HELD ?= torch

# A package of which a test reads a schema alone: never imported, so neither its requirements nor its Python matter.
SCHEMAS := --no-deps --ignore-requires-python every-eval-ever

# What `make test KERNELS=name` asks of torch, oneDNN, MKL and OpenBLAS: the last digits of a sum depend on it. The middle
# two are for x86. Without KERNELS the environment stays as it is.
SETTINGS := native avx2 sse threads
native := -u ATEN_CPU_CAPABILITY -u ONEDNN_MAX_CPU_ISA -u MKL_CBWR -u OPENBLAS_CORETYPE
avx2 := ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_CBWR=AVX2 OPENBLAS_CORETYPE=Haswell
sse := ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 MKL_CBWR=COMPATIBLE OPENBLAS_CORETYPE=Nehalem
threads := $(native) OMP_NUM_THREADS=2
KERNELS ?=
ifneq ($(filter-out $(SETTINGS),$(KERNELS)),)
$(error KERNELS is one of $(SETTINGS))
endif

.DEFAULT_GOAL := help
.PHONY: help demo test kernels lint lock smoke paper clean

help:  ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade pip  # dependency groups need 25.1, and the build backend is pinned with --build-constraint
	$(PIP) torch
	$(PIP) --build-constraint constraints.txt --editable . --group dev
	$(PIP) $(SCHEMAS)
	@touch $@

demo: smoke  ## a grid on the bundled encoder and data: the table and the figure, no network
	$(BIN)/lora-bench report --results results/smoke

smoke: $(STAMP)  ## train the smoke preset, two seeds
	$(BIN)/lora-bench run --preset smoke --seed 0 --seed 1

paper: $(STAMP)  ## the LoRA-Mini grid on roberta-base (a GPU and the Hub, or --model and --data-dir)
	$(BIN)/lora-bench run --preset paper
	$(BIN)/lora-bench report --results results/paper

test: $(STAMP)  ## all tests, a process a core; KERNELS=sse and others: with other kernels
	OMP_NUM_THREADS=1 env $($(KERNELS)) $(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder

kernels:  ## the names that KERNELS may have
	@echo $(SETTINGS)

lint: $(STAMP)  ## style, format, imports, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo
	$(BIN)/mypy

lock:  ## renew constraints.txt: the newest versions that pyproject.toml allows (with Python 3.11, the oldest supported)
	rm -rf .lock
	$(PYTHON) -m venv .lock
	grep -E '^($(HELD))==' constraints.txt > .lock/held.txt
	.lock/bin/python $(INSTALL) --constraint .lock/held.txt --upgrade pip setuptools
	.lock/bin/python $(INSTALL) --constraint .lock/held.txt torch
	.lock/bin/python $(INSTALL) --constraint .lock/held.txt --editable . --group dev
	.lock/bin/python $(INSTALL) --constraint .lock/held.txt $(SCHEMAS)
	grep '^#' constraints.txt > .lock/constraints.txt
	.lock/bin/python -m pip freeze --all --exclude-editable | sed 's/+.*//' >> .lock/constraints.txt
	mv .lock/constraints.txt constraints.txt
	rm -rf .lock

clean:  ## remove the environment and caches
	rm -rf $(VENV) .lock .mypy_cache .ruff_cache .import_linter_cache .pytest_cache .hypothesis
