"""Thesis Table 5.3: iEF and GDN with and without the sampler on MSP-Podcast.

python -m experiments.launch thesis_5_3 --workdir=runs
python -m experiments.report thesis_5_3 --workdir=runs

The study thesis_msp_podcast has the same runs and those of the tables beside it. For a GPU.
"""

from experiments import thesis
from experiments.study import Study


def get_study() -> Study:
    """The study."""
    return thesis.msp_podcast("thesis_5_3", ("thesis_5_3",))
