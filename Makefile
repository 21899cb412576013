# Everything a developer types. `make demo` and `make test` need Python >= 3.11 and the package registries, nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOCK := .ci/requirements.lock

.PHONY: help demo test test-system test-image test-cluster setup check check-kit bench format protos rules lock clean
.DEFAULT_GOAL := help

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: setup  ## train, export, serve and classify handwritten digits, end to end
	@$(BIN)/python tests/demo.py

test: setup  ## run the tests that need nothing but PyPI
	$(BIN)/python -m pytest

test-system: setup  ## run the tests that need Debian packages, and say what is missing
	$(BIN)/python -m pytest -m system

setup: $(VENV)/.ready  ## build .venv from the pinned requirements

# The stamp makes a second run offline work: nothing is asked of a registry while the pins stand.
$(VENV)/.ready: pyproject.toml $(LOCK)
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Convoy needs Python >= 3.11; this is %d.%d. Try: make PYTHON=python3.12" % sys.version_info[:2])'
	@echo "building $(VENV) from $(LOCK): a few minutes the first time, nothing after that"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint $(LOCK) --editable '.[cpu,export,dev]'
	@touch $@

check: setup  ## lint, types, import contracts, freshness of generated files
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python .ci/protos.py --check
	$(BIN)/python .ci/prometheus_rule.py --check

check-kit: setup  ## checkov on deploy/ (in an environment of its own: its pins are not ours)
	@test -x $(VENV)/checkov/bin/checkov || { $(PYTHON) -m venv $(VENV)/checkov && $(VENV)/checkov/bin/pip install --quiet 'checkov>=3.3,<4'; }
	$(BIN)/python -m tests.deploy.checkov $(VENV)/checkov/bin/checkov

IMAGE ?= convoy:0.1.0
ENGINE ?= docker
test-image: setup  ## run a built serving image, IMAGE=convoy:0.1.0, with ENGINE=docker or podman
	$(BIN)/python -m tests.deploy.image $(IMAGE) --engine $(ENGINE)

test-cluster: setup  ## install the kit in the cluster of KUBECONFIG, with IMAGE, and restart it under load
	$(BIN)/python -m tests.deploy.cluster $(IMAGE)

bench: setup  ## reproduce tests/benchmarks/RESULTS.md (needs h2load: apt-get install nghttp2-client)
	$(BIN)/python -m tests.benchmarks.transport
	$(BIN)/python -m tests.benchmarks.leaks

format: setup  ## format the code and fix what lint can fix
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

protos: setup  ## generate service/pb/ from protos/
	$(BIN)/python .ci/protos.py

rules: setup  ## generate deploy/monitoring/prometheusrule.yaml
	$(BIN)/python .ci/prometheus_rule.py

lock:  ## renew the pins: the newest versions that pyproject.toml admits
	rm -rf $(VENV)/lock && $(PYTHON) -m venv $(VENV)/lock
	$(VENV)/lock/bin/python -m pip install --quiet torch==2.13.0 --editable '.[cpu,export,dev]'
	.ci/freeze $(VENV)/lock/bin/python > $(LOCK)
	rm -rf $(VENV)/lock

clean:  ## remove .venv and caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache *.egg-info
