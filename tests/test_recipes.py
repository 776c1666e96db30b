"""Methods by name: what they stand for, and that every one of them builds and trains."""

import numpy as np
import pytest

from imbal_jax.build import build_profile
from imbal_jax.builders import CORRECTIONS
from imbal_jax.config import load_config
from imbal_jax.errors import InputError
from imbal_jax.recipes import (
    DIRECTED_METHODS,
    DIRECTIONS,
    METHODS,
    correction,
    parse_method,
    parse_speech_method,
    schedule,
)
from imbal_jax.resolve import resolve
from imbal_jax.robust_recipes import SADDLE_ROWS, WRAPPERS
from tests.conftest import ROOT

DIRECTION_NAMES = {
    "gradient": "gradient",
    "ef": "empirical_fisher",
    "ief": "improved_empirical_fisher",
    "gdn": "gdn",
    "ekfac": "ekfac",
    **{name: section["name"] for name, section in WRAPPERS.items()},
}
STUDIES = ("digits", "arrays", "cifar10_vgg11")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("baseline", ("gradient", "baseline", "uniform")),
        ("ldam_drw", ("gradient", "ldam_drw", "uniform")),
        ("ief", ("ief", "baseline", "uniform")),
        ("ekfac_raw", ("ekfac", "baseline", "uniform")),
        ("gdn_sampler", ("gdn", "baseline", "minority_in_every_batch")),
        ("ef_irw", ("ef", "inverse_frequency", "uniform")),
        ("ekfac_drw", ("ekfac", "drw", "uniform")),
        ("ief_ldam_drw", ("ief", "ldam_drw", "uniform")),
        ("vs", ("gradient", "vector_scaling", "uniform")),
        ("sam", ("sam", "baseline", "uniform")),
        ("sam_ldam_drw", ("sam", "ldam_drw", "uniform")),
        ("sam_vs", ("sam", "vector_scaling", "uniform")),
        ("lpf_sgd", ("lpf_sgd", "baseline", "uniform")),
        ("lpf_sgd_drw", ("lpf_sgd", "drw", "uniform")),
        ("absgd_cb", ("absgd", "class_balanced", "uniform")),
        ("pgd_sampler", ("pgd", "baseline", "minority_in_every_batch")),
        ("eg_irw", ("eg", "inverse_frequency", "uniform")),
    ],
)
def test_names_stand_for_their_parts(name, expected):
    assert parse_method(name) == expected


@pytest.mark.parametrize("name", ["ekfac_dwr", "irw", "sampler", "ekfax", "", "ief_", "ief_ief", "lpf", "sam_ief"])
def test_unknown_methods_are_told(name):
    if name == "ief_":  # as good as no variant
        assert parse_method(name) == parse_method("ief")
        return
    with pytest.raises(InputError, match=r"^method: no "):
        parse_method(name)


@pytest.mark.parametrize("study", STUDIES)
@pytest.mark.parametrize("method", [*METHODS, *DIRECTIONS, *DIRECTED_METHODS, *WRAPPERS, "sam_drw", "absgd_ldam_drw"])
def test_every_method_resolves(study, method):
    chosen = parse_method(method)
    config = resolve(load_config(str(ROOT / "configs" / f"{study}.py:{method}")))
    assert config.direction.name == DIRECTION_NAMES[chosen.direction]
    assert config.sampler.name == chosen.sampler
    assert config.correction.name == correction(chosen.correction)["name"]
    assert config.correction.name in CORRECTIONS


def test_the_learning_rate_changes_at_the_switch_of_deferred_weights_under_a_direction():
    section = schedule(parse_method("ief_drw"), 10.0)
    assert section == {"name": "switch", "learning_rate": 10.0, "at": 0.5, "factor": 0.5}
    for method in ("ief_irw", "drw", "ief", "sam_drw"):
        assert schedule(parse_method(method), 10.0) == {"name": "constant", "learning_rate": 10.0}
    config = resolve(load_config(str(ROOT / "configs" / "cifar10_vgg11.py:ekfac_drw")))
    assert config.schedule.name == "switch"
    assert config.schedule.at == config.correction.at


def test_wrappers_have_no_settings_for_speech():
    with pytest.raises(InputError, match=r"^method: no settings of 'sam_drw' for speech \(valid: baseline, "):
        parse_speech_method("sam_drw")


# --- rows of Rangwani et al. 2022, Tables 1, 2 and 4 --------------------------------------------------------------

SETTINGS = {
    "cifar10_lt": ("cifar10", "long_tail"),
    "cifar100_lt": ("cifar100", "long_tail"),
    "cifar10_step": ("cifar10", "step"),
    "cifar100_step": ("cifar100", "step"),
}
IN_ALL_TABLES = {"baseline", "sam", "drw", "sam_drw", "ldam_drw", "sam_ldam_drw", "vs", "sam_vs"}
ESCAPING = {"pgd_drw", "lpf_sgd_drw"}
RHO = {
    "cifar10": {"sam": 0.1, "sam_drw": 0.5, "sam_ldam_drw": 0.8, "sam_vs": 0.5},
    "cifar100": {"sam": 0.2, "sam_drw": 0.8, "sam_ldam_drw": 0.8, "sam_vs": 0.8},
}


def test_every_row_of_the_tables_has_a_config():
    tails = {f"{setting}/{method}" for setting in ("cifar10_lt", "cifar100_lt") for method in IN_ALL_TABLES | ESCAPING}
    steps = {f"{setting}/{method}" for setting in ("cifar10_step", "cifar100_step") for method in IN_ALL_TABLES}
    assert len(SADDLE_ROWS) == len(set(SADDLE_ROWS))
    assert set(SADDLE_ROWS) == tails | steps


@pytest.mark.parametrize("row", SADDLE_ROWS)
def test_rows_have_the_settings_of_the_paper(row):
    setting, _, method = row.partition("/")
    config = resolve(load_config(str(ROOT / "configs" / f"saddle_cifar.py:{row}")))
    assert (config.data.dataset, config.profile.name) == SETTINGS[setting]
    assert config.profile.ratio == 100
    assert config.model.name == "resnet32"
    assert config.model.classifier == ("cosine" if "ldam" in method else "linear")
    assert (config.training.epochs, config.training.batch_size, config.training.reduction) == (
        200,
        128,
        "weighted_mean",
    )
    assert config.step_rule.to_dict() == {
        "name": "sgd",
        "momentum": 0.9,
        "nesterov": False,
        "weight_decay": 2e-4,
        "decoupled": False,
        "decay_vectors": True,
        "clip_norm": 0.0,
    }
    assert config.schedule.to_dict() == {
        "name": "multi_step",
        "learning_rate": 0.1,
        "warmup_epochs": 5,
        "boundaries": (160.0, 180.0),
        "factors": (0.01, 0.0001),
    }
    if method.startswith("sam"):
        assert config.direction.name == "sharpness_aware"
        assert config.direction.rho == RHO[config.data.dataset][method]
        assert (config.direction.normalised, config.direction.boundaries) == (True, ())
    else:
        names = {"pgd_drw": "perturbed", "lpf_sgd_drw": "low_pass"}
        assert config.direction.name == names.get(method, "gradient")
    if "drw" in method:
        reweighting = config.correction.weight if "ldam" in method else config.correction
        assert (reweighting.at, reweighting.after.name, reweighting.after.beta) == (0.8, "class_balanced", 0.9999)
    else:
        assert config.correction.name == ("vector_scaling" if "vs" in method else "cross_entropy")
    if "ldam" in method:
        assert (config.correction.margin.max_margin, config.correction.margin.scale) == (0.5, 30.0)


@pytest.mark.parametrize(
    ("setting", "sizes"),
    [
        ("cifar10_lt", (3, 4, 3)),
        ("cifar100_lt", (36, 35, 29)),  # which the published means imply, see the config
        ("cifar10_step", (5, 0, 5)),
        ("cifar100_step", (50, 0, 50)),
    ],
)
def test_groups_of_classes_are_those_of_the_paper(setting, sizes):
    config = resolve(load_config(str(ROOT / "configs" / f"saddle_cifar.py:{setting}/drw")))
    classes = 100 if "100" in setting else 10
    wanted = build_profile(config)(np.full(classes, 50_000 // classes))
    head, tail = (wanted > config.evaluation.head_above).sum(), (wanted < config.evaluation.tail_below).sum()
    assert (head, classes - head - tail, tail) == sizes


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("cifar10/drw", r"^--config: no 'cifar10'; did you mean 'cifar10_lt' or"),
        ("cifar10_lt", r"^method: no ''"),
        ("cifar10_lt/sam_dwr", r"^method: no 'sam_dwr'"),
        ("cifar10_lt/ief_drw", r"^method: no settings of its direction here: no 'ief' \(valid: sam, "),
    ],
)
def test_unknown_rows_are_told(row, message):
    with pytest.raises(InputError, match=message):
        load_config(str(ROOT / "configs" / f"saddle_cifar.py:{row}"))
