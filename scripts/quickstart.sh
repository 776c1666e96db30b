#!/bin/sh
# Installs, trains the baseline and three corrections on bundled real data over three seeds, and shows the result.
set -eu
cd "$(dirname "$0")/.."
sh scripts/install.sh
exec "${VENV:-.venv}/bin/python" -m experiments.compare --config=configs/digits.py \
  --methods=baseline,inverse_frequency,ldam_drw,logit_adjustment --workdir="${WORKDIR:-runs/quickstart}" --config.seeds=0,1,2
