"""Methods by name: what they stand for, and that every one of them builds and trains."""

import pytest

from imbal_jax.builders import CORRECTIONS
from imbal_jax.config import load_config
from imbal_jax.errors import InputError
from imbal_jax.recipes import DIRECTED_METHODS, DIRECTIONS, METHODS, correction, parse_method, schedule
from imbal_jax.resolve import resolve
from tests.conftest import ROOT

DIRECTION_NAMES = {
    "gradient": "gradient",
    "ef": "empirical_fisher",
    "ief": "improved_empirical_fisher",
    "gdn": "gdn",
    "ekfac": "ekfac",
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
    ],
)
def test_names_stand_for_their_parts(name, expected):
    assert parse_method(name) == expected


@pytest.mark.parametrize("name", ["ekfac_dwr", "irw", "sampler", "ekfax", "", "ief_", "ief_ief"])
def test_unknown_methods_are_told(name):
    if name == "ief_":  # as good as no variant
        assert parse_method(name) == parse_method("ief")
        return
    with pytest.raises(InputError, match=r"^method: no "):
        parse_method(name)


@pytest.mark.parametrize("study", STUDIES)
@pytest.mark.parametrize("method", [*METHODS, *DIRECTIONS, *DIRECTED_METHODS])
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
    for method in ("ief_irw", "drw", "ief"):
        assert schedule(parse_method(method), 10.0) == {"name": "constant", "learning_rate": 10.0}
    config = resolve(load_config(str(ROOT / "configs" / "cifar10_vgg11.py:ekfac_drw")))
    assert config.schedule.name == "switch"
    assert config.schedule.at == config.correction.at
