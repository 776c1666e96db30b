"""Training examples per class, validated once."""

from typing import Literal, NamedTuple

import numpy as np

from imbal_jax.errors import InputError, check_number

EmptyClasses = Literal["refuse", "mask"]


class ClassCounts(NamedTuple):
    """Training examples per class.

    Attributes:
      counts: int64 [num_classes].
      present: bool [num_classes], the classes with at least one example.
    """

    counts: np.ndarray
    present: np.ndarray

    @property
    def num_classes(self) -> int:
        """The number of classes, empty ones included."""
        return len(self.counts)

    @property
    def total(self) -> int:
        """The number of examples."""
        return int(self.counts.sum())

    @property
    def imbalance(self) -> float:
        """p = max n_c / min n_c over the classes present (thesis 4.1.1)."""
        kept = self.counts[self.present]
        return float(kept.max() / kept.min())

    @property
    def priors(self) -> np.ndarray:
        """pi_c = n_c / n, float64 [num_classes]."""
        return self.counts / self.counts.sum()


def class_counts(counts, *, empty_classes: EmptyClasses = "refuse") -> ClassCounts:
    """Validates training counts.

    Args:
      counts: examples per class, [num_classes]; a `ClassCounts` passes through unchanged.
      empty_classes: "refuse" raises on a class without examples; "mask" keeps it: corrections that know
        the counts give it weight 0 and no margin, and those that shift logits by the prior take it out of the softmax.

    Returns:
      The validated counts.

    Raises:
      InputError: counts is not a vector of at least two non-negative whole numbers, all classes are empty, or a
        class is empty under "refuse".
    """
    if isinstance(counts, ClassCounts):
        return counts
    if empty_classes not in ("refuse", "mask"):
        raise InputError(f"empty_classes: expected 'refuse' or 'mask', got {empty_classes!r}")
    try:
        array = np.asarray(counts)
        as_float = array.astype(np.float64)
    except (TypeError, ValueError):
        raise InputError(f"class counts: expected a vector of whole numbers, got {counts!r}") from None
    if array.ndim != 1 or len(array) < 2:
        raise InputError(f"class counts: expected a vector of at least two classes, got shape {array.shape}")
    if not (as_float < 2**53).all() or (as_float != np.floor(as_float)).any() or (as_float < 0).any():
        raise InputError(f"class counts: expected whole numbers >= 0, got {array.tolist()}")
    whole = array.astype(np.int64)
    if whole.sum() == 0:
        raise InputError(f"class counts: every class is empty, got {whole.tolist()}")
    empty = np.flatnonzero(whole == 0).tolist()
    if empty and empty_classes == "refuse":
        raise InputError(
            f"class counts: classes {empty} have no training example in {whole.tolist()}; give every class one, or"
            " mask them with --config.training.empty_classes=mask"
        )
    return ClassCounts(whole, whole > 0)


def effective_numbers(counts: ClassCounts, beta: float) -> np.ndarray:
    """Effective numbers of examples (1 - beta^n_c) / (1 - beta), float64 [num_classes]; 1 for empty classes.

    Source: Cui et al. 2019, Eq. 2. Computed as expm1 in float64: 1 - beta^n loses its digits in float32.

    Args:
      counts: training examples per class.
      beta: 0 makes every class count as one example, towards 1 as its n_c examples.

    Raises:
      InputError: beta is outside [0, 1).
    """
    check_number("beta", beta, "in [0, 1)")
    occupied = np.where(counts.present, counts.counts, 1).astype(np.float64)
    with np.errstate(divide="ignore"):  # beta = 0: log 0 = -inf, and expm1(-inf) = -1 is the right limit
        return -np.expm1(occupied * np.log(beta)) / (1.0 - beta)


def count_labels(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Examples per class, int64 [num_classes], of valid integer labels."""
    return np.bincount(np.asarray(labels), minlength=num_classes).astype(np.int64)
