# `make demo` and `make test` need Python 3.11 or newer and, the first time, a network.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.polewise-ready

.DEFAULT_GOAL := help
.PHONY: help env demo test lint types imports clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "  PYTHON=python3.12 chooses the Python that the environment is made with"

env: $(READY) ## make the environment in .venv (again only when its requirements change)

$(READY): pyproject.toml constraints.txt
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { \
	  $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	    echo "Polewise needs Python 3.11 or newer; '$(PYTHON)' is" \
	      "$$($(PYTHON) --version 2>/dev/null || echo not there)." \
	      "Name another: make $(or $(MAKECMDGOALS),env) PYTHON=python3.12" >&2; exit 1; }; \
	  echo "making the environment in $(VENV)"; \
	  $(PYTHON) -m venv --clear $(VENV); }
	$(BIN)/python -m pip install --no-deps -c constraints.txt torch
	$(BIN)/python -m pip install -c constraints.txt -e '.[dev]'
	@touch $@

demo: env ## train Focus on recall and on text, generate, draw; TEXT=book.txt for a text of yours
	$(BIN)/polewise demo $(if $(TEXT),--text '$(TEXT)')

test: env ## run all tests, a process on every core; ARGS="-k streaming" for some
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal $(ARGS)

lint: env ## check style and format
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: env ## check types
	$(BIN)/mypy

imports: env ## check that imports point down
	$(BIN)/lint-imports

clean: ## remove caches and built files; the environment and runs/ stay
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
