# The few commands of the project. Everything they do is in scripts/; nothing needs a terminal.
#
#   make demo                       install, then run two simulated arms that learn to pick a cube
#   make test TORCH="torch==2.13.0"              choose the torch build, with pip options if wanted
#   make demo ARGS="--set robots.count=1"

# Requirement, with pip options if wanted, that is installed before everything else.
TORCH ?= torch==2.13.0
# More arguments for the command behind a target.
ARGS ?=

export TORCH
.DEFAULT_GOAL := help
# venv and system may both call the package manager.
.NOTPARALLEL:
.PHONY: help venv system system-tests demo test chaos nat check bench clean

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

venv: ## make .venv and install everything in it (TORCH chooses the torch build)
	@scripts/venv

system: ## install the system libraries for off-screen rendering, or say which are missing
	@scripts/system

system-tests:
	@scripts/system --tests

demo: venv system ## install everything and run the whole system from deploy/demo.yaml
	@.venv/bin/user-system up deploy/demo.yaml $(ARGS)

test: venv system-tests ## install everything and run all tests
	@.venv/bin/python -m pytest $(ARGS)

chaos: venv system-tests ## kill, cut, fill and damage stores for an hour and more; counts what they survived
	@scripts/chaos $(ARGS)

nat: venv system-tests ## run the demo with its arms behind a NAT, over each kind of tunnel, until it passes
	@scripts/nat $(ARGS)

check: venv ## lint, format, types, layers, generated code
	@scripts/check

bench: venv system ## measure the figures of docs/benchmarks.md
	@.venv/bin/user-system bench loop $(ARGS)

clean: ## remove caches and build products; keeps .venv and runs
	@rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
