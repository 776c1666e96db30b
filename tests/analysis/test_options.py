"""How spectra are to be taken: the two protocols, and options that are refused."""

import inspect

import pytest

from imbal_jax.analysis.options import SpectrumOptions, fixed, published
from imbal_jax.builders import options_of
from imbal_jax.errors import InputError


def test_by_default_the_matrix_is_fixed_in_evaluation_mode_and_of_the_runs_own_loss():
    told = fixed()
    assert (told.protocol, told.matrix, told.loss) == ("fixed", "hessian", "corrected")
    assert (told.statistics, told.augmentation, told.split) == ("running", "none", "train")
    assert (told.parameters, told.checkpoint, told.whole, told.classes) == ("all", "best", True, ())


def test_every_option_of_a_protocol_is_kept():
    given = {
        "matrix": "empirical_fisher",
        "loss": "cross_entropy",
        "statistics": "batch",
        "parameters": "stage3*",
        "checkpoint": "last",
        "split": "test",
        "classes": (3, 1),
        "whole": False,
        "examples": 5,
        "augmentation": "copies",
        "copies": 2,
        "order": 7,
        "probes": 3,
        "distribution": "rademacher",
        "tolerance": 0.5,
        "least": 4,
        "micro_batch": 9,
        "precision": "float64",
        "driver": "compiled",
        "probes_together": "no",
        "linearise_gib": 0.0,
        "seed": 11,
    }
    assert set(given) == set(options_of(fixed)) == set(SpectrumOptions._fields) - {"protocol"}
    assert fixed(**given)._asdict() == {"protocol": "fixed", **given}
    assert all(fixed()._asdict()[name] != value for name, value in given.items())
    shared = {name: given[name] for name in options_of(published)}
    told = published(**shared)._asdict()
    assert {name: told[name] for name in shared} == shared


def test_the_published_protocol_is_that_of_the_script():
    told = published()
    assert (told.protocol, told.augmentation, told.matrix, told.loss) == (
        "published", "redrawn", "hessian", "cross_entropy",
    )  # fmt: skip
    assert (told.order, told.probes, told.distribution, told.micro_batch) == (100, 1, "rademacher", 128)
    assert (told.statistics, told.parameters, told.precision) == ("running", "all", "float32")
    assert told.tolerance == 0 and told.linearise_gib == 0 and told.copies == 1  # PyHessian takes all steps
    # What would make it another protocol is not offered.
    assert not {"augmentation", "loss", "matrix", "statistics", "tolerance"} & set(options_of(published))


@pytest.mark.parametrize("protocol", [fixed, published])
def test_every_option_is_documented(protocol):
    lines = inspect.getdoc(protocol).splitlines()
    for name in options_of(protocol):
        assert any(line.strip().startswith(f"{name}: ") for line in lines), name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"matrix": "hesian"}, r"spectrum\.matrix: no 'hesian'; did you mean 'hessian'\? \(valid: hessian, gauss_new"),
        ({"loss": "mse"}, r"spectrum\.loss: no 'mse' \(valid: corrected, cross_entropy\)"),
        ({"statistics": "train"}, r"spectrum\.statistics: no 'train'"),
        ({"checkpoint": "newest"}, r"spectrum\.checkpoint: no 'newest'"),
        ({"split": "dev"}, r"spectrum\.split: no 'dev' \(valid: train, validation, test\)"),
        ({"augmentation": "some"}, r"spectrum\.augmentation: no 'some'"),
        ({"augmentation": "redrawn"}, r"augmentation: 'redrawn' is what spectrum\.name=published does"),
        ({"distribution": "uniform"}, r"spectrum\.distribution: no 'uniform'"),
        ({"precision": "bfloat16"}, r"spectrum\.precision: no 'bfloat16'"),
        ({"driver": "scan"}, r"spectrum\.driver: no 'scan'"),
        ({"probes_together": "maybe"}, r"spectrum\.probes_together: no 'maybe'"),
        ({"order": 0}, r"spectrum\.order: expected a number >= 1, got 0"),
        ({"probes": 0}, r"spectrum\.probes: expected a number >= 1, got 0"),
        ({"copies": -1}, r"spectrum\.copies: expected a number >= 1, got -1"),
        ({"least": 0}, r"spectrum\.least: expected a number >= 1, got 0"),
        ({"micro_batch": 0}, r"spectrum\.micro_batch: expected a number >= 1, got 0"),
        ({"examples": -1}, r"spectrum\.examples: expected a number >= 0, got -1"),
        ({"tolerance": float("nan")}, r"spectrum\.tolerance: expected a number >= 0, got nan"),
        ({"linearise_gib": float("inf")}, r"spectrum\.linearise_gib: expected a number >= 0, got inf"),
        ({"seed": -1}, r"spectrum\.seed: expected a whole number in 0\.\.4294967295, got -1"),
        ({"seed": 2**32}, r"spectrum\.seed: expected a whole number in 0\.\.4294967295, got 4294967296"),
        ({"classes": (1, 2, 1)}, r"spectrum\.classes: expected different class indices, got \(1, 2, 1\)"),
    ],
    ids=str,
)
def test_what_is_out_of_range_is_refused(options, message):
    with pytest.raises(InputError, match=f"^{message}"):
        fixed(**options)
    if set(options) <= set(options_of(published)):
        with pytest.raises(InputError, match=f"^{message}"):
            published(**options)
