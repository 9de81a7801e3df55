# Functions that find uv and Python interpreters; sourced in the repository's root. `find_uv` sets $uv.

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

find_uv() {  # sets $uv to one that runs: pyenv's shim may stand on PATH and yet not run here
  uv=uv
  "$uv" --version > /dev/null 2>&1 && return
  uv=$PWD/.uv/bin/uv
  [ -x "$uv" ] || { echo "uv is not installed; putting one into .uv"; install_uv; }
}

make_environment() {  # make_environment VERSION FOLDER: with a Python from pyenv, the system, or uv's download
  local candidate
  rm -rf "$2"
  for candidate in $(pythons "$1"); do
    if runs "$candidate" "$1"; then
      "$uv" venv --python "$candidate" "$2"
      return
    fi
  done
  echo "No Python $1 here; uv downloads one"
  "$uv" venv --managed-python --python "$1" "$2"
}
