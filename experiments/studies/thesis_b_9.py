"""Thesis Table B.9: macro F1 of all methods on MSP-Podcast.

python -m experiments.launch thesis_b_9 --workdir=runs
python -m experiments.report thesis_b_9 --workdir=runs

The study thesis_msp_podcast has the same runs and those of the tables beside it. For a GPU.
"""

from experiments import thesis
from experiments.study import Study


def get_study() -> Study:
    """The study."""
    return thesis.msp_podcast("thesis_b_9", ("thesis_B_9",))
