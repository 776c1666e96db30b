"""Classification metrics from a confusion matrix, on the host in float64.

Every number here is a function of one int64 matrix, which the training loop adds up on the device, so that a metric
never depends on how the examples were batched. scikit-learn is the reference in the tests.
"""

from typing import Any

import numpy as np

from imbal_jax.class_counts import class_counts
from imbal_jax.errors import InputError


def confusion_matrix(labels, predictions, num_classes: int) -> np.ndarray:
    """Counts the pairs of true and predicted class.

    Args:
      labels: true class indices, [examples].
      predictions: predicted class indices, [examples].
      num_classes: C.

    Returns:
      int64 [C, C]; entry (t, p) counts the examples of class t predicted as p.

    Raises:
      InputError: the two are not integer vectors of one length, or an index lies outside 0..C-1.
    """
    labels, predictions = np.asarray(labels), np.asarray(predictions)
    for name, indices in (("labels", labels), ("predictions", predictions)):
        if indices.ndim != 1 or not (np.issubdtype(indices.dtype, np.integer) or indices.size == 0):
            raise InputError(
                f"{name}: expected a vector of class indices, got shape {indices.shape} of {indices.dtype}"
            )
        if indices.size and not (indices.min() >= 0 and indices.max() < num_classes):
            raise InputError(
                f"{name}: expected class indices in 0..{num_classes - 1}, got {indices.min()}..{indices.max()}"
            )
    if len(labels) != len(predictions):
        raise InputError(f"predictions: expected {len(labels)} of them, one per label, got {len(predictions)}")
    pairs = labels.astype(np.int64) * num_classes + predictions.astype(np.int64)
    return np.bincount(pairs, minlength=num_classes**2).astype(np.int64).reshape(num_classes, num_classes)


def metrics_from_confusion(confusion) -> dict[str, Any]:
    """Accuracy, and what stays meaningful when the classes are not equally frequent.

    A class that never occurs in the truth has no recall, so it enters none of the means: `balanced_accuracy` is
    scikit-learn's `balanced_accuracy_score`, and `macro_f1` is its `f1_score(average="macro")` with `labels` set to
    the classes of the truth. (scikit-learn's default also counts a class that is only ever predicted, with an F1 of
    0; the two agree whenever the truth holds every class.) Examples wrongly given to an absent class still cost the
    recall of their own.

    Args:
      confusion: counts, [C, C], rows true, columns predicted.

    Returns:
      Fractions in [0, 1] by name:
        accuracy: examples classified correctly.
        balanced_accuracy: mean recall over the classes of the truth (thesis appendix A.3).
        macro_f1: mean F1 over the classes of the truth.
        geometric_mean: geometric mean of the recalls of these classes, 0 if one of them is 0. Some authors put a
          small number in the place of such a recall; this does not.
        per_class_recall: float64 [C], NaN for a class absent from the truth.
        per_class_precision: float64 [C], NaN for a class never predicted.
        per_class_f1: float64 [C], NaN for a class neither in the truth nor predicted.

    Raises:
      InputError: the matrix is not square, holds a number that is no count, or counts no example.
    """
    confusion = _validated(confusion)
    correct = np.diagonal(confusion).astype(np.float64)
    support, predicted = confusion.sum(axis=1), confusion.sum(axis=0)
    recall = _ratio(correct, support)
    f1 = _ratio(2 * correct, support + predicted)
    present = support > 0
    with np.errstate(divide="ignore"):
        geometric_mean = np.exp(np.log(recall[present]).mean())
    return {
        "accuracy": float(correct.sum() / confusion.sum()),
        "balanced_accuracy": float(recall[present].mean()),
        "macro_f1": float(f1[present].mean()),
        "geometric_mean": float(geometric_mean),
        "per_class_recall": recall,
        "per_class_precision": _ratio(correct, predicted),
        "per_class_f1": f1,
    }


def class_groups(train_counts, *, many_above: int = 100, few_below: int = 20) -> dict[str, np.ndarray]:
    """Sorts the classes into many-, median- and few-shot by their training examples.

    Args:
      train_counts: examples per class of the *training* set, [C], or a `ClassCounts`.
      many_above: a class with more examples is many-shot.
      few_below: a class with fewer is few-shot; all others are median-shot.

    Returns:
      Ascending class indices by group: head (many-shot), mid (median-shot), tail (few-shot). Every class is in
      exactly one group, and a group may be empty.

    Raises:
      InputError: the bounds overlap, or the counts are not valid.
    """
    if few_below > many_above + 1:
        raise InputError(f"few_below: expected at most many_above + 1 = {many_above + 1}, got {few_below}")
    counts = class_counts(train_counts, empty_classes="mask").counts
    many, few = counts > many_above, counts < few_below
    groups = {"head": many, "mid": ~(many | few), "tail": few}
    return {name: np.flatnonzero(members) for name, members in groups.items()}


def group_recalls(
    per_class_recall, train_counts, *, many_above: int = 100, few_below: int = 20
) -> dict[str, float | None]:
    """Mean recall of the many-, median- and few-shot classes.

    Args:
      per_class_recall: [C], NaN or None for a class absent from the truth; such a class enters no mean.
      train_counts: examples per class of the *training* set, [C], or a `ClassCounts`. The test set's counts would
        put every class of a balanced test set into one group.
      many_above: see `class_groups`.
      few_below: see `class_groups`.

    Returns:
      recall_head (many-shot), recall_mid (median-shot), recall_tail (few-shot), each a fraction in [0, 1], or None
      where no class of the group has a recall.

    Raises:
      InputError: the two lengths differ, or `class_groups` refuses its arguments.
    """
    recall = np.asarray(per_class_recall, np.float64)
    groups = class_groups(train_counts, many_above=many_above, few_below=few_below)
    num_classes = sum(map(len, groups.values()))
    if recall.shape != (num_classes,):
        raise InputError(f"per_class_recall: expected shape ({num_classes},), got {recall.shape}")
    result = {}
    for name, members in groups.items():
        measured = members[~np.isnan(recall[members])]
        result[f"recall_{name}"] = float(recall[measured].mean()) if len(measured) else None
    return result


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """The quotient, float64, NaN where the denominator is 0."""
    quotient = np.full(len(numerator), np.nan)
    np.divide(numerator, denominator, out=quotient, where=denominator > 0)
    return quotient


def _validated(confusion) -> np.ndarray:
    """The matrix as int64, or an InputError."""
    matrix = np.asarray(confusion)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise InputError(f"confusion: expected a square matrix, got shape {matrix.shape}")
    whole = matrix.astype(np.int64)
    if (whole != matrix).any() or (whole < 0).any():
        raise InputError("confusion: expected whole numbers >= 0, got other entries")
    if whole.sum() == 0:
        raise InputError("confusion: expected at least one example, got an all-zero matrix")
    return whole
