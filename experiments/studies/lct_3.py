"""Loss-conditional training, Table 3: AUC of six methods on nine binary problems.

python -m experiments.launch lct_3 --workdir=runs --only=dataset=auto_deer,auto_truck,animal_vehicle,household
python -m experiments.report lct_3 --workdir=runs

The medical sets are your own arrays, see configs/lct.py. The standard deviations are those of Tables 18 and 19, which
repeat the means of Table 3 but for VS + SAM on aptos_200: 0.581 in Table 19, which is shown, 0.582 in Table 3. For a
GPU.
"""

from experiments.lct import DATASETS, LABELS, METHODS, result_key
from experiments.study import Axis, Cell, Published, Study, Table

MEDICAL = ("melanoma", "aptos")


def get_study() -> Study:
    """The study."""
    cifar, medical = (Published(name, _row, _column, deviations=True) for name in ("lct_18", "lct_19"))
    return Study(
        name="lct_3",
        config="configs/lct.py:{method}-{dataset}",
        axes=(
            Axis("dataset", DATASETS),
            Axis("method", tuple(method for method in METHODS if not method.endswith("no_film"))),
        ),
        tables=(
            _table("lct_3_cifar", "CIFAR", cifar)._replace(where=lambda cell: not cell["dataset"].startswith(MEDICAL)),
            _table("lct_3_medical", "medical images", medical)._replace(
                where=lambda cell: cell["dataset"].startswith(MEDICAL)
            ),
        ),
    )


def _table(name: str, what: str, published: Published) -> Table:
    """A part of Table 3."""
    title = f"Loss-conditional training, Table 3: AUC on {what}"
    return Table(name, title, "method", ("test/auc",), published, LABELS, percent=False, key=result_key)


def _row(cell: Cell, metric: str) -> str:
    """A method."""
    return LABELS[cell["method"]]


def _column(cell: Cell, metric: str) -> str:
    """A data set."""
    return f"{LABELS[cell['dataset']]} / AUC"
