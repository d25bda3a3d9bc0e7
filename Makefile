# Two commands do all set-up: `make lab` (six nodes, the platform on them) and `make test` (what CI runs).
SHELL := /bin/sh
VENV := .venv
BIN := $(VENV)/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
export PYTHONPATH := $(CURDIR)/scripts
# Caches of the tools go where git and the collection do not look.
export PYTHONDONTWRITEBYTECODE := 1

# What `make test` runs, in this order.
TEST_STAGES := setup fast build molecule faults

.DEFAULT_GOAL := help
.PHONY: help setup lab lab-down build test fast lint unit contract collection faults molecule proof bench docs changelog

help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## Install what the project needs: packages, Python environment, collections, a running dockerd
	@sh scripts/setup.sh

lab: setup build ## Six nodes on this machine and the platform on them (the main job)
	@$(BIN)/python molecule/lab/lab.py up
	@scripts/provision.py deploy --site lab

lab-down: setup ## Remove the lab: nodes, network, disks, secrets
	@$(BIN)/python molecule/lab/lab.py down

build: setup ## Build the lab's binaries, images and bundle (cached by content)
	@$(BIN)/python molecule/lab/lab.py build

test: ## Everything a change must pass, stage by stage; stops at the first failure
	@sh scripts/run_stages.sh $(TEST_STAGES)

# Side by side: each of them keeps one core busy.
fast: setup ## What needs no lab: lint, unit, contract and collection
	@$(MAKE) --no-print-directory -j2 --output-sync=target lint unit contract collection

lint: setup ## yamllint, ansible-lint (production), ruff, mypy (strict), shellcheck
	@sh scripts/lint.sh

unit: setup ## The driver's decisions, the modules and the scripts, alone
	@$(BIN)/pytest -q tests/unit

contract: setup ## The repository keeps its own promises
	@$(BIN)/pytest -q tests/contract --ignore tests/contract/test_collection.py

collection: setup ## Build the collection into dist/, compare it with its list, install it, check its playbooks
	@$(BIN)/pytest -q tests/contract/test_collection.py

# The first test begins with bare machines, kills the first deploy and ends it with `make lab`; the others need what it leaves.
faults: setup build ## The tests of the lab, faults included, from bare machines on
	@$(BIN)/python molecule/lab/lab.py up
	@$(BIN)/pytest -q --durations=12 --durations-min=20 tests/lab

molecule: setup build ## The scenarios of the host roles, each converged twice and verified, two at a time
	@$(MAKE) --no-print-directory -j2 --output-sync=target $(patsubst molecule/%/molecule.yml,molecule-%,$(wildcard molecule/*/molecule.yml))

# Molecule draws frames around every line, and would look for scenarios where a collection has no others.
molecule-%:
	@MOLECULE_COMMAND_BORDERS=0 MOLECULE_GLOB='molecule/*/molecule.yml' $(BIN)/molecule test -s $*

proof: setup ## One long proof on the running lab: make proof SHARD=name; notes the day it passed
	@[ -n "$(SHARD)" ] || { echo 'say which: make proof SHARD=name; there are:'; \
	  grep -rhoE 'mark\.shard\("[a-z0-9-]+"\)' tests/lab | sed -E 's/.*"(.*)".*/  \1/' | sort -u; exit 2; }
	@mkdir -p .cache && rm -f .cache/proof.jsonl
	@$(BIN)/pytest tests/lab --shard "$(SHARD)" --results .cache/proof.jsonl
	@$(BIN)/python scripts/render_docs.py --record "$(SHARD)" .cache/proof.jsonl

bench: setup build ## Measure a first and a second deploy on the lab, which is emptied for it; one JSON
	@$(BIN)/python molecule/lab/lab.py up
	@PYTHONPATH=$(CURDIR):$(CURDIR)/scripts:$(CURDIR)/molecule/lab $(BIN)/python -m tests.lab.bench

docs: setup ## Render the roles' READMEs and docs/verification.md
	@$(BIN)/python scripts/render_docs.py

changelog: setup ## Check the changelog's fragments
	@$(BIN)/antsibull-changelog lint
