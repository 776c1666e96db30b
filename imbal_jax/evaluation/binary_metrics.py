"""Metrics of two classes over all thresholds, on the host in float64: what a confusion matrix does not tell.

Class 1 is positive. A score is any number that grows with the belief in it; here it is the log-odds, which does not
saturate where probabilities do. A threshold predicts the scores at or above it as positive, so that equal scores are
never told apart. Definitions: loss-conditional training, appendix A; scikit-learn is the reference in the tests.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from imbal_jax.errors import InputError, check_number

# What `binary_metrics` gives, and whether less is better.
BINARY_METRICS: Mapping[str, bool] = {
    "auc": False,
    "average_precision": False,
    "brier_score": True,
    "brier_score_sum": True,
    "max_f1": False,
    "max_balanced_accuracy": False,
    "precision_at_recall_99": False,
}


class OperatingPoints(NamedTuple):
    """What every distinct threshold gives, from the strictest on; the first predicts nothing as positive."""

    thresholds: np.ndarray  # float64 [points], falling, the first infinite
    true_positives: np.ndarray  # int64 [points]
    false_positives: np.ndarray  # int64 [points]

    @property
    def recall(self) -> np.ndarray:
        """tp / n_+ (Eq. 9), the true positive rate."""
        return self.true_positives / self.true_positives[-1]

    @property
    def false_positive_rate(self) -> np.ndarray:
        """fp / n_- (Eq. 10); the true negative rate is one less it."""
        return self.false_positives / self.false_positives[-1]

    @property
    def precision(self) -> np.ndarray:
        """tp / (tp + fp) (Eq. 11); 1 where nothing is predicted as positive."""
        predicted = self.true_positives + self.false_positives
        return np.where(predicted > 0, self.true_positives / np.maximum(predicted, 1), 1.0)

    @property
    def f1(self) -> np.ndarray:
        """2 tp / (2 tp + fp + fn) (Eq. 14); 0 where nothing is predicted as positive."""
        return 2 * self.true_positives / (self.true_positives + self.false_positives + self.true_positives[-1])

    @property
    def balanced_accuracy(self) -> np.ndarray:
        """The mean of the true positive and the true negative rate (Eq. 13)."""
        return 0.5 * (self.recall + 1.0 - self.false_positive_rate)


def operating_points(labels, scores) -> OperatingPoints:
    """The operating points of scores.

    Args:
      labels: 0 or 1, [n], of both at least one.
      scores: [n], no NaN.

    Raises:
      InputError: the two are not vectors of one length, a label is another, a score is NaN, or a class is absent.
    """
    labels, scores = _checked(labels, scores)
    order = np.argsort(-scores, kind="stable")
    falling, positive = scores[order], labels[order] == 1
    last_of_its_score = np.append(falling[1:] != falling[:-1], True)
    true_positives = np.cumsum(positive)[last_of_its_score]
    predicted = np.arange(1, len(falling) + 1)[last_of_its_score]
    return OperatingPoints(
        np.concatenate([[np.inf], falling[last_of_its_score]]),
        np.concatenate([[0], true_positives]).astype(np.int64),
        np.concatenate([[0], predicted - true_positives]).astype(np.int64),
    )


def roc_auc(points: OperatingPoints) -> float:
    """The area under the ROC curve by the trapezoid rule: tied pairs count one half (appendix A.8)."""
    heights = 0.5 * (points.recall[1:] + points.recall[:-1])
    return float(np.sum(np.diff(points.false_positive_rate) * heights))


def average_precision(points: OperatingPoints) -> float:
    """sum_n (R_n - R_(n-1)) P_n over the thresholds; Eq. 18 of the paper lacks the sum."""
    return float(np.sum(np.diff(points.recall) * points.precision[1:]))


def precision_at_recall(points: OperatingPoints, recall: float) -> float:
    """The largest precision of all thresholds whose recall is at least this.

    Args:
      points: of the scores.
      recall: in (0, 1].

    Raises:
      InputError: the recall is outside.
    """
    check_number("recall", recall, "in (0, 1]")
    # In counts: 0.99 of 100 positives are 99 of them, whatever 99 / 100 >= 0.99 rounds to.
    needed = recall * points.true_positives[-1] - 1e-9
    return float(points.precision[points.true_positives >= needed].max())


def brier_scores(labels, scores) -> np.ndarray:
    """(y_n - p_n)^2 of every example, p_n = 1 / (1 + exp(-score)), float64 [n]; scores are log-odds.

    Args:
      labels: 0 or 1, [n].
      scores: log-odds, [n].

    Raises:
      InputError: as of `operating_points`.
    """
    labels, scores = _checked(labels, scores)
    # The probability of the other class than the true one: never one less a number next to one.
    away = np.where(labels == 1, scores, -scores)
    with np.errstate(over="ignore"):  # exp of a large number: a probability of 0
        return np.square(1.0 / (1.0 + np.exp(away)))


def binary_metrics(labels, scores) -> dict[str, float]:
    """All metrics of a split.

    Args:
      labels: 0 or 1, [n], of both at least one.
      scores: log-odds of class 1, [n].

    Returns:
      By name:
        auc: area under the ROC curve.
        average_precision: of the precision-recall curve.
        brier_score: the mean of (y - p)^2, which is what the paper's tables have; lower is better.
        brier_score_sum: the sum, as the paper's Eq. 19 prints it.
        max_f1: over all thresholds.
        max_balanced_accuracy: over all thresholds.
        precision_at_recall_99: the largest precision at a recall >= 0.99.

    Raises:
      InputError: as of `operating_points`.
    """
    points, squares = operating_points(labels, scores), brier_scores(labels, scores)
    return {
        "auc": roc_auc(points),
        "average_precision": average_precision(points),
        "brier_score": float(squares.mean()),
        "brier_score_sum": float(squares.sum()),
        "max_f1": float(points.f1.max()),
        "max_balanced_accuracy": float(points.balanced_accuracy.max()),
        "precision_at_recall_99": precision_at_recall(points, 0.99),
    }


def _checked(labels: Any, scores: Any) -> tuple[np.ndarray, np.ndarray]:
    """Labels int64 and scores float64, or an InputError."""
    labels, scores = np.asarray(labels), np.asarray(scores, np.float64)
    if labels.ndim != 1 or scores.shape != labels.shape:
        raise InputError(f"scores: expected one per label, got shapes {scores.shape} and {labels.shape}")
    found = set(np.unique(labels).tolist())
    if not found <= {0, 1}:
        raise InputError(f"labels: expected 0 and 1, got {sorted(found)[:5]}")
    if len(found) < 2:
        raise InputError(f"labels: expected examples of both classes, got {sorted(found) or 'none'} only")
    if np.isnan(scores).any():
        raise InputError(f"scores: expected numbers, got NaN at index {int(np.flatnonzero(np.isnan(scores))[0])}")
    return labels.astype(np.int64), scores
