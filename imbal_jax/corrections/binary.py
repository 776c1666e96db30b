"""Losses of binary problems in closed form, also for a single logit and for strengths that are traced.

They say the same as the corrections of two classes: `vector_scaling` and `focal` composed with `minority_weight`.
"""

from numbers import Real

import jax
import jax.numpy as jnp

from imbal_jax.errors import InputError
from imbal_jax.types import Array


def vector_scaling_margin(
    logits: Array, ratio: Array | float, multiplicative: Array | float, additive: Array | float
) -> Array:
    """eta = z_+ / ratio^multiplicative - z_- - additive * log ratio, [batch] (loss-conditional training, Eq. 4).

    The VS loss of a negative example is log(1 + e^eta), that of a positive one log(1 + e^-eta).

    Args:
      logits: [batch, 2], of the negative and the positive class; or z_+ alone, [batch], with z_- = 0.
      ratio: beta = n_- / n_+, negative examples per positive one, >= 1.
      multiplicative: exponent, >= 0 (gamma).
      additive: strength, >= 0 (tau).

    Raises:
      InputError: the ratio is less than 1, or the logits are of another shape.
    """
    if isinstance(ratio, Real) and not ratio >= 1:
        raise InputError(f"ratio: expected a number >= 1, the frequent class to the rare one, got {ratio}")
    negative, positive = _two_logits(logits)
    log_ratio = jnp.log(jnp.asarray(ratio, positive.dtype))
    return positive * jnp.exp(-multiplicative * log_ratio) - negative - additive * log_ratio


def vector_scaling_losses(
    logits: Array,
    labels: Array,
    *,
    ratio: Array | float,
    multiplicative: Array | float = 0.0,
    additive: Array | float = 0.0,
    positive_weight: Array | float | None = None,
) -> Array:
    """The binary VS loss of each example, [batch], in nats; cross-entropy for multiplicative = additive = 0.

    Args:
      logits: see `vector_scaling_margin`.
      labels: 1 for positive examples, of the rare class, and 0 for negative ones, [batch].
      ratio: likewise.
      multiplicative: likewise.
      additive: likewise.
      positive_weight: Omega, of positive examples, negative ones having 1 - Omega; no weights by default.

    Raises:
      InputError: see `vector_scaling_margin`.
    """
    margin = vector_scaling_margin(logits, ratio, multiplicative, additive)
    losses = jax.nn.softplus(jnp.where(labels == 1, -margin, margin))
    return losses if positive_weight is None else losses * _weights(labels, positive_weight, losses)


def focal_losses(logits: Array, labels: Array, *, alpha: Array | float, gamma: Array | float) -> Array:
    """The alpha-balanced focal loss of each example, [batch]: -alpha_y (1 - p_y)^gamma log p_y (Lin et al. 2018).

    Args:
      logits: [batch, 2], of the negative and the positive class; or z_+ alone, [batch], with z_- = 0.
      labels: 1 for positive examples and 0 for negative ones, [batch].
      alpha: weight of positive examples, in [0, 1], negative ones having 1 - alpha.
      gamma: focusing strength, >= 0 (the phi of loss-conditional training).

    Raises:
      InputError: the logits are of another shape.
    """
    negative, positive = _two_logits(logits)
    wrong = jnp.where(labels == 1, negative - positive, positive - negative)
    # (1 - p_y)^gamma as the exponential of a logarithm, whose gradient is finite for every gamma.
    losses = jnp.exp(gamma * jax.nn.log_sigmoid(wrong)) * jax.nn.softplus(wrong)
    return losses * _weights(labels, alpha, losses)


def _two_logits(logits: Array) -> tuple[Array, Array]:
    """The logits of the negative and the positive class."""
    if logits.ndim == 1:
        return jnp.zeros_like(logits), logits
    if logits.ndim != 2 or logits.shape[1] != 2:
        raise InputError(f"logits: expected shape [batch] or [batch, 2], got {logits.shape}")
    return logits[:, 0], logits[:, 1]


def _weights(labels: Array, positive_weight: Array | float, losses: Array) -> Array:
    """The weight of each example."""
    return jnp.where(labels == 1, positive_weight, 1.0 - jnp.asarray(positive_weight)).astype(losses.dtype)
