#!/usr/bin/env bash
# Create .venv with all that Kairos needs on a machine without a GPU. A repeated run installs
# nothing unless the requirements have changed.
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python3.11}
LIBRARIES=(libibverbs1 librdmacm1 libnuma1) # the Mooncake transfer engine links against them
fail() { echo "setup: error: $*" >&2; exit 1; }

# With this variable set, no .pyc files are written and every server process compiles SGLang again.
unset PYTHONDONTWRITEBYTECODE

missing_libraries() {
  local name libraries
  libraries=$(ldconfig -p)
  for name in libibverbs.so.1 librdmacm.so.1 libnuma.so.1; do
    grep -qF "$name" <<<"$libraries" || echo "$name"
  done
}

PATH=$PATH:/sbin:/usr/sbin
if [ -n "$(missing_libraries)" ]; then
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "setup: installing ${LIBRARIES[*]}"
    apt-get update -q >/dev/null
    apt-get install -y -q "${LIBRARIES[@]}" >/dev/null
  else
    fail "missing $(missing_libraries | xargs); run: sudo apt-get install ${LIBRARIES[*]}"
  fi
fi

inputs=(requirements/cpu.txt pyproject.toml python/kairos_emulation/registration/pyproject.toml scripts/setup.sh)
stamp=$(cat "${inputs[@]}" | sha256sum | cut -d' ' -f1)
[ "$(cat .venv/.installed 2>/dev/null)" = "$stamp:$PWD" ] && exit 0

command -v "$PYTHON" >/dev/null || fail "$PYTHON not found; install Python 3.11 or set PYTHON"
"$PYTHON" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' ||
  fail "$PYTHON is not Python 3.11, for which requirements/cpu.txt is locked"
if [ ! -x .venv/bin/python ]; then
  "$PYTHON" -m venv .venv || fail "cannot create .venv; on Debian: apt-get install python3-venv"
fi

pip() { .venv/bin/python -m pip --disable-pip-version-check "$@"; }
started=$SECONDS
# The registry's default build of torch needs several GB of CUDA libraries.
torch=$(sed -n 's/^torch==//p' requirements/cpu.txt)
if ! .venv/bin/python -c "import importlib.metadata as m, sys; sys.exit(m.version('torch') != '$torch+cpu')" 2>/dev/null; then
  echo "setup: installing torch $torch for CPU"
  pip install -q --no-deps "torch==$torch+cpu" 2>/dev/null ||
    pip install -q --no-deps --index-url https://download.pytorch.org/whl/cpu "torch==$torch+cpu"
fi
echo "setup: installing requirements (3 GB, a minute or two)"
pip install -q --no-deps -r requirements/cpu.txt
pip install -q --no-deps --no-build-isolation -e . -e ./python/kairos_emulation/registration
echo "$stamp:$PWD" >.venv/.installed
echo "setup: done in $((SECONDS - started)) s, $(du -sh .venv | cut -f1)"
