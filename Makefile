# Everything starts from here: `make demo` shows the main job, `make test` passes the tests.
# Each target sets up what it needs. Only Python >= 3.11, git and make are assumed.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
FOLDERS := common server client simulations deploy

.PHONY: help demo test test-faults test-scale check format venv types proto bench clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

$(VENV)/.ready: pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v[:2] >= (3, 11) else f"medfed needs Python 3.11 or newer, found {v[0]}.{v[1]}. Next step: make PYTHON=python3.11 $(MAKECMDGOALS)")'
	@echo "Setting up $(VENV): about a minute the first time ..."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check -e ".[dev]"
	@touch $@

venv: $(VENV)/.ready  ## build .venv with medfed and what its checks need

types:
	@mkdir -p .types/medfed
	@for d in $(FOLDERS); do ln -sfn ../../$$d .types/medfed/$$d; done

demo: venv  ## three synthetic hospitals train one model, end to end
	@$(BIN)/medfed demo

test: venv types  ## the tests, one file per core at a time
	@$(BIN)/pytest -q -n auto --dist loadfile

test-faults: venv types  ## kill sites (-9) at random moments, 80 runs: about 20 minutes
	@$(BIN)/pytest -q -n 2 --dist loadfile tests/faults

test-scale: venv types  ## list a million files, import twenty thousand: about 6 minutes
	@$(BIN)/pytest -q tests/scale

check: venv types  ## format, lint, types, layers, doctests
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/pytest -q tests/unit/test_layers.py tests/unit/test_packaging.py
	@$(BIN)/pytest -q --doctest-modules --pyargs medfed.common medfed.server medfed.client medfed.simulations

format: venv  ## rewrite the sources in the house format
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

proto: venv  ## regenerate the control service's messages
	@mkdir -p build
	@$(BIN)/python -m grpc_tools.protoc -Imedfed/server=server --python_out=build --pyi_out=build medfed/server/control.proto
	@cp build/medfed/server/control_pb2.py* server/

bench: venv  ## the benchmarks; each prints its figures last
	@for b in benchmarks/[a-z]*.py; do echo "== $$b"; $(BIN)/python $$b || exit 1; done

clean:  ## remove what was built
	rm -rf $(VENV) .types build *.egg-info .pytest_cache .mypy_cache .ruff_cache
