# Two commands matter: `make demo` shows the main job, `make test` checks everything. Both install what is missing.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
# Each process of the tests and of the platform would compile the app anew, and pytest its tests.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo test quick style lint up simulate fuzz mutants bench fleet record cloud setup lock format clean

help:
	@echo "make demo   back up a real disk twice on the local platform and prove every restore point"
	@echo "make test   checks and tests, the local platform included; about twenty-five minutes on two cores"
	@echo "make quick   style, types, and the fast tests that need no platform; under a minute, for each change"
	@echo "make up     start the local platform to play with; Ctrl-C stops it"
	@echo "make simulate SEEDS=50000 [FIRST=0]   disturb the backup protocol from seeds; SEED=n tells one history"
	@echo "make fuzz REQUESTS=50000   hostile HTTP requests at the running app"
	@echo "make mutants [ONLY=word]   break each guard of the product in turn; a test must notice"
	@echo "make record   add to the recorded histories what an orchestrator's new branches leave behind"
	@echo "make bench [SHORT=1]   requests, bytes, time and memory of the copying, beside AzCopy and the SDK's own loops; writes docs/performance.md"
	@echo "make fleet   how well windows of 1, 100 and 10,000 disks use the backup accounts, in simulated time; its section alone"
	@echo "make lint   format, lint, types, import contracts, security checks"
	@echo "make cloud   the Azure CLI and AzCopy, for the test of a restore without the app by their own command lines"
	@echo "make lock   pin the dependencies anew"

demo: $(READY)
	@$(BIN)/python -m devhost demo $(if $(TELEMETRY),--telemetry $(TELEMETRY))

up: $(READY)
	@$(BIN)/python -m devhost up

SEEDS ?= 5000
FIRST ?= 0
simulate: $(READY)
	@$(BIN)/python -m tests.simulator --seeds $(SEEDS) --first $(FIRST) $(if $(SEED),--seed $(SEED))

REQUESTS ?= 50000
fuzz: $(READY)
	@PAGEKEEPER_FUZZ=$(REQUESTS) $(BIN)/python -m pytest tests/api/test_fuzz.py

mutants: $(READY)
	@$(BIN)/python -m tests.mutants --only "$(ONLY)"

record: $(READY)
	@$(BIN)/python -m tests.orchestrations.histories

bench: $(READY)
	@$(BIN)/python -m bench $(if $(SHORT),--short)

fleet: $(READY)
	@$(BIN)/python -m bench.fleet

# A worker per core, each with a platform of its own; one that has nothing left to do takes tests over from another.
PYTEST := $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal

test: lint
	@$(PYTEST)

quick: style
	@$(PYTEST) -m "not platform and not slow" tests/domain tests/activities tests/orchestrations tests/api

style: $(READY)
	@$(BIN)/ruff format --check --quiet . || (echo "run 'make format'" && exit 1)
	@$(BIN)/ruff check .
	@$(BIN)/mypy

lint: style
	@$(BIN)/lint-imports
	@$(BIN)/bandit -q -ll -c pyproject.toml -r backup_core function_app.py bench devhost tools tests/doubles tests/simulator -x devhost/emulator
	@$(BIN)/python tools/audit.py

cloud: $(READY)
	@$(BIN)/python tools/cloud.py

format: $(READY)
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

setup: $(READY)

$(READY): requirements-dev.txt devhost/emulator/package-lock.json tests/infra/kusto/package-lock.json tools/setup.py
	@$(PYTHON) tools/setup.py $(VENV)

lock: $(READY)
	@$(BIN)/python tools/lock.py

clean:
	rm -rf $(VENV) devhost/emulator/node_modules tests/infra/kusto/node_modules .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
