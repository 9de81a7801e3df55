# The same commands for laptop and CI. Every target but `setup`, `docs`, `lock` and `clean` sets the environment up
# when it must.
SHELL := /bin/bash
VENV := .venv
PYTHON := $(VENV)/bin/python
STAMP := $(VENV)/.set-up
WORKDIR ?= quickstart
WORKERS ?= 2
# A file of tests stays in one process, so that what it builds once is built once.
PYTEST := $(PYTHON) -m pytest -n $(WORKERS) --dist loadfile
BENCHMARKS ?= $(shell grep -l __main__ benchmarks/*.py)

# Compiled bytecode makes `import tfx` three times as fast.
unexport PYTHONDONTWRITEBYTECODE
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export TF_CPP_MIN_LOG_LEVEL ?= 3

FLINK := $(PYTHON) serving/deploy/flink/cluster.py

.PHONY: setup quickstart demo-online test test-all test-gpu test-tf-serving test-jvm test-cluster flink-up flink-down
.PHONY: kafka-up kafka-down lint bench compat docs lock build clean

setup: $(STAMP)

$(STAMP): requirements/set_up.sh $(wildcard requirements/*.lock) .python-version setup.py serving/client_package/setup.py
	requirements/set_up.sh $(VENV)
	touch $@

quickstart: $(STAMP)
	tfmm quickstart --workdir $(WORKDIR)

# All that is online, over a workdir that `make quickstart` has trained in (docs/operation.md).
demo-online: $(STAMP)
	@tfmm demo $(WORKDIR)

lint: $(STAMP)
	ruff check .
	mypy

test: lint
	$(PYTEST) -m "not slow and not compat and not gpu and not tf_serving"

test-all: lint
	$(PYTEST) -m "not compat and not gpu and not tf_serving"
	$(MAKE) compat

test-gpu: $(STAMP)
	@if $(PYTHON) -c 'import sys, tensorflow as tf; sys.exit(not tf.config.list_physical_devices("GPU"))'; then \
	  $(PYTHON) -m pytest -m gpu tests; \
	else \
	  echo "not run: no GPU on this machine, or a TensorFlow without CUDA (docs/training.md)"; \
	fi

# Protocol, upserts, replay and compiled models on the tensorflow_model_server that is on the PATH (docs/serving.md).
test-tf-serving: $(STAMP)
	@if command -v tensorflow_model_server > /dev/null; then \
	  $(PYTHON) -m pytest -m tf_serving tests/serving; \
	else \
	  echo "not run: no tensorflow_model_server on PATH (docs/serving.md)"; \
	fi

# The pushed model in TensorFlow for the JVM, by its C++ loader (docs/serving.md).
test-jvm: $(STAMP)
	@if command -v javac > /dev/null && command -v mvn > /dev/null; then \
	  $(PYTHON) -m pytest tests/serving/model_server/test_jvm.py; \
	else \
	  echo "not run: no JDK and Maven on PATH: apt-get install default-jdk-headless maven"; \
	fi

# A Flink cluster of several processes on this machine; examples and the stream on it (docs/pipeline.md, docs/serving.md).
test-cluster: $(STAMP)
	$(PYTHON) -m pytest tests/test_flink.py tests/serving/streaming/test_engines.py

flink-up: $(STAMP)
	@$(FLINK) up

flink-down:
	@$(FLINK) down

kafka-up kafka-down: $(STAMP)
	@$(PYTHON) serving/deploy/kafka/broker.py $(patsubst kafka-%,%,$@)

bench: $(STAMP)
	set -e; for script in $(BENCHMARKS); do $(PYTHON) $$script; done

compat: $(STAMP)
	requirements/compat.sh

docs:
	requirements/docs.sh

lock:
	requirements/lock.sh

build: $(STAMP)
	$(PYTHON) -m build --no-isolation --wheel
	$(PYTHON) -m build --no-isolation --wheel --outdir dist serving/client_package

clean:
	rm -rf {.,serving/client_package}/{build,*.egg-info} dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
