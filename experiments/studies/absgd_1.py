"""ABSGD, Table 1: losses that do not know the class frequencies.

python -m experiments.launch absgd_1 --workdir=runs
python -m experiments.report absgd_1 --workdir=runs

For a GPU.
"""

from experiments.absgd import imbalanced
from experiments.study import Study


def get_study() -> Study:
    """The study."""
    return imbalanced("absgd_1", ("sgd_ce", "absgd_ce", "sgd_focal", "absgd_focal"))
