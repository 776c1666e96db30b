"""The objective of a step: a model followed by a corrected loss."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from imbal_jax.losses import Reduction, reducible_losses, reduction_denominator
from imbal_jax.types import (
    Array,
    Batch,
    Conditioned,
    Correction,
    Horizon,
    Objective,
    Params,
    Prediction,
    PyTree,
    Structure,
)


def standardise(images: Any, mean: Any, std: Any) -> Any:
    """(images - mean) / std per channel, float32; `images` in raw units, uint8 or float.

    Without a mean the inputs are what the model receives already, such as clips of speech.
    """
    if mean is None:
        return images
    return (images.astype(jnp.float32) - jnp.asarray(mean)) / jnp.asarray(std)


def make_objective(
    model: nn.Module,
    correction: Correction,
    reduction: Reduction,
    *,
    model_state: PyTree,
    progress: Array | float,
    train: bool,
    constants: PyTree | None = None,
    step_key: Array | None = None,
) -> Objective:
    """Binds a model, its running statistics and a correction at one moment of training.

    Args:
      model: called as model.apply(variables, inputs, train=...) -> (logits, features).
      correction: of the loss.
      reduction: "mean" or "weighted_mean"; the mean of the objective's losses is the loss under it.
      model_state: the model's running statistics, not differentiated.
      progress: fraction of training done.
      train: batch statistics and dropout, or running statistics and none.
      constants: collections of variables that never change, such as the frozen weights of a pretrained model.
      step_key: of the noise that all examples of a step share, such as which layers are skipped; also where examples
        are predicted one by one with keys of their own.

    Returns:
      The objective. In training its prediction's aux is the new model state.
    """

    def predict(params: Params, batch: Batch, key: Array) -> Prediction:
        variables = {"params": params, **(constants or {}), **model_state}
        if not train:
            return Prediction(*model.apply(variables, batch.inputs, train=False))._replace(aux=model_state)
        rngs = {"dropout": key} if step_key is None else {"dropout": key, "layerdrop": step_key}
        (logits, features), new_state = model.apply(
            variables, batch.inputs, train=True, rngs=rngs, mutable=list(model_state)
        )
        return Prediction(logits, features, new_state)

    def losses(prediction: Prediction, batch: Batch) -> Array:
        corrected = correction.correct(prediction, batch.labels, progress)
        reduced = reducible_losses(corrected, batch.labels, reduction)
        return reduced if batch.example_weights is None else reduced * batch.example_weights

    def class_weights(prediction: Prediction, batch: Batch) -> Array:
        weights = jax.lax.stop_gradient(correction.correct(prediction, batch.labels, progress).weights)
        return weights * (weights.shape[0] / reduction_denominator(weights, reduction))

    def continued(model_state: PyTree) -> Objective:
        return make_objective(
            model,
            correction,
            reduction,
            model_state=model_state,
            progress=progress,
            train=train,
            constants=constants,
            step_key=step_key,
        )

    return Objective(predict, losses, class_weights, continued)


def step_key_of(model_key: Array) -> Array:
    """The key of what all examples of a step share, apart from those of the examples."""
    return jax.random.fold_in(model_key, 2**31)


def takes_condition(model: nn.Module) -> bool:
    """Whether a model has a FiLM block, and so wants `Conditioned` inputs."""
    return getattr(model, "film", None) is not None


def with_condition(model: nn.Module, inputs: Any, condition: Array | None) -> Any:
    """The inputs of a model under one condition for all examples; as they are without one, or without a FiLM block.

    Args:
      model: see `takes_condition`.
      inputs: standardised, [batch, ...].
      condition: [k]; None where the correction is not conditional.
    """
    if condition is None or not takes_condition(model):
        return inputs
    batch = len(jax.tree.leaves(inputs)[0])
    return Conditioned(inputs, jnp.broadcast_to(condition, (batch, *condition.shape)))


def at_default(model: nn.Module, correction: Correction, inputs: Any) -> Any:
    """The inputs of a model under the condition of evaluation, where the correction is conditional."""
    if correction.conditional is None:
        return inputs
    return with_condition(model, inputs, jnp.asarray(correction.conditional.default, jnp.float32))


def draw_condition(correction: Correction, model_key: Array) -> tuple[Correction, Array | None]:
    """The member of a conditional correction that a step trains with, and its condition [k]; else the correction, None.

    A direction that looks at a batch twice sees the same one.

    Args:
      correction: of the run.
      model_key: of the step.
    """
    if correction.conditional is None:
        return correction, None
    condition = correction.conditional.draw(condition_key_of(model_key))
    return correction.conditional.at(condition), condition


def condition_key_of(model_key: Array) -> Array:
    """The key of the condition of a step, apart from those of its examples, of what these share and of directions."""
    return jax.random.fold_in(model_key, 2**31 + 2)


def example_for(model: nn.Module, correction: Correction, example: Any) -> Any:
    """What an example is like as the model receives it, see `inputs_like`.

    Args:
      model: see `takes_condition`.
      correction: of the run.
      example: as its source has it.
    """
    if correction.conditional is None or not takes_condition(model):
        return example
    batch = inputs_like(example, 1)
    inputs = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), batch)
    condition: Any = jax.ShapeDtypeStruct((len(correction.conditional.names),), jnp.float32)
    return Conditioned(inputs, condition)


def inputs_like(example: Any, batch_size: int) -> Any:
    """The shapes of a batch of inputs.

    Args:
      example: the shape of one image, [height, width, channels]; or a tree of ShapeDtypeStructs of one example.
      batch_size: examples.
    """
    if all(isinstance(each, int) for each in example):
        return jax.ShapeDtypeStruct((batch_size, *example), jnp.float32)
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((batch_size, *leaf.shape), leaf.dtype), example)


def zeros_like_inputs(example: Any, batch_size: int) -> Any:
    """A batch of zeros, see `inputs_like`."""
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), inputs_like(example, batch_size))


def make_structure(
    model: nn.Module,
    correction: Correction,
    reduction: Reduction,
    input_shape: Any,
    batch_size: int,
    constants: PyTree | None = None,
    horizon: Horizon | None = None,
) -> Structure:
    """The shapes of a run; nothing is computed.

    Args:
      model: called as model.apply(variables, inputs, train=...) -> (logits, features).
      correction: of the loss.
      reduction: "mean" or "weighted_mean".
      input_shape: of one example, see `inputs_like`.
      batch_size: examples per step.
      constants: see `make_objective`.
      horizon: the run's length, for directions that change in the course of it.
    """
    inputs = inputs_like(example_for(model, correction, input_shape), batch_size)
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), inputs)
    state = {name: value for name, value in variables.items() if name not in ("params", *(constants or ()))}
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), state)
    objective = make_objective(
        model,
        correction,
        reduction,
        model_state=zeros,
        progress=0.0,
        train=True,
        constants=constants,
        step_key=jax.random.key(0),
    )
    batch: Any = (inputs, jax.ShapeDtypeStruct((batch_size,), jnp.int32))
    return Structure(objective, variables["params"], Batch(*batch), horizon)
