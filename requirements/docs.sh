#!/usr/bin/env bash
# Builds the docs as a site, build/site, in an environment of its own under .cache/docs, which reads tfmm's sources and
# imports none of them. Every warning is an error. `make docs` calls it.
set -euo pipefail
cd "$(dirname "$0")/.."
unset VIRTUAL_ENV
source requirements/interpreters.sh
find_uv
environment=.cache/docs
runs "$environment/bin/python" 3.12 || make_environment 3.12 "$environment"
"$uv" pip sync --quiet --python "$environment/bin/python" requirements/docs.lock
NO_MKDOCS_2_WARNING=1 "$environment/bin/mkdocs" build
echo "The site is build/site/index.html; its search needs a server: python -m http.server --directory build/site"
