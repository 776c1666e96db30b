"""Class weights: corrections of the data proportion (C1 of the thesis, Eq. 3.9)."""

from typing import Literal

import jax.numpy as jnp
import numpy as np

from imbal_jax.class_counts import ClassCounts, class_counts, effective_numbers
from imbal_jax.errors import InputError, check_number
from imbal_jax.types import Array, Corrected, Correction, Prediction

Normalization = Literal["mean_one", "sum_one", "none"]


def normalize_weights(weights: np.ndarray, normalization: Normalization) -> np.ndarray:
    """Scales class weights.

    Args:
      weights: float64 [num_classes], 0 for masked classes.
      normalization: "mean_one" (they sum to the number of classes present, so that the learning rate keeps its
        meaning), "sum_one" (the thesis 3.4; with a plain mean over the batch this shrinks the loss by orders of
        magnitude) or "none".

    Raises:
      InputError: the normalization is unknown.
    """
    if normalization == "mean_one":
        return weights * (np.count_nonzero(weights) / weights.sum())
    if normalization == "sum_one":
        return weights / weights.sum()
    if normalization == "none":
        return weights
    raise InputError(f"normalization: expected 'mean_one', 'sum_one' or 'none', got {normalization!r}")


def inverse_frequency_weights(
    counts: ClassCounts, *, power: float = 1.0, normalization: Normalization = "mean_one"
) -> np.ndarray:
    """w_c proportional to n_c^-power, float64 [num_classes]; 0 for masked classes.

    Raises:
      InputError: the normalization is unknown.
    """
    occupied = np.where(counts.present, counts.counts, 1).astype(np.float64)
    return normalize_weights(np.where(counts.present, occupied**-power, 0.0), normalization)


def effective_number_weights(
    counts: ClassCounts, *, beta: float, normalization: Normalization = "mean_one"
) -> np.ndarray:
    """w_c proportional to (1 - beta) / (1 - beta^n_c), float64 [num_classes]; 0 for masked classes.

    Raises:
      InputError: beta is outside [0, 1), or the normalization is unknown.
    """
    return normalize_weights(np.where(counts.present, 1.0 / effective_numbers(counts, beta), 0.0), normalization)


def weighted(weights: np.ndarray) -> Correction:
    """Multiplies each example's loss by the weight of its class.

    Args:
      weights: float64 [num_classes].
    """

    def correct(prediction: Prediction, labels: Array, progress) -> Corrected:
        del progress
        per_class = jnp.asarray(weights, prediction.logits.dtype)
        ones = jnp.ones(labels.shape, prediction.logits.dtype)
        return Corrected(prediction.logits, per_class[labels], ones)

    return Correction(correct, keep_logits)


def keep_logits(logits: Array, progress) -> Array:
    """The predictive logits of a correction that leaves them as they are."""
    del progress
    return logits


def cross_entropy() -> Correction:
    """No correction: alpha_n = 1 (thesis 3.4, Baseline)."""

    def correct(prediction: Prediction, labels: Array, progress) -> Corrected:
        del progress
        ones = jnp.ones(labels.shape, prediction.logits.dtype)
        return Corrected(prediction.logits, ones, ones)

    return Correction(correct, keep_logits)


def inverse_frequency(counts, *, power: float = 1.0, normalization: str = "mean_one") -> Correction:
    """Re-weighting by the inverse class frequency (thesis 3.4, Re-weighting; IRW of 4.1.5).

    Args:
      counts: training examples per class, [num_classes], or a `ClassCounts`.
      power: w_c proportional to n_c^-power; 1 is the thesis, 0 no correction, 0.5 a common compromise.
      normalization: "mean_one", "sum_one" (the thesis) or "none".

    Raises:
      InputError: a class is empty, power < 0 or the normalization is unknown.
    """
    check_number("power", power, ">= 0")
    return weighted(
        inverse_frequency_weights(class_counts(counts), power=power, normalization=normalization)  # type: ignore[arg-type]
    )


def class_balanced(counts, *, beta: float = 0.999, normalization: str = "mean_one") -> Correction:
    """Re-weighting by the effective number of samples (Cui et al. 2019, Eq. 2; thesis 3.4, Class-Balance).

    Table 4.1 of the thesis prints (1 - b) / (1 - b n_c); the exponent was lost, the text is right.

    Args:
      counts: training examples per class, [num_classes], or a `ClassCounts`.
      beta: 0 is no correction, towards 1 the inverse frequency. Classes with n_c well above 1 / (1 - beta) get
        equal weights.
      normalization: "mean_one" (as published), "sum_one" or "none".

    Raises:
      InputError: a class is empty, beta is outside [0, 1) or the normalization is unknown.
    """
    return weighted(
        effective_number_weights(class_counts(counts), beta=beta, normalization=normalization)  # type: ignore[arg-type]
    )


def minority_weight(counts, *, weight: float = 0.5) -> Correction:
    """Weighs the rarer of two classes by `weight` and the other by 1 - weight; of equal ones the second is the rarer.

    The alpha of alpha-balanced focal loss (Lin et al. 2018), with `focal` as the modulation of a composition, and the
    Omega of the published binary VS loss (Kini et al. 2021), with `vector_scaling` as its margin. At 0.5 the loss is
    halved.

    Args:
      counts: training examples of both classes, [2], or a `ClassCounts`.
      weight: in [0, 1].

    Raises:
      InputError: the weight is outside [0, 1], a class is empty, or there are not two classes.
    """
    check_number("weight", weight, "in [0, 1]")
    counts = class_counts(counts)
    if counts.num_classes != 2:
        raise InputError(f"minority_weight: expected two classes, got {counts.num_classes}")
    first, second = counts.counts
    return weighted(np.array([weight, 1 - weight] if first < second else [1 - weight, weight]))
