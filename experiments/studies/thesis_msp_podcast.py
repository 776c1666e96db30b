"""Thesis Tables 4.4, 5.3, 5.6 and B.9, which share runs, see experiments/thesis.py.

python -m experiments.launch thesis_msp_podcast --workdir=runs
python -m experiments.report thesis_msp_podcast --workdir=runs

For a GPU.
"""

from experiments import thesis
from experiments.study import Study


def get_study() -> Study:
    """The study."""
    return thesis.msp_podcast("thesis_msp_podcast")
