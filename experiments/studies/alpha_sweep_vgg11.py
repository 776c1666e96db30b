"""Any method over alpha, from 0.05 to balanced, with VGG11-BN on CIFAR-10.

python -m experiments.launch alpha_sweep_vgg11 --workdir=runs --only=method=baseline,influence_balanced,ekfac
python -m experiments.report alpha_sweep_vgg11 --workdir=runs

For a GPU.
"""

from experiments.study import Study
from experiments.sweeps import alpha_sweep


def get_study() -> Study:
    """The study."""
    title = "VGG11-BN on CIFAR-10, Dirichlet draws of imbalance"
    return alpha_sweep("alpha_sweep_vgg11", title, "configs/cifar10_vgg11.py", total=4500, min_count=100)
