"""Thesis Table 4.2: VGG11-BN on imbalanced CIFAR-10 (4.1.4, Tables B.1 and B.5), first-order corrections.

  python -m imbal_jax.main --task=prepare --input=cifar-10-binary.tar.gz --output=$HOME/tensorflow_datasets
  python -m imbal_jax.main --config=configs/cifar10_vgg11.py --workdir=runs/cifar10_vgg11
  python -m imbal_jax.main --config=configs/cifar10_vgg11.py:ldam_drw --config.profile.alpha=1 --workdir=runs/ldam_drw_1

On images of your own keeping: --config.data.name=arrays --config.data.path=cifar10.npz. The thesis trains 100 epochs
without augmentation, momentum or schedule; it reports 62.33 +- 1.05 % for the baseline at alpha = 0.1 over three seeds.
An epoch with its validation takes about 40 s on two CPU cores, and 12 epochs reach 52 % on a JPEG copy of the images.
"""

from ml_collections import ConfigDict

from imbal_jax.recipes import classifier_of, correction


def get_config(method: str = "baseline") -> ConfigDict:
    """The study; `method` is one of `imbal_jax.recipes.METHODS`."""
    return ConfigDict(
        {
            "seeds": "0,1,2",
            "data": {"name": "tfds", "dataset": "cifar10"},
            "validation": {"fraction": 0.1},
            "profile": {"name": "thesis_table_b1", "alpha": 0.1},
            "sampler": {"name": "uniform"},
            "augmentation": {"name": "none"},
            "model": {"name": "vgg11_bn", "classifier": classifier_of(method)},
            "correction": correction(method),
            "direction": {"name": "gradient"},
            "step_rule": {"name": "sgd"},
            "schedule": {"name": "constant", "learning_rate": 0.01 if method.startswith("ldam") else 0.1},
            "training": {"epochs": 100, "batch_size": 32, "select": "validation/cross_entropy"},
        }
    )
