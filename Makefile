# On a machine with Python 3.10+ and make, `make quickstart` or `make test` does all the set-up.
# Both share .venv; each installs again only when pyproject.toml has changed.

PYTHON ?= python3
BIN := .venv/bin
LOWEST := .venv-lowest
WHEEL := .venv-wheel
BUDGET ?= 10000
ATTACK = PYTHONPATH=tests $(BIN)/python -m attacks
IN_PARALLEL := --numprocesses auto --maxprocesses 8 --dist loadfile
# Material says at every start what it thinks of a future MkDocs; the extra allows only this one.
MKDOCS := NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs
# An old library may still call what a newer one has deprecated; our own calls are seen with the newest.
DEPRECATIONS := -W default::DeprecationWarning -W default::PendingDeprecationWarning -W default::FutureWarning

.PHONY: quickstart test test-slow test-full test-lowest attack attack-figures coverage lint format dist test-wheel bench bench-quick readme cards pages screens gallery docs docs-serve docs-pages clean

quickstart: .venv/.installed  ## the main job, end to end, on a small random checkpoint
	$(BIN)/bitzoo quickstart

test: .venv/.installed-dev  ## all but the slow and the full-size tests; minutes on two cores
	$(BIN)/python -m pytest -m "not slow and not full_size" $(IN_PARALLEL)

test-slow: .venv/.installed-dev  ## kills, races, terminals, whole protocols; a quarter of an hour
	$(BIN)/python -m pytest -m "slow and not full_size" $(IN_PARALLEL)

test-full: .venv/.installed-dev  ## the full-size tests alone; gigabytes of disk
	$(BIN)/python -m pytest -m full_size

test-lowest: $(LOWEST)/.installed  ## all but the full-size tests with the lowest version of every dependency
	$(LOWEST)/bin/python -m pytest -m "not full_size" $(IN_PARALLEL) $(DEPRECATIONS)

attack: .venv/.installed-dev  ## damaged files and more; BUDGET=100000 inputs or 10m, READERS="npz torch", REPLAY=npz:17
	$(ATTACK) $(if $(REPLAY),$(addprefix --replay ,$(REPLAY)),$(BUDGET) $(READERS))

attack-figures: .venv/.installed-dev  ## the same, over everything, and the figures into docs/reference/attacks.md
	$(ATTACK) $(BUDGET) --write

coverage: .venv/.installed-dev  ## all but the full-size tests, with the lines and branches that none of them runs
	$(BIN)/python -m pytest -m "not full_size" $(IN_PARALLEL) --cov --cov-report=term --cov-report=html

lint: .venv/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

dist: | $(BIN)/python  ## sdist and wheel
	rm -rf dist
	$(BIN)/python -m pip install build
	$(BIN)/python -m build

test-wheel: dist  ## the wheel alone, in an environment of its own: the main job, end to end
	$(PYTHON) -m venv --clear $(WHEEL)
	$(WHEEL)/bin/python -m pip install "$$(echo dist/*.whl)[quickstart]"
	cd $(WHEEL) && bin/bitzoo --version && bin/bitzoo quickstart

bench: .venv/.installed-dev  ## tables of timings into benchmarks/RESULTS.md; an hour
	$(BIN)/python benchmarks/run.py

bench-quick: .venv/.installed-dev  ## the same at a small size, within five minutes
	$(BIN)/python benchmarks/run.py --quick

readme: .venv/.installed-dev  ## the catalogue table, from the registry
	$(BIN)/python tools/readme_table.py

cards: .venv/.installed-dev  ## a card for each model, from the registry
	$(BIN)/python tools/model_cards.py

pages: .venv/.installed-dev tests/browser/node_modules/.installed  ## reports and cards in headless Chromium, judged by axe
	$(BIN)/python tests/browser/write_pages.py tests/browser/pages
	node tests/browser/check.mjs tests/browser/pages $(PAGES)

screens: .venv/.installed-dev  ## the screens in docs/reference/terminal.md, from a run on a pseudo-terminal
	PYTHONPATH=tests $(BIN)/python -m screens docs/reference/terminal.md

gallery: .venv/.installed-dev tests/browser/node_modules/.installed  ## pictures of docs/gallery.md and the examples, from real runs; half an hour
	PYTHONPATH=tests:. $(BIN)/python -m gallery

docs: .venv/.installed-docs  ## the site, into site/: strictly, and what was built is checked again
	$(MKDOCS) build --strict
	$(BIN)/python tools/check_site.py site

docs-serve: .venv/.installed-docs  ## the site at http://127.0.0.1:8000, built again when a page changes
	$(MKDOCS) serve --open

docs-pages: docs tests/browser/node_modules/.installed  ## every page of the site in headless Chromium, judged by axe; its search, typed
	node tests/browser/check_site.mjs site tests/browser/site $(PAGES)

clean:
	rm -rf .venv $(LOWEST) $(WHEEL) build dist site htmlcov .coverage .coverage.*
	rm -rf .mypy_cache .pytest_cache .ruff_cache tests/browser/node_modules tests/browser/pages tests/browser/site

# the stamps say what is installed; the second install adds to the first
.venv/.installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --editable ".[quickstart]"
	touch $@

.venv/.installed-dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --editable ".[dev]"
	touch .venv/.installed $@

.venv/.installed-docs: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --editable ".[docs]"
	touch .venv/.installed $@

# constraints bind what pyproject.toml names; what that depends on is as new as it allows
$(LOWEST)/.installed: pyproject.toml tools/lowest_dependencies.py
	$(PYTHON) -m venv --clear $(LOWEST)
	$(LOWEST)/bin/python -m pip install --upgrade pip packaging tomli  # pip 23 tries versions for ever
	$(LOWEST)/bin/python tools/lowest_dependencies.py test > $(LOWEST)/lowest.txt
	$(LOWEST)/bin/python -m pip install --constraint $(LOWEST)/lowest.txt --editable ".[test]"
	touch $@

tests/browser/node_modules/.installed: tests/browser/package.json
	cd tests/browser && npm install --no-package-lock --no-audit --no-fund
	touch $@

$(BIN)/python:
	$(PYTHON) -m venv .venv
