# The whole developer interface. `make` alone lists it.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip --disable-pip-version-check --quiet install --constraint constraints.txt

.PHONY: help run demo test check soak format bench clean

help: ## List the commands.
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Goblet needs Python 3.11 or newer, and %s is %s: name another with make PYTHON=..." % (sys.executable, sys.version.split()[0]) if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	$(PIP) --editable .
	@touch $@

.venv/.developer: .venv/.installed
	$(PIP) --editable '.[dev]'
	@touch $@

run: .venv/.installed ## Start a router and three nodes on this machine.
	$(BIN)/goblet up

demo: .venv/.installed ## Clone a generated repository cold, warm, and after the owner was killed. Needs no network.
	$(BIN)/python bench/demo.py

test: .venv/.developer ## Run the tests.
	$(BIN)/pytest -m "not soak"

check: .venv/.developer ## What CI runs: format, lint, types, tests.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(MAKE) --no-print-directory test

soak: .venv/.developer ## The long tests: minutes to hours.
	HYPOTHESIS_PROFILE=soak $(BIN)/pytest -m soak

format: .venv/.developer ## Format and mend what the linter can mend.
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## Remove everything that was built.
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis tests/javascript/node_modules
