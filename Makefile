# make demo: fine-tune the small model on the sample data, from start to registry. make test, make lint: what CI runs.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := $(CURDIR)/.venv/bin
TEMPLATE := plugins/mlflow-ft-template
PLUGINS := $(filter-out $(TEMPLATE),$(patsubst %/pyproject.toml,%,$(wildcard plugins/*/pyproject.toml)))
# This project's environment comes first on PATH: MLflow's local environment runs plain `python`.
export PATH := $(BIN):$(PATH)

.PHONY: help demo docs pictures test faults combinations long lint clean

help:
	@echo "make demo    fine-tune a small model on the sample data (minutes on a CPU)"
	@echo "make docs    build the documentation: site/index.html"
	@echo "make pictures  take the pictures of the documentation from the last demo (needs Chromium and its driver)"
	@echo "make test    run the tests"
	@echo "make faults  kill runs, cut off servers, fill disks; prints what was survived (half an hour)"
	@echo "make combinations  train every objective with every adapter and kind of base (minutes)"
	@echo "make long    run every test that make test leaves out (hours)"
	@echo "make lint    check style, types and imports"
	@echo "make clean   remove the environment, caches and builds; runs and models stay"

demo: .venv
	@mlflow run . -e qlora --env-manager local

# A link or an anchor that leads nowhere ends it; with --quiet MkDocs would not count its warnings.
docs: .venv-docs
	@NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict
	@echo "open site/index.html"

pictures: .venv
	@python docs/pictures/make.py

# One worker per core, one file per worker at a time: the tests of a file share fixtures that are slow to make.
test: .venv/.template
	@python -m pytest --numprocesses logical --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

# A few of these are in `make test`.
faults: .venv/.template
	@LONG_TESTS=1 python -m pytest tests/faults tests/engine/checkpoints tests/launching tests/engine/tools tests/scaffolding plugins/mlflow-ft-ray plugins/mlflow-ft-axolotl plugins/mlflow-ft-vllm --numprocesses logical --dist loadfile $(PYTEST_ARGS)

# Those of them that `make test` leaves out are all alike.
combinations: .venv/.template
	@LONG_TESTS=1 python -m pytest tests/test_combinations.py tests/test_adapters.py --numprocesses logical $(PYTEST_ARGS)

# Those of make faults and make combinations, and further cases of what is in make test.
long: .venv/.template
	@LONG_TESTS=1 python -m pytest -m long --numprocesses logical --dist loadfile $(PYTEST_ARGS)

lint: .venv/.template
	@echo "ruff check";  ruff check --quiet .
	@echo "ruff format"; ruff format --quiet --check .
	@echo "mypy";        mypy --no-error-summary
	@echo "imports";     lint-imports --no-logo

.venv: .venv/.installed

# Written last, so that an interrupted installation is run again.
.venv/.installed: pyproject.toml constraints.txt $(PLUGINS:%=%/pyproject.toml)
	@echo "installing into .venv (minutes, the first time)"
	@$(PYTHON) -m venv .venv
	@python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[test,lint,gguf,lm-eval,ray]'
	@for plugin in $(PLUGINS); do python -m pip install -qq --disable-pip-version-check --no-deps -e "$$plugin"; done
	@touch $@

# The plugin that is there to be copied is tested, but has no part in a user's demo.
.venv/.template: .venv/.installed $(TEMPLATE)/pyproject.toml
	@python -m pip install -qq --disable-pip-version-check --no-deps -e $(TEMPLATE)
	@touch $@

.venv-docs: .venv-docs/.installed

# An environment of its own: the one that trains keeps its versions.
.venv-docs/.installed: docs/requirements.txt
	@$(PYTHON) -m venv .venv-docs
	@.venv-docs/bin/python -m pip install -qq --disable-pip-version-check -r docs/requirements.txt
	@touch $@

clean:
	@rm -rf .venv .venv-docs build dist site .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@find mlflow_ft plugins tests -name __pycache__ -type d -prune -exec rm -rf {} +
