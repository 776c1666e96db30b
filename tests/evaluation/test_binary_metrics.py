"""Metrics of two classes against scikit-learn and their definitions."""

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from imbal_jax.errors import InputError
from imbal_jax.evaluation.binary_metrics import (
    BINARY_METRICS,
    average_precision,
    binary_metrics,
    brier_scores,
    operating_points,
    precision_at_recall,
    roc_auc,
)


def sample(seed, size, share, *, rounded):
    """Labels and log-odds; rounded ones have ties within and between the classes."""
    rng = np.random.default_rng(seed)
    labels = (rng.random(size) < share).astype(int)
    labels[:2] = 0, 1
    scores = rng.normal(size=size) * 2 + 1.5 * labels - 0.5
    return labels, np.round(scores) if rounded else scores


CASES = [
    pytest.param(*sample(seed, size, share, rounded=rounded), id=f"{size}-{share}-{'ties' if rounded else 'distinct'}")
    for seed, (size, share) in enumerate([(200, 0.5), (500, 0.05), (150, 0.9), (2, 0.5)])
    for rounded in (False, True)
]
every_case = pytest.mark.parametrize(("labels", "scores"), CASES)


def over_thresholds(labels, scores, measure):
    """A measure of the predictions at every threshold, the first of which predicts nothing."""
    return [measure(labels, (scores >= threshold).astype(int)) for threshold in (np.inf, *np.unique(scores)[::-1])]


@every_case
def test_areas_are_those_of_scikit_learn(labels, scores):
    points = operating_points(labels, scores)
    assert roc_auc(points) == pytest.approx(sklearn_metrics.roc_auc_score(labels, scores), rel=1e-12)
    expected = sklearn_metrics.average_precision_score(labels, scores)
    assert average_precision(points) == pytest.approx(expected, rel=1e-12)


@every_case
def test_curves_are_those_of_scikit_learn(labels, scores):
    points = operating_points(labels, scores)
    false, true, thresholds = sklearn_metrics.roc_curve(labels, scores, drop_intermediate=False)
    np.testing.assert_allclose(points.false_positive_rate, false, rtol=1e-12)
    np.testing.assert_allclose(points.recall, true, rtol=1e-12)
    np.testing.assert_array_equal(points.thresholds, thresholds)
    precision, recall, _ = sklearn_metrics.precision_recall_curve(labels, scores)
    np.testing.assert_allclose(points.precision[::-1], precision, rtol=1e-12)
    np.testing.assert_allclose(points.recall[::-1], recall, rtol=1e-12)


@every_case
def test_largest_over_all_thresholds(labels, scores):
    found = binary_metrics(labels, scores)
    f1 = over_thresholds(labels, scores, lambda y, p: sklearn_metrics.f1_score(y, p, zero_division=0))
    balanced = over_thresholds(labels, scores, sklearn_metrics.balanced_accuracy_score)
    assert found["max_f1"] == pytest.approx(max(f1), rel=1e-12)
    assert found["max_balanced_accuracy"] == pytest.approx(max(balanced), rel=1e-12)
    recalls = over_thresholds(labels, scores, sklearn_metrics.recall_score)
    precisions = over_thresholds(labels, scores, lambda y, p: sklearn_metrics.precision_score(y, p, zero_division=1))
    reaching = [p for r, p in zip(recalls, precisions, strict=True) if r >= 0.99]
    assert found["precision_at_recall_99"] == pytest.approx(max(reaching), rel=1e-12)


@every_case
def test_brier_score_is_that_of_scikit_learn(labels, scores):
    found = binary_metrics(labels, scores)
    expected = sklearn_metrics.brier_score_loss(labels, 1 / (1 + np.exp(-scores)))
    assert found["brier_score"] == pytest.approx(expected, rel=1e-12)
    assert found["brier_score_sum"] == pytest.approx(expected * len(labels), rel=1e-12)  # as Eq. 19 prints it


def test_names_and_values_are_plain():
    found = binary_metrics(*sample(0, 50, 0.3, rounded=False))
    assert list(found) == list(BINARY_METRICS)
    assert {type(value) for value in found.values()} == {float}


def test_a_perfect_and_a_constant_score():
    labels = np.array([0, 0, 0, 1])
    perfect = binary_metrics(labels, 100.0 * labels - 50)
    assert perfect == pytest.approx({name: 0.0 if less else 1.0 for name, less in BINARY_METRICS.items()})
    constant = binary_metrics(labels, np.zeros(4))
    assert constant["auc"] == 0.5
    assert constant["average_precision"] == constant["precision_at_recall_99"] == 0.25
    assert constant["max_balanced_accuracy"] == 0.5
    assert constant["brier_score"] == 0.25


def test_recall_is_counted_in_whole_examples():
    labels = np.r_[np.ones(100, int), np.zeros(10, int)]
    scores = np.r_[np.full(99, 2.0), -2.0, np.zeros(10)]
    assert precision_at_recall(operating_points(labels, scores), 0.99) == 1.0  # 99 of 100 are enough
    assert precision_at_recall(operating_points(labels, scores), 0.991) == pytest.approx(100 / 110)


def test_brier_scores_of_large_log_odds_keep_their_digits():
    found = brier_scores([1, 1, 0, 0, 1], [40.0, -40.0, 40.0, -800.0, 800.0])
    np.testing.assert_allclose(found[:3], [np.exp(-80.0), 1.0, 1.0], rtol=1e-12)
    np.testing.assert_array_equal(found[3:], 0.0)


@pytest.mark.parametrize(
    ("labels", "scores", "told"),
    [
        ([1, 1], [0.0, 1.0], r"labels: expected examples of both classes, got \[1\] only"),
        ([0, 0], [0.0, 1.0], r"labels: expected examples of both classes, got \[0\] only"),
        ([], [], "labels: expected examples of both classes, got none only"),
        ([0, 2], [0.0, 1.0], r"labels: expected 0 and 1, got \[0, 2\]"),
        ([0, 1], [0.0, np.nan], "scores: expected numbers, got NaN at index 1"),
        ([0, 1], [0.0], r"scores: expected one per label, got shapes \(1,\) and \(2,\)"),
        ([[0, 1]], [[0.0, 1.0]], "scores: expected one per label"),
    ],
)
def test_what_has_no_curve_is_refused(labels, scores, told):
    with pytest.raises(InputError, match=f"^{told}"):
        binary_metrics(labels, scores)


@pytest.mark.parametrize("recall", [0.0, 1.1, float("nan")])
def test_recalls_out_of_range_are_refused(recall):
    with pytest.raises(InputError, match=r"^recall: expected a number in"):
        precision_at_recall(operating_points([0, 1], [0.0, 1.0]), recall)
