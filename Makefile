.PHONY: setup demo up test compose-test check bench protos sbom audit
.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin

help:  ## what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:[^#]*## /\t/'

# Runs again only when the dependencies change.
.venv/.ready: pyproject.toml constraints.txt tools/setup.sh
	PYTHON=$(PYTHON) sh tools/setup.sh

setup: .venv/.ready  ## a virtual environment with everything in it

demo: .venv/.ready  ## the main job: serve, stream, hit the cache, run a batch
	$(BIN)/penstock demo

up: .venv/.ready  ## serve until Ctrl-C
	$(BIN)/penstock up

test: .venv/.ready  ## all tests but those of compose
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadgroup -m "not compose"

compose-test: .venv/.ready  ## images and compose file in a Docker engine; a quarter of an hour
	$(BIN)/python -m pytest -q -s -m compose -p no:randomly tests/e2e/test_compose.py

check: .venv/.ready  ## style, types, floor plan, protos
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/buf lint
	$(BIN)/buf format --diff --exit-code > /dev/null
	$(BIN)/python -m pytest -q tests/layout -p no:randomly

bench: .venv/.ready  ## figures of the routing index and the engine
	$(BIN)/penstock bench index
	$(BIN)/penstock bench engine

sbom: .venv/.ready  ## what is installed, as CycloneDX JSON
	$(BIN)/python tools/make_sbom.py sbom.json

audit: .venv/.ready  ## known vulnerabilities of the pinned packages; needs the network
	$(BIN)/python -m pip install -q pip-audit
	$(BIN)/pip-audit -r constraints.txt --no-deps --disable-pip

protos:  ## regenerate the stubs beside every .proto
	sh tools/generate_stubs.sh
