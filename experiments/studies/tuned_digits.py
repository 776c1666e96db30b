"""Bundled digits with the learning rates and dampings that `search_digits` has chosen.

python -m experiments.launch search_digits --workdir=runs
python -m experiments.launch tuned_digits --workdir=runs
"""

import pathlib

from experiments.studies.search_digits import CANDIDATES
from experiments.study import Axis, Study, Table
from experiments.winners import winning_options


def get_study(workdir: pathlib.Path) -> Study:
    """The study; `workdir` has the winners."""
    return Study(
        name="tuned_digits",
        config="configs/digits.py:{method}",
        axes=(Axis("alpha", ("0.2", "1", "10"), key="profile.alpha"), Axis("method", tuple(CANDIDATES))),
        tables=(
            Table("accuracy", "Bundled digits, hyper-parameters chosen on validation at alpha = 1", rows="method"),
        ),
        overrides={"training.epochs": 10, "evaluation.batch_size": 256, "record.figures": False},
        overrides_of=lambda cell: winning_options(workdir, "search_digits", cell),
    )
