"""Grids of conditions and the choice among them."""

import json

import numpy as np
import pytest

from imbal_jax.corrections.conditional import conditional_vector_scaling
from imbal_jax.corrections.weights import cross_entropy
from imbal_jax.errors import InputError
from imbal_jax.evaluation.evaluate import Scores
from imbal_jax.training.conditions import CHOICES, Conditions, Evaluated, condition_grid, write_scores

FAMILY = conditional_vector_scaling((60, 12))


def test_a_grid_is_all_combinations():
    found = condition_grid(FAMILY, ((0.0, 0.1), (0.0, 1.0, 2.0)))
    assert found.tolist() == [[0, 0], [0, 1], [0, 2], [0.1, 0], [0.1, 1], [0.1, 2]]
    assert found.dtype == np.float64
    assert len(condition_grid(FAMILY, ())) == len(condition_grid(cross_entropy(), ())) == 0


@pytest.mark.parametrize(
    ("correction", "values", "told"),
    [
        (cross_entropy(), ((1.0,),), "evaluation.grid: needs a conditional correction"),
        (FAMILY, ((1.0,),), "evaluation.grid: expected values of multiplicative, additive, got 1 tuples"),
        (FAMILY, ((1.0,), ()), r"evaluation.grid \(additive\): expected at least one value, got none"),
        (FAMILY, ((1.0,), (-1.0,)), r"evaluation.grid \(additive\): expected a number >= 0, got -1.0"),
    ],
)
def test_faulty_grids_are_told(correction, values, told):
    with pytest.raises(InputError, match=f"^{told}"):
        condition_grid(correction, values)


def conditions(validation, scores=None):
    """Three conditions, their metrics on the test set the rank of the condition."""
    test = {"auc": [0.0, 1.0, 2.0], "brier_score": [0.0, 1.0, 2.0], "loss": [0.0, 1.0, 2.0]}
    grid = np.array([[0.0, 1.0], [0.1, 1.0], [0.2, 1.0]])
    told = None if validation is None else Evaluated(validation, None)
    return Conditions(("multiplicative", "additive"), grid, told, Evaluated(test, scores))


def test_the_best_is_chosen_on_validation_and_told_on_the_test_set():
    found = conditions({"auc": [0.7, 0.9, 0.9], "brier_score": [0.3, 0.2, 0.1], "loss": [1.0, 0.5, 2.0]})
    assert found.best() == {
        "auc": {"condition": [0.1, 1.0], "validation": 0.9, "test": 1.0},  # the first of equals
        "brier_score": {"condition": [0.2, 1.0], "validation": 0.1, "test": 2.0},  # less is better
    }
    assert found.tuned() == {"tuned/auc": 1.0, "tuned/brier_score": 2.0}


def test_conditions_without_a_value_are_not_chosen():
    assert conditions({"auc": [None, 0.5, float("nan")]}).best()["auc"]["condition"] == [0.1, 1.0]
    assert conditions({"auc": [None, None, None]}).best() == {}


def test_without_validation_nothing_is_chosen():
    found = conditions(None)
    assert found.best() == found.tuned() == {}
    assert found.report()["validation"] is None
    assert found.report()["test"]["auc"] == [0.0, 1.0, 2.0]


def test_corrected_losses_of_different_conditions_are_not_compared():
    assert "loss" not in CHOICES
    assert CHOICES["brier_score"] and CHOICES["cross_entropy"]
    assert not CHOICES["auc"] and not CHOICES["max_f1"]


def test_files(tmp_path):
    labels, log_odds = np.array([0, 1, 1]), np.arange(9.0).reshape(3, 3)
    found = conditions({"auc": [0.7, 0.9, 0.8]}, Scores(log_odds, labels, np.ones(3)))
    write_scores(tmp_path, Scores(log_odds[0], labels, np.ones(3)), found)
    with np.load(tmp_path / "scores.npz") as archive:
        assert {name: archive[name].shape for name in archive.files} == {
            "labels": (3,),
            "log_odds": (3,),
            "conditions": (3, 2),
            "log_odds_at_conditions": (3, 3),
        }
        np.testing.assert_array_equal(archive["log_odds_at_conditions"], log_odds)
    report = json.loads((tmp_path / "conditions.json").read_text())
    assert report["names"] == ["multiplicative", "additive"]
    assert report["best"]["auc"]["condition"] == [0.1, 1.0]
    table = (tmp_path / "conditions.md").read_text().splitlines()
    assert table[0] == "| metric | multiplicative | additive | validation | test |"
    assert table[2] == "| AUC | 0.1 | 1 | 0.9000 | 1.0000 |"


def test_a_run_on_several_classes_without_conditions_writes_nothing(tmp_path):
    write_scores(tmp_path, None, None)
    assert not list(tmp_path.iterdir())
