"""ABSGD, Table 6: wrong labels.

python -m experiments.launch absgd_6 --workdir=runs
python -m experiments.report absgd_6 --workdir=runs

For a GPU.
"""

from experiments.absgd import noisy
from experiments.study import Study


def get_study() -> Study:
    """The study."""
    return noisy("absgd_6")
