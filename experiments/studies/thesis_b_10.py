"""Thesis Table B.10: iEF and GDN on CREMA-D at other learning rates than the ones chosen.

python -m experiments.launch thesis_b_10 --workdir=runs
python -m experiments.report thesis_b_10 --workdir=runs

For a GPU.
"""

from collections.abc import Callable

from experiments.study import Axis, Cell, Published, Study, Table
from experiments.thesis import LABELS, WORDS

VARIANTS = ("raw", "irw", "drw", "sampler")
RATES = {"ief": ("1.0", "10.0", "100.0"), "gdn": ("1.0", "50.0")}


def get_study() -> Study:
    """The study."""
    return Study(
        name="thesis_b_10",
        config="configs/crema_d.py:{method}",
        axes=(
            Axis("eta", ("1.0", "10.0", "50.0", "100.0"), key="schedule.learning_rate"),
            Axis("method", tuple(f"{direction}_{variant}" for direction in RATES for variant in VARIANTS)),
        ),
        tables=tuple(
            Table(
                f"thesis_B_10_{direction}",
                f"Thesis Table B.10: {LABELS[f'{direction}_raw'].split()[0]} on CREMA-D at other learning rates",
                rows="method",
                metrics=("test/accuracy", "test/macro_f1", "test/balanced_accuracy"),
                published=Published("thesis_B_10", _row, _column),
                labels=LABELS,
                where=_of(direction),
            )
            for direction in RATES
        ),
        where=lambda cell: cell["eta"] in RATES[cell["method"].split("_")[0]],
    )


def _of(direction: str) -> Callable[[Cell], bool]:
    """Whether a cell's method is of a direction."""
    return lambda cell: cell["method"].startswith(direction)


def _row(cell: Cell, metric: str) -> str:
    """A method and its learning rate."""
    return f"{LABELS[cell['method']].replace('Raw', 'RAW')} / eta={cell['eta']}"


def _column(cell: Cell, metric: str) -> str:
    """A metric."""
    return f"CREMA-D / {WORDS[metric.removeprefix('test/')]}"
