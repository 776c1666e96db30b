"""Thesis Table 4.2 at alpha = 0.1, reduced to what a CPU trains in half an hour: no reproduction, but a look.

A small CNN (5,466 parameters) for 30 epochs stands for the thesis's VGG-11 for 100, with learning rates and dampings of
its own, chosen on validation. The counts are those of Table B.1. CIFAR-10 as an .npz, see `configs/arrays.py`:

python -m experiments.launch search_cifar10_small --workdir=runs --config.data.path=cifar10.npz
python -m experiments.launch thesis_4_2_small --workdir=runs --config.data.path=cifar10.npz
python -m experiments.report thesis_4_2_small --workdir=runs
"""

import pathlib

from experiments.reduced import cifar10_small
from experiments.study import Study


def get_study(workdir: pathlib.Path) -> Study:
    """The study; `workdir` has the winners of the search."""
    return cifar10_small("thesis_4_2_small", "search_cifar10_small", workdir)
