"""Per-example gradients held in full, by differentiating example by example."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from imbal_jax.curvature.recognition import uses_batch_statistics
from imbal_jax.errors import InputError
from imbal_jax.models.batch_norm import BatchNorm
from imbal_jax.types import Array, Batch, Objective, Params, Prediction

_EXAMPLES = "examples"


def predict_examples(
    objective: Objective, params: Params, batch: Batch, key: Array
) -> tuple[Prediction, Callable[[Array, Array | None], Params]]:
    """Predicts every example by itself, batch statistics excepted.

    Every example has its own key, the step's folded with its position. Where the model normalises by batch statistics,
    these are taken over all examples, and differentiation goes through them: row n of J is the gradient with respect
    to the copy of the parameters that example n uses, so that the rows sum to the gradient of the batch.

    Args:
      objective: its prediction must treat examples alike.
      params: of the model.
      batch: with N examples.
      key: of the step.

    Returns:
      The prediction of the batch, and a function from its cotangents (logits [N, num_classes], features or None) to J,
      the parameters' tree with leaves [N, ...].

    Raises:
      InputError: the model has batch statistics other than those of `imbal_jax.models.batch_norm`.
    """
    keys = jax.vmap(lambda n: jax.random.fold_in(key, n))(jnp.arange(len(batch.labels)))

    def of_example(params: Params, example: Batch, key: Array) -> Prediction:
        single = jax.tree.map(lambda leaf: leaf[None], example)
        with nn.intercept_methods(_share_moments):
            prediction = objective.predict(params, single, key)
        features = None if prediction.features is None else prediction.features[0]
        return prediction._replace(logits=prediction.logits[0], features=features)

    def over_examples(function: Callable) -> Callable:
        return jax.vmap(function, axis_name=_EXAMPLES)

    prediction = over_examples(lambda example, key: of_example(params, example, key))(batch, keys)
    prediction = prediction._replace(aux=jax.tree.map(lambda leaf: leaf[0], prediction.aux))

    def jacobian(logits: Array, features: Array | None) -> Params:
        def gradient(example: Batch, key: Array, cotangents: tuple[Array, Array | None]) -> Params:
            def outputs(params: Params) -> tuple[Array, Array | None]:
                prediction = of_example(params, example, key)
                return prediction.logits, prediction.features

            return jax.vjp(outputs, params)[1](cotangents)[0]

        return over_examples(gradient)(batch, keys, (logits, features))

    return prediction, jacobian


def _share_moments(next_fun: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext) -> Any:
    """Takes batch statistics over all the examples that are predicted one by one."""
    module = context.module
    if isinstance(module, BatchNorm) and context.method_name == "moments":
        return _moments_of_all(args[0])
    foreign = context.method_name == "__call__" and not isinstance(module, BatchNorm)
    if foreign and uses_batch_statistics(module, args, kwargs):
        raise InputError(
            f"engine: 'vmap' takes batch statistics of imbal_jax's BatchNorm only, got {type(module).__name__} at"
            f" {'/'.join(module.path)}; use 'gram'"
        )
    return next_fun(*args, **kwargs)


def _moments_of_all(inputs: Array) -> tuple[Array, Array, int]:
    """`BatchNorm.moments` over an axis of examples that vmap has taken away."""
    wide = inputs.astype(jnp.promote_types(inputs.dtype, jnp.float32))
    axes = tuple(range(inputs.ndim - 1))
    count = inputs.size // inputs.shape[-1] * jax.lax.axis_size(_EXAMPLES)
    if count < 2:
        raise InputError(f"batch norm: expected at least 2 values per channel in training, got {count}")
    mean = jax.lax.pmean(wide.mean(axes), _EXAMPLES)
    return mean, jax.lax.pmean(jnp.square(wide - mean).mean(axes), _EXAMPLES), count
