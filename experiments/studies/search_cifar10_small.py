"""Learning rates and dampings for `thesis_4_2_small`, chosen on validation with one seed.

python -m experiments.launch search_cifar10_small --workdir=runs --config.data.path=cifar10.npz
"""

from experiments.reduced import SMALL
from experiments.searching import make_search
from experiments.study import Study

# By method: learning rates, and dampings where its direction has one.
CANDIDATES = {
    "baseline": (("0.03", "0.1", "0.3", "1", "3"), ()),
    "ldam": (("0.003", "0.01", "0.03"), ()),
    "ef": (("0.003", "0.01", "0.03", "0.1", "0.3"), ("0.01", "0.1", "1", "10")),
    "ief": (("7", "20", "60"), ("0.001", "0.01", "0.1", "1")),
    "ekfac": (("0.01", "0.03", "0.1"), ("0.0001", "0.001", "0.01", "0.1")),
}


def get_study() -> Study:
    """The study."""
    overrides = {**SMALL, "training.epochs": 10}
    return make_search("search_cifar10_small", "configs/cifar10_vgg11.py:{method}", CANDIDATES, overrides, seeds=(0,))
