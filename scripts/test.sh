#!/bin/sh
# Installs and runs the tests; arguments go to pytest (for instance: -m slow).
set -eu
cd "$(dirname "$0")/.."
sh scripts/install.sh
exec "${VENV:-.venv}/bin/python" -m pytest --numprocesses=auto --maxprocesses=4 "$@"
