"""Thesis Figure 5.2: the norm of each class's gradient over training, for three methods.

python -m experiments.launch thesis_figure_5_2 --workdir=runs
python -m experiments.report thesis_figure_5_2 --workdir=runs

The runs are those of thesis_4_3 that also record the norms, which takes time. For a GPU.
"""

from experiments import thesis
from experiments.study import Study


def get_study() -> Study:
    """The study."""
    study = thesis.crema_d("thesis_4_3", ("thesis_4_3",))
    methods = ("baseline", "inverse_frequency", "ief_irw")
    return thesis.gradient_norms(study, "thesis_figure_5_2", methods, None)
