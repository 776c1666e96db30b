"""Learning rates and dampings for the thesis's VGG11-BN on imbalanced CIFAR-10 (4.1.4), chosen on validation.

The thesis tuned every method; it gives learning rates and no dampings. A first look: one seed, a tenth of its epochs.

python -m experiments.launch search_vgg11 --workdir=runs
"""

from experiments.searching import make_search
from experiments.study import Study

CANDIDATES = {
    "baseline": (("0.01", "0.03", "0.1", "0.3"), ()),
    "ldam_drw": (("0.003", "0.01", "0.03"), ()),
    "ef": (("0.003", "0.01", "0.03"), ("0.001", "0.01", "0.1")),
    "ief": (("15", "50", "150"), ("0.001", "0.01", "0.1")),
    "gdn": (("1", "3", "10"), ("3", "10", "30")),
    "ekfac": (("0.01", "0.03", "0.1"), ("0.03", "0.1", "0.3")),
}


def get_study() -> Study:
    """The study."""
    overrides = {"training.epochs": 10, "record.figures": False, "record.tensorboard": False}
    return make_search("search_vgg11", "configs/cifar10_vgg11.py:{method}", CANDIDATES, overrides, seeds=(0,))
