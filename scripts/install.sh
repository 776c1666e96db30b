#!/bin/sh
# Creates the environment .venv (or $VENV) with exact versions. Needs Python 3.11 or 3.12 ($PYTHON) and nothing else.
set -eu
cd "$(dirname "$0")/.."
venv=${VENV:-.venv}
if [ -z "${PYTHON:-}" ]; then
  for candidate in python3.11 python3.12 python3; do
    if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null; then
      PYTHON=$candidate
      break
    fi
  done
fi
if [ -z "${PYTHON:-}" ]; then
  echo "error: needs Python 3.11 or 3.12; set PYTHON=/path/to/python" >&2
  exit 2
fi
if [ ! -x "$venv/bin/python" ]; then
  echo "creating $venv with $("$PYTHON" --version)"
  "$PYTHON" -m venv "$venv"
fi
echo "installing imbal_jax and its dependencies into $venv (about a minute)"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[${EXTRAS:-test}]"
