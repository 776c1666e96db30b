"""Long-tailed CIFAR-10 as in the LDAM line of work: ResNet-32, imbalance ratio 100, 200 epochs (Cao et al. 2019).

  python -m imbal_jax.main --config=configs/cifar10_resnet32.py:ldam_drw --workdir=runs/cifar10_lt_ldam_drw
  python -m imbal_jax.main --config=configs/cifar10_resnet32.py --config.profile.name=step --workdir=runs/cifar10_step

SGD with momentum 0.9 and decay 2e-4, batch 128, five epochs of warm-up, the learning rate times 1e-2 from 0-based epoch
160 and times 1e-4 from 180; deferred weights from epoch 160. As published there is no validation set: the last
parameters are tested (the published code reports the best test epoch instead). The data are prepared as for
configs/cifar10_vgg11.py. Made for a GPU: an epoch takes minutes on two CPU cores.
"""

from ml_collections import ConfigDict

from imbal_jax.recipes import classifier_of, correction

DEFERRED_WEIGHT = {"name": "class_balanced", "beta": 0.9999}


def get_config(method: str = "baseline") -> ConfigDict:
    """The study; `method` is one of `imbal_jax.recipes.METHODS`."""
    return ConfigDict(
        {
            "seeds": "0",
            "data": {"name": "tfds", "dataset": "cifar10"},
            "validation": {"fraction": 0.0},
            "profile": {"name": "long_tail", "ratio": 100.0},
            "sampler": {"name": "uniform"},
            "augmentation": {"name": "crop_flip"},
            "model": {"name": "resnet32", "classifier": classifier_of(method)},
            "correction": correction(method, at=0.8, deferred_weight=DEFERRED_WEIGHT),
            "direction": {"name": "gradient"},
            "step_rule": {"name": "sgd", "momentum": 0.9, "weight_decay": 2e-4},
            "schedule": {
                "name": "multi_step",
                "learning_rate": 0.1,
                "boundaries": (160.0, 180.0),
                "factors": (1e-2, 1e-4),
                "warmup_epochs": 5,
            },
            "training": {"epochs": 200, "batch_size": 128, "select": "last"},
        }
    )
