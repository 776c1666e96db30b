"""Places-LT (Liu et al. 2019), 365 classes, with a pretrained ResNet-152: ABSGD's Table 4.

  python -m imbal_jax.main --config=configs/places_lt.py --task=check --config.data.root=Places
  python -m imbal_jax.main --config=configs/places_lt.py --config.data.root=Places \
    --config.model.weights=resnet152.safetensors --workdir=runs/places_lt_stage1
  python -m imbal_jax.main --task=export --workdir=runs/places_lt_stage1 --output=places_lt_stage1.safetensors
  python -m imbal_jax.main --config=configs/places_lt.py:absgd --config.data.root=Places --workdir=runs/places_lt_absgd

Both stages train the last block and the classifier alone: SGD for 90 epochs from ImageNet's weights, then ABSGD for 30.
Needs the pictures of Places in data.root, the authors' lists of them, by default in the working directory, and a
ResNet-152 of ImageNet under torchvision's names, see experiments/convert_checkpoint.py; nothing is downloaded. For a
GPU with many cores beside it. Without data, for the speed of a step: --config.data.name=fake_images
--config.data.num_classes=365 --config.model.weights=

The text says ResNet-152, the table's caption ResNet-50: --config.model.name=resnet50 for that. The text has both parts
trained in the second stage, the table the classifier alone: --config.model.trained=classifier for that. It tunes lambda
in 10, 20, 30. What it does not state is ours: batch 256, momentum 0.9, decay 5e-4, learning rates 0.01 and 0.001 along
a cosine, random resized crops with changes of colour, lambda = 10, gamma = 0.5.

Accuracy in % as published: baseline 30.3 (27.9 where the classifier alone is trained), absgd 38.7.
"""

from ml_collections import ConfigDict

from imbal_jax.errors import choose

# Direction, epochs, learning rate, and what the model starts from.
ROWS = {
    "baseline": ({"name": "gradient"}, 90, 0.01, {"weights": "resnet152.safetensors"}),
    "absgd": (
        {"name": "attentional_bias", "temperature": 10.0, "gamma": 0.5},
        30,
        0.001,
        {"weights": "places_lt_stage1.safetensors", "weights_classifier": True},
    ),
}


def get_config(row: str = "baseline") -> ConfigDict:
    """The study of a row, one of ROWS."""
    direction, epochs, learning_rate, start = choose(ROWS, row)
    return ConfigDict(
        {
            "seeds": "0",
            "data": {
                "name": "image_list",
                "root": "Places",
                "train": "Places_LT_train.txt",
                "validation": "Places_LT_val.txt",
                "test": "Places_LT_test.txt",
                "num_classes": 365,
            },
            "profile": {"name": "natural"},
            "sampler": {"name": "uniform"},
            "augmentation": {"name": "random_resized_crop", "brightness": 0.4, "contrast": 0.4, "saturation": 0.4},
            "model": {"name": "resnet152", "trained": "last_block", **start},
            "correction": {"name": "cross_entropy"},
            "direction": direction,
            "step_rule": {"name": "sgd", "momentum": 0.9, "weight_decay": 5e-4},
            "schedule": {"name": "cosine", "learning_rate": learning_rate},
            "training": {"epochs": epochs, "batch_size": 256, "select": "validation/accuracy"},
            "evaluation": {"batch_size": 256},
        }
    )
