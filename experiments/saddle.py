"""The tables of Rangwani et al. 2022 on CIFAR as studies, see `experiments/studies/saddle_*.py`."""

from experiments.study import Axis, Cell, Published, Study, Table

LABELS = {
    "baseline": "CE",
    "sam": "CE + SAM",
    "drw": "CE + DRW",
    "sam_drw": "CE + DRW + SAM",
    "ldam_drw": "LDAM + DRW",
    "sam_ldam_drw": "LDAM + DRW + SAM",
    "vs": "VS",
    "sam_vs": "VS + SAM",
    "pgd_drw": "CE + DRW + PGD",
    "lpf_sgd_drw": "CE + DRW + LPF-SGD",
    "cifar10_lt": "CIFAR-10 LT",
    "cifar100_lt": "CIFAR-100 LT",
    "cifar10_step": "CIFAR-10 step",
    "cifar100_step": "CIFAR-100 step",
}
TABLES_1_AND_2 = tuple(LABELS)[:8]
LONG_TAILS, STEPS = ("cifar10_lt", "cifar100_lt"), ("cifar10_step", "cifar100_step")
WORDS = {
    "test/accuracy": "accuracy",
    "test/recall_head": "head accuracy",
    "test/recall_mid": "mid accuracy",
    "test/recall_tail": "tail accuracy",
}


def saddle(name: str, settings: tuple[str, ...], methods: tuple[str, ...]) -> Study:
    """ResNet-32 on imbalanced CIFAR.

    Args:
      name: of the study and of the published table.
      settings: long tails or step imbalance, which has no classes in the middle.
      methods: the rows.
    """
    metrics = tuple(metric for metric in WORDS if set(settings) <= set(LONG_TAILS) or metric != "test/recall_mid")
    title = f"Rangwani et al. 2022, Table {name.removeprefix('saddle_')}: ResNet-32, imbalance ratio 100"
    return Study(
        name=name,
        config="configs/saddle_cifar.py:{setting}/{method}",
        axes=(Axis("setting", settings), Axis("method", methods)),
        tables=(Table(name, title, "method", metrics, Published(name, _row, _column, deviations=True), LABELS),),
    )


def _row(cell: Cell, metric: str) -> str:
    """A method."""
    return LABELS[cell["method"]]


def _column(cell: Cell, metric: str) -> str:
    """A data set and all classes or a group of them."""
    return f"{LABELS[cell['setting']]} / {WORDS[metric]}"
