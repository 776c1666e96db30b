"""Tables of the papers reduced to what a CPU trains, see `experiments/studies/*_small.py`."""

import pathlib

from experiments.study import Axis, Cell, Study
from experiments.thesis import cifar10
from experiments.winners import winning_options
from imbal_jax.recipes import parse_method

# What stands for VGG-11 where there is only a CPU.
SMALL = {
    "data.name": "arrays",
    "model.name": "cnn",
    "model.width": 16,
    "evaluation.batch_size": 500,
    "record.figures": False,
    "record.tensorboard": False,
}


def cifar10_small(name: str, search: str, workdir: pathlib.Path) -> Study:
    """Table 4.2 at alpha = 0.1 with a small network and few epochs.

    Args:
      name: of the study.
      search: the study that has chosen learning rates and dampings of the baseline, LDAM and the directions.
      workdir: has its winners.
    """
    study = cifar10(name, ("thesis_4_2",))
    (table,), methods = study.tables, study.axes[1]

    def overrides_of(cell: Cell) -> dict[str, str]:
        method = parse_method(cell["method"])
        of_loss = "ldam" if method.correction.startswith("ldam") else "baseline"
        searched = of_loss if method.direction == "gradient" else method.direction
        return {"profile.alpha": cell["alpha"], **winning_options(workdir, search, {"method": searched})}

    title = "Reduced Thesis Table 4.2: a small CNN for 30 epochs (the paper's column: VGG-11 for 100)"
    return study._replace(
        axes=(Axis("alpha", ("0.1",)), methods),
        tables=(table._replace(name=name, title=title),),
        overrides={**SMALL, "training.epochs": 30},
        overrides_of=overrides_of,
    )
