#!/usr/bin/env bash
# Resolves requirements/*.in to requirements/*.lock, for both supported environments, Kubeflow's and the docs'; `make lock` calls it.
set -euo pipefail
cd "$(dirname "$0")/.."
compile() {  # compile NAME PYTHON PLATFORM
  uv pip compile "requirements/$1.in" --override requirements/overrides.txt --python-version "$2" \
    --python-platform "$3" --no-annotate --no-header --quiet -o "requirements/$1.lock"
}
compile py310 3.10 x86_64-manylinux_2_35
compile py312 3.12 x86_64-manylinux_2_40
compile kubeflow 3.10 x86_64-manylinux_2_35
compile docs 3.12 x86_64-manylinux_2_28
