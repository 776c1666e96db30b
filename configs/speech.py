"""Your own recordings, listed in a csv file: a small convolutional network on log-mel spectrograms, from scratch.

  python -m imbal_jax.main --config=configs/speech.py --config.data.path=recordings.csv --task=check
  python -m imbal_jax.main --config=configs/speech.py:ldam_drw --config.data.path=recordings.csv --workdir=runs/speech

The csv file has the columns path and label, and optionally split (train, validation, test) and speaker; without splits
they are made, by speaker. Other names of columns and the folder of the recordings are options, here for labels of
RAVDESS and of EmoDB beside their folders `audio`:

  python -m imbal_jax.main --config=configs/speech.py --config.data.path=ravdess/labels.csv --config.data.root=audio \
    --config.data.path_column=file --config.data.label_column=emotion --config.data.speaker_column=actor \
    --workdir=runs/ravdess
  python -m imbal_jax.main --config=configs/speech.py --config.data.path=emodb/labels.csv --config.data.root=audio \
    --config.data.path_column=file --config.data.label_column=emotion --workdir=runs/emodb

Trains on the imbalance that the data have; --config.profile.name=long_tail --config.profile.ratio=10 makes another.
"""

from ml_collections import ConfigDict

from imbal_jax.recipes import SMALL_NETWORKS, classifier_of, correction, parse_method

ADAMW = {"name": "adamw", "weight_decay": 1e-4}
IEF_LEARNING_RATE = 30.0  # on RAVDESS 10 is slower by validation


def get_config(method: str = "baseline") -> ConfigDict:
    """The study; `method` is read by `imbal_jax.recipes.parse_method`."""
    chosen = parse_method(method)
    direction, learning_rate, momentum = SMALL_NETWORKS[chosen.direction]
    step_rule = {"name": "sgd", "momentum": momentum}
    if chosen.direction == "gradient":
        learning_rate, step_rule = 2e-3, ADAMW
    elif chosen.direction == "ief":
        learning_rate = IEF_LEARNING_RATE
    return ConfigDict(
        {
            "seeds": "0",
            "data": {"name": "manifest", "path": "recordings.csv"},
            "validation": {"fraction": 0.1, "balanced": False},
            "profile": {"name": "natural"},
            "sampler": {"name": chosen.sampler},
            "augmentation": {"name": "none"},
            "model": {"name": "speech_cnn", "classifier": classifier_of(chosen.correction)},
            "correction": correction(chosen.correction),
            "direction": direction,
            "step_rule": step_rule,
            "schedule": {"name": "cosine", "learning_rate": learning_rate, "warmup_epochs": 2},
            "training": {"epochs": 40, "batch_size": 32, "select": "validation/macro_f1"},
            "evaluation": {"batch_size": 64},
        }
    )
