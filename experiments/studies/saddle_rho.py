"""Rangwani et al. 2022, Figures 3C and 4: what SAM's rho does to DRW on long-tailed CIFAR-10.

python -m experiments.launch saddle_rho --workdir=runs
python -m experiments.report saddle_rho --workdir=runs

The text has the accuracy on tail classes rise from 63 % at rho = 0.05 to 73 % at 0.8, and the smallest eigenvalue of
the Hessian rise with it. For a GPU.
"""

from experiments.saddle import LABELS
from experiments.study import CLASSES, Axis, Curve, Study, Table

METRICS = ("test/accuracy", "test/recall_head", "test/recall_mid", "test/recall_tail")


def get_study() -> Study:
    """The study."""
    return Study(
        name="saddle_rho",
        config="configs/saddle_cifar.py:cifar10_lt/{method}",
        axes=(
            Axis("method", ("sam_drw",)),
            Axis("rho", ("0.05", "0.1", "0.2", "0.3", "0.5", "0.8", "1.0"), key="direction.rho"),
        ),
        tables=(Table("saddle_rho", "CIFAR-10 LT, DRW with SAM at several rho", "rho", METRICS, labels=LABELS),),
        overrides={"record.curvature_every": 200},  # after the last epoch only
        curves=(
            Curve("rho", "Accuracy against rho", "rho", "method", ("test/accuracy", "test/recall_tail")),
            Curve(
                "curvature_rho", "Curvature of each class's loss against rho", "rho", CLASSES, ("lambda_min", "ratio")
            ),
        ),
    )
