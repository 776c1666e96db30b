"""Bundled digits at three degrees of imbalance with four methods: minutes on two CPU cores.

python -m experiments.launch quick --workdir=runs
python -m experiments.report quick --workdir=runs
"""

from experiments.study import Axis, Curve, Study, Table


def get_study() -> Study:
    """The study."""
    return Study(
        name="quick",
        config="configs/digits.py:{method}",
        axes=(
            Axis("alpha", ("0.2", "1", "10"), key="profile.alpha"),
            Axis("method", ("baseline", "inverse_frequency", "ldam_drw", "ief")),
        ),
        tables=(Table("accuracy", "Bundled digits, imbalance by a Dirichlet draw", rows="method"),),
        # The report draws; figures of every run would take longer than the runs.
        overrides={
            "training.epochs": 10,
            "evaluation.batch_size": 256,
            "record.figures": False,
            "record.tensorboard": False,
        },
        curves=(Curve("imbalance", "Balanced accuracy against imbalance", x="imbalance", lines="method"),),
    )
