"""Your own images: an .npz file with x_train, y_train, x_test, y_test and optionally x_val, y_val.

  python -m imbal_jax.main --config=configs/arrays.py --config.data.path=images.npz --task=check
  python -m imbal_jax.main --config=configs/arrays.py:ldam_drw --config.data.path=images.npz --workdir=runs/images

Trains on the imbalance that the data have; --config.profile.name=long_tail --config.profile.ratio=50 makes another.
Duration and result depend on the data.
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
            "data": {"name": "arrays", "path": "images.npz"},
            "validation": {"fraction": 0.1, "balanced": False},
            "profile": {"name": "natural"},
            "sampler": {"name": chosen.sampler},
            "augmentation": {"name": "none"},
            "model": {"name": "cnn", "width": 32, "classifier": classifier_of(chosen.correction)},
            "correction": correction(chosen.correction),
            "direction": direction,
            "step_rule": {"name": "sgd", "momentum": momentum, "weight_decay": 2e-4},
            "schedule": {"name": "cosine", "learning_rate": learning_rate},
            "training": {"epochs": 30, "batch_size": 64, "select": "validation/balanced_accuracy"},
        }
    )
