"""Thesis Figure 5.3: the norm of each class's gradient over training, for three methods.

python -m experiments.launch thesis_figure_5_3 --workdir=runs
python -m experiments.report thesis_figure_5_3 --workdir=runs

The runs are those of thesis_4_4 that also record the norms, which takes time. For a GPU.
"""

from experiments import thesis
from experiments.study import Study


def get_study() -> Study:
    """The study."""
    study = thesis.msp_podcast("thesis_4_4", ("thesis_4_4",))
    methods = ("baseline", "inverse_frequency", "ief_drw")
    return thesis.gradient_norms(study, "thesis_figure_5_3", methods, None)
