"""LPF-SGD: the gradient of the loss smoothed by a Gaussian kernel over the parameters (Bisla et al. 2022).

The batch is split into M micro-batches. In front of each the parameters are moved by Gaussian noise whose standard
deviation is std times the norm of the filter that a parameter belongs to; the gradients, each of the loss divided by M,
are summed, and one step is taken from the unmoved parameters.

The paper and Rangwani et al. 2022 call the factor a variance; as published in code it multiplies standard deviations.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from imbal_jax.directions.noise import standard_normal
from imbal_jax.directions.wrapping import inner_direction, moved, noise_key, run_length, with_model_state
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

_TINY = 1e-16  # added to the norms of vectors, as published


class LowPassState(NamedTuple):
    """What LPF-SGD keeps from step to step."""

    step: Array  # int32, steps taken
    inner: PyTree


def low_pass(
    structure: Structure,
    *,
    std: float = 0.002,
    increase: float = 0.0,
    micro_batches: int = 1,
    evidence: str = "clean",
    inner: Direction | None = None,
) -> Direction:
    """LPF-SGD over any direction.

    The direction is the mean of what the inner one proposes for the micro-batches, in turn: its state passes from one
    to the next. They are consecutive parts of the batch, each with its own noise and, for dropout, its own key, and
    reductions and batch statistics are those of the part. They are unrolled when compiled.

    Args:
      structure: of the run.
      std: the factor of the standard deviations, >= 0. The authors use 0.002 for ResNets on CIFAR with one micro-batch,
        and 0.0005 rising 16-fold (increase = 15) with eight for wider networks.
      increase: how much the factor gains in the course of the run, along half a cosine: at its end it is
        std (1 + increase); >= 0.
      micro_batches: M, a divisor of the batch size.
      evidence: where losses, prediction and running statistics come from. "clean": one more forward pass, of the whole
        batch at the parameters given, which are those that will be evaluated. "noisy", as published: the noisy passes;
        the running statistics go on from each to the next, and there is no further pass.
      inner: the direction of the noisy passes; the plain gradient by default.

    Returns:
      A direction; with std = 0 the inner one itself, on the whole batch, because there is nothing to average over.

    Raises:
      InputError: an option is out of its range, or the micro-batches do not divide the batch.
    """
    check_number("std", std, ">= 0")
    check_number("increase", increase, ">= 0")
    if evidence not in ("clean", "noisy"):
        raise InputError(f"evidence: {not_found(evidence, ('clean', 'noisy'))}")
    _check_parts(micro_batches, len(structure.batch.labels))
    wrapped = inner_direction(inner)
    if std == 0:
        return wrapped
    total = run_length(structure, "increase").total_steps if increase else 1

    def init(params: Params) -> LowPassState:
        return LowPassState(jnp.int32(0), wrapped.init(params))

    def propose(objective: Objective, params: Params, batch: Batch, state: LowPassState, key: Array) -> Proposal:
        factor = std * (1 + increase * (0.5 - 0.5 * jnp.cos(jnp.pi * (state.step / total)))) if increase else std
        proposals: list[Proposal] = []
        current, inner_state, before = objective, state.inner, jnp.int32(0)
        for number, part in enumerate(_parts(batch, micro_batches)):
            noise = jax.random.fold_in(noise_key(key), number + before)
            noisy = _computed_once(moved(params, filter_noise(noise, params, factor)))
            proposal = wrapped.propose(current, noisy, part, inner_state, jax.random.fold_in(key, number))
            proposals.append(proposal)
            inner_state, before = proposal.state, _zero_after(proposal.direction)
            if evidence == "noisy" and number + 1 < micro_batches:
                current = with_model_state(objective, proposal.aux.prediction.aux)
        if evidence == "noisy":
            told = _joined([proposal.aux for proposal in proposals])
        else:
            prediction = objective.predict(params, batch, key)
            told = Evidence(objective.losses(prediction, batch), prediction)
        mean, shift = _mean([(proposal.direction, proposal.shift) for proposal in proposals])
        return Proposal(mean, told, LowPassState(state.step + 1, inner_state), shift)

    return Direction(init, propose)


def filter_noise(key: Array, params: Params, factor: Array | float) -> Params:
    """Gaussian noise in proportion to the norms of filters.

    Args:
      key: of the noise.
      params: kernels have their outputs on the last axis, so that a filter is all that leads to one output; vectors are
        one filter each.
      factor: of the standard deviations.

    Returns:
      The noise, a tree like the parameters.
    """
    draws = standard_normal(key, params)
    return jax.tree.map(lambda draw, leaf: (factor * filter_norms(leaf) * draw).astype(leaf.dtype), draws, params)


def filter_norms(leaf: Array) -> Array:
    """The Euclidean norm of each filter, to be broadcast over the parameter: [1, ..., outputs], or a scalar."""
    squares = jnp.square(leaf)
    if leaf.ndim < 2:
        return jnp.sqrt(jnp.sum(squares)) + _TINY
    return jnp.sqrt(jnp.sum(squares, axis=tuple(range(leaf.ndim - 1)), keepdims=True))


def _check_parts(micro_batches: int, examples: int) -> None:
    """Raises InputError unless the batch can be split so."""
    if not isinstance(micro_batches, int) or isinstance(micro_batches, bool) or micro_batches < 1:
        raise InputError(f"micro_batches: expected a whole number >= 1, got {micro_batches!r}")
    if examples % micro_batches:
        raise InputError(f"micro_batches: expected a divisor of the batch size {examples}, got {micro_batches}")


def _computed_once(params: Params) -> Params:
    """The same parameters, of which XLA's CPU backend is made to compute vectors once.

    Scales and biases are broadcast over all activations, and it would draw and add their noise anew for every one: for
    a small network in eight micro-batches of four LPF-SGD took 1.7 times as long. A remainder, here of the division by
    more than any parameter, it does not repeat.
    """
    return jax.tree.map(
        lambda leaf: jax.lax.rem(leaf, jnp.full_like(leaf, 2.0**100)) if leaf.ndim == 1 else leaf, params
    )


def _zero_after(direction: Params) -> Array:
    """Zero, or not if there are NaNs, known only once a direction is.

    The noise of a micro-batch waits for it, so that one micro-batch follows the other. XLA's CPU backend would start
    all of them at once, with the memory of all and no use of the caches.
    """
    firsts = jnp.stack([leaf.ravel()[0].astype(jnp.float32) for leaf in jax.tree.leaves(direction)])
    return jnp.any(firsts != firsts).astype(jnp.int32)


def _parts(batch: Batch, count: int) -> list[Batch]:
    """Consecutive parts of a batch."""
    size = len(batch.labels) // count
    return [jax.tree.map(lambda leaf: leaf[i * size : (i + 1) * size], batch) for i in range(count)]  # noqa: B023


def _joined(parts: list[Evidence]) -> Evidence:
    """The evidence of a batch from that of its parts; the running statistics are the last ones."""
    told = [(part.losses, part.prediction.logits, part.prediction.features) for part in parts]
    losses, logits, features = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *told)
    return Evidence(losses, Prediction(logits, features, parts[-1].prediction.aux))


def _mean(trees: list[PyTree]) -> PyTree:
    """The mean of trees."""
    return jax.tree.map(lambda *leaves: sum(leaf / len(leaves) for leaf in leaves), *trees)
