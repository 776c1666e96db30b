"""The rows of ABSGD's tables: what each config says, and that some of every kind take two steps."""

import runpy

import numpy as np
import pytest

from imbal_jax.config import load_config
from imbal_jax.errors import InputError
from imbal_jax.resolve import resolve
from tests.conftest import ROOT
from tests.test_configs import contains, two_steps

ABSGD = {name: runpy.run_path(str(ROOT / "configs" / f"{name}.py"))["ROWS"] for name in ("absgd_cifar", "absgd_noise")}


def absgd_config(config, row, **overrides):
    return resolve(load_config(str(ROOT / "configs" / f"{config}.py:{row}")), overrides)


def test_every_row_of_absgd_s_tables_has_a_config():
    imbalanced = ("sgd_ce", "absgd_ce", "sgd_focal", "absgd_focal")  # Table 1
    by_class = (
        "sgd_cb_ce",
        "absgd_cb_ce",
        "sgd_cb_focal",
        "absgd_cb_focal",
        "sgd_ldam",
        "sgd_cb_ldam",
        "absgd_cb_ldam",
    )
    noisy = ("sgd_ce", "sgd_tce", "sgd_sce", "eg_sce", "absgd_sce")
    assert set(ABSGD["absgd_cifar"]) == {
        f"cifar{classes}_{profile}{ratio}_{method}"
        for classes in (10, 100)
        for profile in ("lt", "st")
        for ratio in (100, 10)
        for method in (*imbalanced, *by_class, "resampling_ce")
    }
    assert set(ABSGD["absgd_noise"]) == {
        f"cifar{classes}_{noise}{rate}_{method}"
        for classes in (10, 100)
        for noise in ("sym", "asym")
        for rate in (20, 40)
        for method in noisy
    }


@pytest.mark.parametrize("row", ABSGD["absgd_cifar"])
def test_rows_of_absgd_s_tables_1_and_2(row):
    found = absgd_config("absgd_cifar", row)
    dataset, profile, method = row.split("_", 2)
    assert found.data.dataset == dataset
    assert contains(found.profile, {"name": {"l": "long_tail", "s": "step"}[profile[0]], "ratio": float(profile[2:])})
    assert contains(found.schedule, {"learning_rate": 0.1, "boundaries": (160.0, 180.0), "factors": (1e-2, 1e-4)})
    assert found.training.epochs == 200 and found.model.name == "resnet32"
    assert (found.model.classifier == "cosine") == ("ldam" in method)
    told = found.correction.to_json()
    assert ('"focal"' in told, '"ldam"' in told) == ("focal" in method, "ldam" in method)
    assert ('"class_balanced"' in told and '"at": 0.8' in told) == ("cb_" in method)
    assert found.sampler.name == ("effective_number" if method == "resampling_ce" else "uniform")
    if method.startswith("absgd"):
        assert found.direction.name == "attentional_bias"
        assert 1 <= found.direction.temperature <= 10 and 0.1 <= found.direction.gamma <= 1
        assert found.direction.at == 0.8
    else:
        assert found.direction.name == "gradient"


@pytest.mark.parametrize("row", ABSGD["absgd_noise"])
def test_rows_of_absgd_s_table_6(row):
    found = absgd_config("absgd_noise", row)
    dataset, noise, direction, loss = row.split("_")
    symmetric = noise.startswith("sym")
    assert found.data.dataset == dataset and found.profile.name == "natural"
    assert contains(
        found.label_noise, {"name": "symmetric" if symmetric else "asymmetric", "rate": int(noise[-2:]) / 100}
    )
    assert symmetric or found.label_noise.dataset == dataset
    model = {"cifar10": "cnn8", "cifar100": "resnet18" if symmetric else "resnet34"}[dataset]
    assert found.model.name == model
    assert contains(found.schedule, {"boundaries": (40.0, 80.0), "factors": (0.1, 0.01)})
    assert contains(found.training, {"epochs": 120, "batch_size": 128})
    losses = {"ce": "cross_entropy", "tce": "generalized_cross_entropy", "sce": "symmetric_cross_entropy"}
    assert found.correction.name == losses[loss]
    directions = {"sgd": "gradient", "eg": "exponentiated_gradient", "absgd": "attentional_bias"}
    assert found.direction.name == directions[direction]
    assert direction == "sgd" or -3 <= found.direction.temperature <= -0.1


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """An .npz of noise in ten classes with 15 training images each."""
    path, rng = tmp_path_factory.mktemp("images") / "images.npz", np.random.default_rng(0)
    pixels = rng.integers(0, 256, (150, 16, 16, 3), np.uint8)
    np.savez(path, x_train=pixels, y_train=np.arange(150) % 10, x_test=pixels[:10], y_test=np.arange(10))
    return path


@pytest.mark.parametrize(
    "spec",
    [
        "absgd_cifar.py:cifar10_lt100_sgd_cb_ldam",
        "absgd_noise.py:cifar10_asym40_absgd_sce",
        *(
            pytest.param(spec, marks=pytest.mark.slow)
            for spec in (
                "absgd_cifar.py:cifar10_st10_resampling_ce",
                "absgd_cifar.py:cifar10_lt10_absgd_cb_focal",
                *(
                    f"absgd_noise.py:cifar10_{noise}_{method}"
                    for noise in ("sym40", "asym20")
                    for method in ("sgd_tce", "eg_sce")
                ),
            )
        ),
    ],
)
def test_rows_take_two_steps_with_a_small_network(spec, images):
    network = {
        "model.name": "mlp",
        "model.hidden": "(4,)",
        "model.classifier": "cosine" if "ldam" in spec else "linear",
    }
    assert np.isfinite(two_steps(spec, images, **network)).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    "spec",
    [
        "absgd_cifar.py:cifar10_lt100_sgd_cb_ldam",
        "absgd_cifar.py:cifar100_lt10_absgd_cb_focal",
        "absgd_noise.py:cifar10_asym40_sgd_tce",
        "absgd_noise.py:cifar100_sym20_absgd_sce",
    ],
)
def test_rows_take_two_steps_with_their_own_network(spec, images):
    narrow = {} if "noise.py:cifar10_" in spec else {"model.width": "2"}
    assert np.isfinite(two_steps(spec, images, **narrow)).all()


def test_rows_that_do_not_exist_are_told():
    with pytest.raises(InputError, match=r"no 'cifar10_lt50_sgd_ce'; did you mean"):
        absgd_config("absgd_cifar", "cifar10_lt50_sgd_ce")
