"""Thesis Table 4.4: HuBERT with LoRA on MSP-Podcast.

python -m experiments.launch thesis_4_4 --workdir=runs
python -m experiments.report thesis_4_4 --workdir=runs

The study thesis_msp_podcast has the same runs and those of the tables beside it. For a GPU.
"""

from experiments import thesis
from experiments.study import Study


def get_study() -> Study:
    """The study."""
    return thesis.msp_podcast("thesis_4_4", ("thesis_4_4",))
