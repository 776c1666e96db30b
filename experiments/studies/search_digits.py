"""Learning rates and dampings on the bundled digits, chosen by the validation cross-entropy.

python -m experiments.launch search_digits --workdir=runs
"""

from experiments.searching import make_search
from experiments.study import Study

# By method: learning rates, and dampings where its direction has one.
CANDIDATES = {
    "baseline": (("0.02", "0.05", "0.1"), ()),
    "inverse_frequency": (("0.02", "0.05", "0.1"), ()),
    "ief": (("20", "60"), ("0.003", "0.01")),
    "gdn": (("1", "3"), ("3", "10")),
}


def get_study() -> Study:
    """The study."""
    overrides = {"training.epochs": 10, "evaluation.batch_size": 256, "profile.alpha": 1.0}
    overrides |= {"record.figures": False, "record.tensorboard": False}
    return make_search("search_digits", "configs/digits.py:{method}", CANDIDATES, overrides)
