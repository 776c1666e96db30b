"""Thesis Table 5.1: EKFAC with and without the sampler on CIFAR-10.

python -m experiments.launch thesis_5_1 --workdir=runs
python -m experiments.report thesis_5_1 --workdir=runs

The study thesis_cifar10 has the same runs and those of the tables beside it. For a GPU.
"""

from experiments import thesis
from experiments.study import Study


def get_study() -> Study:
    """The study."""
    return thesis.cifar10("thesis_5_1", ("thesis_5_1",))
