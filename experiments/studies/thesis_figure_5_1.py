"""Thesis Figure 5.1: the norm of each class's gradient over training, for three methods.

python -m experiments.launch thesis_figure_5_1 --workdir=runs
python -m experiments.report thesis_figure_5_1 --workdir=runs

The runs are those of thesis_4_2 that also record the norms, which takes time. For a GPU.
"""

from experiments import thesis
from experiments.study import Study


def get_study() -> Study:
    """The study."""
    study = thesis.cifar10("thesis_4_2", ("thesis_4_2",))
    methods = ("baseline", "inverse_frequency", "ekfac_raw")
    return thesis.gradient_norms(study, "thesis_figure_5_1", methods, lambda cell: cell["alpha"] == "0.1")
