"""EKFAC: the gradient divided by its second moments in a Kronecker-factored eigenbasis, through kfac-jax."""

import logging
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from imbal_jax.curvature.periodic import uniform
from imbal_jax.errors import InputError, check_number, not_found
from imbal_jax.types import (
    Array,
    Batch,
    Direction,
    Evidence,
    Objective,
    Params,
    Prediction,
    Proposal,
    PyTree,
    Structure,
)

_log = logging.getLogger(__name__)


class EKFACState(NamedTuple):
    """What EKFAC keeps from step to step."""

    step: Array  # int32, steps taken
    layers: dict[str, PyTree]  # by the path of the layer's kernel: an `Eigenbasis` of curvature.kfac_blocks


def ekfac(
    structure: Structure,
    *,
    damping: float = 1e-3,
    refresh_period: int = 100,
    second_moments: str = "batch",
    moment_decay: float = 0.75,
    precision: str = "highest",
) -> Direction:
    """Eigenvalue-corrected Kronecker-factored preconditioning with the empirical Fisher matrix of the losses.

    For a layer with rows x_nt (a one appended for the bias) and output cotangents g_nt of the summed losses the
    direction is U_A [(U_A^T gradient U_G) / (m2 + damping)] U_G^T, with the gradient of the mean loss, the eigenvectors
    of A = E[x x^T] and G = E[g g^T], and the second moments m2 of the per-example gradients in their basis. Dense
    layers, also over sequences, and two-dimensional convolutions are treated so. Normalisation layers keep the plain
    gradient, as does every parameter that kfac-jax does not recognise as part of such a layer, with a warning: those
    used twice, kernels that are normalised or merged, grouped and one-dimensional convolutions, layers in bfloat16.

    The damping is in the units of m2, squared gradients of one example, as in the published code; it must be found for
    each task. In the null space of A, which is large while the batch is smaller than the layer is wide, m2 is exactly
    zero at a refresh but the next batches' gradients are not: there the old basis is arbitrary, m2 of a single batch
    small, and a small damping makes the direction many times longer than at the refresh. A larger damping, a shorter
    period or clipping in the step rule help.

    Source: George et al. 2018, "Fast Approximate Natural Gradient Descent in a Kronecker-factored Eigenbasis",
    Algorithm 1; thesis 3.5. The units, and "running", are those of the published code (Thrandis/EKFAC-pytorch).

    Args:
      structure: of the run; its layers are those the state has.
      damping: added to m2, > 0.
      refresh_period: steps between two computations of the eigenvectors.
      second_moments: "batch" for those of every batch; "running" for a moving average of N times the squared mean
        gradient in the basis, which starts at every refresh from the product of the eigenvalues, times the positions.
      moment_decay: the share of the old in the moving average of "running", in [0, 1).
      precision: of the products with eigenvectors, by JAX's names: "highest", which is float32 everywhere, or
        "default", which is the device's: float32 on a CPU, TF32 on recent GPUs of NVIDIA, as for the model itself.

    Returns:
      A direction; several seeds at once (`jax.vmap`) refresh together.

    Raises:
      InputError: an option is out of its range; kfac-jax is missing or was not tested with this jax; it cannot trace
        the model, or finds no layer in it.
    """
    check_number("damping", damping, "> 0")
    check_number("moment_decay", moment_decay, "in [0, 1)")
    if not isinstance(refresh_period, int) or isinstance(refresh_period, bool) or refresh_period < 1:
        raise InputError(f"refresh_period: expected a whole number >= 1, got {refresh_period!r}")
    if precision not in ("highest", "default"):
        raise InputError(f"precision: {not_found(precision, ('highest', 'default'))}")
    if second_moments not in ("batch", "running"):
        raise InputError(f"second_moments: {not_found(second_moments, ('batch', 'running'))}")
    from imbal_jax.curvature import kfac_blocks  # imports kfac-jax, a second that other directions need not wait for

    layers = _find_layers(structure)

    def init(params: Params) -> EKFACState:
        del params
        running = second_moments == "running"
        bases = {name: kfac_blocks.initial_basis(*layer, running) for name, layer in layers.items()}
        return EKFACState(jnp.int32(0), bases)

    def propose(objective: Objective, params: Params, batch: Batch, state: EKFACState, key: Array) -> Proposal:
        evidence, cotangents = _pull_back_losses(objective, params, batch, key)
        refresh = uniform(state.step % refresh_period == 0)
        traced = _trace(objective, params, batch, key, cotangents, refresh, jax.lax.Precision(precision))
        if traced.layers != layers:
            expected, found = _described(layers), _described(traced.layers)
            raise InputError(f"ekfac: expected the layers that it was built for, {expected}, got {found}")
        bases = tuple(state.layers.get(name, ()) for name in traced.names)
        estimates = traced.estimator.update_curvature_matrix_estimate(
            traced.estimator.State(synced=True, blocks_states=bases),
            ema_old=moment_decay,
            ema_new=1 - moment_decay,
            identity_weight=damping,
            batch_size=len(evidence.losses),
            rng=key,
            func_args=(params,),
            estimation_mode="fisher_empirical",
        ).blocks_states
        direction = traced.estimator.blocks_vectors_to_params_vector([estimate.direction for estimate in estimates])
        named = zip(traced.names, estimates, strict=True)
        updated = {name: estimate.basis for name, estimate in named if name in layers}
        return Proposal(direction, evidence, EKFACState(state.step + 1, updated))

    return Direction(init, propose)


class _Traced(NamedTuple):
    """A model as kfac-jax sees it."""

    estimator: Any  # of kfac-jax, for this trace only
    names: list[str]  # of its blocks: the path of the first parameter, which is the kernel if there is one
    layers: dict[str, tuple[tuple[int, int], Any]]  # shape and type of those with an eigenbasis


def _trace(
    objective: Objective,
    params: Params,
    batch: Batch,
    key: Array,
    cotangents: tuple[Array, ...],
    refresh: Array | bool,
    precision: jax.lax.Precision = jax.lax.Precision.HIGHEST,
) -> _Traced:
    """Has kfac-jax find the layers; the estimator is built anew for each trace because it keeps the trace's values.

    kfac-jax pulls back the gradients of the losses that are registered with it, divided by the root of the batch size.
    Any objective's cotangents c are the gradient of a squared error, 0.5 (z - target)^2, with z = 0 and target = -c;
    z = logits - logits is exactly 0 and its derivative 1, where target = logits - c would round c away.
    """
    from imbal_jax.curvature import kfac_blocks

    examples = len(cotangents[0])

    def register(params: Params) -> Array:
        outputs = _outputs(objective.predict(params, batch, key))
        for output, cotangent in zip(outputs, cotangents, strict=True):
            zero = output - jax.lax.stop_gradient(output)
            kfac_blocks.register_squared_error(zero, -cotangent * math.sqrt(examples))
        return jnp.zeros(())

    estimator = kfac_blocks.curvature_estimator(register, examples, refresh, precision)
    try:
        estimator.finalize((params,))
    except Exception as error:  # kfac-jax raises ValueError, NotImplementedError, AssertionError and others
        reason = (str(error).splitlines() or [""])[0]
        raise InputError(
            f"ekfac: expected a model whose layers kfac-jax recognises, got {type(error).__name__}: {reason}"
        ) from error
    paths = _paths(params)
    names = [paths[indices[0]] for indices in estimator.jaxpr.layer_indices]
    blocks = zip(names, estimator.blocks, strict=True)
    layers = {n: (b.shape, b.dtype) for n, b in blocks if isinstance(b, kfac_blocks.EigenbasisBlock)}
    return _Traced(estimator, names, layers)


def _find_layers(structure: Structure) -> dict[str, tuple[tuple[int, int], Any]]:
    """The layers with an eigenbasis, by tracing shapes only; warns about parameters that belong to no known layer."""
    from imbal_jax.curvature import kfac_blocks

    layers: dict[str, tuple[tuple[int, int], Any]] = {}
    unknown: list[str] = []

    def trace(params: Params, batch: Batch, key: Array) -> None:
        # First without kfac-jax, so that a model's own errors are told as they are.
        _, cotangents = _pull_back_losses(structure.objective, params, batch, key)
        traced = _trace(structure.objective, params, batch, key, cotangents, True)
        layers.update(traced.layers)
        paths = _paths(params)
        for block, indices in zip(traced.estimator.blocks, traced.estimator.jaxpr.layer_indices, strict=True):
            if not (isinstance(block, kfac_blocks.EigenbasisBlock) or kfac_blocks.is_normalisation(block)):
                unknown.extend(paths[index] for index in indices)

    jax.eval_shape(trace, structure.params, structure.batch, jax.eval_shape(lambda: jax.random.key(0)))
    if not layers:
        raise InputError("ekfac: expected a model with dense layers or convolutions, kfac-jax recognises none")
    if unknown:
        _log.warning("ekfac: the plain gradient for parameters outside of known layers: %s", ", ".join(unknown))
    return layers


def _pull_back_losses(
    objective: Objective, params: Params, batch: Batch, key: Array
) -> tuple[Evidence, tuple[Array, ...]]:
    """The evidence, and the cotangents of the logits and features in the sum of the losses."""
    prediction = objective.predict(params, batch, key)

    def losses_of(outputs: tuple[Array, ...]) -> Array:
        replaced = dict(zip(("logits", "features"), outputs, strict=False))
        return objective.losses(prediction._replace(**replaced), batch)

    losses, pull_back = jax.vjp(losses_of, _outputs(prediction))
    [cotangents] = pull_back(jnp.ones_like(losses))
    return Evidence(losses, prediction), cotangents


def _outputs(prediction: Prediction) -> tuple[Array, ...]:
    """What losses may depend on: logits, and features where there are any."""
    return (prediction.logits,) if prediction.features is None else (prediction.logits, prediction.features)


def _described(layers: dict[str, tuple[tuple[int, int], Any]]) -> str:
    """Names and shapes of layers."""
    return ", ".join(f"{name} {shape}" for name, (shape, _) in layers.items())


def _paths(params: Params) -> list[str]:
    """The names of the parameters in the order of the leaves, such as "dense1.kernel"."""
    flat, _ = jax.tree_util.tree_flatten_with_path(params)
    return [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in flat]
