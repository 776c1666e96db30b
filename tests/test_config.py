"""Config files, overrides, and the errors that tell what is wrong with them."""

import pytest
from ml_collections import ConfigDict

from imbal_jax.build import build_experiment, seeds_of
from imbal_jax.builders import CORRECTIONS, FIXED, NAMED, options_of
from imbal_jax.config import load_config, parse_overrides, parse_value
from imbal_jax.errors import InputError
from imbal_jax.recipes import METHODS, correction
from imbal_jax.resolve import resolve
from tests.conftest import ROOT

DIGITS = str(ROOT / "configs" / "digits.py")


def test_resolved_config_holds_every_option_of_every_builder():
    config = resolve(load_config(DIGITS))
    for section, builders in NAMED.items():
        assert set(config[section]) == {"name", *options_of(builders[config[section].name])}
    for section, builder in FIXED.items():
        assert set(config[section]) == set(options_of(builder))


def test_resolving_twice_changes_nothing():
    once = resolve(load_config(f"{DIGITS}:ldam_drw"))
    assert resolve(ConfigDict(once.to_dict())).to_dict() == once.to_dict()


def test_overrides_set_leaves_of_their_type():
    overrides = parse_overrides(
        ["--config.profile.alpha=0.1", "--config.training.epochs", "3", "--config.evaluation.head_above=50"]
    )
    config = resolve(load_config(DIGITS), overrides)
    assert config.profile.alpha == 0.1
    assert config.training.epochs == 3
    assert config.evaluation.head_above == 50


def test_another_name_starts_from_that_builders_defaults():
    overrides = {"profile.name": "long_tail", "profile.ratio": "10"}
    assert resolve(load_config(DIGITS), overrides).profile.to_dict() == {"name": "long_tail", "ratio": 10.0}


def test_the_same_name_keeps_the_options():
    config = resolve(load_config(DIGITS), {"profile.name": "dirichlet"})
    assert config.profile.total == load_config(DIGITS).profile.total


def test_required_options_may_come_from_the_command_line():
    config = resolve(load_config(DIGITS), {"data.path": "x.npz", "data.name": "arrays"})
    assert config.data.to_dict() == {"name": "arrays", "path": "x.npz", "dataset": ""}


def test_nested_corrections_are_resolved_and_overridden():
    overrides = {
        "correction.weight.at": "0.25",
        "correction.modulation.name": "focal",
        "correction.modulation.gamma": "2",
    }
    config = resolve(load_config(f"{DIGITS}:ldam_drw"), overrides)
    assert config.correction.weight.at == 0.25
    assert config.correction.modulation.to_dict() == {"name": "focal", "gamma": 2.0}
    assert config.correction.weight.after.normalization == "mean_one"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"profile.alhpa": "1"}, "config.profile: dirichlet takes no 'alhpa'; did you mean 'alpha'"),
        ({"profil.alpha": "1"}, "config: no 'profil'; did you mean 'profile'"),
        ({"profile.alpha": "many"}, "config.profile.alpha: expected float, got 'many'"),
        ({"training.epochs": "1.5"}, "config.training.epochs: expected int, got '1.5'"),
        ({"training.epochs": "True"}, "config.training.epochs: expected int, got 'True'"),
        ({"record.figures": "1"}, "config.record.figures: expected bool, got '1'"),
        ({"model.name": "mlp", "model.hidden": "(8,'a')"}, r"config.model.hidden\[1\]: expected int, got 'a'"),
        ({"correction.name": "focl"}, "config.correction.name: no 'focl'; did you mean 'focal'"),
        ({"correction.name": "focal", "correction.tau": "1"}, "config.correction: focal takes no 'tau'"),
        ({"profile": "3"}, "config.profile: expected a section with a 'name', got '3'"),
        ({"training": "3"}, "config.training: expected a section, got '3'"),
        ({"data.name": "arrays"}, "config.data.path: arrays needs this option"),
        ({"correction.name": "deferred"}, "config.correction.after: deferred needs this option"),
        ({"correction.weight.beta": "1"}, "config.correction: no 'weight'"),
    ],
)
def test_faulty_overrides_are_told(overrides, message):
    with pytest.raises(InputError, match=message):
        resolve(load_config(DIGITS), overrides)


def test_unknown_and_missing_sections_are_told():
    config = load_config(DIGITS)
    with pytest.raises(InputError, match="no 'modell'; did you mean 'model'"):
        resolve(ConfigDict({**config.to_dict(), "modell": {}}))
    without = {key: value for key, value in config.to_dict().items() if key != "sampler"}
    with pytest.raises(InputError, match="missing: sampler"):
        resolve(ConfigDict(without))


@pytest.mark.parametrize("text", ["", "a", "0,0", "-1", "4294967296", "0.5"])
def test_faulty_seeds_are_told(text):
    with pytest.raises(InputError, match=r"config\.seeds: expected different whole numbers"):
        seeds_of(resolve(load_config(DIGITS), {"seeds": text}))


def test_seeds_are_read_in_any_brackets():
    for text in ("0,1,2", "(0, 1, 2)", "[0,1,2,]"):
        assert seeds_of(resolve(load_config(DIGITS), {"seeds": text})) == (0, 1, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--foo=1"], "unknown argument '--foo=1'"),
        (["--config.a.b"], "expected a value"),
        (["x"], "unknown argument 'x'"),
    ],
)
def test_faulty_arguments_are_told(arguments, message):
    with pytest.raises(InputError, match=message):
        parse_overrides(arguments)


def test_values_are_read_by_type():
    assert parse_value("0.1", float, "x") == 0.1
    assert parse_value("3", float, "x") == 3.0
    assert parse_value("inf", float, "x") == float("inf")
    assert parse_value("[1, 2]", tuple, "x") == (1, 2)
    assert parse_value("5", tuple, "x") == (5,)
    assert parse_value("false", bool, "x") is False
    assert parse_value("3", str, "x") == "3"


@pytest.mark.parametrize(
    ("content", "spec_argument", "message"),
    [
        ("x = 1", "", "expected a function get_config"),
        ("def get_config(:", "", "SyntaxError"),
        ("def get_config():\n  return 3", "", "expected a ConfigDict .* got int"),
        ("def get_config():\n  return 3", ":a", "takes no argument, got 'a'"),
        ("def get_config():\n  return 1 / 0", "", "get_config of .* failed: ZeroDivisionError"),
        ("raise SystemExit(3)", "", "failed: SystemExit"),
    ],
)
def test_faulty_config_files_are_told(tmp_path, content, spec_argument, message):
    path = tmp_path / "study.py"
    path.write_text(content)
    with pytest.raises(InputError, match=message):
        load_config(f"{path}{spec_argument}")


def test_a_missing_config_file_is_told_with_its_neighbours():
    with pytest.raises(InputError, match=r"no such file: .*digts.py'; did you mean .*digits.py"):
        load_config(str(ROOT / "configs" / "digts.py"))
    with pytest.raises(InputError, match="no folder"):
        load_config("nowhere/digits.py")


def test_every_recipe_resolves_and_unknown_ones_are_told():
    for method in METHODS:
        assert correction(method)["name"] in CORRECTIONS
        assert resolve(load_config(f"{DIGITS}:{method}")).correction.name in CORRECTIONS
    with pytest.raises(InputError, match="no 'ldam_dwr'; did you mean 'ldam_drw'"):
        load_config(f"{DIGITS}:ldam_dwr")


def test_a_sampler_with_class_weights_warns():
    overrides = {"model.name": "mlp", "sampler.name": "class_balanced"}
    with pytest.warns(UserWarning, match="favoured twice"):
        build_experiment(resolve(load_config(f"{DIGITS}:drw"), overrides))


@pytest.mark.parametrize("method", ["baseline", "focal", "ldam", "logit_adjustment"])
def test_a_sampler_without_class_weights_does_not_warn(method):
    build_experiment(
        resolve(load_config(f"{DIGITS}:{method}"), {"model.name": "mlp", "sampler.name": "class_balanced"})
    )


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"training.batch_size": "100000"}, "training.batch_size: 100000 is larger than the training set"),
        ({"training.batch_size": "0"}, "training.batch_size: expected a number >= 1"),
        ({"training.select": "test/accuracy"}, "training.select: expected one of"),
        ({"validation.fraction": "0"}, "training.select: .* needs a validation set"),
        ({"validation.fraction": "1.0"}, "validation.fraction: expected a number in"),
        ({"training.driver": "fast"}, "training.driver: expected one of"),
        ({"training.reduction": "sum"}, "reduction: expected 'mean' or 'weighted_mean'"),
        ({"profile.alpha": "0"}, "alpha: expected a number > 0"),
        ({"profile.min_count": "60"}, r"min_count: 10 classes .* 10 x 61 = 610 examples, but total is 500"),
        ({"profile.name": "long_tail", "profile.ratio": "0.01"}, "ratio: .* got 0.01; did you mean 100"),
        (
            {"profile.name": "counts", "profile.counts": "(5,5,5,5,5,5,5,5,5,0)"},
            r"classes \[9\] have no training example",
        ),
        ({"evaluation.tail_below": "1000"}, "evaluation.tail_below"),
    ],
)
def test_options_out_of_range_are_told(overrides, message):
    with pytest.raises(InputError, match=message):
        build_experiment(resolve(load_config(DIGITS), overrides))
