"""Thesis Table 5.5: iEF and GDN with re-weighting on CREMA-D.

python -m experiments.launch thesis_5_5 --workdir=runs
python -m experiments.report thesis_5_5 --workdir=runs

The study thesis_crema_d has the same runs and those of the tables beside it. For a GPU.
"""

from experiments import thesis
from experiments.study import Study


def get_study() -> Study:
    """The study."""
    return thesis.crema_d("thesis_5_5", ("thesis_5_5",))
