# One command per chore; each sets up .venv from requirements.lock by itself.
PYTHON ?= python3
DURATION ?=
RUNS ?= 100
SEED ?= 1
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
LOCK := --generate-hashes --universal --python-version 3.11 --no-emit-index-url --no-annotate --no-header --quiet pyproject.toml

.PHONY: demo test serve lint docs bench faults faults-distributed soak lock clean

demo: $(READY)        ## start a server on a world of its own, send simulated users, watch the click rate (DURATION=30 ends by itself)
	$(BIN)/croupier demo $(if $(DURATION),--duration $(DURATION))

# Real brokers and processes share two cores here: what failed is run once more, alone, and shown both times.
test: $(READY)        ## the whole test suite, doctests included
	$(BIN)/pytest -n 2 --dist loadgroup || $(BIN)/pytest --last-failed --last-failed-no-failures none

serve: $(READY)       ## a server on 127.0.0.1:8000, data in ./croupier-data
	$(BIN)/croupier serve

lint: $(READY)        ## ruff and mypy, warnings are errors
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(READY)        ## the site: build/site/index.html, nothing on it comes from elsewhere
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

bench: $(READY)       ## every figure in docs/, measured again: a table, benchmarks/out/report.md and report.png
	$(BIN)/python -m benchmarks

faults: $(READY)      ## kill -9 under load, 20 times, and 1,000 seeds of simulated crashes
	CROUPIER_LONG=1 $(BIN)/pytest -p no:xdist tests/streaming/test_exactly_once.py
	CROUPIER_LONG=1 $(BIN)/pytest -p no:xdist -m long tests

# Kafka, a Redis Cluster, two servers, two learners and a router as real processes; two to four faults a run, drawn from
# SEED, SEED + 1, ...; a line and a verdict after each run, about 20 s; ends at the first that fails and says how to repeat it.
faults-distributed: $(READY)  ## 100 seeded runs of faults under load on Kafka and Redis Cluster (RUNS=, SEED=), 40 minutes
	$(BIN)/python -m tests.faults --runs $(RUNS) --seed $(SEED)

soak: $(READY)        ## ten minutes of load with short windows: memory and files stay flat
	$(BIN)/python -m benchmarks.soak

lock:                 ## both locks anew from pyproject.toml: all that is needed here, and what a server needs
	$(PYTHON) -m venv $(VENV) && $(BIN)/pip install --quiet uv
	$(BIN)/uv pip compile --all-extras $(LOCK) -o requirements.lock
	$(BIN)/uv pip compile $(LOCK) -c requirements.lock -o requirements-server.lock

$(READY): requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("croupier needs Python 3.11 or newer: make PYTHON=python3.11") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --require-hashes -r requirements.lock
	$(BIN)/pip install --quiet --no-deps --no-build-isolation -e .
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
