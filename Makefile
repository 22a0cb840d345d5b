# All commands, here and in CI. `make run` and `make test` need Python 3.11+ and make; uv is used if it is installed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: run test fuzz torture versions clients lint bench honest collector kubernetes kube-audit cluster spark openapi verifier lock clean

run: $(INSTALLED)
	@exec $(BIN)/datastorage serve

# Three processes for two cores that this one may use: each waits for its Postgres half of the time. JOBS=0 runs the tests one after another.
JOBS ?= $(shell $(PYTHON) -c 'from app.cores import granted_cores; print(max(1, int(granted_cores() * 3 / 2)))')
test: $(INSTALLED)
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal --durations 20 $(ARGS)

# The long form of tests/fuzz, of the canonical form and of the roll-up; `make test` runs a short one.
fuzz: $(INSTALLED)
	FUZZ_REQUESTS=5000 FUZZ_TRIES=50000 FUZZ_STATEMENTS=2000 FUZZ_PAYLOADS=10000 ROLLUP_SEEDS=10 \
	  $(BIN)/python -m pytest -s tests/fuzz tests/unit/test_canonical.py tests/postgres/test_canonical_roundtrip.py tests/postgres/test_rollup.py $(ARGS)

# The long form of tests/torture. Its table is in docs/durability.md.
torture: $(INSTALLED)
	$(BIN)/python -m tests.torture $(ARGS)

# The release before and this one on one database, under load: upgrade, side by side, rollback. Its table is in docs/operations.md.
versions: $(INSTALLED)
	$(BIN)/python -m tests.versions $(ARGS)

# Stock clients of other languages, over plain HTTP and TLS; those whose runtime is installed.
clients: $(INSTALLED)
	DATASTORAGE_TEST_GO=1 $(BIN)/python -m pytest tests/clients $(ARGS)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(INSTALLED)
	$(BIN)/python -m bench $(ARGS)

# Checks that a day of honest traffic raises no alarm but for the loss in it; `make test` runs two minutes of it.
HOURS ?= 24
honest: $(INSTALLED)
	$(BIN)/python -m tests.honest --hours $(HOURS) $(ARGS)

# Builds a Collector of OpenTelemetry once (some minutes), and has it send to a service. Needs Go.
collector: $(INSTALLED)
	tests/collector/build.sh
	$(BIN)/python -m pytest tests/collector $(ARGS)

# Calls every route with service accounts of a real kube-apiserver, which is compiled once (some minutes). Needs Go.
kubernetes: $(INSTALLED)
	tests/kubernetes/check.sh

# 10,000 calls of a real kube-apiserver, whose audit webhook posts to a service that is killed ten times; in both modes of the webhook.
kube-audit: $(INSTALLED)
	tests/kubernetes/check.sh audit $(ARGS)

# The chart in a real cluster of one node, in namespaces of its own; its programs are compiled once (half an hour of a core). Needs Go, root
# and cgroup v1. Its table is in docs/cluster.md. ARGS='laptop roll' runs these stages only, ARGS=--help names all.
cluster: $(INSTALLED)
	$(BIN)/python -m tests.cluster $(ARGS)

# Asks the archive an auditor's questions by Spark, a master and two workers, which are installed once (some minutes). Needs Java 17.
spark: $(INSTALLED)
	tests/spark/check.sh $(ARGS)

openapi: $(INSTALLED)
	$(BIN)/datastorage openapi > openapi/datastorage.json
	$(BIN)/datastorage event-types --markdown > docs/events.md

# docs/verifier.html is one file; its verifier is that of the pages.
verifier: $(INSTALLED)
	$(BIN)/python -m tests.verifiers.inline

$(INSTALLED): requirements-dev.lock pyproject.toml
	@echo "Installing into $(VENV) ..."
	@if command -v uv >/dev/null 2>&1; then \
	  uv venv --quiet --allow-existing --python $(PYTHON) $(VENV) && \
	  uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements-dev.lock && \
	  uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e . ; \
	else \
	  $(PYTHON) -m venv $(VENV) && \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock && \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e . ; \
	fi
	@touch $@

# Versions and hashes only: these files contain no registry address.
LOCK := uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
        --no-annotate --custom-compile-command "make lock" --quiet
lock:
	$(LOCK) pyproject.toml --extra otlp --extra s3 -o requirements.lock
	$(LOCK) pyproject.toml --all-extras --group dev -c requirements.lock -o requirements-dev.lock
	$(LOCK) pyproject.toml --extra otlp --extra s3 --extra archive -c requirements-dev.lock -o requirements-archive.lock
	$(LOCK) --group sbom -o requirements-sbom.lock
	$(LOCK) --group chart -o requirements-chart.lock
	$(LOCK) --group spark -o requirements-spark.lock

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
