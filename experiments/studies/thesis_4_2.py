"""Thesis Table 4.2: VGG11-BN on CIFAR-10 with eight losses, EKFAC, iEF and EF (the last two are new).

python -m experiments.launch thesis_4_2 --workdir=runs
python -m experiments.report thesis_4_2 --workdir=runs

The study thesis_cifar10 has the same runs and those of the tables beside it. For a GPU.
"""

from experiments import thesis
from experiments.study import Study


def get_study() -> Study:
    """The study."""
    return thesis.cifar10("thesis_4_2", ("thesis_4_2",))
