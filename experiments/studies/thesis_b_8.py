"""Thesis Table B.8: macro F1 of all methods on CREMA-D.

python -m experiments.launch thesis_b_8 --workdir=runs
python -m experiments.report thesis_b_8 --workdir=runs

The study thesis_crema_d has the same runs and those of the tables beside it. For a GPU.
"""

from experiments import thesis
from experiments.study import Study


def get_study() -> Study:
    """The study."""
    return thesis.crema_d("thesis_b_8", ("thesis_B_8",))
