# make install | demo | test | lint | types. PYTHON picks the interpreter that makes .venv.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# One thread per process: the tests run in two, and more threads than cores are slower.
ONE_THREAD = OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

.PHONY: install demo test lint format types clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev,bench]"
	touch $@

demo: install
	$(BIN)/sda demo overwrite=true

test: install
	$(ONE_THREAD) $(BIN)/python -m pytest -n 2

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: install
	$(BIN)/mypy

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache
