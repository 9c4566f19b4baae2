# `make help` lists the targets. Each sets up what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: help demo test check crash organisation bench bench-setup dist docs pictures lock plotly clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 24

demo: $(VENV)/.core ## a tour on this machine
	@$(BIN)/flowtrail demo

# Files in their order, the short ones of tests/unit last: no worker waits long for the others at the end.
test: check ## every check and test; ARGS goes to pytest
	@$(BIN)/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder $(ARGS)

# The crash tests for as long as you like: make crash N=1000 SEED=7
N ?= 100
SEED ?= 1
crash: $(VENV)/.dev ## kill it N times, and check what is left
	@$(BIN)/python -m tests.crash --count $(N) --seed $(SEED)

# What is reported of simulated organisations, compared with the truth: make organisation EVENTS=200000 SEED=7
EVENTS ?= 20000
organisation: $(VENV)/.dev ## EVENTS simulated events from SEED against the known truth
	@$(BIN)/python -m tests.organisation --events $(EVENTS) --seed $(SEED)

# Flowtrail beside what else would do the job: make bench ARGS="--quick", or see benchmarks/README.md
BENCH := .venv-bench
bench: $(VENV)/.dev bench-setup ## Flowtrail beside what else would do the job; ARGS="--quick"
	@$(BIN)/python -m benchmarks $(ARGS)

bench-setup: $(BENCH)/.done
$(BENCH)/.done: benchmarks/requirements.txt | $(VENV)/.dev
	@$(PYTHON) -m venv $(BENCH)
	@$(BENCH)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r benchmarks/requirements.txt
	@touch $@

check: $(VENV)/.dev ## ruff and mypy
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

# What is written from the program: docs/cli.md and docs/settings.md.
docs: $(VENV)/.dev ## write docs/cli.md and docs/settings.md from the program
	@$(BIN)/python -m tests.support.cli_reference

pictures: $(VENV)/.dev ## take the picture of the page for the README (needs Chromium)
	@$(BIN)/python -m tests.support.pictures

# What draws the plots of the page: a built file, kept here, so that nobody who reads a page needs a network.
PLOTLY := 4.1.1
PLOTLY_SHA256 := 99784e3abfb07b142a15e521a439e6d9addceadb3f79553fd24c72774f0649ba
STATIC := etl/web/static
plotly: ## bring the page's plot library anew (needs npm)
	@rm -rf build/plotly && mkdir -p build/plotly
	@cd build/plotly && npm pack --silent plotly.js-basic-dist-min@$(PLOTLY) >/dev/null && tar -xzf *.tgz
	@echo "$(PLOTLY_SHA256)  build/plotly/package/plotly-basic.min.js" | sha256sum --check --quiet
	@cp build/plotly/package/plotly-basic.min.js $(STATIC)/ && cp build/plotly/package/LICENSE $(STATIC)/plotly-basic.LICENSE

# Wheel and source archive in dist/, the same bytes whoever builds them: every file gets the moment of the last commit,
# and an unpacked source archive knows it by its own files.
EPOCH = $(shell if [ -e .git ]; then git log -1 --format=%ct; else date -r PKG-INFO +%s; fi)
dist: $(VENV)/.dev ## wheel and source archive, the same bytes whoever builds them
	@rm -rf dist
	@SOURCE_DATE_EPOCH=$${SOURCE_DATE_EPOCH:-$(EPOCH)} $(BIN)/python -m build --no-isolation . >/dev/null
	@cd dist && sha256sum *

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Flowtrail needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	@echo "setting up $(VENV) (once)"
	@$(PYTHON) -m venv $(VENV)

# The package itself is installed from this folder, so that an edit needs no new installation.
$(VENV)/.core: requirements/core.txt pyproject.toml | $(BIN)/python
	@$(INSTALL) --require-hashes -r requirements/core.txt
	@$(INSTALL) --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/.dev: requirements/dev.txt pyproject.toml | $(BIN)/python
	@$(INSTALL) --require-hashes -r requirements/dev.txt
	@$(INSTALL) --no-deps --no-build-isolation -e .
	@touch $@ $(VENV)/.core

# core and dev serve the targets above; build and all are for deploy/Dockerfile.
COMPILE := $(BIN)/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-emit-find-links --no-header
lock: $(VENV)/.dev ## write requirements/ anew
	@$(INSTALL) uv
	@$(COMPILE) --group build -o requirements/core.txt pyproject.toml
	@$(COMPILE) --all-extras --group dev -o requirements/dev.txt pyproject.toml
	@$(COMPILE) --group pyproject.toml:build -c requirements/dev.txt -o requirements/build.txt
	@$(COMPILE) --all-extras -c requirements/dev.txt -o requirements/all.txt pyproject.toml
	@$(COMPILE) --python-version 3.11 -o benchmarks/requirements.txt benchmarks/requirements.in

clean: ## remove environments, caches and builds
	rm -rf $(VENV) $(BENCH) dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis
