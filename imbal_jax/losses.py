"""From a corrected prediction to per-example losses, with the reduction written out."""

from typing import Literal

import jax.numpy as jnp
import optax

from imbal_jax.errors import InputError
from imbal_jax.types import Array, Corrected

Reduction = Literal["mean", "weighted_mean"]


def cross_entropy_losses(logits: Array, labels: Array) -> Array:
    """Softmax cross-entropy of each example, [batch], in nats; never negative.

    Args:
      logits: [batch, num_classes].
      labels: class indices, [batch].
    """
    return optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)


def corrected_losses(corrected: Corrected, labels: Array) -> Array:
    """The corrected loss of each example before any reduction, [batch], in nats (thesis Eq. 3.6)."""
    losses = corrected.modulation * cross_entropy_losses(corrected.logits, labels)
    return corrected.weights * (losses if corrected.added is None else losses + corrected.added)


def check_reduction(reduction: str) -> None:
    """Raises InputError unless the reduction is one of the two that exist."""
    if reduction not in ("mean", "weighted_mean"):
        raise InputError(f"reduction: expected 'mean' or 'weighted_mean', got {reduction!r}")


def reduction_denominator(weights: Array, reduction: Reduction) -> Array | int:
    """What the sum of the corrected losses is divided by.

    "mean" divides by the number of examples. "weighted_mean" divides by the sum of the class weights, as
    PyTorch's weighted cross-entropy does: the scale of the weights drops out, and on examples of a single class
    the weights cancel altogether.

    Raises:
      InputError: the reduction is unknown.
    """
    check_reduction(reduction)
    return weights.shape[0] if reduction == "mean" else jnp.sum(weights)


def reducible_losses(corrected: Corrected, labels: Array, reduction: Reduction) -> Array:
    """Per-example losses [batch] whose plain mean is the loss under the reduction.

    Args:
      corrected: of the whole batch; under "weighted_mean" the normaliser is a quantity of this batch.
      labels: class indices, [batch].
      reduction: "mean" or "weighted_mean".

    Raises:
      InputError: the reduction is unknown.
    """
    losses = corrected_losses(corrected, labels)
    return losses * (losses.shape[0] / reduction_denominator(corrected.weights, reduction))
