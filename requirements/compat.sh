#!/usr/bin/env bash
# Runs the tests of layers, losses and metrics on other Pythons, TensorFlows and Keras backends, each in an
# environment of its own under .cache/compat; `make compat` calls it. `compat.sh short` runs the newest alone.
set -euo pipefail
cd "$(dirname "$0")/.."
unset VIRTUAL_ENV
source requirements/interpreters.sh
find_uv
TESTS="tests/tfmm/layers tests/tfmm/losses tests/tfmm/metrics tests/tfmm/test_testing.py"
TOOLS="hypothesis pytest pytest-timeout scikit-learn"

check() {  # check PYTHON BACKEND REQUIREMENT...
  local python=$1 backend=$2 environment=.cache/compat/$1-$2
  shift 2
  echo "== Python $python, $backend backend, $*"
  runs "$environment/bin/python" "$python" || make_environment "$python" "$environment"
  "$uv" pip install --quiet --python "$environment/bin/python" -r setup.py $TOOLS "$@"
  KERAS_BACKEND=$backend "$environment/bin/python" -m pytest -q -m "not slow" -p no:cacheprovider $TESTS
}

check 3.12 tensorflow "tensorflow==2.21.*" "keras==3.15.*"
[ "${1:-}" = short ] && exit
check 3.10 tensorflow "tensorflow==2.16.2" "keras==3.12.*"
check 3.11 tensorflow "tensorflow==2.21.*" "keras==3.15.*"
check 3.13 tensorflow "tensorflow==2.21.*" "keras==3.15.*"
check 3.12 jax "tensorflow==2.21.*" "keras==3.15.*" jax
check 3.12 torch "tensorflow==2.21.*" "keras==3.15.*" torch
