"""Every config file is built and run two steps on images of the right shape, or on short recordings."""

import runpy

import jax
import numpy as np
import pytest

from imbal_jax.build import build_experiment
from imbal_jax.config import load_config
from imbal_jax.errors import InputError
from imbal_jax.recipes import DIRECTIONS, METHODS, SPEECH_METHODS, parse_speech_method
from imbal_jax.resolve import resolve
from imbal_jax.training.programs import compile_programs
from imbal_jax.training.step import read_metrics
from tests.conftest import ROOT
from tests.recordings import write_corpus, write_hubert

CONFIGS = sorted(path.stem for path in (ROOT / "configs").glob("*.py"))
SHAPES = {
    "digits": (8, 8, 1),
    "arrays": (8, 8, 3),
    **dict.fromkeys(("cifar10_vgg11", "cifar10_resnet32", "absgd_cifar", "absgd_noise"), (32, 32, 3)),
}
SPEECH = ("crema_d", "msp_podcast", "speech")


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
    assert {*SHAPES, *SPEECH} == set(CONFIGS)


@pytest.mark.parametrize("config", SHAPES)
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
    if spec.startswith("speech"):
        short |= {"model.channels": "(4,)", "model.n_mels": "6"}
    else:
        short |= {"model.path": str(hubert), "model.projection": "4"}
    return resolve(load_config(str(ROOT / "configs" / spec)), short | overrides)


@pytest.mark.parametrize("spec", ["crema_d.py", "crema_d.py:ief_irw", "msp_podcast.py:gdn_drw", "speech.py"])
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


@pytest.mark.parametrize("method", ["ef", "ekfac_drw", "smapler", "ief_sampelr"])
def test_methods_without_settings_for_speech_are_told(method):
    with pytest.raises(InputError, match=r"^method: .*sampler.*ief_raw"):
        parse_speech_method(method)


def test_speech_methods_are_all_corrections_and_two_directions():
    assert {parse_speech_method(method).direction for method in SPEECH_METHODS} == {"gradient", "ief", "gdn"}
    for method in METHODS:
        assert parse_speech_method(method).correction == method
    assert set(DIRECTIONS) - {"ef", "ekfac"} == {"ief", "gdn"}


# ABSGD's Tables 1, 2 and 6.
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


@pytest.mark.parametrize(
    "spec",
    [
        "absgd_cifar.py:cifar10_lt100_sgd_cb_ldam",
        "absgd_cifar.py:cifar10_st10_resampling_ce",
        "absgd_cifar.py:cifar100_lt10_absgd_cb_focal",
        "absgd_noise.py:cifar10_asym40_sgd_tce",
        "absgd_noise.py:cifar10_sym40_eg_sce",
        "absgd_noise.py:cifar100_sym20_absgd_sce",
    ],
)
def test_rows_of_absgd_s_tables_take_two_steps(spec, fake_images):
    narrow = {"model.width": "2"} if "cifar100_sym" in spec or "absgd_cifar" in spec else {}
    assert np.isfinite(two_steps(spec, fake_images((16, 16, 3)), **narrow)).all()


def test_rows_that_do_not_exist_are_told():
    with pytest.raises(InputError, match=r"no 'cifar10_lt50_sgd_ce'; did you mean"):
        absgd_config("absgd_cifar", "cifar10_lt50_sgd_ce")
