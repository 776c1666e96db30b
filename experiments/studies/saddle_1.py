"""Rangwani et al. 2022, Table 1: long-tailed CIFAR-10 and CIFAR-100.

python -m experiments.launch saddle_1 --workdir=runs
python -m experiments.report saddle_1 --workdir=runs

Eigenvalue densities are drawn of the runs that `python -m imbal_jax.main --task=spectrum --run=RUN` has measured.
For a GPU.
"""

from experiments.saddle import LONG_TAILS, TABLES_1_AND_2, saddle
from experiments.study import Study


def get_study() -> Study:
    """The study."""
    return saddle("saddle_1", LONG_TAILS, TABLES_1_AND_2)
