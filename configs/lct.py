"""Loss-conditional training on binary problems: every row of Tables 1 to 4 of its paper.

  python -m imbal_jax.main --config=configs/lct.py:vs_lct-digits --workdir=runs/lct
  python -m imbal_jax.main --config=configs/lct.py:vs_lct-auto_truck --workdir=runs/vs_lct
  python -m imbal_jax.main --config=configs/lct.py:vs-auto_truck-7 --workdir=runs/vs_7
  python -m imbal_jax.main --config=configs/lct.py:focal_lct-aptos_200 --config.data.path=aptos.npz --workdir=runs/aptos
  python -m experiments.lct_figures runs/vs_lct --baselines runs/vs_7

The argument is METHOD-DATASET, or METHOD-DATASET-MODEL with the number of one of the sixteen models that Table 2 trains
for each method, 4 i + j for the i-th value or density of its first hyper-parameter and the j-th of its second. Without
a number it is, for VS, the best that the paper's appendix F tells (gamma 0 and tau 2; gamma from L(0.1, 0.3, 5) and tau
from L(0, 3, 0.33)); for focal, of which it tells none, alpha 0.25 and phi 2, and the uniform densities.

METHOD is one of Table 1 (focal, vs, vs_sam, and each with _lct), or of Table 4 (those with _lct_no_film). A trained
model with _lct is evaluated at all the hyper-parameters of the column "Inference" of Table 2, and the best for each
metric is chosen on validation: conditions.json and conditions.md of the seed's folder, and "tuned/..." in its result.

DATASET is one of Table 3: auto_deer, auto_truck, animal_vehicle (CIFAR-10), household (CIFAR-100), each with beta = 100
unless --config.profile.beta says otherwise; melanoma_10, melanoma_100, melanoma_200, aptos_100, aptos_200; and digits,
which is not of the paper but takes seconds. The paper does not say which class of a pair is the minority: here it is
the second. It has no validation set for CIFAR and tells the best over the test set; here a tenth of the images is held
out, so that 4500 and 45 are left of 5000 and 50 (--config.validation.fraction=0 for those, without a choice).

The medical sets are your own arrays, see configs/arrays.py: x_train, y_train, x_val, y_val, x_test, y_test with label 1
for melanoma, or for any degree of retinopathy, all images of one size; training images of class 1 are left out until
beta is reached. The paper takes ResNeXt-50 and ConvNeXt-tiny pretrained on ImageNet, which are not here: these rows
have ResNet-32 from scratch, and for melanoma, whose learning rate it does not tell, 0.01. ResNet-32 has 16 channels in
its first layer, where the text has 64 (see the model's option width).

Settings: 500 epochs (melanoma 10, APTOS 35) of batch 128, SGD with momentum 0.9 (APTOS: Adam, 5e-5, cosine), gradients
clipped to norm 0.5, the learning rate 0.1 times 1e-2 from 0-based epoch 400 and times 1e-4 from 450, SAM with rho 0.1,
FiLM after the last convolution. Weight decay 2e-4 and crops and flips on CIFAR are ours; the paper tells none. Its
density L(1, 3, 2) of phi is none, because the height at 3 can be at most 1: here it is L(1, 3, 1), the other triangle,
as for alpha. The published code's moving average of the parameters is not here.
"""

from typing import Any

from ml_collections import ConfigDict

from imbal_jax.errors import InputError, choose, not_found

# Table 2: the values of a fixed hyper-parameter, the densities (a, b, h_b) that it is drawn from, the values to try.
ALPHA = (
    (0.1, 0.25, 0.5, 0.75),
    ((0.25, 0.75, 2.0), (0.25, 0.75, 0.0), (0.25, 0.75, 4.0), (0.1, 0.9, 1.25)),
    (0.1, 0.25, 0.5, 0.75),
)
PHI = (
    (0.0, 1.0, 2.0, 3.0),
    ((1.0, 3.0, 0.5), (1.0, 3.0, 0.0), (1.0, 3.0, 1.0), (1.0, 4.0, 0.33)),
    (0.0, 1.0, 2.0, 3.0),
)
GAMMA = (
    (0.0, 0.1, 0.2, 0.3),
    ((0.0, 0.3, 0.0), (0.0, 0.3, 3.3), (0.0, 0.2, 5.0), (0.1, 0.3, 5.0)),
    (0.0, 0.1, 0.2, 0.3),
)
TAU = (
    (0.0, 1.0, 2.0, 3.0),
    ((0.0, 3.0, 0.0), (0.0, 3.0, 0.33), (1.0, 4.0, 0.0), (1.0, 4.0, 0.33)),
    (0.0, 1.0, 2.0, 3.0, 4.0),
)
MODELS = 16
# Of each method: its loss, whether hyper-parameters are drawn, whether the model sees them, SAM, and the usual model.
METHODS: dict[str, tuple[str, bool, bool, bool, int]] = {
    "focal": ("focal", False, False, False, 6),
    "focal_lct": ("focal", True, True, False, 0),
    "vs": ("vs", False, False, False, 2),
    "vs_lct": ("vs", True, True, False, 13),
    "vs_sam": ("vs", False, False, True, 2),
    "vs_sam_lct": ("vs", True, True, True, 13),
    "focal_lct_no_film": ("focal", True, False, False, 0),
    "vs_lct_no_film": ("vs", True, False, False, 13),
    "vs_sam_lct_no_film": ("vs", True, False, True, 13),
}
ANIMALS = ("bird", "cat", "deer", "dog", "frog", "horse")
VEHICLES = ("airplane", "automobile", "ship", "truck")
ELECTRONICS = ("clock", "keyboard", "lamp", "telephone", "television")
FURNITURE = ("bed", "chair", "couch", "table", "wardrobe")
CIFAR10, CIFAR100 = {"name": "tfds", "dataset": "cifar10"}, {"name": "tfds", "dataset": "cifar100"}
MELANOMA, APTOS = {"name": "arrays", "path": "melanoma.npz"}, {"name": "arrays", "path": "aptos.npz"}
# Of each data set: its source; the names of the groups and their members, negatives first, where it has others; beta.
DATASETS: dict[str, tuple[dict[str, Any], dict[str, tuple[str, ...]], float]] = {
    "auto_deer": (CIFAR10, {"automobile": ("automobile",), "deer": ("deer",)}, 100.0),
    "auto_truck": (CIFAR10, {"automobile": ("automobile",), "truck": ("truck",)}, 100.0),
    "animal_vehicle": (CIFAR10, {"animal": ANIMALS, "vehicle": VEHICLES}, 100.0),
    "household": (CIFAR100, {"electronics": ELECTRONICS, "furniture": FURNITURE}, 100.0),
    **{f"melanoma_{beta}": (MELANOMA, {}, float(beta)) for beta in (10, 100, 200)},
    **{f"aptos_{beta}": (APTOS, {}, float(beta)) for beta in (100, 200)},
    "digits": ({"name": "digits"}, {"low": tuple("01234"), "high": tuple("56789")}, 10.0),
}
ROWS = tuple(f"{method}-{dataset}" for method in METHODS for dataset in DATASETS)


def get_config(row: str = "vs_lct-auto_truck") -> ConfigDict:
    """The study; `row` is METHOD-DATASET or METHOD-DATASET-MODEL."""
    method, _, rest = row.partition("-")
    dataset, _, number = rest.partition("-")
    loss, drawn, told, sam, usual = choose(METHODS, method)
    if dataset not in DATASETS:
        raise InputError(f"--config: expected METHOD-DATASET, got {row!r}; {not_found(dataset, DATASETS)}")
    if number and number not in map(str, range(MODELS)):
        raise InputError(f"--config: expected the number of a model in 0..{MODELS - 1}, got {number!r}")
    source, groups, beta = DATASETS[dataset]
    classes: dict[str, Any] = {"name": "all"}
    if groups:
        (negative, negatives), (positive, positives) = groups.items()
        classes = {"name": "groups", "negative": negatives, "positive": positives, "names": (negative, positive)}
    correction, grid = _loss(loss, drawn, int(number or usual))
    sharpness_aware = {"name": "sharpness_aware", "rho": 0.1}
    return ConfigDict(
        {
            "seeds": "0,1,2",
            "data": dict(source),
            "classes": classes,
            "validation": {"fraction": 0.1},
            "profile": {"name": "binary", "beta": beta},
            "sampler": {"name": "uniform"},
            "correction": correction,
            "direction": sharpness_aware if sam else {"name": "gradient"},
            "evaluation": {"grid": grid},
            **_training(dataset, {"name": "film"} if told else None),
        }
    )


def _loss(loss: str, drawn: bool, model: int) -> tuple[dict[str, Any], tuple[tuple[float, ...], ...]]:
    """The correction of one of the sixteen models of Table 2, and the grid to try, none for a fixed one."""
    if loss == "focal":
        name, tables = "conditional_focal", {"alpha": ALPHA, "phi": PHI}
    else:
        name, tables = "conditional_vector_scaling", {"multiplicative": GAMMA, "additive": TAU}
    options: dict[str, Any] = {}
    for (option, (values, densities, _)), i in zip(tables.items(), divmod(model, 4), strict=True):
        options[option] = densities[i] if drawn else (values[i],)
    return {"name": name, **options}, tuple(table[2] for table in tables.values()) if drawn else ()


def _training(dataset: str, film: dict[str, Any] | None) -> dict[str, Any]:
    """The sections that differ by data set."""
    model = {"name": "resnet32", "film": film}
    training: dict[str, Any] = {"batch_size": 128, "select": "last"}
    sgd = {"name": "sgd", "momentum": 0.9, "clip_norm": 0.5}
    if dataset == "digits":
        return {
            "model": {"name": "cnn", "film": film},
            "augmentation": {"name": "none"},
            "step_rule": sgd,
            "schedule": {"name": "cosine", "learning_rate": 0.05},
            "training": {**training, "epochs": 20, "batch_size": 32},
        }
    if dataset.startswith("aptos"):
        return {
            "model": model,
            "augmentation": {"name": "none"},
            "step_rule": {"name": "adamw", "weight_decay": 0.0, "clip_norm": 0.5},
            "schedule": {"name": "cosine", "learning_rate": 5e-5},
            "training": {**training, "epochs": 35},
        }
    if dataset.startswith("melanoma"):
        return {
            "model": model,
            "augmentation": {"name": "none"},
            "step_rule": sgd,
            "schedule": {"name": "constant", "learning_rate": 0.01},
            "training": {**training, "epochs": 10},
        }
    return {
        "model": model,
        "augmentation": {"name": "crop_flip"},
        "step_rule": {**sgd, "weight_decay": 2e-4},
        "schedule": {
            "name": "multi_step",
            "learning_rate": 0.1,
            "boundaries": (400.0, 450.0),
            "factors": (1e-2, 1e-4),
        },
        "training": {**training, "epochs": 500},
    }
