"""ABSGD's tables on CIFAR as studies, see `experiments/studies/absgd_*.py`."""

from collections.abc import Callable, Mapping

from experiments.study import Axis, Cell, Published, Study, Table

LABELS = {
    **{
        f"{direction}_{loss}": f"{direction.upper()} ({written})"
        for direction in ("sgd", "absgd")
        for loss, written in (
            *(("ce", "CE"), ("focal", "Focal"), ("cb_ce", "CB-CE"), ("cb_focal", "CB-Focal")),
            *(("ldam", "LDAM"), ("cb_ldam", "CB-LDAM")),
        )
    },
    "resampling_ce": "Resampling (CE)",
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "lt100": "long-tailed / ratio=100",
    "lt10": "long-tailed / ratio=10",
    "st100": "step / ratio=100",
    "st10": "step / ratio=10",
}
NOISES = {
    "sym20": "symmetric / rate=0.2",
    "sym40": "symmetric / rate=0.4",
    "asym20": "asymmetric / rate=0.2",
    "asym40": "asymmetric / rate=0.4",
}
NOISY = {
    "sgd_ce": "SGD(CE)",
    "sgd_tce": "SGD(TCE)",
    "sgd_sce": "SGD(SCE)",
    "eg_sce": "EG(SCE)",
    "absgd_sce": "ABSGD(SCE)",
}
DATASETS = ("cifar10", "cifar100")


def imbalanced(name: str, methods: tuple[str, ...]) -> Study:
    """ResNet-32 on imbalanced CIFAR: Tables 1 and 2.

    Args:
      name: of the study and of the published table.
      methods: the rows.
    """
    title = f"ABSGD, Table {name.removeprefix('absgd_')}: ResNet-32 on imbalanced CIFAR"
    published = Published(name, _label("method", LABELS), _column(LABELS), deviations=True)
    return Study(
        name=name,
        config="configs/absgd_cifar.py:{dataset}_{profile}_{method}",
        axes=(Axis("dataset", DATASETS), Axis("profile", ("lt100", "lt10", "st100", "st10")), Axis("method", methods)),
        tables=(Table(name, title, "method", ("test/accuracy",), published, LABELS),),
    )


def noisy(name: str) -> Study:
    """CIFAR with wrong labels: Table 6, whose errors over five runs the paper does not explain.

    Args:
      name: of the study and of the published table.
    """
    labels = {**LABELS, **NOISES, **NOISY}
    published = Published(name, _label("method", labels), _column(labels), seeds=5, deviations=True)
    title = "ABSGD, Table 6: CIFAR with wrong labels"
    return Study(
        name=name,
        config="configs/absgd_noise.py:{dataset}_{profile}_{method}",
        axes=(Axis("dataset", DATASETS), Axis("profile", tuple(NOISES)), Axis("method", tuple(NOISY))),
        tables=(Table(name, title, "method", ("test/accuracy",), published, labels),),
        seeds=(0, 1, 2, 3, 4),
    )


def _label(axis: str, labels: Mapping[str, str]) -> Callable[[Cell, str], str]:
    """The label of a cell's value on an axis."""
    return lambda cell, metric: labels[cell[axis]]


def _column(labels: Mapping[str, str]) -> Callable[[Cell, str], str]:
    """A data set and what was done to it."""

    def column(cell: Cell, metric: str) -> str:
        return f"{labels[cell['dataset']]} / {labels[cell['profile']]} / accuracy"

    return column
