#!/usr/bin/env bash
# Runs the tests of layers, losses and metrics, and the recipes, on other Pythons, TensorFlows and Keras backends, each
# in an environment of its own under .cache/compat, and compiles the DAG for Kubeflow in one with kfp; `make compat` calls
# it. `compat.sh short` runs the newest alone, `compat.sh kubeflow` the last alone.
set -euo pipefail
cd "$(dirname "$0")/.."
unset VIRTUAL_ENV
source requirements/interpreters.sh
find_uv
TESTS="tests/tfmm/layers tests/tfmm/losses tests/tfmm/metrics tests/tfmm/testing"
TOOLS="hypothesis pytest pytest-timeout scikit-learn"
export TF_CPP_MIN_LOG_LEVEL=3

check() {  # check PYTHON BACKEND REQUIREMENT...
  local python=$1 backend=$2 environment=.cache/compat/$1-$2
  shift 2
  echo "== Python $python, $backend backend, $*"
  runs "$environment/bin/python" "$python" || make_environment "$python" "$environment"
  "$uv" pip install --quiet --python "$environment/bin/python" -r setup.py $TOOLS "$@"
  test_with() { KERAS_BACKEND=$backend "$environment/bin/python" -m pytest -q -rs -p no:cacheprovider "$@"; }
  if [ "$backend" = tensorflow ]; then
    test_with -m "not slow and not compat" $TESTS
  else  # by that backend's own autodiff, and without TensorFlow, whose LLVM does not share a process with PyTorch's
    test_with --noconftest tests/tfmm/losses/test_backends.py tests/tfmm/metrics/test_backends.py
    KERAS_BACKEND=$backend PYTHONPATH=. "$environment/bin/python" tests/tfmm/layers/on_any_backend.py
  fi
}
recipes() {  # recipes ENVIRONMENT: those of other people's models that the locked environment cannot run
  ".cache/compat/$1/bin/python" -m pytest -q -rs -p no:cacheprovider -m compat tests/tfmm/layers/test_recipes.py
}

kubeflow() {  # the DAG by the compiler of Kubeflow Pipelines
  local environment=.cache/compat/kubeflow
  echo "== Kubeflow, requirements/kubeflow.lock"
  runs "$environment/bin/python" 3.10 || make_environment 3.10 "$environment"
  "$uv" pip sync --quiet --compile-bytecode --python "$environment/bin/python" requirements/kubeflow.lock
  "$environment/bin/python" -m pytest -q -rs -p no:cacheprovider -m compat tests/tfx_pipeline/test_kubeflow.py
}

if [ "${1:-}" = kubeflow ]; then
  kubeflow
  exit
fi
newest=("tensorflow==2.21.*" "keras==3.15.*")
with_peers=("${newest[@]}" keras-rs "tensorflow-recommenders==0.7.7" "tf-keras==2.21.*")
check 3.12 tensorflow "${with_peers[@]}"
recipes 3.12-tensorflow
[ "${1:-}" = short ] && exit
check 3.10 tensorflow "tensorflow==2.16.2" "keras==3.12.*"
check 3.11 tensorflow "${newest[@]}"
check 3.13 tensorflow "${newest[@]}"
check 3.12 jax "${newest[@]}" jax
check 3.12 torch "${newest[@]}" torch
kubeflow
