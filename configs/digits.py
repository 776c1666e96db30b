"""Handwritten digits (bundled with scikit-learn), made imbalanced by a Dirichlet draw, and a small CNN.

  python -m imbal_jax.main --config=configs/digits.py --workdir=runs/digits --config.seeds=0,1,2
  python -m imbal_jax.main --config=configs/digits.py:ldam_drw --workdir=runs/digits_ldam_drw

A seed takes about two seconds on two CPU cores. Expected balanced accuracy on the test set, over three seeds: 92.9 %
for the baseline, 94.1 % for inverse_frequency, 94.6 % for ldam_drw, 95.3 % for logit_adjustment, each give or take one.
"""

from ml_collections import ConfigDict

from imbal_jax.recipes import classifier_of, correction


def get_config(method: str = "baseline") -> ConfigDict:
    """The study; `method` is one of `imbal_jax.recipes.METHODS`."""
    return ConfigDict(
        {
            "seeds": "0",
            "data": {"name": "digits"},
            "validation": {"fraction": 0.1},
            "profile": {"name": "dirichlet", "alpha": 0.5, "total": 500, "min_count": 4},
            "sampler": {"name": "uniform"},
            "augmentation": {"name": "none"},
            "model": {"name": "cnn", "classifier": classifier_of(method)},
            "correction": correction(method),
            "direction": {"name": "gradient"},
            "step_rule": {"name": "sgd", "momentum": 0.9, "weight_decay": 2e-4},
            "schedule": {"name": "cosine", "learning_rate": 0.05},
            "training": {"epochs": 40, "batch_size": 32, "checkpoint_every_epochs": 5},
        }
    )
