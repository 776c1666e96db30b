"""Attentional bias: examples weigh by the exponential of their losses (ABSGD, anonymous, under review; Algorithm 1).

With the losses L_i of a batch of B examples, a moving average s and a temperature lambda,

    s <- (1 - gamma) s + gamma mean_i exp(L_i / lambda),    p_i = exp(L_i / lambda) / s,

the direction is that of (1/B) sum p_i L_i with constant p_i. lambda > 0 favours examples that are badly fitted, those
of rare classes; lambda < 0 those that are well fitted, and so clean labels; an infinite one weighs all alike. Over
stochastic gradient descent with momentum this is ABSGD, over Adam without bias correction ABAdam (Eq. 9).

L_i are the losses of the objective: corrected, with class weights and the factor of the reduction. The p_i enter its
class weights, so that directions that set class weights apart treat both alike.

What is kept is log s, and p_i = exp(L_i / lambda - log s): no loss is too large, as s is at least gamma / B of the
largest exponential.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from imbal_jax.directions.wrapping import inner_direction, run_length
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


class AttentionalState(NamedTuple):
    """What attentional bias keeps from step to step."""

    step: Array  # int32, steps taken
    log_normaliser: Array  # log s; 0 before the first weighted step
    inner: PyTree


def attentional_bias(
    structure: Structure,
    *,
    temperature: float = 5.0,
    gamma: float = 0.5,
    at: float = 0.0,
    initial: str = "first_batch",
    normaliser_factor: float = 1.0,
    plus_one: bool = False,
    plain_from: float = math.inf,
    inner: Direction | None = None,
) -> Direction:
    """ABSGD's weights under any direction.

    The losses told are those without p_i. Where a batch is shared out among devices, s is of the whole batch. Over
    `sharpness_aware` the pass at w + epsilon is weighted by the losses there, over `low_pass` every micro-batch by its
    own average.

    The published code is ``initial="zero", normaliser_factor=0.5, plain_from=200.0``: its average starts at 0, so that
    the first weights are 1 / (gamma a) times as large as later ones (20-fold with its gamma of 0.1).

    Args:
      structure: of the run.
      temperature: lambda, in nats, not 0; the paper searches 1 to 10 for imbalance and -0.1 to -15 for noisy labels.
      gamma: the share of the new batch in s, in (0, 1]. 0.5 was best in the paper's ablation.
      at: the fraction of training at which the weights begin, in [0, 1]; plain losses before (two-stage training, paper
        3.6; as of the correction `deferred`). 1 for never.
      initial: s_0, which the paper leaves open: the average of the "first_batch" that is weighted, or "zero".
      normaliser_factor: an extra factor a of the batch's average in s, > 0.
      plus_one: adds 1 to every p_i, as the published code does against noisy labels.
      plain_from: temperatures of this size and above count as infinite, > 0.
      inner: the direction of the weighted losses; the plain gradient by default.

    Returns:
      A direction; with an infinite temperature the inner one itself.

    Raises:
      InputError: an option is out of its range.
    """
    if temperature == 0 or math.isnan(temperature):
        raise InputError(f"temperature: expected a number other than 0, got {temperature}")
    check_number("gamma", gamma, "in (0, 1]")
    check_number("at", at, "in [0, 1]")
    check_number("normaliser_factor", normaliser_factor, "> 0")
    if initial not in ("first_batch", "zero"):
        raise InputError(f"initial: {not_found(initial, ('first_batch', 'zero'))}")
    if not plain_from > 0:
        raise InputError(f"plain_from: expected a number > 0, got {plain_from}")
    wrapped = inner_direction(inner)
    if math.isinf(temperature) or abs(temperature) >= plain_from or at == 1:
        return wrapped
    begin = run_length(structure, "at").first_step_at(at) if at else 0
    log_factor = math.log(normaliser_factor)
    log_first = log_factor if initial == "first_batch" else log_factor + math.log(gamma)

    def scaled(losses: Array, state: AttentionalState) -> tuple[Array, Array, Array]:
        """L / lambda less its largest value m, the new log s less m, and m: differences stay exact for large losses."""
        peak = jnp.max(losses) if temperature > 0 else jnp.min(losses)
        exponents, largest = (losses - peak) / temperature, peak / temperature
        log_mean = jnp.log(jnp.mean(jnp.exp(exponents)))
        later = log_mean + (log_factor + math.log(gamma))
        if gamma < 1:
            later = jnp.logaddexp(state.log_normaliser - largest + math.log1p(-gamma), later)
        return exponents, jnp.where(state.step == begin, log_mean + log_first, later), largest

    def weights_of(state: AttentionalState, losses: Array) -> Array:
        exponents, log_normaliser, _ = scaled(jax.lax.stop_gradient(losses), state)
        weights = jnp.exp(exponents - log_normaliser) + plus_one
        return jnp.where(state.step >= begin, weights, 1.0).astype(losses.dtype)

    def init(params: Params) -> AttentionalState:
        kind = jnp.result_type(jnp.float32, *(leaf.dtype for leaf in jax.tree.leaves(params)))
        return AttentionalState(jnp.int32(0), jnp.zeros((), kind), wrapped.init(params))

    def propose(objective: Objective, params: Params, batch: Batch, state: AttentionalState, key: Array) -> Proposal:
        weighted = reweighted(objective, lambda losses: weights_of(state, losses))
        proposal = wrapped.propose(weighted, params, batch, state.inner, key)
        prediction = proposal.aux.prediction
        losses = objective.losses(prediction, batch)
        _, log_normaliser, largest = scaled(losses, state)
        kept = jnp.where(state.step >= begin, log_normaliser + largest, 0.0)
        after = AttentionalState(state.step + 1, kept.astype(state.log_normaliser.dtype), proposal.state)
        return proposal._replace(aux=Evidence(losses, prediction), state=after)

    return Direction(init, propose)


def exponentiated_gradient(
    structure: Structure, *, temperature: float = -1.0, at: float = 0.0, inner: Direction | None = None
) -> Direction:
    """Exponentiated-gradient weights (EG): exp(L_i / lambda), normalised to average one within each batch.

    As ABSGD's paper has it, which compares with EG for noisy labels: its average with gamma = 1, without memory. Majidi
    et al. 2021 ("Exponentiated gradient reweighting for robust training under label noise and beyond") also keep the
    weight of every training example from one epoch to the next, which is left out.

    Args:
      structure: of the run.
      temperature: lambda, not 0, < 0 against noisy labels.
      at: the fraction of training at which the weights begin, in [0, 1].
      inner: the direction of the weighted losses; the plain gradient by default.

    Raises:
      InputError: an option is out of its range.
    """
    return attentional_bias(structure, temperature=temperature, gamma=1.0, at=at, inner=inner)


def reweighted(objective: Objective, weights_of: Callable[[Array], Array]) -> Objective:
    """The objective with its losses times weights that are functions of them, held constant.

    Args:
      objective: to be weighted.
      weights_of: from the losses [batch] to the weights [batch].
    """

    def losses(prediction: Prediction, batch: Batch) -> Array:
        plain = objective.losses(prediction, batch)
        return plain * jax.lax.stop_gradient(weights_of(plain))

    def class_weights(prediction: Prediction, batch: Batch) -> Array:
        weights = jax.lax.stop_gradient(weights_of(objective.losses(prediction, batch)))
        return weights if objective.class_weights is None else weights * objective.class_weights(prediction, batch)

    def continued(model_state: PyTree) -> Objective:
        assert objective.continued is not None
        return reweighted(objective.continued(model_state), weights_of)

    return Objective(objective.predict, losses, class_weights, continued if objective.continued else None)
