"""Per-example factors: corrections of the data fit (C2 of the thesis, Eq. 3.9)."""

import jax
import jax.numpy as jnp
import numpy as np

from imbal_jax.corrections.compose import chain
from imbal_jax.corrections.weights import inverse_frequency, keep_logits
from imbal_jax.errors import InputError, check_number
from imbal_jax.losses import cross_entropy_losses
from imbal_jax.types import Array, Corrected, Correction, Prediction


def probability_of_error(logits: Array, labels: Array) -> Array:
    """1 - p_y of each example, [batch], as -expm1(-CE).

    It carries the rounding of the cross-entropy, so that quotients of the two keep their limits: CE / (1 - p_y) tends
    to 1 for fitted examples, also in float32.
    """
    return -jnp.expm1(-cross_entropy_losses(logits, labels))


def safe_power(base: Array, exponent: Array | float) -> Array:
    """base^exponent for base >= 0 with a finite gradient at 0, where it is taken as 0, or as 1 for the exponent 0.

    For exponent < 1 the derivative at 0 is infinite and times a zero loss gives NaN.

    Args:
      base: of any shape.
      exponent: >= 0; may be traced.
    """
    if not isinstance(exponent, jax.Array) and exponent == 0:
        return jnp.ones_like(base)
    positive = base > np.finfo(np.float32).tiny
    at_zero = jnp.where(jnp.asarray(exponent) == 0, jnp.ones_like(base), jnp.zeros_like(base))
    return jnp.where(positive, jnp.where(positive, base, 1.0) ** jnp.asarray(exponent, base.dtype), at_zero)


def focal(*, gamma: float = 1.0) -> Correction:
    """Focal loss, softmax form: the factor (1 - p_y)^gamma (Lin et al. 2018; thesis 3.4, Focal Loss).

    The thesis prints (1 - log p)^gamma, which grows with the loss: a misprint. The gradient flows through the
    factor, as in every published implementation.

    Args:
      gamma: focusing strength, dimensionless; 0 recovers cross-entropy.

    Raises:
      InputError: gamma < 0.
    """
    check_number("gamma", gamma, ">= 0")

    def correct(prediction: Prediction, labels: Array, progress) -> Corrected:
        del progress
        factor = safe_power(probability_of_error(prediction.logits, labels), gamma)
        return Corrected(prediction.logits, jnp.ones_like(factor), factor)

    return Correction(correct, keep_logits)


def alpha_focal(counts, *, gamma: float = 2.0, normalization: str = "mean_one") -> Correction:
    """Focal loss weighted by the inverse class frequency (thesis 3.4, alpha-Weighted Focal Loss).

    Args:
      counts: training examples per class, [num_classes], or a `ClassCounts`.
      gamma: focusing strength; the thesis uses 2 here and 1 without weights (Table B.5).
      normalization: of the weights, "mean_one", "sum_one" (the thesis) or "none".

    Raises:
      InputError: gamma < 0, a class is empty or the normalization is unknown.
    """
    return chain(focal(gamma=gamma), inverse_frequency(counts, normalization=normalization))


def influence(*, alpha: float = 1000.0, epsilon: float = 1e-3, stop_gradient_factor: bool = False) -> Correction:
    """The influence factor alpha / (||p - y||_1 ||h||_1 + epsilon) without class weights (Park et al. 2021).

    h are the features that enter the classifier, and ||p - y||_1 = 2 (1 - p_y). The published code
    differentiates through the factor, so that well-fitted examples lose their gradient and the loss can also be
    lowered by growing ||h||_1; its paper derives the method with the factor held constant, which gives every
    example a gradient of like size. The default is the published code.

    Args:
      alpha: scale, dimensionless (the thesis's zeta, 1000 in Table B.5).
      epsilon: keeps the factor finite; the thesis's formula omits it.
      stop_gradient_factor: holds the factor constant in the gradient.

    Raises:
      InputError: alpha or epsilon is not positive. On use: the model returned no features.
    """
    check_number("alpha", alpha, "> 0")
    check_number("epsilon", epsilon, "> 0")

    def correct(prediction: Prediction, labels: Array, progress) -> Corrected:
        del progress
        if prediction.features is None:
            raise InputError("features: the influence factor needs the model's features, got None")
        error_norm = 2.0 * probability_of_error(prediction.logits, labels)
        feature_norm = jnp.sum(jnp.abs(prediction.features), axis=-1)
        factor = alpha / (error_norm * feature_norm + epsilon)
        if stop_gradient_factor:
            factor = jax.lax.stop_gradient(factor)
        return Corrected(prediction.logits, jnp.ones_like(factor), factor)

    return Correction(correct, keep_logits)


def influence_balanced(
    counts,
    *,
    alpha: float = 1000.0,
    epsilon: float = 1e-3,
    normalization: str = "mean_one",
    stop_gradient_factor: bool = False,
) -> Correction:
    """Influence-balanced loss: the influence factor times inverse-frequency weights (Park et al. 2021; thesis 3.4).

    Published and thesis runs train with cross-entropy first: put it in `deferred(after=..., at=0.5)`.

    Args:
      counts: training examples per class, [num_classes], or a `ClassCounts`.
      alpha: scale, dimensionless.
      epsilon: keeps the factor finite.
      normalization: of the weights, "mean_one" (as published), "sum_one" (the thesis) or "none".
      stop_gradient_factor: see `influence`.

    Raises:
      InputError: an argument is out of range, or a class is empty.
    """
    factor = influence(alpha=alpha, epsilon=epsilon, stop_gradient_factor=stop_gradient_factor)
    return chain(factor, inverse_frequency(counts, normalization=normalization))
