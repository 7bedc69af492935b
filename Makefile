# Everything from a fresh clone, with nothing but Python 3.11 or newer on the machine.
#
#   make demo     set up what the demo needs (own .venv), then run it
#   make test     set up what the tests need, then run them
#
# Set-up is done once: a second call sees the stamp in .venv and starts at once. It is done again when pyproject.toml
# or constraints.txt changes. PYTHON=… picks the interpreter; DEMO_ARGS=… and PYTEST_ARGS=… are handed on.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PYTHON ?=
DEMO_ARGS ?=
PYTEST_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
STATE := $(shell cksum pyproject.toml constraints.txt .ci/setup 2>/dev/null | cksum | cut -d' ' -f1)
BASE := $(VENV)/.ready-$(STATE)
TEST := $(VENV)/.ready-test-$(STATE)
DOCS := $(VENV)/.ready-docs-$(STATE)
ASSETS := $(VENV)/.assets-$(STATE)
# A random network rewards only where it is asked for by name; the note of the target `assets` says that it is.
WITHOUT_LPIPS := --set reward.fidelity.lpips_network=random-alex

.PHONY: help demo test setup setup-test assets opengl lint format docs bench constraints clean

help: ## Show the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

demo: setup ## Set up, then align the shipped world model and write the report (10 minutes on two cores)
	@$(BIN)/roboalign demo --fresh $$([ -e $(ASSETS) ] || echo "$(WITHOUT_LPIPS)") $(DEMO_ARGS)

test: setup-test ## Set up, then run the tests
	@$(BIN)/python $(if $(PYTEST_ARGS),-m pytest $(PYTEST_ARGS),tests/in_halves.py)

setup: $(BASE) assets ## Make .venv and install what jobs need

setup-test: $(TEST) assets opengl ## Add what tests, linters and the simulator need

lint: $(TEST) ## Ruff and mypy
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: $(TEST) ## Put the code in order
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

docs: $(DOCS) ## Build the documentation site into build/site; a warning is an error
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo build/site/index.html

bench: $(TEST) assets ## Run the benchmarks behind BENCHMARKS.md
	@for script in benchmarks/[a-z]*.py; do echo "== $$script"; $(BIN)/python "$$script"; done

constraints: $(TEST) ## Resolve the versions of constraints.txt anew, for all extras together
	@$(BIN)/uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 --quiet --no-header \
	    --no-annotate --no-emit-index-url --no-emit-find-links --output-file constraints.new
	@{ head -n 1 constraints.txt; cat constraints.new; } > constraints.next
	@mv constraints.next constraints.txt && rm constraints.new

clean: ## Remove .venv, caches and build outputs; runs/ stays
	@rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +

$(BASE):
	@PYTHON="$(PYTHON)" .ci/setup venv $(VENV)
	@.ci/setup install $(VENV) '.'
	@touch $@

# After the base, never beside it: two installers in one environment would race.
$(TEST): $(BASE)
	@.ci/setup install $(VENV) '.[dev,simulation]'
	@touch $@

$(DOCS): $(BASE)
	@.ci/setup install $(VENV) '.[docs]'
	@touch $@

assets: $(ASSETS)

# Asked again next time where they could not be had: the stamp stands for files that are here.
$(ASSETS): | $(BASE)
	@if $(BIN)/roboalign assets fetch < /dev/null; then touch $@; \
	else echo "note: no LPIPS backbones; the demo goes on with a random network, which tables name, and rewards by it. Try again with: roboalign assets fetch" >&2; fi

opengl: $(TEST)
	@.ci/setup opengl
