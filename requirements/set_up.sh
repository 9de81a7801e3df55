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

runs() {  # runs PYTHON VERSION: whether it is a whole Python of that version
  "$1" -c 'import bz2, ctypes, sqlite3, ssl, sys; sys.exit("%d.%d" % sys.version_info[:2] != sys.argv[1])' \
    "$2" 2> /dev/null
}

pythons() {  # pythons VERSION: every place where one may be, pyenv's first
  local pyenv
  pyenv=$(pyenv root 2> /dev/null || echo "$HOME/.pyenv")
  printf '%s\n' "$pyenv/versions/$1".*/bin/python | sort -Vr
  type -aP "python$1" python3 || true
}

install_uv() {  # into .uv, which nothing else uses
  local python
  for python in $(pythons 3.12) $(pythons 3.10) python3; do
    rm -rf .uv
    "$python" -m venv .uv > /dev/null 2>&1 && .uv/bin/python -m pip install --quiet uv && return
    rm -rf .uv  # Debian's own Python may come without venv, yet with pip
    "$python" -m pip install --quiet --target .uv uv 2> /dev/null && return
  done
  rm -rf .uv
  curl -LsSf https://astral.sh/uv/install.sh | UV_UNMANAGED_INSTALL="$PWD/.uv/bin" sh
}

uv=uv
if ! uv --version > /dev/null 2>&1; then
  [ -x .uv/bin/uv ] || { echo "uv is not installed; putting one into .uv"; install_uv; }
  uv=$PWD/.uv/bin/uv
fi

if ! runs "$venv/bin/python" "$version"; then
  interpreter=
  for candidate in $(pythons "$version"); do
    if runs "$candidate" "$version"; then interpreter=$candidate; break; fi
  done
  rm -rf "$venv"
  if [ -n "$interpreter" ]; then
    "$uv" venv --python "$interpreter" "$venv"
  else
    echo "No Python $version here; uv downloads one"
    "$uv" venv --managed-python --python "$version" "$venv"
  fi
fi

python=$PWD/$venv/bin/python
echo "Python $version, glibc $glibc, $lock"
"$uv" pip sync --python "$python" --compile-bytecode "$lock"
# tfmm comes last and alone, and its wrapper takes the place of TFX's command.
"$uv" pip install --python "$python" --no-deps --no-build-isolation --editable .
cp "$venv/bin/tfmm-tfx" "$venv/bin/tfx"
