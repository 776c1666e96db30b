"""Rangwani et al. 2022, Table 2: step-imbalanced CIFAR-10 and CIFAR-100.

python -m experiments.launch saddle_2 --workdir=runs
python -m experiments.report saddle_2 --workdir=runs

Eigenvalue densities are drawn of the runs that `python -m imbal_jax.main --task=spectrum --run=RUN` has measured.
For a GPU.
"""

from experiments.saddle import STEPS, TABLES_1_AND_2, saddle
from experiments.study import Study


def get_study() -> Study:
    """The study."""
    return saddle("saddle_2", STEPS, TABLES_1_AND_2)
