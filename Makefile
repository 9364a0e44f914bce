# Each target makes its own environment (.venv) first; nothing else needs to be installed by hand.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# One thread a process: on small shared machines two OpenMP threads are slower than one (see BENCHMARKS.md).
export OMP_NUM_THREADS ?= 1
# glibc gives large buffers back to the kernel after every step; told not to, training is up to three times faster.
export MALLOC_MMAP_MAX_ ?= 0
export MALLOC_TRIM_THRESHOLD_ ?= 100000000000
export MALLOC_TOP_PAD_ ?= 268435456
export TOKENIZERS_PARALLELISM ?= false
export HF_HUB_DISABLE_TELEMETRY ?= 1

.PHONY: setup demo test test-slow check format bench clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[offline,edge,index,text,serve,page,valkey,bench,test,dev]"
	@touch $(STAMP)

demo: $(STAMP)
	$(BIN)/m6rec demo --out demo

# Many short processes: the allocator's setting above would cost memory and win nothing.
test: export MALLOC_TOP_PAD_ = 131072
test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m "slow"

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# make bench NAME=retrieval-beauty DATA=path/to/data
bench: $(STAMP)
	$(BIN)/python scripts/bench.py $(NAME) --data $(DATA) --json runs/$(NAME).json

clean:
	rm -rf $(VENV) demo build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
