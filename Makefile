# On a machine with Python 3.10+ and make, `make quickstart` or `make test` does all the set-up.
# Both share .venv; each installs again only when pyproject.toml has changed.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: quickstart test test-full lint format bench bench-quick readme cards clean

quickstart: .venv/.installed  ## the main job, end to end, on a small random checkpoint
	$(BIN)/bitzoo quickstart

test: .venv/.installed-dev  ## everything but the full-size tests; minutes on two cores
	$(BIN)/python -m pytest -m "not full_size" --numprocesses auto --maxprocesses 8 --dist loadfile

test-full: .venv/.installed-dev  ## the full-size tests alone; gigabytes of disk
	$(BIN)/python -m pytest -m full_size

lint: .venv/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: .venv/.installed-dev  ## tables of timings into benchmarks/RESULTS.md; an hour
	$(BIN)/python benchmarks/run.py

bench-quick: .venv/.installed-dev  ## the same at a small size, within five minutes
	$(BIN)/python benchmarks/run.py --quick

readme: .venv/.installed-dev  ## the catalogue table, from the registry
	$(BIN)/python tools/readme_table.py

cards: .venv/.installed-dev  ## a card for each model, from the registry
	$(BIN)/python tools/model_cards.py

clean:
	rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache

# the stamps say what is installed; the second install adds to the first
.venv/.installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --editable ".[quickstart]"
	touch $@

.venv/.installed-dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --editable ".[dev]"
	touch .venv/.installed $@

$(BIN)/python:
	$(PYTHON) -m venv .venv
