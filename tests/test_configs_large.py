"""Configs of large images: every row is that of the papers, is built, and takes two steps on random pictures."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imbal_jax.build import build_experiment, build_model
from imbal_jax.config import load_config
from imbal_jax.errors import InputError
from imbal_jax.resolve import resolve
from tests.conftest import ROOT
from tests.pictures import write_pictures
from tests.test_configs import contains, losses_of

LARGE = ("imagenet_lt", "inaturalist2018", "places_lt", "clothing1m")

FAKE = {
    "data.name": "fake_images",
    "data.num_classes": "5",
    "data.largest": "8",
    "data.ratio": "4",
    "data.size": "16",
    "data.resize": "20",
    "seeds": "0",
    "training.epochs": "10",
    "training.batch_size": "4",
}


def module_of(config):
    """A config file as a module."""
    spec = importlib.util.spec_from_file_location(config, ROOT / "configs" / f"{config}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


EVERY_ROW = pytest.mark.parametrize(
    ("config", "row"), [(config, row) for config in LARGE for row in module_of(config).ROWS]
)


def on_random_pictures(config, row, **overrides):
    """A row's experiment, with random pictures and weights in the place of its own."""
    found = load_config(str(ROOT / "configs" / f"{config}.py:{row}"))
    options = FAKE if overrides.get("model.name") else FAKE | {"model.weights": "", "model.weights_classifier": "false"}
    return build_experiment(resolve(found, options | overrides))


@EVERY_ROW
def test_every_row_is_built_with_a_small_network_in_the_place_of_its_own(config, row):
    classifier = load_config(str(ROOT / "configs" / f"{config}.py:{row}")).model.get("classifier", "linear")
    experiment = on_random_pictures(config, row, **{"model.name": "cnn", "model.classifier": classifier})
    assert experiment.data.train.images.augment is not None


@pytest.mark.parametrize("config", LARGE)
def test_a_small_network_takes_two_steps(config):
    row = next(iter(module_of(config).ROWS))
    assert np.isfinite(
        losses_of(on_random_pictures(config, row, **{"model.name": "mlp", "model.hidden": "(4,)"}))
    ).all()


@pytest.mark.parametrize(
    ("spec", "size"),
    [
        ("imagenet_lt.py", 25_557_032),
        ("imagenet_lt.py:ldam_drw", 25_557_032 - 1000),  # cosines have no bias
        ("inaturalist2018.py", 25_557_032 + 2049 * (8142 - 1000)),
        ("inaturalist2018.py:absgd_resnet152", 60_192_808 + 2049 * (8142 - 1000)),
        ("places_lt.py", 60_192_808 - 2049 * (1000 - 365)),
        ("clothing1m.py", 25_557_032 - 2049 * (1000 - 14)),
    ],
)
def test_networks_are_the_published_ones(spec, size):
    config = load_config(str(ROOT / "configs" / spec))
    num_classes = config.data.get("num_classes", 14)
    model = build_model(
        resolve(config, {"correction.name": "cross_entropy", "direction.name": "gradient"}), num_classes
    )
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    variables = jax.eval_shape(lambda images: model.init(jax.random.key(0), images, train=False), images)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == size


# Learning rate, epochs and batch, by row.
PUBLISHED = {
    "imagenet_lt": {
        **dict.fromkeys(("baseline", "drw", "sam_drw", "ldam_drw", "sam_ldam_drw"), (0.2, 200)),
        **dict.fromkeys(("stage1", "class_balanced"), (0.2, 90)),
        "absgd": (0.02, 90),
    },
    "inaturalist2018": {
        **dict.fromkeys(("baseline", "drw", "sam_drw", "ldam_drw", "sam_ldam_drw"), (0.1, 200)),
        **dict.fromkeys(("stage1", "stage1_resnet152"), (0.1, 200)),
        **dict.fromkeys(("absgd", "absgd_resnet152"), (0.01, 30)),
    },
    "places_lt": {"baseline": (0.01, 90), "absgd": (0.001, 30)},
    "clothing1m": {
        f"{method}_{loss}": (0.002, 10) for method in ("sgd", "eg", "absgd") for loss in ("ce", "sce", "tce")
    },
}


@EVERY_ROW
def test_settings_are_those_of_the_papers(config, row):
    found = load_config(str(ROOT / "configs" / f"{config}.py:{row}"))
    assert set(PUBLISHED[config]) == set(module_of(config).ROWS)
    assert (found.schedule.learning_rate, found.training.epochs) == PUBLISHED[config][row]
    assert found.schedule.name == ("multi_step" if config == "clothing1m" else "cosine")
    assert found.step_rule.momentum == 0.9
    if row.startswith("sam_"):
        expected = {"rho": 0.05, "boundaries": (5.0, 160.0, 180.0), "rhos": (0.1, 0.5, 0.6)}
        assert contains(found.direction, {"name": "sharpness_aware", **expected})
    elif row.startswith("absgd"):
        temperature = -5.0 if config == "clothing1m" else 10.0
        assert contains(found.direction, {"name": "attentional_bias", "temperature": temperature})
    elif row.startswith("eg_"):
        assert contains(found.direction, {"name": "exponentiated_gradient", "temperature": -5.0})
    else:
        assert found.direction.name == "gradient"
    if row.startswith("absgd") and config != "clothing1m":
        assert found.model.trained == "last_block" and found.model.weights_classifier


def test_rows_have_their_corrections():
    for config in ("imagenet_lt", "inaturalist2018"):
        drw = resolve(load_config(str(ROOT / "configs" / f"{config}.py:drw")))
        assert contains(drw.correction, {"name": "deferred", "at": 0.8})
        assert contains(drw.correction.after, {"name": "class_balanced", "beta": 0.9999})
        ldam = resolve(load_config(str(ROOT / "configs" / f"{config}.py:ldam_drw")))
        assert contains(ldam.correction.margin, {"name": "ldam", "max_margin": 0.3, "scale": 30.0})
        assert contains(ldam.correction.weight, {"name": "deferred", "at": 0.8})
        assert ldam.model.classifier == "cosine"
    inaturalist = load_config(str(ROOT / "configs" / "inaturalist2018.py:absgd"))
    assert contains(inaturalist.correction, {"name": "class_balanced", "beta": 0.9999})
    clothing = load_config(str(ROOT / "configs" / "clothing1m.py"))
    assert contains(clothing.step_rule, {"weight_decay": 1e-2})
    assert contains(clothing.schedule, {"boundaries": (5.0,), "factors": (0.1,)})


@pytest.mark.parametrize("config", LARGE)
def test_unknown_rows_are_told(config):
    with pytest.raises(InputError, match=r"^--config: no 'absgdd'"):
        load_config(str(ROOT / "configs" / f"{config}.py:absgdd"))


def test_lists_are_read(tmp_path):
    lists = write_pictures(tmp_path)
    overrides = {f"data.{name}": value for name, value in lists.items()} | {
        "data.num_classes": "3",
        "data.size": "16",
        "data.resize": "20",
        "model.name": "cnn",
        "training.batch_size": "4",
    }
    experiment = build_experiment(resolve(load_config(str(ROOT / "configs" / "imagenet_lt.py")), overrides))
    np.testing.assert_array_equal(experiment.data.counts.counts, [12, 7, 4])
    assert len(experiment.data.validation.labels) == 7


@pytest.mark.slow
@pytest.mark.parametrize("config", LARGE)
def test_its_own_network_takes_two_steps(config):
    row = next(iter(module_of(config).ROWS))
    experiment = on_random_pictures(config, row, **{"model.width": "1"})
    assert np.isfinite(losses_of(experiment)).all()


@pytest.mark.slow
def test_resnet50_takes_two_steps_at_full_size():
    full = {"data.size": "224", "data.resize": "256", "training.batch_size": "2"}
    experiment = on_random_pictures("imagenet_lt", "baseline", **full)
    assert experiment.model.width == 64
    assert np.isfinite(losses_of(experiment)).all()
