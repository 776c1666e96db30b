"""ABSGD, Table 2: losses that know the class frequencies, without META, another paper's method.

python -m experiments.launch absgd_2 --workdir=runs
python -m experiments.report absgd_2 --workdir=runs

For a GPU.
"""

from experiments.absgd import imbalanced
from experiments.study import Study

METHODS = (
    *("resampling_ce", "sgd_cb_ce", "absgd_cb_ce", "sgd_cb_focal", "absgd_cb_focal"),
    *("sgd_ldam", "sgd_cb_ldam", "absgd_cb_ldam"),
)


def get_study() -> Study:
    """The study."""
    return imbalanced("absgd_2", METHODS)
