"""Every config file is built and run two steps on images of the right shape."""

import jax
import numpy as np
import pytest

from imbal_jax.build import build_experiment
from imbal_jax.config import load_config
from imbal_jax.recipes import METHODS
from imbal_jax.resolve import resolve
from imbal_jax.training.programs import compile_programs
from imbal_jax.training.step import read_metrics
from tests.conftest import ROOT

CONFIGS = sorted(path.stem for path in (ROOT / "configs").glob("*.py"))
SHAPES = {"digits": (8, 8, 1), "arrays": (8, 8, 3), "cifar10_vgg11": (32, 32, 3), "cifar10_resnet32": (32, 32, 3)}


@pytest.fixture(scope="module")
def fake_images(tmp_path_factory):
    """A function from an image shape to an .npz of ten classes with 12, 11, ..., 3 training examples."""

    def write(shape):
        path = tmp_path_factory.mktemp("images") / "images.npz"
        rng = np.random.default_rng(0)
        labels = np.repeat(np.arange(10), np.arange(12, 2, -1))
        test_labels = np.arange(20) % 10
        arrays = {}
        for split, y in (("train", labels), ("test", test_labels), ("val", test_labels)):
            arrays[f"x_{split}"] = rng.integers(0, 256, (len(y), *shape), np.uint8)
            arrays[f"y_{split}"] = y
        np.savez(path, **arrays)
        return path

    return write


def two_steps(spec, path, **overrides):
    """The losses of the first two steps of a config on an .npz."""
    short = {"data.name": "arrays", "data.path": str(path), "profile.name": "natural", "seeds": "0"}
    short |= {"training.epochs": "10", "training.batch_size": "4", **overrides}
    experiment = build_experiment(resolve(load_config(str(ROOT / "configs" / spec)), short))
    programs = compile_programs(experiment, stacked=False)
    keys = programs.keys((0,))
    state, metrics = programs.drive(
        programs.initial((0,)), programs.train_data, programs.draw(keys.order, 0), keys.step, 0, 2
    )
    assert int(jax.device_get(state.step)) == 2
    return read_metrics(metrics).loss


def test_every_config_has_a_shape_here():
    assert set(SHAPES) == set(CONFIGS)


@pytest.mark.parametrize("config", CONFIGS)
def test_config_takes_two_steps(config, fake_images):
    assert np.isfinite(two_steps(f"{config}.py", fake_images(SHAPES[config]))).all()


@pytest.mark.parametrize("config", CONFIGS)
def test_docstring_says_how_to_run_it(config):
    docstring = load_docstring(ROOT / "configs" / f"{config}.py")
    assert f"--config=configs/{config}.py" in docstring


def load_docstring(path):
    """A module's docstring without running it."""
    import ast

    return ast.get_docstring(ast.parse(path.read_text()))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_takes_two_steps(method, fake_images):
    losses = two_steps(f"arrays.py:{method}", fake_images((4, 4, 1)), **{"model.name": "mlp", "model.hidden": "(4,)"})
    assert np.isfinite(losses).all()


@pytest.mark.parametrize("method", ["ef_irw", "ief_ldam_drw", "gdn_sampler", "ekfac_drw"])
def test_directions_combine_with_corrections_and_samplers(method, fake_images):
    overrides = {"model.name": "mlp", "model.hidden": "(4,)", "training.batch_size": "16"}
    assert np.isfinite(two_steps(f"arrays.py:{method}", fake_images((4, 4, 1)), **overrides)).all()
