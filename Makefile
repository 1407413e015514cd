# make serve   sets everything up, fetches the model, serves it on http://127.0.0.1:30000
# make test    sets everything up, runs the whole test suite
# make check   fast tests and lint, under a minute
# make setup   only sets up

CONFIG ?= configs/smollm2-135m.yaml
PORT ?=
BIN := .venv/bin
STAMP := .venv/.set-up
# a worker whose test hangs says where its threads stand and ends; a second one ends the run
NO_HANG := --max-worker-restart=1 -o faulthandler_timeout=300 -o faulthandler_exit_on_timeout=true
FAST := $(wildcard tests/configs tests/layout tests/scheduler tests/properties)

.PHONY: help serve test check setup lint lint-format lint-code lint-imports lint-types
.DEFAULT_GOAL := help

help:
	@sed -n 's/^# make/make/p' Makefile

serve: setup
	@exec $(BIN)/radjax serve $(CONFIG) $(if $(PORT),--set serving.port=$(PORT))

test: setup
	@$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(NO_HANG)

check: lint
	@$(BIN)/python -m pytest -m 'not device and not slow and not browser and not model' $(FAST)

lint: lint-format lint-code lint-imports lint-types

lint-format: setup
	@$(BIN)/ruff format --check .

lint-code: setup
	@$(BIN)/ruff check .

lint-imports: setup
	@$(BIN)/lint-imports

lint-types: setup
	@$(BIN)/pyright

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt .ci/make-venv
	@.ci/make-venv
	@$(BIN)/python -m pip install --disable-pip-version-check --progress-bar on -c constraints.txt -e '.[dev]'
	@touch $(STAMP)
