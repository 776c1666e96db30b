"""Means and standard errors over seeds."""

import json

import numpy as np
import pytest
from scipy.stats import sem

from imbal_jax.errors import InputError
from imbal_jax.reports.summaries import mean_and_standard_error, summarise, within_seconds


@pytest.mark.parametrize("shape", [(2,), (5,), (3, 4), (3, 4, 4)])
def test_standard_error_equals_scipy(shape):
    values = np.random.default_rng(0).normal(size=shape)
    mean, error = mean_and_standard_error(values)
    np.testing.assert_allclose(mean, values.mean(axis=0), rtol=1e-13)
    np.testing.assert_allclose(error, sem(values, axis=0, ddof=1), rtol=1e-13)


def test_one_seed_has_no_standard_error():
    assert mean_and_standard_error([0.5]) == (0.5, None)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_diverged_seed_does_not_vanish(bad):
    mean, error = mean_and_standard_error([0.5, bad, 0.7])
    assert not np.isfinite(mean) and np.isnan(error)


@pytest.mark.parametrize("values", [[], 0.5])
def test_no_seeds(values):
    with pytest.raises(InputError, match=r"^values: expected one value per seed, got "):
        mean_and_standard_error(values)


def _results(seed):
    accuracy = (0.5, 0.6, 0.9)[seed]
    return {
        "num_params": 1234,
        "num_trainable": 1000,
        "class_counts": np.array([50, 5]),
        "best_step": 100 + seed,
        "test/accuracy": accuracy,
        "test/per_class_recall": np.array([accuracy, accuracy / 2]),
        "seconds_per_epoch": 2,
        "dataset": "digits",
    }


def test_summary_of_several_seeds():
    summary = summarise({2: _results(2), 0: _results(0), 1: _results(1)})
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    assert list(summary) == [
        *("num_params", "num_trainable", "class_counts", "seeds", "best_step"),
        *("test/accuracy", "test/per_class_recall", "seconds_per_epoch", "dataset", "standard_error", "per_seed"),
    ]
    assert summary["num_params"] == 1234 and type(summary["num_params"]) is int
    assert summary["class_counts"] == [50, 5]
    assert summary["seeds"] == [0, 1, 2]
    assert summary["best_step"] == [100, 101, 102]
    assert summary["dataset"] == "digits"
    accuracies = [0.5, 0.6, 0.9]
    np.testing.assert_allclose(summary["test/accuracy"], np.mean(accuracies), rtol=1e-13)
    np.testing.assert_allclose(summary["test/per_class_recall"], [2 / 3, 1 / 3], rtol=1e-13)
    assert set(summary["standard_error"]) == {"test/accuracy", "test/per_class_recall", "seconds_per_epoch"}
    np.testing.assert_allclose(summary["standard_error"]["test/accuracy"], sem(accuracies), rtol=1e-13)
    np.testing.assert_allclose(
        summary["standard_error"]["test/per_class_recall"], [sem(accuracies), sem(accuracies) / 2], rtol=1e-13
    )
    assert summary["standard_error"]["seconds_per_epoch"] == 0
    assert list(summary["per_seed"]) == ["0", "1", "2"]
    assert summary["per_seed"]["1"]["test/accuracy"] == 0.6
    assert summary["per_seed"]["1"]["class_counts"] == [50, 5]


def test_summary_of_one_seed():
    summary = summarise({1: _results(1)})
    assert summary["seeds"] == [1]
    assert summary["best_step"] == 101
    assert summary["test/accuracy"] == 0.6
    assert summary["test/per_class_recall"] == [0.6, 0.3]
    assert set(summary["standard_error"].values()) == {None}
    assert set(summary["standard_error"]) == {"test/accuracy", "test/per_class_recall", "seconds_per_epoch"}


def test_values_that_seeds_lack_are_null():
    summary = summarise(
        {
            0: {"test/loss": 0.5, "test/recall_tail": None, "test/per_class_recall": [0.5, None], "only/first": 1.0},
            1: {"test/loss": np.nan, "test/recall_tail": 0.5, "test/per_class_recall": [0.7, 0.2]},
        }
    )
    for key in ("test/loss", "test/recall_tail", "only/first"):
        assert summary[key] is None and summary["standard_error"][key] is None
    np.testing.assert_allclose(summary["test/per_class_recall"][0], 0.6, rtol=1e-13)
    assert summary["test/per_class_recall"][1] is None
    assert summary["per_seed"]["1"]["test/recall_tail"] == 0.5


def test_values_without_a_mean_stay_with_their_seeds():
    names = ["0", "1"]  # digits' class names look like numbers and are none
    summary = summarise(
        {
            0: {"names": names, "stopped": False, "device": "cpu", "curve": [1.0]},
            1: {"names": names, "stopped": True, "device": "gpu", "curve": [1.0, 0.5]},
        }
    )
    assert list(summary) == ["seeds", "names", "standard_error", "per_seed"]
    assert summary["names"] == names
    assert summary["standard_error"] == {}
    assert summary["per_seed"]["1"] == {"names": names, "stopped": True, "device": "gpu", "curve": [1.0, 0.5]}


def test_class_counts_drawn_per_seed_are_averaged():
    summary = summarise({0: {"class_counts": [10, 4]}, 1: {"class_counts": [12, 2]}})
    assert summary["class_counts"] == [11.0, 3.0]


def test_summary_refuses():
    with pytest.raises(InputError, match=r"^per_seed: expected the results of at least one seed, got none$"):
        summarise({})
    with pytest.raises(InputError, match=r"^per_seed: \['seeds'\] are reserved names"):
        summarise({0: {"seeds": 3}})


@pytest.mark.parametrize(("seconds", "step"), [(2.9, None), (3.0, 1), (4.9, 1), (5.0, 2), (100.0, 3)])
def test_within_seconds_is_the_last_record_in_time(seconds, step):
    records = [{"step": 1, "seconds": 3.0}, {"step": 2, "seconds": 2.0}, {"step": 3, "seconds": 2.0}]
    assert within_seconds(records, seconds).get("step") == step
