"""Thesis Table 4.3: HuBERT with LoRA on CREMA-D.

python -m experiments.launch thesis_4_3 --workdir=runs
python -m experiments.report thesis_4_3 --workdir=runs

The study thesis_crema_d has the same runs and those of the tables beside it. For a GPU.
"""

from experiments import thesis
from experiments.study import Study


def get_study() -> Study:
    """The study."""
    return thesis.crema_d("thesis_4_3", ("thesis_4_3",))
