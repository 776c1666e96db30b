"""The objective of a step: a model followed by a corrected loss."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from imbal_jax.losses import Reduction, reducible_losses, reduction_denominator
from imbal_jax.types import Array, Batch, Correction, Objective, Params, Prediction, PyTree, Structure


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

    def class_weights(prediction: Prediction, batch: Batch) -> Array:
        weights = jax.lax.stop_gradient(correction.correct(prediction, batch.labels, progress).weights)
        return weights * (weights.shape[0] / reduction_denominator(weights, reduction))

    return Objective(predict, losses, class_weights)


def make_structure(
    model: nn.Module, correction: Correction, reduction: Reduction, input_shape: tuple[int, ...], batch_size: int
) -> Structure:
    """The shapes of a run; nothing is computed.

    Args:
      model: called as model.apply(variables, inputs, train=...) -> (logits, features).
      correction: of the loss.
      reduction: "mean" or "weighted_mean".
      input_shape: of one example, [height, width, channels].
      batch_size: examples per step.
    """
    inputs = jax.ShapeDtypeStruct((batch_size, *input_shape), jnp.float32)
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), inputs)
    state = {name: value for name, value in variables.items() if name != "params"}
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), state)
    objective = make_objective(model, correction, reduction, model_state=zeros, progress=0.0, train=True)
    batch: Any = (inputs, jax.ShapeDtypeStruct((batch_size,), jnp.int32))
    return Structure(objective, variables["params"], Batch(*batch))
