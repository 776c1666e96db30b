"""Losses that bear wrong labels: bounded, or with a bounded term beside the cross-entropy.

They are no multiples of the cross-entropy, so they are written as what is added to a multiple of it.
"""

import math

import jax
import jax.numpy as jnp

from imbal_jax.corrections.modulations import probability_of_error
from imbal_jax.corrections.weights import keep_logits
from imbal_jax.errors import InputError, check_number
from imbal_jax.losses import cross_entropy_losses
from imbal_jax.types import Array, Corrected, Correction, Keeping, Prediction

REFRESHES = ("batch", "epochs")


def symmetric_cross_entropy(
    *, alpha: float = 0.1, beta: float = 1.0, log_clip: float = math.log(1e-4), probability_clip: float = 0.0
) -> Correction:
    """SCE: alpha * CE + beta * RCE, the reverse being RCE = -log_clip * (1 - p_y) (Wang et al. 2019, section 3).

    The reverse cross-entropy -sum_c p_c log(onehot_c) needs a value for log 0. The paper's "A = -4" reads like a
    decimal logarithm: the published code has the natural log(1e-4) = -9.21, the default here. Its weights, the
    defaults, are those for CIFAR-10; it has alpha = 6 and beta = 0.1 for CIFAR-100.

    Args:
      alpha: of the cross-entropy, dimensionless.
      beta: of the reverse cross-entropy.
      log_clip: what stands for log 0, in nats; negative.
      probability_clip: the published code takes the probabilities of the wrong classes as at least this, 1e-7, in the
        reverse cross-entropy; below it they have no gradient. 0, the paper's formula, for no such bound.

    Raises:
      InputError: alpha or beta is negative, both are 0, log_clip is not negative or probability_clip outside [0, 1).
    """
    check_number("alpha", alpha, ">= 0")
    check_number("beta", beta, ">= 0")
    if alpha == beta == 0:
        raise InputError("alpha: expected alpha or beta > 0, got 0.0 for both")
    check_number("log_clip", log_clip, "< 0")
    check_number("probability_clip", probability_clip, "in [0, 1)")

    def correct(prediction: Prediction, labels: Array, progress) -> Corrected:
        del progress
        logits = prediction.logits
        wrong = (
            _clipped_error(logits, labels, probability_clip)
            if probability_clip
            else probability_of_error(logits, labels)
        )
        ones = jnp.ones_like(wrong)
        return Corrected(logits, ones, alpha * ones, -beta * log_clip * wrong)

    return Correction(correct, keep_logits)


def _clipped_error(logits: Array, labels: Array, least: float) -> Array:
    """The sum over the wrong classes of max(p_c, least), [batch]."""
    probabilities = jnp.maximum(jax.nn.softmax(logits), jnp.asarray(least, logits.dtype))
    wrong = 1 - jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    return jnp.sum(probabilities * wrong, axis=-1)


def generalized_cross_entropy(
    *, q: float = 0.7, truncation: float = 0.0, refresh: str = "batch", start: int = 39, every: int = 10
) -> Correction:
    """GCE, also L_q or TCE: (1 - p_y^q) / q (Zhang and Sabuncu 2018, section 3), with pruning by option.

    It tends to the cross-entropy as q falls to 0, and q = 1 is half the mean absolute error, 1 - p_y. Pruned examples,
    those with p_y <= k, lose nothing and have no gradient: v [(1 - p_y^q) / q - (1 - k^q) / q] with v = 1 for the
    others and 0 for these. This is the truncated loss but for a constant, without which it is negative.

    An untrained model is sure of nothing, and pruning leaves it nothing to learn from: "epochs" begins late, and with
    "batch" put it in `deferred(after=..., before=generalized_cross_entropy(q=q), at=...)`.

    Args:
      q: in (0, 1]; 0.7 in the paper, 0.1 to 0.7 with ABSGD.
      truncation: k, in [0, 1); 0 for no pruning. 0.5 in the paper.
      refresh: where v comes from: "batch", the present parameters, at every step; "epochs", as published, the best
        parameters so far, which look at the whole training set, in evaluation mode and without augmentation, and leave
        out the same examples until they do so again. The published code takes the best by the test set and the
        augmented images of an epoch; here `training.select` decides.
      start: with "epochs", the epochs before the first look; 39 is the published code's, which counts from one.
      every: with "epochs", the epochs between looks.

    Raises:
      InputError: an argument is out of its range, or "epochs" has nothing to prune. In a run: the training ends before
        `start`, or examples come from the host batch by batch, where "epochs" has no place to remember them.
    """
    check_number("q", q, "in (0, 1]")
    check_number("truncation", truncation, "in [0, 1)")
    if refresh not in REFRESHES:
        raise InputError(f"refresh: expected one of {', '.join(REFRESHES)}, got {refresh!r}")
    if refresh == "epochs" and not truncation:
        raise InputError(f"truncation: expected a number > 0 with refresh='epochs', got {truncation}")
    for name, value, least in (("start", start, 0), ("every", every, 1)):
        if value < least:
            raise InputError(f"{name}: expected a number of epochs >= {least}, got {value}")
    threshold = -math.expm1(q * math.log(truncation)) / q if truncation else math.inf

    def of_examples(prediction: Prediction, labels: Array) -> Array:
        return -jnp.expm1(-q * cross_entropy_losses(prediction.logits, labels)) / q

    def correct(prediction: Prediction, labels: Array, progress) -> Corrected:
        del progress
        losses = of_examples(prediction, labels)
        if truncation:
            below = losses < threshold
            losses = losses - threshold
            losses = jnp.where(below, losses, 0) if refresh == "batch" else losses
        return Corrected(prediction.logits, jnp.ones_like(losses), jnp.zeros_like(losses), losses)

    def keep(prediction: Prediction, labels: Array, progress) -> Array:
        del progress
        losses = of_examples(prediction, labels)
        return (losses < threshold).astype(losses.dtype)

    keeping = Keeping(keep, start, every) if refresh == "epochs" else None
    return Correction(correct, keep_logits, keeping=keeping)
