"""Loss-conditional training, Table 4: AUC on automobile and truck with LCT, and with LCT but without FiLM.

python -m experiments.launch lct_4 --workdir=runs
python -m experiments.report lct_4 --workdir=runs

For a GPU.
"""

from experiments.lct import LABELS, METHODS, result_key
from experiments.study import Axis, Cell, Published, Study, Table


def get_study() -> Study:
    """The study."""
    title = "Loss-conditional training, Table 4: AUC on CIFAR-10's automobile and truck"
    published = Published("lct_4", _row, _column)
    return Study(
        name="lct_4",
        config="configs/lct.py:{method}-auto_truck",
        axes=(Axis("method", METHODS),),
        tables=(Table("lct_4", title, "method", ("test/auc",), published, LABELS, percent=False, key=result_key),),
    )


def _row(cell: Cell, metric: str) -> str:
    """Whether there is LCT."""
    _, _, rest = cell["method"].partition("_lct")
    return {"": "+LCT", "_no_film": "+LCT without FiLM"}[rest] if "_lct" in cell["method"] else "Baseline"


def _column(cell: Cell, metric: str) -> str:
    """The loss and its optimiser."""
    return f"CIFAR-10/100 / Auto Truck / {LABELS[cell['method'].split('_lct')[0]]} / AUC"
