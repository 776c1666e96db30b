"""Handwritten digits (scikit-learn, bundled) made imbalanced by a Dirichlet draw, with a small CNN.

  python -m imbal_jax.main --config=configs/digits.py --workdir=runs/digits
  python -m imbal_jax.main --config=configs/digits.py:class_balanced --workdir=runs/digits_class_balanced

One seed takes a few seconds on two CPU cores.
"""

from ml_collections import ConfigDict

from imbal_jax.config import choose

CORRECTIONS = {
    "baseline": {"name": "cross_entropy"},
    "inverse_frequency": {"name": "inverse_frequency"},
    "class_balanced": {"name": "class_balanced", "beta": 0.99},
    "focal": {"name": "focal", "gamma": 1.0},
    "alpha_focal": {"name": "alpha_focal", "gamma": 2.0},
    "ldam": {"name": "ldam"},
    "ldam_drw": {
        "name": "composed",
        "margin": {"name": "ldam"},
        "weight": {"name": "deferred", "at": 0.5, "after": {"name": "inverse_frequency"}},
    },
    "influence_balanced": {
        "name": "deferred",
        "at": 0.5,
        "after": {"name": "influence_balanced", "alpha": 100.0},
    },
    "logit_adjustment": {"name": "logit_adjustment"},
    "vector_scaling": {"name": "vector_scaling", "multiplicative": 0.15},
    "class_dependent_temperatures": {"name": "class_dependent_temperatures"},
}


def get_config(method: str = "baseline") -> ConfigDict:
    """The study; `method` is one of CORRECTIONS."""
    correction = choose(CORRECTIONS, method)
    cosine = method.startswith("ldam")
    return ConfigDict(
        {
            "seeds": "0",
            "data": {"name": "digits"},
            "validation": {"fraction": 0.1},
            "profile": {"name": "dirichlet", "alpha": 0.5, "total": 500, "min_count": 4},
            "sampler": {"name": "uniform"},
            "augmentation": {"name": "none"},
            "model": {"name": "cnn", "classifier": "cosine" if cosine else "linear"},
            "correction": correction,
            "direction": {"name": "gradient"},
            "step_rule": {"name": "sgd", "momentum": 0.9, "weight_decay": 2e-4},
            "schedule": {"name": "cosine", "learning_rate": 0.05},
            "training": {"epochs": 40, "batch_size": 32, "checkpoint_every_epochs": 5},
        }
    )
