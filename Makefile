# Everything a person or CI runs. Each target sets up what it needs.
.DEFAULT_GOAL := help
SHELL := /bin/sh
BIN := .venv/bin

.PHONY: help setup demo test lint fmt proto proto-accept bench-router bench-a2a chaos-a2a clean

help: ## show this help
	@awk -F':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## install uv and the locked environments (no root needed)
	@tools/bootstrap

demo: setup ## run the quickstart agent in a sandbox, attack it, print the proofs (MODEL=local: a real small model)
	@$(BIN)/python -m examples.demo $(if $(MODEL),--model $(MODEL)) $(if $(FAULT),--fault $(FAULT))

test: setup ## run the tests (attacks included), as root or not
	@$(BIN)/pytest -q

lint: setup ## format check, lint, types, import rules, contracts
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy services sdk runtimes cli examples tests
	@$(BIN)/lint-imports
	@$(BIN)/buf lint
	@$(BIN)/buf breaking proto --against proto/accepted.json

fmt: setup ## format and fix what can be fixed
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

proto: setup ## regenerate the Python stubs from proto/
	@.bootstrap/bin/uv sync --locked --quiet --reinstall-package kars-proto

proto-accept: setup ## promise the contracts as they are now (at a release)
	@$(BIN)/buf build proto -o proto/accepted.json --exclude-source-info

bench-router: setup ## router against direct, bare Envoy and LiteLLM; writes build/bench/router.json
	@$(BIN)/python tests/bench/router/run.py

bench-a2a: setup ## A2A gateway against the sample agent called directly; writes build/bench/a2a.json
	@$(BIN)/python tests/bench/a2a/run.py

chaos-a2a: setup ## kill -9 of the A2A gateway while it streams and pushes wait, twenty times
	@KARS_CHAOS_ROUNDS=20 $(BIN)/pytest -q tests/conformance/a2a/test_kill.py

clean: ## remove everything that was built or installed here
	@rm -rf build .venv .venvs .bootstrap proto/gen proto/gen.new .mypy_cache .ruff_cache .pytest_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
