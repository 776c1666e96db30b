#!/bin/sh
# Installs and runs the tests; arguments go to pytest (for instance: -m slow).
set -eu
cd "$(dirname "$0")/.."
sh scripts/install.sh
# Most of the time is compilation, a quarter of it optimisation that tiny programs do not need.
export XLA_FLAGS="${XLA_FLAGS---xla_backend_optimization_level=0}"
exec "${VENV:-.venv}/bin/python" -m pytest --numprocesses=auto --maxprocesses=4 "$@"
