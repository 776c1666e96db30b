"""Corrections of the logits: margins, additive and multiplicative adjustments by class."""

import jax
import jax.numpy as jnp
import numpy as np

from imbal_jax.class_counts import ClassCounts, class_counts
from imbal_jax.corrections.weights import keep_logits
from imbal_jax.errors import check_number
from imbal_jax.types import Array, Corrected, Correction, Prediction

# The log prior of a masked class, finite so that no gradient meets infinity: exp of it is 0 in every precision.
LOG_ZERO = -1e30


def ldam_margins(counts: ClassCounts, max_margin: float) -> np.ndarray:
    """m_c = max_margin * n_c^(-1/4) / max_j n_j^(-1/4), float64 [num_classes]; 0 for masked classes."""
    occupied = np.where(counts.present, counts.counts, 1).astype(np.float64)
    margins = np.where(counts.present, occupied**-0.25, 0.0)
    return margins * (max_margin / margins.max())


def ldam(counts, *, max_margin: float = 0.5, scale: float = 30.0) -> Correction:
    """Label-distribution-aware margins: cross-entropy of scale * (z - m_y on the true class) (Cao et al. 2019, Eq. 13).

    The papers' "Delta_c = C / n_c^(1/4)" has a tuned constant C, set here by the largest margin. The scale comes
    after the margin and is needed because z are the cosines of a cosine classifier; on raw logits use scale 1.

    Args:
      counts: training examples per class, [num_classes], or a `ClassCounts`.
      max_margin: the rarest class's margin, in units of the logits (cosines); the thesis's C, 0.5 in Table B.5.
      scale: inverse temperature; it also multiplies the logits of the predictive distribution.

    Raises:
      InputError: a class is empty, max_margin < 0 or scale <= 0.
    """
    check_number("max_margin", max_margin, ">= 0")
    check_number("scale", scale, "> 0")
    counts = class_counts(counts)
    margins = ldam_margins(counts, max_margin)

    def correct(prediction: Prediction, labels: Array, progress) -> Corrected:
        del progress
        logits = prediction.logits
        margin = jnp.asarray(margins, logits.dtype)[labels]
        truth = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
        weights = jnp.asarray(counts.present, logits.dtype)[labels]
        return Corrected(scale * (logits - margin[:, None] * truth), weights, jnp.ones_like(weights))

    return Correction(correct, lambda logits, progress: scale * logits)


def affine(multiplier: Array | np.ndarray, shift: Array | np.ndarray, weight: Array | np.ndarray) -> Correction:
    """Cross-entropy of multiplier_c z_c + shift_c in training; inference sees the raw logits.

    Args:
      multiplier: [num_classes]; may be traced, as the others may.
      shift: [num_classes], nats.
      weight: of the losses of each class, [num_classes]; 0 for masked classes, whose examples, which a validation set
        can have, would have an infinite loss.
    """

    def correct(prediction: Prediction, labels: Array, progress) -> Corrected:
        del progress
        logits = prediction.logits
        adjusted = jnp.asarray(multiplier, logits.dtype) * logits + jnp.asarray(shift, logits.dtype)
        weights = jnp.asarray(weight, logits.dtype)[labels]
        return Corrected(adjusted, weights, jnp.ones_like(weights))

    return Correction(correct, keep_logits)


def _log_prior(counts: ClassCounts, strength: float) -> np.ndarray:
    """strength * log pi_c, float64 [num_classes]; masked classes leave the softmax unless strength is 0."""
    occupied = np.where(counts.present, counts.priors, 1.0)
    return np.where(counts.present, strength * np.log(occupied), LOG_ZERO if strength else 0.0)


def logit_adjustment(counts, *, tau: float = 1.0) -> Correction:
    """Shifts logits by the scaled log class prior in training (Menon et al. 2021, Eq. 10).

    Do not also subtract the prior from this model's logits after training: that adjusts twice.

    Args:
      counts: training examples per class, [num_classes], or a `ClassCounts`.
      tau: strength, dimensionless; 0 recovers cross-entropy, 1 is Fisher-consistent for the balanced error.

    Raises:
      InputError: a class is empty or tau < 0.
    """
    return vector_scaling(counts, multiplicative=0.0, additive=check_number("tau", tau, ">= 0"))


def class_dependent_temperatures(counts, *, multiplicative: float = 0.3) -> Correction:
    """CDT: divides logit c by (n_max / n_c)^multiplicative in training (Ye et al. 2020).

    Args:
      counts: training examples per class, [num_classes], or a `ClassCounts`.
      multiplicative: exponent, dimensionless; 0 recovers cross-entropy.

    Raises:
      InputError: a class is empty or the exponent is negative.
    """
    return vector_scaling(counts, multiplicative=multiplicative, additive=0.0)


def vector_scaling(counts, *, multiplicative: float = 0.3, additive: float = 1.0) -> Correction:
    """VS loss: cross-entropy of z_c (n_c / n_max)^multiplicative + additive * log pi_c (Kini et al. 2021, Eq. 2).

    The papers give the two roles different Greek letters (gamma and tau in the published code), hence the names.

    Args:
      counts: training examples per class, [num_classes], or a `ClassCounts`.
      multiplicative: exponent of the multiplicative adjustment; 0 gives logit adjustment.
      additive: strength of the additive adjustment; 0 gives CDT.

    Raises:
      InputError: a class is empty or a strength is negative.
    """
    counts = class_counts(counts)
    exponent = check_number("multiplicative", multiplicative, ">= 0")
    occupied = np.where(counts.present, counts.counts, counts.counts.max()).astype(np.float64)
    multiplier = (occupied / occupied.max()) ** exponent
    shift = _log_prior(counts, check_number("additive", additive, ">= 0"))
    return affine(multiplier, shift, counts.present)
