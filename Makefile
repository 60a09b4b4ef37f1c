# Everything a person or CI runs. Each target sets up what it needs.
.DEFAULT_GOAL := help
SHELL := /bin/sh
BIN := .venv/bin

.PHONY: help setup demo test test-packages lint fmt proto proto-accept crds clean
.PHONY: bench-router bench-mesh bench-egress bench-a2a chaos-relay chaos-egress chaos-a2a soak-mesh

help: ## show this help
	@awk -F':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## install uv and the locked environments (no root needed)
	@tools/bootstrap

demo: setup ## run the quickstart agent in a sandbox, attack it, print the proofs (MODEL=local: a real small model)
	@$(BIN)/python -m examples.demo $(if $(MODEL),--model $(MODEL)) $(if $(FAULT),--fault $(FAULT))

test: setup test-packages ## run the tests (attacks included), as root or not
	@$(BIN)/pytest -q

test-packages:
	@tools/debian-packages

chaos-relay: setup ## kill -9 the relay, and one of three replicas with its NATS server, 20 times each under load (KILLS=)
	@KARS_CHAOS_KILLS=$(or $(KILLS),20) $(BIN)/pytest -q --timeout 900 services/relay/tests/test_chaos.py

lint: setup ## format check, lint, types, import rules, contracts, generated files
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy services sdk runtimes cli examples tests
	@$(BIN)/lint-imports
	@$(BIN)/buf lint
	@$(BIN)/buf breaking proto --against proto/accepted.json
	@$(BIN)/python -m kars_controller.crds check .

fmt: setup ## format and fix what can be fixed
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

proto: setup ## regenerate the Python stubs from proto/
	@.bootstrap/bin/uv sync --locked --quiet --reinstall-package kars-proto

proto-accept: setup ## promise the contracts as they are now (at a release)
	@$(BIN)/buf build proto -o proto/accepted.json --exclude-source-info

crds: setup ## regenerate deploy/crds and docs/reference/crds.md from the models
	@$(BIN)/python -m kars_controller.crds write .

bench-router: setup ## router against direct, bare Envoy and LiteLLM; writes build/bench/router.json
	@$(BIN)/python tests/bench/router/run.py

bench-mesh: setup ## mesh cryptography and relay against floors and peers; writes build/bench/mesh.json
	@$(BIN)/python tests/bench/mesh/run.py

soak-mesh: setup ## two mesh peers under an adversarial network, 10,000 steps for each of 5 seeds (SEEDS=, STEPS=)
	@for seed in $(or $(SEEDS),1 2 3 4 5); do \
	  KARS_SOAK_SEED=$$seed KARS_SOAK_STEPS=$(or $(STEPS),10000) \
	  $(BIN)/pytest -q --timeout 3600 sdk/tests/mesh/test_adversary.py -k long_random_walk || exit 1; done

chaos-egress: setup test-packages ## 10,000 connections of one sandbox; another is served all the while (root)
	@KARS_TEST_EGRESS_CONNECTIONS=10000 $(BIN)/pytest -q tests/redteam/egress/test_network.py -k many_connections

bench-egress: setup ## egress against bare Envoy, pushes to 10,000 sandboxes, 400,000 blocked domains (root)
	@tools/debian-packages wrk
	@$(BIN)/python -W ignore -m tests.bench.egress.run

bench-a2a: setup ## A2A gateway against the sample agent called directly; writes build/bench/a2a.json
	@$(BIN)/python tests/bench/a2a/run.py

chaos-a2a: setup ## kill -9 of the A2A gateway while it streams and pushes wait, twenty times
	@KARS_CHAOS_ROUNDS=20 $(BIN)/pytest -q tests/conformance/a2a/test_kill.py

clean: ## remove everything that was built or installed here
	@rm -rf build .venv .venvs .bootstrap proto/gen proto/gen.new .mypy_cache .ruff_cache .pytest_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
