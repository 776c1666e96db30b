"""Sharpness-aware minimisation (SAM): the direction is taken where the loss is highest nearby.

With the gradient g of the mean corrected loss at the parameters w, over all trainable parameters jointly,

    epsilon = rho g / ||g||              SAM, as in Foret et al. 2021 (Rangwani et al. 2022, Eq. 5)
    epsilon = rho g                      unnormalised, as in the theory of Rangwani et al. 2022 (Eq. 6 and Theorem 2)
    epsilon = rho w^2 g / || |w| g ||    ASAM (Kwon et al. 2021)

and the inner direction is taken at w + epsilon, on the same batch, with the same key and so the same dropout, under the
same correction. The step rule, and with it weight decay, acts at w.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from imbal_jax.directions.gradient import gradient
from imbal_jax.directions.wrapping import global_norm, inner_direction, moved, run_length, with_model_state
from imbal_jax.errors import InputError, check_number, not_found
from imbal_jax.types import Array, Batch, Direction, Objective, Params, Proposal, PyTree, Structure

_TINY = 1e-12  # added to norms, as published: a gradient of zero gives no perturbation


class SharpnessAwareState(NamedTuple):
    """What SAM keeps from step to step."""

    step: Array  # int32, steps taken
    inner: PyTree


def sharpness_aware(
    structure: Structure,
    *,
    rho: float = 0.05,
    boundaries: tuple[float, ...] = (),
    rhos: tuple[float, ...] = (),
    interpolation: str = "step",
    normalised: bool = True,
    adaptive: bool = False,
    statistics: str = "first",
    inner: Direction | None = None,
) -> Direction:
    """SAM and ASAM over any direction.

    The published step schedule for large sets is ``rho=0.05, boundaries=(5, 160, 180), rhos=(0.1, 0.5, 0.6)``.
    Losses and prediction are those of the first pass. Where a batch is shared out among devices the gradient that gives
    epsilon is that of the whole batch, not of each device's part ("m-sharpness"). A step costs another gradient.
    A weighting by losses such as `attentional_bias` goes around this direction, so that both passes have it.

    Args:
      structure: of the run.
      rho: the distance ||epsilon||, >= 0: 0.05 in Foret et al. 2021; 0.5 or 0.8 for long-tailed CIFAR in Rangwani et
        al. 2022.
      boundaries: 0-based epochs, ascending and > 0, at which rho changes; none for a constant rho.
      rhos: from each boundary on, >= 0.
      interpolation: "step" keeps a rho until the next boundary; "linear" goes from `rho` at the start of the run to
        each of `rhos` at its boundary in straight lines, and keeps the last.
      normalised: whether epsilon has length rho.
      adaptive: ASAM, which measures the distance relative to the size of each parameter; normalised only.
      statistics: which running statistics are kept: those of the "first" pass, taken at w as in evaluation; or of
        "both" in turn, as in the published code, the second at w + epsilon.
      inner: the direction that is taken at w + epsilon; the plain gradient by default.

    Returns:
      A direction; with rho = 0 throughout and the statistics of the first pass the inner one itself.

    Raises:
      InputError: an option is out of its range, or two do not go together.
    """
    _check(rho, boundaries, rhos, interpolation)
    if adaptive and not normalised:
        raise InputError("normalised: expected True with adaptive=True, got False")
    if statistics not in ("first", "both"):
        raise InputError(f"statistics: {not_found(statistics, ('first', 'both'))}")
    wrapped = inner_direction(inner)
    if not any((rho, *rhos)) and statistics == "first":
        return wrapped
    rho_at = _schedule(structure, rho, boundaries, rhos, interpolation)

    def init(params: Params) -> SharpnessAwareState:
        return SharpnessAwareState(jnp.int32(0), wrapped.init(params))

    def propose(objective: Objective, params: Params, batch: Batch, state: SharpnessAwareState, key: Array) -> Proposal:
        first = gradient().propose(objective, params, batch, (), key)
        scale = rho_at(state.step)
        change = perturbation(first.direction, params, scale, normalised=normalised, adaptive=adaptive)
        if statistics == "both":
            objective = with_model_state(objective, first.aux.prediction.aux)
        second = wrapped.propose(objective, moved(params, change), batch, state.inner, key)
        evidence = first.aux
        if statistics == "both":
            kept = evidence.prediction._replace(aux=second.aux.prediction.aux)
            evidence = evidence._replace(prediction=kept)
        return second._replace(aux=evidence, state=SharpnessAwareState(state.step + 1, second.state))

    return Direction(init, propose)


def perturbation(
    gradient: Params, params: Params, rho: Array | float, *, normalised: bool = True, adaptive: bool = False
) -> Params:
    """epsilon of the module's docstring.

    Args:
      gradient: at the parameters.
      params: w; they matter only to ASAM.
      rho: >= 0.
      normalised: whether to divide by the norm.
      adaptive: ASAM.
    """
    if not normalised:
        return jax.tree.map(lambda g: rho * g, gradient)
    if not adaptive:
        factor = rho / (global_norm(gradient) + _TINY)
        return jax.tree.map(lambda g: factor * g, gradient)
    factor = rho / (global_norm(jax.tree.map(jnp.multiply, params, gradient)) + _TINY)
    return jax.tree.map(lambda w, g: factor * jnp.square(w) * g, params, gradient)


def _check(rho: float, boundaries: tuple[float, ...], rhos: tuple[float, ...], interpolation: str) -> None:
    """Raises InputError for a rho or a schedule that makes no sense."""
    check_number("rho", rho, ">= 0")
    for each in rhos:
        check_number("rhos", each, ">= 0")
    if len(boundaries) != len(rhos):
        raise InputError(f"rhos: expected one per boundary ({len(boundaries)}), got {tuple(rhos)}")
    if list(boundaries) != sorted({each for each in boundaries if each > 0}):
        raise InputError(f"boundaries: expected ascending epochs > 0, got {tuple(boundaries)}")
    if interpolation not in ("step", "linear"):
        raise InputError(f"interpolation: {not_found(interpolation, ('step', 'linear'))}")
    if interpolation == "linear" and not boundaries:
        raise InputError("interpolation: 'linear' needs boundaries, got none")


def _schedule(
    structure: Structure, rho: float, boundaries: tuple[float, ...], rhos: tuple[float, ...], interpolation: str
) -> Callable[[Array], Array | float]:
    """rho as a function of the step."""
    if not boundaries:
        return lambda step: rho
    horizon = run_length(structure, "boundaries")
    firsts = [horizon.first_step_of(each) for each in boundaries]
    values = jnp.asarray([rho, *rhos], jnp.float32)
    if interpolation == "linear":
        return lambda step: jnp.interp(step.astype(jnp.float32), jnp.asarray([0, *firsts], jnp.float32), values)
    return lambda step: values[jnp.sum(step >= jnp.asarray(firsts, jnp.int32))]
