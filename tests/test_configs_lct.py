"""Every row of the tables of loss-conditional training: what it says, and that it builds and trains."""

import importlib.util
import inspect

import jax
import numpy as np
import pytest

from imbal_jax.build import build_experiment
from imbal_jax.builders import DIRECTIONS
from imbal_jax.config import load_config
from imbal_jax.data.known import KNOWN
from imbal_jax.errors import InputError
from imbal_jax.resolve import resolve
from imbal_jax.training.programs import compile_programs
from imbal_jax.training.step import read_metrics
from tests.conftest import ROOT

PATH = ROOT / "configs" / "lct.py"


def load_module():
    spec = importlib.util.spec_from_file_location("lct", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


LCT = load_module()
METHODS = ("focal", "focal_lct", "vs", "vs_lct", "vs_sam", "vs_sam_lct")  # Table 1
ABLATIONS = ("focal_lct_no_film", "vs_lct_no_film", "vs_sam_lct_no_film")  # Table 4
DATASETS = (  # Table 3
    *("auto_deer", "auto_truck", "animal_vehicle", "household"),
    *("melanoma_10", "melanoma_100", "melanoma_200", "aptos_100", "aptos_200"),
)


def fast_first(*names, fast):
    """The names as parameters of a test, all but the fast ones for the slow run."""
    return [*fast, *(pytest.param(name, marks=pytest.mark.slow) for name in names if name not in fast)]


def row(text, **overrides):
    """A resolved row; SAM's is skipped where there is no such direction."""
    config = load_config(f"{PATH}:{text}")
    if config.direction.name not in DIRECTIONS:
        pytest.skip(f"needs the direction {config.direction.name}")
    return resolve(config, overrides)


def test_the_rows_are_those_of_the_tables():
    expected = {f"{method}-{dataset}" for method in (*METHODS, *ABLATIONS) for dataset in (*DATASETS, "digits")}
    assert set(LCT.ROWS) == expected


@pytest.mark.parametrize("text", LCT.ROWS)
def test_every_row_resolves_with_the_settings_of_the_paper(text):
    method, dataset = text.split("-")
    found = row(text)
    assert found.seeds == "0,1,2"
    assert (found.model.film is not None) == (method in METHODS and method.endswith("lct"))
    assert found.direction.name == ("sharpness_aware" if "sam" in method else "gradient")
    assert "sam" not in method or found.direction.rho == 0.1
    assert found.correction.name == f"conditional_{'focal' if 'focal' in method else 'vector_scaling'}"
    assert found.step_rule.clip_norm == 0.5
    if "lct" in method:
        assert len(found.evaluation.grid[0]) * len(found.evaluation.grid[1]) == (16 if "focal" in method else 20)
    if dataset == "digits":
        return
    assert found.training.batch_size == 128
    assert found.model.name == "resnet32" and found.model.width == 16
    number = dataset.split("_")[-1]
    assert found.profile.beta == (float(number) if number.isdigit() else 100.0)
    epochs = {"melanoma": 10, "aptos": 35}.get(dataset.split("_")[0], 500)
    assert found.training.epochs == epochs
    assert found.step_rule.name == ("adamw" if epochs == 35 else "sgd")
    assert epochs == 35 or found.step_rule.momentum == 0.9
    if epochs == 500:
        assert found.schedule.learning_rate == 0.1
        assert (found.schedule.boundaries, found.schedule.factors) == ((400.0, 450.0), (1e-2, 1e-4))


@pytest.mark.parametrize("dataset", DATASETS[:4])
def test_groups_of_classes_exist_and_have_the_numbers_of_the_paper(dataset):
    found = row(f"vs-{dataset}")
    known = KNOWN[found.data.dataset]
    members = (*found.classes.negative, *found.classes.positive)
    assert set(members) <= set(known.class_names)
    assert len(members) == {"animal_vehicle": 10, "household": 10}.get(dataset, 2)


# Table 2, but for L(1, 3, 2), which is no density.
ALPHAS = ((0.25, 0.75, 2.0), (0.25, 0.75, 0.0), (0.25, 0.75, 4.0), (0.1, 0.9, 1.25))
PHIS = ((1.0, 3.0, 0.5), (1.0, 3.0, 0.0), (1.0, 3.0, 1.0), (1.0, 4.0, 0.33))
GAMMAS = ((0.0, 0.3, 0.0), (0.0, 0.3, 3.3), (0.0, 0.2, 5.0), (0.1, 0.3, 5.0))
TAUS = ((0.0, 3.0, 0.0), (0.0, 3.0, 0.33), (1.0, 4.0, 0.0), (1.0, 4.0, 0.33))


def models(method):
    """The two hyper-parameters of each of the sixteen models."""
    names = ("alpha", "phi") if "focal" in method else ("multiplicative", "additive")
    corrections = [row(f"{method}-auto_deer-{i}").correction for i in range(16)]
    return [tuple(correction[name] for name in names) for correction in corrections]


def test_the_sixteen_models_of_each_method_are_those_of_table_2():
    assert models("focal") == [((a,), (p,)) for a in (0.1, 0.25, 0.5, 0.75) for p in (0.0, 1.0, 2.0, 3.0)]
    assert models("vs") == [((g,), (t,)) for g in (0.0, 0.1, 0.2, 0.3) for t in (0.0, 1.0, 2.0, 3.0)]
    assert models("focal_lct") == [(a, p) for a in ALPHAS for p in PHIS]
    assert models("vs_lct") == models("vs_lct_no_film") == [(g, t) for g in GAMMAS for t in TAUS]


def test_models_without_a_number_are_the_best_of_appendix_f():
    assert models("vs")[2] == ((0.0,), (2.0,))
    assert models("vs_lct")[13] == ((0.1, 0.3, 5.0), (0.0, 3.0, 0.33))
    assert row("vs-auto_deer").to_dict() == row("vs-auto_deer-2").to_dict()
    assert row("vs_lct-auto_deer").to_dict() == row("vs_lct-auto_deer-13").to_dict()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("vs_lc-auto_truck", "no 'vs_lc'; did you mean 'vs_lct'"),
        ("vs_lct-auto_trck", "expected METHOD-DATASET.*did you mean 'auto_truck'"),
        ("vs_lct", "expected METHOD-DATASET, got 'vs_lct'"),
        ("vs_lct-digits-16", r"expected the number of a model in 0\.\.15, got '16'"),
    ],
)
def test_faulty_rows_are_told(text, told):
    with pytest.raises(InputError, match=f"^--config: {told}"):
        load_config(f"{PATH}:{text}")


@pytest.fixture(scope="module")
def fake_images(tmp_path_factory):
    """A function from class labels to an .npz of small images of these."""

    def write(labels):
        path = tmp_path_factory.mktemp("images") / "images.npz"
        rng = np.random.default_rng(0)
        arrays = {}
        for split in ("train", "val", "test"):
            arrays[f"x_{split}"] = rng.integers(0, 256, (len(labels), 8, 8, 3), np.uint8)
            arrays[f"y_{split}"] = np.asarray(labels)
        np.savez(path, **arrays)
        return path

    return write


def two_steps(text, **overrides):
    """The losses of the first two steps of a row with a small network."""
    small = {"training.epochs": "2", "training.batch_size": "4", "seeds": "0", "schedule.name": "constant"}
    config = row(text, **small, **overrides)
    film = config.model.film
    with config.unlocked():
        config.model = {"name": "cnn", "width": 2, "classifier": "linear", "film": film}
    experiment = build_experiment(config)
    programs = compile_programs(experiment, stacked=False)
    keys = programs.keys((0,))
    indices = programs.draw(keys.order, 0)
    state, metrics = programs.drive(programs.initial((0,)), programs.train_data, indices, keys.step, 0, 2)
    assert int(jax.device_get(state.step)) == 2
    return experiment, read_metrics(metrics).loss


@pytest.mark.parametrize("method", fast_first(*METHODS, *ABLATIONS, fast=("vs_sam_lct",)))
def test_methods_take_two_steps_on_a_pair_of_cifar10(method, fake_images):
    path = str(fake_images([1] * 12 + [9] * 12 + [0] * 5))
    experiment, losses = two_steps(
        f"{method}-auto_truck",
        **{"data.name": "arrays", "data.path": path, "data.dataset": "cifar10", "profile.beta": "4"},
    )
    assert np.isfinite(losses).all()
    assert experiment.data.class_names == ("automobile", "truck")
    assert experiment.data.counts.counts.tolist() == [12, 3]


@pytest.mark.parametrize(
    "dataset", fast_first("animal_vehicle", "household", "melanoma_100", "aptos_200", fast=("household",))
)
def test_data_sets_take_two_steps(dataset, fake_images):
    options = {"data.name": "arrays", "profile.beta": "3"}
    labels = [0] * 12 + [1] * 12
    if dataset == "animal_vehicle":
        options["data.dataset"], labels = "cifar10", list(range(10)) * 3
    if dataset == "household":
        options["data.dataset"], labels = "cifar100", list(range(100))
    experiment, losses = two_steps(f"vs_lct-{dataset}", **options, **{"data.path": str(fake_images(labels))})
    assert np.isfinite(losses).all()
    negatives = {"animal_vehicle": 18, "household": 5}.get(dataset, 12)
    assert experiment.data.counts.counts.tolist() == [negatives, negatives // 3]


def test_the_docstring_says_how_to_run_it():
    assert "--config=configs/lct.py:" in inspect.getdoc(LCT)
