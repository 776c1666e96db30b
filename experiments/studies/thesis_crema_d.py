"""Thesis Tables 4.3, 5.2, 5.5 and B.8, which share runs, see experiments/thesis.py.

python -m experiments.launch thesis_crema_d --workdir=runs
python -m experiments.report thesis_crema_d --workdir=runs

For a GPU.
"""

from experiments import thesis
from experiments.study import Study


def get_study() -> Study:
    """The study."""
    return thesis.crema_d("thesis_crema_d")
