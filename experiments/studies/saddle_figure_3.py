"""Rangwani et al. 2022, Figures 2, 3A and 3B: curvature of each class's loss with DRW, without and with SAM.

python -m experiments.launch saddle_figure_3 --workdir=runs
python -m experiments.report saddle_figure_3 --workdir=runs

The paper measures after epochs 10, 50, 160, 170, 190 and 200; here it is every tenth. Figure 3C is of saddle_rho. For
Figure 2, the eigenvalue densities, measure the spectra of both methods' runs before the report:

python -m imbal_jax.main --task=spectrum --run=runs/saddle_figure_3/runs/setting=cifar10_lt,method=drw/seeds_0

The runs are those of saddle_1 that also record the curvature, which takes time. For a GPU.
"""

from experiments.saddle import saddle
from experiments.study import Study


def get_study() -> Study:
    """The study."""
    study = saddle("saddle_1", ("cifar10_lt",), ("drw", "sam_drw"))
    title = "Runs of Rangwani et al. 2022, Figure 3: ResNet-32, imbalance ratio 100"
    tables = tuple(table._replace(name="saddle_figure_3", title=title) for table in study.tables)
    return study._replace(name="saddle_figure_3", tables=tables, overrides={"record.curvature_every": 10})
