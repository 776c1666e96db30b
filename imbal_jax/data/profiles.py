"""Profiles: how many examples of each class the training set gets.

A profile maps the examples available per class, [num_classes], to the counts wanted, int64 [num_classes].
"""

from collections.abc import Callable

import numpy as np

from imbal_jax.data.dirichlet import dirichlet_counts
from imbal_jax.errors import InputError, check_number

Profile = Callable[[np.ndarray], np.ndarray]

# Thesis Table B.1, train columns, in CIFAR-10's label order.
THESIS_TABLE_B1 = {
    0.1: (118, 271, 306, 150, 211, 305, 110, 170, 2339, 515),
    1.0: (299, 472, 347, 296, 207, 390, 216, 837, 1248, 182),
    10.0: (634, 427, 651, 270, 364, 429, 477, 392, 433, 419),
}


def natural() -> Profile:
    """Every example there is, with whatever imbalance the data set has."""
    return lambda available: np.asarray(available, np.int64)


def balanced(*, per_class: int = 0) -> Profile:
    """The same count in every class.

    Args:
      per_class: examples per class; 0 for as many as the smallest class has.

    Raises:
      InputError: per_class < 0. On use: a class has fewer.
    """
    check_number("per_class", per_class, ">= 0")

    def wanted(available: np.ndarray) -> np.ndarray:
        count = per_class or int(np.min(available))
        return _obtainable(np.full(len(available), count), available)

    return wanted


def dirichlet(*, alpha: float = 1.0, total: int = 0, min_count: int = 100, seed: int = 0) -> Profile:
    """Counts floor(gamma_c * total), gamma ~ Dir(alpha), every class keeping more than min_count (thesis 4.1.1).

    Args:
      alpha: concentration, > 0; the thesis uses 0.1, 1 and 10.
      total: what the proportions are multiplied by; 0 for the size of the smallest class, as in the thesis
        (4500 on CIFAR-10).
      min_count: the bound, exclusive.
      seed: of the draw, apart from the seeds of training.

    Raises:
      InputError: alpha <= 0 or total < 0. On use: the bound is impossible, with the arithmetic.
    """
    check_number("alpha", alpha, "> 0")
    check_number("total", total, ">= 0")
    check_number("seed", seed, ">= 0")

    def wanted(available: np.ndarray) -> np.ndarray:
        rng = np.random.default_rng(seed)
        size = total or int(np.min(available))
        return dirichlet_counts(rng, alpha=alpha, total=size, min_count=min_count, available=available)

    return wanted


def long_tail(*, ratio: float = 100.0) -> Profile:
    """Exponentially falling counts int(n_max * (1 / ratio)^(c / (C - 1))) (Cui et al. 2019; Cao et al. 2019).

    Class 0 is the head. Computed in float64 and truncated, as the published counts are.

    Args:
      ratio: n_max / n_min, >= 1 (papers' "imbalance ratio"; published code takes its inverse).

    Raises:
      InputError: ratio < 1.
    """
    factor = 1.0 / _ratio(ratio)

    def wanted(available: np.ndarray) -> np.ndarray:
        most, last = int(np.min(available)), len(available) - 1
        return np.array([int(most * factor ** (c / last)) for c in range(len(available))], np.int64)

    return wanted


def step(*, ratio: float = 100.0) -> Profile:
    """The first half of the classes keeps n_max examples, the rest int(n_max * (1 / ratio)) (Buda et al. 2018).

    Args:
      ratio: n_max / n_min, >= 1.

    Raises:
      InputError: ratio < 1.
    """
    factor = 1.0 / _ratio(ratio)

    def wanted(available: np.ndarray) -> np.ndarray:
        most, num_classes = int(np.min(available)), len(available)
        return np.where(np.arange(num_classes) < num_classes // 2, most, int(most * factor)).astype(np.int64)

    return wanted


def binary(*, beta: float = 100.0) -> Profile:
    """All negatives (class 0) and floor(n_- / beta) positives (class 1), as in loss-conditional training.

    Its Table 12 has these numbers but for beta = 200 on the household classes, 13 of 2500 / 200.

    Args:
      beta: n_- / n_+, >= 1.

    Raises:
      InputError: beta < 1. On use: not two classes, no positive is left, or there are not as many.
    """
    _ratio(beta, name="beta")

    def wanted(available: np.ndarray) -> np.ndarray:
        if len(available) != 2:
            raise InputError(
                f"profile: binary is for two classes, got {len(available)}; group them with config.classes"
            )
        negatives = int(available[0])
        positives = int(np.floor(negatives / beta + 1e-9))
        if positives == 0:
            raise InputError(f"beta: expected at most {negatives}, so that a positive is left, got {beta}")
        return _obtainable(np.array([negatives, positives]), available)

    return wanted


def counts(*, counts: tuple[int, ...] = ()) -> Profile:
    """Counts given one by one.

    Args:
      counts: examples of each class.

    Raises:
      InputError: a count is negative. On use: their number is not the number of classes, or a class has fewer.
    """
    if any(count < 0 for count in counts):
        raise InputError(f"counts: expected numbers >= 0, got {tuple(counts)}")
    return lambda available: _obtainable(np.asarray(counts, np.int64), available)


def thesis_table_b1(*, alpha: float = 0.1) -> Profile:
    """The counts that the thesis drew for CIFAR-10 (Table B.1).

    Args:
      alpha: 0.1, 1 or 10.

    Raises:
      InputError: alpha is another number. On use: not ten classes, or a class has fewer examples.
    """
    if alpha not in THESIS_TABLE_B1:
        raise InputError(f"alpha: Table B.1 has {sorted(THESIS_TABLE_B1)}, got {alpha}; profile dirichlet draws others")
    return counts(counts=THESIS_TABLE_B1[alpha])


def _ratio(ratio: float, *, name: str = "ratio") -> float:
    """Returns a ratio >= 1, or raises InputError with a hint."""
    if not ratio > 0 or not np.isfinite(ratio):
        raise InputError(f"{name}: expected the largest count over the smallest, a number >= 1, got {ratio}")
    if ratio < 1:
        raise InputError(
            f"{name}: expected the largest count over the smallest, a number >= 1, got {ratio}; did you mean"
            f" {1 / ratio:g}? (some code bases take the inverse and call it imb_factor)"
        )
    return float(ratio)


def _obtainable(wanted: np.ndarray, available: np.ndarray) -> np.ndarray:
    """Returns the counts wanted, or raises InputError where a class has fewer examples."""
    if len(wanted) != len(available):
        raise InputError(f"counts: expected {len(available)} numbers, one per class, got {len(wanted)}")
    short = np.flatnonzero(wanted > available)
    if len(short):
        c = int(short[0])
        raise InputError(
            f"counts: class {c} should get {int(wanted[c])} examples, but only {int(available[c])} are left"
        )
    return wanted.astype(np.int64)
