"""The per-example losses of a batch, linearised at the parameters: two engines with one interface."""

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from imbal_jax.curvature.jacobian import predict_examples
from imbal_jax.curvature.layers import ExplicitLayer, Layer, merge_calls
from imbal_jax.curvature.recognition import layer_of, uses_batch_statistics
from imbal_jax.curvature.taps import Plan, absorbed_biases, plan_taps, tap
from imbal_jax.errors import InputError
from imbal_jax.models.batch_norm import BatchNorm
from imbal_jax.types import Array, Batch, Evidence, Objective, Params, Prediction

Engine = Literal["auto", "gram", "vmap"]
Statistics = Literal["batch", "running"]
ENGINES = ("auto", "gram", "vmap")
STATISTICS = ("batch", "running")

_log = logging.getLogger(__name__)


class Linearised(NamedTuple):
    """N losses l_n and their gradients J [N, P] at the parameters; J itself may never exist."""

    evidence: Evidence  # the objective's losses
    class_weights: Array  # [N] factors that the objective's losses contain
    logit_gradients: Array  # [N, num_classes] of l_n with respect to the model's logits
    gram: Array  # J J^T, [N, N]
    pullback: Callable[[Array], Params]  # v [N] -> J^T v
    products: Callable[[Params], Array]  # d -> J d, [N]


def check_engine(engine: str, statistics: str) -> None:
    """Raises InputError when an engine or a kind of statistics does not exist."""
    for name, value, valid in (("engine", engine, ENGINES), ("statistics", statistics, STATISTICS)):
        if value not in valid:
            raise InputError(f"{name}: expected one of {', '.join(valid)}, got {value!r}")


def linearise(
    objective: Objective,
    params: Params,
    batch: Batch,
    key: Array,
    *,
    engine: Engine = "auto",
    statistics: Statistics = "batch",
    with_class_weights: bool = True,
) -> Linearised:
    """Linearises the losses of a batch.

    Args:
      objective: a model followed by a loss.
      params: of the model.
      batch: N examples.
      key: of the step. With dropout the engines draw different masks: "gram" those of the batch, "vmap" one by one.
      engine: "gram" holds nothing of size [N, P]: it taps the layers, and takes those of unknown kind example by
        example; "vmap" holds J; "auto" is "gram" where every parameter can be tapped.
      statistics: of batch normalisation: "batch" differentiates through them, and row n of J is the gradient with
        respect to the copy of the parameters that example n uses, so that the rows sum to the gradient of the batch;
        the bias of a layer right before batch statistics has no effect there and is left out. "running" uses the
        running statistics; the evidence, and what is kept of the batch, are those of the training mode all the same,
        at the cost of another forward pass.
      with_class_weights: whether l_n contains its class weight.

    Raises:
      InputError: the engine is "gram" and a parameter cannot be tapped; or an option does not exist.
    """
    check_engine(engine, statistics)
    # Entered first and therefore outermost: taps see what it makes of a call.
    with running_statistics() if statistics == "running" else contextlib.nullcontext():
        linearised = _linearise(objective, params, batch, key, engine, with_class_weights)
    if statistics == "batch":
        return linearised
    kept = objective.predict(params, batch, key)
    return linearised._replace(evidence=Evidence(objective.losses(kept, batch), kept))


@contextlib.contextmanager
def running_statistics() -> Iterator[None]:
    """Inside, batch normalisations use their running statistics, also where they are told to train.

    Raises:
      InputError: on use, when a batch normalisation is not `imbal_jax.models.batch_norm.BatchNorm`.
    """

    def evaluate(next_fun: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext) -> Any:
        if context.method_name == "__call__" and uses_batch_statistics(context.module, args, kwargs):
            if not isinstance(context.module, BatchNorm):
                kind = type(context.module).__name__
                raise InputError(f"statistics: 'running' needs imbal_jax's BatchNorm, got {kind}")
            return next_fun(args[0], False)
        return next_fun(*args, **kwargs)

    with nn.intercept_methods(evaluate):
        yield


def _linearise(
    objective: Objective, params: Params, batch: Batch, key: Array, engine: Engine, with_class_weights: bool
) -> Linearised:
    """`linearise` with the statistics that are in force."""
    plan = plan_taps(objective.predict, params, batch, key) if engine != "vmap" else None
    if plan is None or _must_hold_gradients(plan, engine):
        absorbed = absorbed_biases(objective.predict, params, batch, key) if plan is None else plan.absorbed
        prediction, jacobian = _by_vmap(objective, absorbed, params, batch, key)
    else:
        prediction, jacobian = _by_taps(objective, plan, params, batch, key)
    losses, cotangents = _loss_cotangents(objective, prediction, batch)
    weights = jnp.ones_like(losses)
    if objective.class_weights is not None:
        weights = objective.class_weights(prediction, batch)
    if not with_class_weights:
        factors = jnp.where(weights == 0, 0, 1 / jnp.where(weights == 0, 1, weights))
        cotangents = jax.tree.map(lambda leaf: leaf * factors[:, None], cotangents)
    return Linearised(Evidence(losses, prediction), weights, cotangents[0], *jacobian(*cotangents))


def _loss_cotangents(
    objective: Objective, prediction: Prediction, batch: Batch
) -> tuple[Array, tuple[Array, Array | None]]:
    """The losses [N], and the gradients of their sum with respect to the logits and features."""

    def total(logits: Array, features: Array | None) -> tuple[Array, Array]:
        losses = objective.losses(prediction._replace(logits=logits, features=features), batch)
        return jnp.sum(losses), losses

    if prediction.features is None:
        gradient, losses = jax.grad(total, has_aux=True)(prediction.logits, None)
        return losses, (gradient, None)
    gradients, losses = jax.grad(total, argnums=(0, 1), has_aux=True)(prediction.logits, prediction.features)
    return losses, gradients


_Parts = tuple[Array, Callable[[Array], Params], Callable[[Params], Array]]  # gram, pullback, products
_Differentiable = tuple[Prediction, Callable[..., _Parts]]  # prediction, cotangents -> parts


def _by_vmap(
    objective: Objective, absorbed: frozenset[tuple[str, ...]], params: Params, batch: Batch, key: Array
) -> _Differentiable:
    """J in full, without the biases that batch statistics absorb."""
    prediction, jacobian = predict_examples(objective, params, batch, key)

    def parts(logits: Array, features: Array | None) -> _Parts:
        gradients = jacobian(logits, features)
        for path in absorbed:
            gradients = _put(gradients, (*path, "bias"), jnp.zeros_like(_at(gradients, (*path, "bias"))))
        held = ExplicitLayer(gradients)
        return held.gram(), held.pullback, held.products

    return prediction, parts


def _by_taps(objective: Objective, plan: Plan, params: Params, batch: Batch, key: Array) -> _Differentiable:
    """J layer by layer."""
    tapped = tap(objective.predict, plan, params, batch, key)

    def parts(logits: Array, features: Array | None) -> _Parts:
        calls: dict[tuple[str, ...], list[Layer]] = {}
        for call, cotangents in zip(tapped.calls, tapped.pullback((logits, features)), strict=True):
            calls.setdefault(call.path, []).append(layer_of(call, _at(params, call.path), cotangents))
        layers = {path: merge_calls(each) for path, each in calls.items()}

        def pullback(coefficients: Array) -> Params:
            direction = jax.tree.map(jnp.zeros_like, params)
            for path, layer in layers.items():
                direction = _put(direction, path, layer.pullback(coefficients))
            return direction

        def products(change: Params) -> Array:
            each = [layer.products(_at(change, path)) for path, layer in layers.items()]
            return jnp.sum(jnp.stack(each), axis=0)

        gram = jnp.sum(jnp.stack([layer.gram() for layer in layers.values()]), axis=0)
        return gram, pullback, products

    return tapped.prediction, parts


def _must_hold_gradients(plan: Plan, engine: Engine) -> bool:
    """Whether taps cannot serve; says so, and what was done about layers of unknown kind."""
    for path, reason in plan.opaque.items():
        _log.warning("%s is differentiated example by example: %s", "/".join(path), reason)
    if not plan.untapped:
        return False
    leaf, reason = next(iter(plan.untapped.items()))
    message = f"engine: 'gram' cannot tap the parameter {'/'.join(leaf)}: {reason}"
    if engine == "gram":
        raise InputError(f"{message}; use 'vmap', or 'auto' to choose it where it is needed")
    _log.warning("%s; 'vmap' is used", message)
    return True


def _at(tree: Params, path: tuple[str, ...]) -> Params:
    """A module's subtree."""
    for name in path:
        tree = tree[name]
    return tree


def _put(tree: Params, path: tuple[str, ...], value: Params) -> Params:
    """The tree with another subtree at a path."""
    if not path:
        return value
    return {**tree, path[0]: _put(tree[path[0]], path[1:], value)}
