# Everything a developer types. `make demo` and `make test` need Python >= 3.11 and the package registries, nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOCK := .ci/requirements.lock
LOWEST_LOCK := .ci/lowest.lock
CLIENTS := $(VENV)/clients
CLIENTS_LOCK := .ci/clients.lock
PIXELS := $(VENV)/pixels
PIXELS_LOCK := .ci/pixels.lock
ENGINES := $(VENV)/engines
ENGINES_LOCK := .ci/engines.lock
WHEELS := $(VENV)/wheels
PERF_ANALYZER := $(VENV)/perf_analyzer

.PHONY: help demo test test-system test-slow test-image test-cluster foreign setup compiled pure clients pixels engines perf-analyzer check check-kit bench \
	format protos sync-client dashboards rules docs version lock clean
.DEFAULT_GOAL := help
unexport PYTHONDONTWRITEBYTECODE  # hundreds of the tests' processes start faster when one has compiled the code for all

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: setup  ## train, export, serve and classify handwritten digits, end to end
	@$(BIN)/python tests/demo.py

test: setup clients  ## run the tests that need nothing but PyPI
	$(BIN)/python -m pytest --numprocesses 3

test-system: setup clients perf-analyzer $(WHEELS)/.ready  ## run what needs Debian packages, the demo and the long manuals
	$(BIN)/python -m pytest -m system

test-slow: setup  ## run the soak tests, which take minutes
	$(BIN)/python -m pytest -m slow

setup: $(VENV)/.ready  ## build .venv from the pinned requirements
	@$(BIN)/python -c 'import service' 2>/dev/null || $(MAKE) --no-print-directory pure

compiled: setup pure  ## compile the modules of every request in place, with mypyc (needs gcc)
	CONVOY_COMPILE=1 $(BIN)/python .ci/build_backend.py --quiet build_ext --inplace

pure:  ## remove what `make compiled` made
	rm -rf build service/compiled.sha256 convoy__mypyc.*.so
	find service -name '*.so' -delete

# The stamp makes a second run offline work: nothing is asked of a registry while the pins stand.
$(VENV)/.ready: pyproject.toml $(LOCK)
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Convoy needs Python >= 3.11; this is %d.%d. Try: make PYTHON=python3.12" % sys.version_info[:2])'
	@echo "building $(VENV) from $(LOCK): a few minutes the first time, nothing after that"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint $(LOCK) --editable '.[cpu,export,heic,parquet,remote,tracing,dev]'
	@touch $@

clients: $(CLIENTS)/.ready  ## build the environment of the inference clients that the tests drive us with

# An environment of their own: clients we did not write bring their own versions of everything, and their own `inference` messages.
$(CLIENTS)/.ready: $(CLIENTS_LOCK) | $(VENV)/.ready
	@echo "building $(CLIENTS) from $(CLIENTS_LOCK)"
	@test -x $(CLIENTS)/bin/python || $(PYTHON) -m venv $(CLIENTS)
	@$(CLIENTS)/bin/python -m pip install --quiet --disable-pip-version-check --requirement $(CLIENTS_LOCK)
	@touch $@

pixels: $(PIXELS)/.ready  ## compare pictures, value by value, with torchvision, timm, Hugging Face, TensorFlow, Keras and OpenCV
	$(PIXELS)/bin/python -m pytest -c tests/conformance/pixels/pytest.ini tests/conformance/pixels

engines: $(ENGINES)/.ready  ## classify with Ray, Spark and Dask, of which workers are killed (needs Debian's openjdk-17-jre-headless)
	$(ENGINES)/bin/python -m pytest -c tests/engines/pytest.ini tests/engines

# They see the packages of .venv, so that Pillow, numpy and PyTorch are those that serve and train; the locks have what is beside.
$(PIXELS)/.ready $(ENGINES)/.ready: $(VENV)/%/.ready: .ci/%.lock | $(VENV)/.ready
	@echo "building $(@D) from $<: it takes 1 or 2 GB"
	@test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	@$(@D)/bin/python -c 'import sys, sysconfig, pathlib; pathlib.Path(sysconfig.get_path("purelib"), "venv.pth").write_text(sys.argv[1])' \
		"$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
	@$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --requirement $<
	@touch $@

# What tests/integration/test_base_installation.py installs, so that it works offline.
$(WHEELS)/.ready: pyproject.toml $(LOCK) | $(VENV)/.ready
	@rm -rf $(WHEELS)
	@$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --wheel-dir $(WHEELS) --constraint $(LOCK) . 'setuptools>=77'
	@rm -r $(WHEELS)/convoy_serving-*.whl build
	@touch $@

perf-analyzer: $(PERF_ANALYZER)/perf_analyzer  ## fetch NVIDIA's load generator (needs Debian's libb64-0d)

# It ships inside this wheel, the last for which it was built so; its CUDA library is in a wheel too.
$(PERF_ANALYZER)/perf_analyzer: | $(VENV)/.ready
	@mkdir -p $(PERF_ANALYZER)
	@$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: \
		--dest $(PERF_ANALYZER) tritonclient==2.44.0 nvidia-cuda-runtime-cu12==12.9.79
	@$(BIN)/python -m zipfile --extract $(PERF_ANALYZER)/tritonclient-*.whl $(PERF_ANALYZER)/triton
	@$(BIN)/python -m zipfile --extract $(PERF_ANALYZER)/nvidia_cuda_runtime_cu12-*.whl $(PERF_ANALYZER)/cuda
	@cp $(PERF_ANALYZER)/cuda/nvidia/cuda_runtime/lib/libcudart.so.12 $(PERF_ANALYZER)
	@install -m 755 $$(find $(PERF_ANALYZER)/triton -name perf_analyzer -path '*bin*') $@
	@rm -r $(PERF_ANALYZER)/*.whl $(PERF_ANALYZER)/triton $(PERF_ANALYZER)/cuda

check: setup  ## lint of code and protos, types, import contracts, freshness of generated files
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python .ci/protos.py --check
	$(BIN)/python .ci/unasync.py --check
	cd protos && ../$(BIN)/buf lint
	$(BIN)/python deploy/dashboards/convoy.py --check
	$(BIN)/python .ci/prometheus_rule.py --check
	$(BIN)/python .ci/docs.py --check
	$(BIN)/python .ci/version.py --check

check-kit: setup  ## checkov on deploy/ (in an environment of its own: its pins are not ours)
	@test -x $(VENV)/checkov/bin/checkov || { $(PYTHON) -m venv $(VENV)/checkov && $(VENV)/checkov/bin/pip install --quiet 'checkov>=3.3,<4'; }
	$(BIN)/python -m tests.deploy.checkov $(VENV)/checkov/bin/checkov

foreign: setup  ## import classifiers that others published on PyPI, and compare with their own pipelines
	$(BIN)/python -m tests.foreign

IMAGE ?= convoy:$(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
ENGINE ?= docker
test-image: setup  ## run a built serving image, IMAGE=convoy:TAG, with ENGINE=docker or podman
	$(BIN)/python -m tests.deploy.image $(IMAGE) --engine $(ENGINE)

test-cluster: setup  ## install the kit in the cluster of KUBECONFIG, with IMAGE, and restart it under load
	$(BIN)/python -m tests.deploy.cluster $(IMAGE)

bench: setup  ## reproduce tests/benchmarks/RESULTS.md (needs h2load: apt-get install nghttp2-client)
	$(BIN)/python -m tests.benchmarks.transport
	$(BIN)/python -m tests.benchmarks.workers
	$(BIN)/python -m tests.benchmarks.serving
	$(BIN)/python -m tests.benchmarks.leaks
	$(BIN)/python -m tests.benchmarks.memory
	$(BIN)/python -m tests.benchmarks.precision

format: setup  ## format the code and fix what lint can fix
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

protos: setup  ## generate service/pb/ from protos/
	$(BIN)/python .ci/protos.py

sync-client: setup  ## generate service/client/sync.py and sync_many.py
	$(BIN)/python .ci/unasync.py

dashboards: setup  ## generate deploy/dashboards/convoy.json
	$(BIN)/python deploy/dashboards/convoy.py

rules: setup  ## generate deploy/monitoring/prometheusrule.yaml
	$(BIN)/python .ci/prometheus_rule.py

version: setup  ## write the version of pyproject.toml into deploy/ and the manuals
	$(BIN)/python .ci/version.py

docs: setup  ## generate service/CONFIGURATION.md
	$(BIN)/python .ci/docs.py

lock:  ## renew the pins: the newest versions that pyproject.toml admits, and the lowest
	rm -rf $(VENV)/lock && $(PYTHON) -m venv $(VENV)/lock
	$(VENV)/lock/bin/python -m pip install --quiet torch==2.13.0 --editable '.[cpu,export,heic,parquet,remote,tracing,dev]'
	.ci/freeze $(VENV)/lock/bin/python > $(LOCK)
	rm -rf $(VENV)/lock && $(PYTHON) -m venv $(VENV)/lock
	$(VENV)/lock/bin/python -m pip install --quiet 'tritonclient[grpc,http]' kserve pytest pytest-timeout
	.ci/freeze $(VENV)/lock/bin/python > $(CLIENTS_LOCK)
	rm -rf $(VENV)/lock && $(PYTHON) -m venv $(VENV)/lock
	$(VENV)/lock/bin/python -m pip install --quiet --constraint $(LOCK) torchvision timm transformers tensorflow-cpu keras opencv-python-headless \
		onnxruntime-extensions
	.ci/freeze $(VENV)/lock/bin/python $(LOCK) > $(PIXELS_LOCK)
	rm -rf $(VENV)/lock && $(PYTHON) -m venv $(VENV)/lock
	$(VENV)/lock/bin/python -m pip install --quiet --constraint $(LOCK) 'ray[data]' pyspark 'dask[dataframe,distributed]'
	.ci/freeze $(VENV)/lock/bin/python $(LOCK) > $(ENGINES_LOCK)
	rm -rf $(VENV)/lock && $(PYTHON) -m venv $(VENV)/lock
	$(VENV)/lock/bin/python -m pip install --quiet uv
	.ci/lowest $(VENV)/lock/bin/uv > $(LOWEST_LOCK)
	rm -rf $(VENV)/lock

clean: pure  ## remove .venv, caches and compiled modules
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache *.egg-info
