"""The objective of a step: a model followed by a corrected loss."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from imbal_jax.losses import Reduction, reducible_losses
from imbal_jax.types import Array, Batch, Correction, Objective, Params, Prediction, PyTree


def standardise(images: Array, mean: Any, std: Any) -> Array:
    """(images - mean) / std per channel, float32; `images` in raw units, uint8 or float."""
    return (images.astype(jnp.float32) - jnp.asarray(mean)) / jnp.asarray(std)


def make_objective(
    model: nn.Module,
    correction: Correction,
    reduction: Reduction,
    *,
    model_state: PyTree,
    progress: Array | float,
    train: bool,
) -> Objective:
    """Binds a model, its running statistics and a correction at one moment of training.

    Args:
      model: called as model.apply(variables, inputs, train=...) -> (logits, features).
      correction: of the loss.
      reduction: "mean" or "weighted_mean"; the mean of the objective's losses is the loss under it.
      model_state: the model's running statistics, not differentiated.
      progress: fraction of training done.
      train: batch statistics and dropout, or running statistics and none.

    Returns:
      The objective. In training its prediction's aux is the new model state.
    """

    def predict(params: Params, batch: Batch, key: Array) -> Prediction:
        variables = {"params": params, **model_state}
        if not train:
            return Prediction(*model.apply(variables, batch.inputs, train=False))._replace(aux=model_state)
        (logits, features), new_state = model.apply(
            variables, batch.inputs, train=True, rngs={"dropout": key}, mutable=list(model_state)
        )
        return Prediction(logits, features, new_state)

    def losses(prediction: Prediction, batch: Batch) -> Array:
        corrected = correction.correct(prediction, batch.labels, progress)
        return reducible_losses(corrected, batch.labels, reduction)

    return Objective(predict, losses)
