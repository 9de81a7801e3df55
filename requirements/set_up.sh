#!/usr/bin/env bash
# Builds the environment in a folder: `requirements/set_up.sh .venv`; `make setup` calls it when needed.
# glibc picks the lock: TFX's newer native parts need glibc 2.39, the older ones need Python 3.10.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=$1
unset PYTHONDONTWRITEBYTECODE VIRTUAL_ENV

glibc=$(getconf GNU_LIBC_VERSION | cut -d ' ' -f 2)
if [ "$(printf '%s\n' 2.39 "$glibc" | sort -V | head -n 1)" = 2.39 ]; then
  version=3.12 lock=requirements/py312.lock
else
  version=$(cut -d . -f 1,2 .python-version) lock=requirements/py310.lock
fi

source requirements/interpreters.sh
find_uv
if ! runs "$venv/bin/python" "$version"; then
  make_environment "$version" "$venv"
fi

type g++ > /dev/null 2>&1 || echo "No g++ here. Both locks hold pyfarmhash, which comes as source only: apt install g++" >&2
python=$PWD/$venv/bin/python
echo "Python $version, glibc $glibc, $lock"
"$uv" pip sync --python "$python" --compile-bytecode "$lock"
# tfmm and its client come last and alone, and tfmm's wrapper takes the place of TFX's command.
"$uv" pip install --python "$python" --no-deps --no-build-isolation --editable . --editable serving/client_package
cp "$venv/bin/tfmm-tfx" "$venv/bin/tfx"
