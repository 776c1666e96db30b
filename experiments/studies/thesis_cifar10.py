"""Thesis Tables 4.2, 5.1 and 5.4, which share runs, see experiments/thesis.py.

python -m experiments.launch thesis_cifar10 --workdir=runs
python -m experiments.report thesis_cifar10 --workdir=runs

For a GPU.
"""

from experiments import thesis
from experiments.study import Study


def get_study() -> Study:
    """The study."""
    return thesis.cifar10("thesis_cifar10")
