"""Which examples go where: the validation split and the imbalanced training subset."""

import numpy as np

from imbal_jax.class_counts import count_labels
from imbal_jax.errors import InputError, check_number


def validation_counts(available: np.ndarray, *, fraction: float, balanced: bool) -> np.ndarray:
    """Validation examples per class, int64 [num_classes].

    Args:
      available: examples per class before the split, [num_classes].
      fraction: share of the examples, in [0, 1); 0 for no validation split.
      balanced: the same number in every class, floor(fraction * smallest class); otherwise floor(fraction * n_c).

    Raises:
      InputError: the fraction is outside [0, 1), or leaves a class without a validation example.
    """
    check_number("validation.fraction", fraction, "in [0, 1)")
    available = np.asarray(available, np.int64)
    base = np.full_like(available, available.min()) if balanced else available
    wanted = np.floor(fraction * base + 1e-9).astype(np.int64)  # 0.29 * 100 must not become 28
    if fraction > 0 and wanted.min() == 0:
        c = int(available.argmin())
        raise InputError(
            f"validation.fraction: {fraction} of class {c}'s {int(available[c])} examples is less than one; raise it,"
            " give x_val and y_val, or set it to 0"
        )
    return wanted


def draw_per_class(rng: np.random.Generator, labels: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Indices of `wanted[c]` random examples of every class c, ascending, int64.

    Raises:
      InputError: a class has fewer examples than wanted.
    """
    available = count_labels(labels, len(wanted))
    short = np.flatnonzero(np.asarray(wanted) > available)
    if len(short):
        c = int(short[0])
        raise InputError(
            f"class counts: class {c} should get {int(wanted[c])} examples, but only {available[c]} are left"
        )
    chosen = [rng.permutation(np.flatnonzero(labels == c))[:count] for c, count in enumerate(wanted)]
    return np.sort(np.concatenate(chosen))


def split_off(rng: np.random.Generator, labels: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the examples kept and of those split off, `wanted[c]` of every class c; both ascending.

    Raises:
      InputError: a class has fewer examples than wanted.
    """
    away = draw_per_class(rng, labels, wanted)
    return np.setdiff1d(np.arange(len(labels)), away), away
