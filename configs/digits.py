"""Handwritten digits (bundled with scikit-learn), made imbalanced by a Dirichlet draw, and a small CNN.

  python -m imbal_jax.main --config=configs/digits.py --workdir=runs/digits --config.seeds=0,1,2
  python -m imbal_jax.main --config=configs/digits.py:ldam_drw --workdir=runs/digits_ldam_drw

A seed takes about two seconds on two CPU cores. Expected balanced accuracy on the test set, over three seeds: 92.9 %
for the baseline, 94.1 % for inverse_frequency, 94.6 % for ldam_drw, 95.3 % for logit_adjustment, each give or take one.
"""

from ml_collections import ConfigDict

from imbal_jax.recipes import SMALL_NETWORKS, classifier_of, correction, parse_method


def get_config(method: str = "baseline") -> ConfigDict:
    """The study; `method` is read by `imbal_jax.recipes.parse_method`."""
    chosen = parse_method(method)
    direction, learning_rate, momentum = SMALL_NETWORKS[chosen.direction]
    return ConfigDict(
        {
            "seeds": "0",
            "data": {"name": "digits"},
            "validation": {"fraction": 0.1},
            "profile": {"name": "dirichlet", "alpha": 0.5, "total": 500, "min_count": 4},
            "sampler": {"name": chosen.sampler},
            "augmentation": {"name": "none"},
            "model": {"name": "cnn", "classifier": classifier_of(chosen.correction)},
            "correction": correction(chosen.correction),
            "direction": direction,
            "step_rule": {"name": "sgd", "momentum": momentum, "weight_decay": 2e-4},
            "schedule": {"name": "cosine", "learning_rate": learning_rate},
            "training": {"epochs": 40, "batch_size": 32, "checkpoint_every_epochs": 5},
        }
    )
