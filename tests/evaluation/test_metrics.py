"""Metrics against scikit-learn, and by hand where scikit-learn has no counterpart."""

import warnings

import numpy as np
import pytest
from scipy.stats import gmean
from sklearn import metrics as sklearn_metrics

from imbal_jax.class_counts import class_counts
from imbal_jax.errors import InputError
from imbal_jax.evaluation.metrics import class_groups, confusion_matrix, group_recalls, metrics_from_confusion

TOLERANCE = {"rtol": 1e-13, "atol": 0}
NUM_CLASSES = 6


def _examples(seed, *, not_in_truth=(), not_predicted=()):
    """Labels and predictions of 300 imbalanced examples, about half of them correct."""
    rng = np.random.default_rng(seed)
    in_truth = np.setdiff1d(np.arange(NUM_CLASSES), not_in_truth)
    predictable = np.setdiff1d(np.arange(NUM_CLASSES), not_predicted)
    labels = rng.choice(in_truth, size=300, p=rng.dirichlet(np.full(len(in_truth), 2.0)))
    labels[: len(in_truth)] = in_truth
    guesses = rng.choice(predictable, size=300)
    keep = np.isin(labels, predictable) & (rng.random(300) < 0.5)
    return labels, np.where(keep, labels, guesses)


CASES = {
    "every class": {},
    "class absent from the truth": {"not_in_truth": (2,)},
    "class never predicted": {"not_predicted": (4,)},
    "both": {"not_in_truth": (2,), "not_predicted": (4,)},
    "class in neither": {"not_in_truth": (2, 5), "not_predicted": (2,)},
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("case", CASES)
def test_metrics_equal_scikit_learn(case, seed):
    labels, predictions = _examples(seed, **CASES[case])
    confusion = confusion_matrix(labels, predictions, NUM_CLASSES)
    classes = np.arange(NUM_CLASSES)
    np.testing.assert_array_equal(
        confusion, sklearn_metrics.confusion_matrix(labels, predictions, labels=classes), strict=True
    )
    result = metrics_from_confusion(confusion)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn warns of classes that are only predicted
        balanced_accuracy = sklearn_metrics.balanced_accuracy_score(labels, predictions)
    expected = {
        "accuracy": sklearn_metrics.accuracy_score(labels, predictions),
        "balanced_accuracy": balanced_accuracy,
        "macro_f1": sklearn_metrics.f1_score(
            labels, predictions, average="macro", labels=np.unique(labels), zero_division=0
        ),
    }
    options = {"average": None, "labels": classes, "zero_division": np.nan}
    expected["per_class_recall"] = sklearn_metrics.recall_score(labels, predictions, **options)
    expected["per_class_precision"] = sklearn_metrics.precision_score(labels, predictions, **options)
    expected["per_class_f1"] = sklearn_metrics.f1_score(labels, predictions, **options)
    expected["geometric_mean"] = gmean(expected["per_class_recall"][np.unique(labels)])
    assert set(result) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(result[name], value, err_msg=name, **TOLERANCE)


@pytest.mark.parametrize("seed", range(3))
def test_macro_f1_is_the_common_one_when_every_class_occurs(seed):
    labels, predictions = _examples(seed, not_predicted=(1,))
    expected = sklearn_metrics.f1_score(
        labels, predictions, average="macro", labels=np.arange(NUM_CLASSES), zero_division=0
    )
    result = metrics_from_confusion(confusion_matrix(labels, predictions, NUM_CLASSES))
    np.testing.assert_allclose(result["macro_f1"], expected, **TOLERANCE)


def test_absent_class_is_left_out_of_the_means():
    # Class 2 is never true but predicted twice; class 1 is true and never found.
    result = metrics_from_confusion([[3, 0, 1], [1, 0, 1], [0, 0, 0]])
    assert result["accuracy"] == 3 / 6
    assert result["balanced_accuracy"] == (3 / 4 + 0) / 2
    assert result["macro_f1"] == (2 * 3 / (4 + 4) + 0) / 2
    assert result["geometric_mean"] == 0
    np.testing.assert_array_equal(result["per_class_recall"], [3 / 4, 0, np.nan])
    np.testing.assert_array_equal(result["per_class_precision"], [3 / 4, np.nan, 0])
    np.testing.assert_array_equal(result["per_class_f1"], [3 / 4, 0, 0])


def test_geometric_mean_of_many_small_recalls_does_not_underflow():
    confusion = np.full((1000, 1000), 1)
    np.testing.assert_allclose(metrics_from_confusion(confusion)["geometric_mean"], 1e-3, rtol=1e-12)


def test_confusion_matrix_of_no_examples():
    np.testing.assert_array_equal(confusion_matrix([], [], 2), np.zeros((2, 2), np.int64), strict=True)


@pytest.mark.parametrize(
    ("labels", "predictions", "message"),
    [
        ([0, 3], [0, 1], r"^labels: expected class indices in 0..2, got 0..3$"),
        ([0, 1], [-1, 1], r"^predictions: expected class indices in 0..2, got -1..1$"),
        ([0, 1, 2], [0, 1], r"^predictions: expected 3 of them, one per label, got 2$"),
        ([0.0, 1.0], [0, 1], r"^labels: expected a vector of class indices, got shape \(2,\) of float64$"),
        ([0, 1], [[0, 1]], r"^predictions: expected a vector of class indices, got shape \(1, 2\) of int64$"),
    ],
)
def test_confusion_matrix_refuses(labels, predictions, message):
    with pytest.raises(InputError, match=message):
        confusion_matrix(labels, predictions, 3)


@pytest.mark.parametrize(
    ("confusion", "message"),
    [
        (np.ones((2, 3)), r"^confusion: expected a square matrix, got shape \(2, 3\)$"),
        (np.zeros((2, 2)), r"^confusion: expected at least one example"),
        ([[1, -1], [0, 2]], r"^confusion: expected whole numbers >= 0"),
        ([[0.5, 1], [0, 2]], r"^confusion: expected whole numbers >= 0"),
    ],
)
def test_metrics_refuse(confusion, message):
    with pytest.raises(InputError, match=message):
        metrics_from_confusion(confusion)


def test_groups_at_their_bounds():
    # Many-shot is > 100 and few-shot < 20: 100 and 20 themselves are median-shot.
    groups = class_groups([101, 100, 20, 19, 500, 1])
    assert {name: members.tolist() for name, members in groups.items()} == {
        "head": [0, 4],
        "mid": [1, 2],
        "tail": [3, 5],
    }


def test_groups_partition_the_classes_even_where_the_bounds_touch():
    counts = np.arange(1, 41)
    groups = class_groups(class_counts(counts), many_above=19, few_below=20)
    assert len(groups["mid"]) == 0
    np.testing.assert_array_equal(np.sort(np.concatenate(list(groups.values()))), np.arange(40))


def test_group_recalls_leave_absent_classes_out():
    result = group_recalls([0.9, np.nan, 0.7, 0.5, None], [200, 150, 120, 10, 5])
    assert result == {"recall_head": (0.9 + 0.7) / 2, "recall_mid": None, "recall_tail": 0.5}


def test_group_recalls_know_masked_classes():
    assert group_recalls([0.5, 0.25], [30, 0]) == {"recall_head": None, "recall_mid": 0.5, "recall_tail": 0.25}


def test_groups_refuse():
    with pytest.raises(InputError, match=r"^few_below: expected at most many_above \+ 1 = 11, got 20$"):
        class_groups([5, 5], many_above=10)
    with pytest.raises(InputError, match=r"^per_class_recall: expected shape \(3,\), got \(2,\)$"):
        group_recalls([0.5, 0.5], [5, 5, 5])
