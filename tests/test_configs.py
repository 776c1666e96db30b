"""Every config file is built and run two steps on images of the right shape, or on short recordings."""

import jax
import numpy as np
import pytest

from imbal_jax.build import build_experiment
from imbal_jax.config import load_config
from imbal_jax.errors import InputError
from imbal_jax.recipes import DIRECTIONS, METHODS, SPEECH_METHODS, parse_speech_method
from imbal_jax.resolve import resolve
from imbal_jax.robust_recipes import SADDLE_ROWS
from imbal_jax.training.programs import compile_programs
from imbal_jax.training.step import read_metrics
from tests.conftest import ROOT
from tests.recordings import write_corpus, write_hubert

CONFIGS = sorted(path.stem for path in (ROOT / "configs").glob("*.py"))
SHAPES = {
    "digits": (8, 8, 1),
    "arrays": (8, 8, 3),
    **dict.fromkeys(("cifar10_vgg11", "cifar10_resnet32", "saddle_cifar"), (32, 32, 3)),
}
SPEECH = ("crema_d", "msp_podcast", "speech", "speech_hubert")
# tests/test_configs_large.py, tests/test_configs_lct.py, tests/test_configs_absgd.py
ELSEWHERE = ("imagenet_lt", "inaturalist2018", "places_lt", "clothing1m", "lct", "absgd_cifar", "absgd_noise")


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
    return losses_of(build_experiment(resolve(load_config(str(ROOT / "configs" / spec)), short)))


def losses_of(experiment):
    """The losses of the first two steps."""
    programs = compile_programs(experiment, stacked=False)
    keys = programs.keys((0,))
    state, metrics = programs.drive(
        programs.initial((0,)), programs.train_data, programs.draw(keys.order, 0), keys.step, 0, 2
    )
    assert int(jax.device_get(state.step)) == 2
    return read_metrics(metrics).loss


def test_every_config_has_a_shape_here():
    assert {*SHAPES, *SPEECH, *ELSEWHERE} == set(CONFIGS)


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(name, marks=pytest.mark.slow if name in ("saddle_cifar", "cifar10_vgg11") else ())
        for name in SHAPES
    ],
)
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


# Rows of both long tails, and of both step imbalances, differ in their data and in rho alone.
@pytest.mark.parametrize(
    "row",
    [
        pytest.param(row, marks=() if row.startswith("cifar10_lt/") else pytest.mark.slow)
        for row in SADDLE_ROWS
        if row.startswith(("cifar10_lt/", "cifar100_step/"))
    ],
)
def test_every_row_of_saddle_tables_takes_two_steps(row, fake_images):
    overrides = {"model.name": "mlp", "model.hidden": "(4,)", "training.epochs": "200"}
    assert np.isfinite(two_steps(f"saddle_cifar.py:{row}", fake_images((4, 4, 1)), **overrides)).all()


@pytest.mark.parametrize("method", ["asam_drw", "lpf_sgd", "absgd_cb", "eg_ldam", "pgd_sampler", "absgd_vs"])
def test_wrappers_combine_with_corrections_and_samplers(method, fake_images):
    overrides = {"model.name": "mlp", "model.hidden": "(4,)", "training.batch_size": "16"}
    assert np.isfinite(two_steps(f"arrays.py:{method}", fake_images((4, 4, 1)), **overrides)).all()


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("recordings"))


@pytest.fixture(scope="module")
def hubert(tmp_path_factory):
    return write_hubert(tmp_path_factory.mktemp("hubert") / "small")


def speech_config(spec, table, hubert, **overrides):
    """A config of recordings with the tones in the place of its corpus, and a small network in that of its own."""
    short = {"data.name": "manifest", "data.path": str(table), "data.buckets": "1", "seeds": "0"}
    short |= {"training.epochs": "10", "training.batch_size": "4"}
    if spec.startswith("speech.py"):
        short |= {"model.channels": "(4,)", "model.n_mels": "6"}
    else:
        short |= {"model.path": str(hubert), "model.projection": "4"}
    return resolve(load_config(str(ROOT / "configs" / spec)), short | overrides)


@pytest.mark.parametrize(
    "spec",
    [
        "speech.py",
        *(
            pytest.param(spec, marks=pytest.mark.slow)
            for spec in ("crema_d.py", "crema_d.py:ief_irw", "msp_podcast.py:gdn_drw")
        ),
        pytest.param("speech_hubert.py:ldam_drw", marks=pytest.mark.slow),
    ],
)
def test_configs_of_recordings_take_two_steps(spec, table, hubert):
    assert np.isfinite(losses_of(build_experiment(speech_config(spec, table, hubert)))).all()


@pytest.mark.parametrize("method", SPEECH_METHODS)
@pytest.mark.parametrize("config", ["crema_d", "msp_podcast"])
def test_every_row_of_the_thesis_s_tables_is_built(config, method, table, hubert):
    build_experiment(speech_config(f"{config}.py:{method}", table, hubert))


# Thesis Tables B.6 and B.7: learning rate, the one after the switch, and batch size.
TABLES = {
    "crema_d": {
        **dict.fromkeys(SPEECH_METHODS[:9], (5e-4, None, 64)),
        **dict.fromkeys(("ief_raw", "ief_sampler", "ief_irw", "ief_drw"), (50.0, None, 64)),
        **dict.fromkeys(("gdn_raw", "gdn_sampler", "gdn_irw", "gdn_drw"), (10.0, None, 64)),
    },
    "msp_podcast": {
        **dict.fromkeys(SPEECH_METHODS[:8], (1e-4, None, 32)),
        **dict.fromkeys(("sampler", "influence_balanced"), (1e-4, None, 64)),
        **dict.fromkeys(("ief_raw", "gdn_raw"), (10.0, None, 32)),
        **dict.fromkeys(("ief_sampler", "gdn_sampler"), (10.0, None, 64)),
        **dict.fromkeys(("ief_irw", "gdn_irw"), (5.0, None, 32)),
        **dict.fromkeys(("ief_drw", "gdn_drw"), (10.0, 5.0, 32)),
    },
}
# What their other columns say, and 3.4.
CORRECTIONS = {
    "focal": {"name": "focal", "gamma": 1.0},
    "alpha_focal": {"name": "alpha_focal", "gamma": 2.0},
    "class_balanced": {"name": "class_balanced", "beta": 0.999},
    "ldam": {"name": "ldam", "max_margin": 0.5, "scale": 1.0},
}


def contains(section, expected):
    """Whether a section has the expected options."""
    return {key: section[key] for key in expected} == expected


@pytest.mark.parametrize("method", SPEECH_METHODS)
@pytest.mark.parametrize("config", TABLES)
def test_settings_are_those_of_the_thesis_s_tables(config, method):
    learning_rate, later, batch_size = TABLES[config][method]
    found = resolve(load_config(str(ROOT / "configs" / f"{config}.py:{method}")))
    assert found.schedule.learning_rate == learning_rate
    assert found.training.batch_size == batch_size
    assert found.training.epochs == {"crema_d": 30, "msp_podcast": 20}[config]
    assert found.training.select == "validation/macro_f1"
    assert contains(found.model, {"lora_rank": 8, "lora_alpha": 16.0, "lora_targets": ("q_proj", "v_proj")})
    if method[:4] in ("ief_", "gdn_"):
        names = {"ief_": "improved_empirical_fisher", "gdn_": "gdn"}
        assert found.direction.name == names[method[:4]]
        assert contains(found.step_rule, {"name": "sgd", "momentum": 0.0, "weight_decay": 0.0})
        assert found.schedule.name == ("constant" if later is None else "switch")
        assert later is None or contains(found.schedule, {"factor": later / learning_rate, "at": found.correction.at})
    else:
        assert found.direction.name == "gradient"
        assert contains(found.step_rule, {"name": "adamw", "b1": 0.9, "b2": 0.99, "eps": 1e-8, "weight_decay": 0.1})
        assert contains(found.schedule, {"name": "linear", "end_factor": 0.0, "warmup_epochs": 0})
    assert found.sampler.name == ("minority_in_every_batch" if "sampler" in method else "uniform")
    assert contains(found.correction, CORRECTIONS.get(method, {}))


def test_rows_of_the_tables_have_their_corrections():
    def correction_of(method):
        return resolve(load_config(str(ROOT / "configs" / f"crema_d.py:{method}"))).correction

    for method in ("baseline", "sampler", "ief_raw", "gdn_sampler"):
        assert correction_of(method).name == "cross_entropy"
    for method in ("inverse_frequency", "ief_irw", "gdn_irw"):
        assert correction_of(method).name == "inverse_frequency"
    for method in ("ief_drw", "gdn_drw"):
        assert correction_of(method).name == "deferred"
        assert correction_of(method).after.name == "inverse_frequency"
    both = correction_of("ldam_drw")
    assert contains(both.margin, CORRECTIONS["ldam"])
    assert both.weight.after.name == "inverse_frequency" and both.weight.at == 0.5
    influence = correction_of("influence_balanced")
    assert influence.after.alpha == 1000.0 and influence.at == 0.5
    assert influence.after.normalization == "sum_one"  # ten times smaller losses than with a mean of one


@pytest.mark.parametrize("method", ["ef", "ekfac_drw", "smapler", "ief_sampelr"])
def test_methods_without_settings_for_speech_are_told(method):
    with pytest.raises(InputError, match=r"^method: .*sampler.*ief_raw"):
        parse_speech_method(method)


def test_speech_methods_are_all_corrections_and_two_directions():
    assert {parse_speech_method(method).direction for method in SPEECH_METHODS} == {"gradient", "ief", "gdn"}
    for method in METHODS:
        assert parse_speech_method(method).correction == method
    assert set(DIRECTIONS) - {"ef", "ekfac"} == {"ief", "gdn"}
