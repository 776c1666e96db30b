"""Rangwani et al. 2022, Table 4: other ways out of saddle points, on long tails.

python -m experiments.launch saddle_4 --workdir=runs
python -m experiments.report saddle_4 --workdir=runs

Eigenvalue densities are drawn of the runs that `python -m imbal_jax.main --task=spectrum --run=RUN` has measured.
For a GPU.
"""

from experiments.saddle import LONG_TAILS, saddle
from experiments.study import Study


def get_study() -> Study:
    """The study."""
    return saddle("saddle_4", LONG_TAILS, ("drw", "pgd_drw", "lpf_sgd_drw", "sam_drw"))
