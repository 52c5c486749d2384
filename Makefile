# A bare machine needs Python >= 3.11 and make; everything else goes into .venv.
PYTHON ?= python3
BIN := .venv/bin
SOURCES := forgetting tests benchmarks experiments

.PHONY: setup lab test quick check format lint imports types paper docs

setup: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,experiments]'
	touch $@

lab: setup  ## the paper's comparison on a generated world: about five minutes on two cores
	$(BIN)/python -m forgetting lab

test: setup  ## every test; no network, no GPU
	$(BIN)/python -m pytest -n 3 --dist worksteal

quick: setup  ## the fast tests
	$(BIN)/python -m pytest -n 3 --dist worksteal -m 'not slow'

check: format lint imports types test  ## all of CI

format: setup
	$(BIN)/ruff format --check $(SOURCES)

lint: setup
	$(BIN)/ruff check $(SOURCES)

imports: setup  ## no room knows a room above it
	$(BIN)/lint-imports

types: setup
	$(BIN)/pyright --pythonpath $(BIN)/python

paper: setup  ## what Table 3 would run, and what is left of it
	$(BIN)/snakemake -s experiments/Snakefile -n table3

docs: setup  ## the site of all pages, in site/
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
