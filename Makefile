# Papers That Run: `make book` builds the book, `make test` tests it. `make help` lists the rest.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# A stamp holds the lock's hash: the same lock installs nothing again.
LOCK_HASH = $$(cat pyproject.toml $(1) | $(PYTHON) -c 'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())')

.PHONY: help book test check bench serve lab clean data install install-dev browser site notebooks lock

help:  ## List the commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

book: install data  ## Install, fetch the data, execute the chapters, build the site
	@toolkit build

test: install-dev data browser  ## Everything: style, units, notebooks, site, browser
	@ruff check . && ruff format --check . && mypy && lint-imports
	@echo "== unit tests"
	@OMP_NUM_THREADS=1 pytest -q -n 2 --dist loadscope tests --ignore=tests/book
	@echo "== the book, executed and built"
	@toolkit build
	@echo "== the executed chapters, validated again"
	@PYTHONPATH=tests TOOLKIT_STATIC=1 TOOLKIT_JOBS=1 TOOLKIT_SWEEP=check OMP_NUM_THREADS=1 TQDM_DISABLE=1 pytest -q -p steady_kernels -n 2 --dist loadfile \
		--nbval-lax --nbval-current-env --nbval-cell-timeout 600 --nbval-sanitize-with tests/nbval.cfg build/executed
	@echo "== notebooks, site and browser"
	@OMP_NUM_THREADS=1 pytest -q -n 2 --dist worksteal tests/book

check: install-dev  ## Style, types, arrows and the quick unit tests (under 90 s)
	@ruff check . && ruff format --check . && mypy && lint-imports
	@OMP_NUM_THREADS=1 pytest -q -n 2 --dist loadscope -m "not slow" tests --ignore=tests/book

bench: install-dev data  ## Every speed claim as a ratio against its named peer
	@for script in benchmarks/[a-z]*.py; do echo "== $$script"; OMP_NUM_THREADS=1 python $$script; done

serve: book  ## Serve the site on this machine
	@toolkit serve

lab: book  ## JupyterLab with the live pages
	@toolkit lab

clean:  ## Remove what was built (the environment and the data stay)
	@rm -rf build _build

data: install
	@python -m data_scripts fetch

install: $(VENV)/pyvenv.cfg
	@if [ "$$(cat $(VENV)/.lock-core 2>/dev/null || true)" != "$(call LOCK_HASH,requirements.txt)" ]; then \
		echo "== installing the locked packages (some minutes the first time)"; \
		python -m pip install -r requirements.txt; \
		python -m pip install -q --no-deps -e .; \
		echo "$(call LOCK_HASH,requirements.txt)" > $(VENV)/.lock-core; \
	fi

install-dev: $(VENV)/pyvenv.cfg
	@if [ "$$(cat $(VENV)/.lock-dev 2>/dev/null || true)" != "$(call LOCK_HASH,requirements-dev.txt)" ]; then \
		echo "== installing the locked packages with the tests' (some minutes the first time)"; \
		python -m pip install -r requirements-dev.txt; \
		python -m pip install -q --no-deps -e .; \
		echo "$(call LOCK_HASH,requirements-dev.txt)" > $(VENV)/.lock-dev; \
		echo "$(call LOCK_HASH,requirements.txt)" > $(VENV)/.lock-core; \
	fi

$(VENV)/pyvenv.cfg:
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; name one: make book PYTHON=python3.12") if sys.version_info < (3, 11) else None'
	@$(PYTHON) -m venv $(VENV)

browser:  # the tests need a Chromium
	@for name in chromium chromium-browser google-chrome; do command -v $$name >/dev/null && exit 0; done; \
		playwright install chromium || \
		{ [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -qq && apt-get install -y -qq chromium; } || true

lock: install-dev  ## Make the locks again from pyproject.toml
	@uv pip compile --quiet --universal --python-version 3.11 --no-header --no-annotate pyproject.toml -o requirements.txt
	@uv pip compile --quiet --universal --python-version 3.11 --no-header --no-annotate --all-extras -c requirements.txt pyproject.toml -o requirements-dev.txt
