# The same commands for laptop and CI. Every target but `setup`, `lock` and `clean` sets the environment up
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

.PHONY: setup quickstart test test-all test-gpu test-cluster flink-up flink-down kafka-up kafka-down lint bench compat lock build clean

setup: $(STAMP)

$(STAMP): requirements/set_up.sh $(wildcard requirements/*.lock) .python-version setup.py
	requirements/set_up.sh $(VENV)
	touch $@

quickstart: $(STAMP)
	tfmm quickstart --workdir $(WORKDIR)

lint: $(STAMP)
	ruff check .
	mypy

test: lint
	$(PYTEST) -m "not slow and not compat and not gpu"

test-all: lint
	$(PYTEST) -m "not compat and not gpu"
	$(MAKE) compat

test-gpu: $(STAMP)
	@if $(PYTHON) -c 'import sys, tensorflow as tf; sys.exit(not tf.config.list_physical_devices("GPU"))'; then \
	  $(PYTHON) -m pytest -m gpu tests; \
	else \
	  echo "not run: no GPU on this machine, or a TensorFlow without CUDA (docs/training.md)"; \
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

lock:
	requirements/lock.sh

build: $(STAMP)
	$(PYTHON) -m build --no-isolation --wheel

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
