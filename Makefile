# Everything runs from a .venv with pinned versions, which each target makes by itself when it is not there.
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PACKAGES := state_machine wire evidence messaging nixfleet_agent control_plane nixfleet

.PHONY: help demo demo-loop test test-system soak crash test-deep simulate mutants fuzz lint types imports bench load lock clean

help: ## what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## */  make \1\t/' | expand -t 20

$(READY): requirements.lock pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing pinned packages into $(VENV)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps -e .
	@touch $(READY)

demo-loop: $(READY) ## from flake.lock to the fleet: an update built, merged, released and taken; a broken and a sick one
	@$(BIN)/nixfleet demo --loop $(ARGS)

demo: $(READY) ## a control plane and three hosts: enrolment, waves, a forgery, a rollback, a kill -9, an audit
	@$(BIN)/nixfleet demo $(ARGS)

# Tests with whole hosts wait more than they work, so there are more workers than cores.
test: $(READY) ## every test; with root also those on real systemd hosts
	@PYTEST_XDIST_AUTO_NUM_WORKERS=$$(( $$(nproc) * 2 )) $(BIN)/python -m pytest -n auto --dist worksteal $(ARGS)

test-system: $(READY) ## only those on real systemd hosts (root); LAB_ROOT=DIR: on another root than this machine's
	@NIXFLEET_LAB_ROOT=$(or $(LAB_ROOT),/) $(BIN)/python -m pytest -n 4 --dist worksteal tests/system $(ARGS)

soak: $(READY) ## the scenarios on real hosts again and again, with random timing, until told to stop
	@$(BIN)/python -m tests.system.soak $(ARGS)

crash: $(READY) ## kill real agents with -9 at 1,000 random instants of the standard runs; ARGS='--seed N' repeats
	@TEST_PATIENCE_S=180 $(BIN)/python -m tests.crash $(ARGS)

test-deep: $(READY) ## the properties with 20,000 examples each
	@HYPOTHESIS_PROFILE=deep $(BIN)/python -m pytest -n auto tests/property $(ARGS)

simulate: $(READY) ## fleets in a simulated world, until told to stop; SEED=N: one, told; DEPTH=core|full
	@$(BIN)/python -m tests.simulation --depth $(or $(DEPTH),core) $(if $(SEED),--seed $(SEED)) $(ARGS)

mutants: $(READY) ## mistakes put into a copy of the product, each to be found; ARGS='--only NAME'
	@$(BIN)/python -m tests.simulation.mutants $(ARGS)

fuzz: $(READY) ## every parser of what others wrote, until told to stop; SECONDS=N: so long for each; ARGS='--target NAME'
	@$(if $(SECONDS),,$(BIN)/python -m tests.fuzz.floods)
	@$(BIN)/python -m tests.fuzz $(if $(SECONDS),--seconds $(SECONDS)) $(ARGS)

lint: $(READY) ## ruff: format and rules
	@$(BIN)/ruff format --check . && $(BIN)/ruff check .

types: $(READY) ## mypy --strict
	@$(BIN)/mypy

imports: $(READY) ## the import contracts: the core is pure, the layers hold
	@$(BIN)/lint-imports

bench: $(READY) ## one table of measurements, and benchmarks/results.json
	@$(BIN)/python -m benchmarks $(ARGS)

load: $(READY) ## agents over TLS against a real control plane, ever more; ARGS='--agents N --seconds S --parts --json'
	@$(BIN)/python -m tests.load $(ARGS)

lock: ## renew requirements.lock from pyproject.toml
	@rm -rf $(VENV) && $(PYTHON) -m venv $(VENV) && $(BIN)/pip install --quiet -e '.[dev]' 'setuptools>=77' wheel
	@{ head -1 requirements.lock; $(BIN)/pip freeze --all --exclude-editable | grep -v '^pip==' \
		| sed "s/^atheris==.*/&; sys_platform == 'linux' and platform_machine == 'x86_64'/"; } > $(VENV)/lock
	@mv $(VENV)/lock requirements.lock

clean: ## remove everything made
	@rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache *.egg-info build demo-state
