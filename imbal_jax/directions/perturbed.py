"""Perturbed gradient descent (PGD): noise that leads away from saddle points.

Two rules go by this name:

- Jin et al. 2019 ("Stochastic gradient descent escapes saddle points efficiently") add noise to every gradient,
  w <- w - eta (g + xi) with xi ~ N(0, (r^2 / d) I) for d parameters, so that ||xi|| is about r. Rangwani et al. 2022
  compare with this form ("adds Gaussian noise into gradient"), and give no r.
- Jin et al. 2017 ("How to escape saddle points efficiently", Algorithm 1) move the parameters themselves, w <- w + xi
  with xi uniform in a ball of radius r, where the gradient is small and no such move was made for a while; the gradient
  step of the same iteration then starts from the moved point.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from imbal_jax.directions.noise import standard_normal
from imbal_jax.directions.wrapping import global_norm, inner_direction, moved, noise_key
from imbal_jax.errors import InputError, check_number, not_found
from imbal_jax.types import Array, Batch, Direction, Objective, Params, Proposal, PyTree

FORMS = ("gaussian", "ball")
SCALES = ("norm", "coordinate")


class BallState(NamedTuple):
    """What the rule of the ball keeps from step to step."""

    step: Array  # int32, steps taken
    last: Array  # int32, the step of the last move; so far back at first that it is forgotten
    inner: PyTree


def perturbed(
    *,
    form: str = "gaussian",
    radius: float = 0.1,
    scale: str = "norm",
    threshold: float = 0.0,
    period: int = 0,
    inner: Direction | None = None,
) -> Direction:
    """PGD over any direction.

    Losses, prediction and running statistics are those at the parameters given. Noise of the first form is added to
    what the inner direction proposes. The second form proposes a `shift` of the parameters beside the direction, which
    is the inner one at the parameters moved; it is computed only in the steps that move, except over several seeds at
    once, where every step costs twice as much. On a CPU convolutions are slow under such a choice: a step of the small
    CNN that moved took ten times as long as others, so a `period` keeps them rare.

    Args:
      form: "gaussian" (Jin et al. 2019) or "ball" (Jin et al. 2017), see the module's docstring.
      radius: r, >= 0, in the units of the direction for "gaussian" and of the parameters for "ball"; no paper gives
        one for neural networks.
      scale: whether r is the root mean square of the "norm" of the whole Gaussian, as in the paper, or the standard
        deviation of each "coordinate".
      threshold: move where the norm of the inner direction, for the plain gradient that of the gradient, is at most
        this; > 0, and for "ball" only.
      period: steps that have to pass after a move before the next, t_thres, >= 0; for "ball" only.
      inner: the direction that is perturbed; the plain gradient by default.

    Returns:
      A direction; with radius = 0 the inner one itself.

    Raises:
      InputError: an option is out of its range, or does not belong to the form.
    """
    check_number("radius", radius, ">= 0")
    check_number("threshold", threshold, ">= 0")
    for name, value, valid in (("form", form, FORMS), ("scale", scale, SCALES)):
        if value not in valid:
            raise InputError(f"{name}: {not_found(value, valid)}")
    if not isinstance(period, int) or isinstance(period, bool) or period < 0:
        raise InputError(f"period: expected a whole number >= 0, got {period!r}")
    _check_form(form, scale, threshold, period)
    wrapped = inner_direction(inner)
    if radius == 0:
        return wrapped
    return _gaussian(wrapped, radius, scale) if form == "gaussian" else _ball(wrapped, radius, threshold, period)


def uniform_in_ball(key: Array, like: Params, radius: float) -> Params:
    """A point drawn uniformly from the ball around the origin.

    Args:
      key: of the draw.
      like: a tree of floating-point arrays, whose shapes and types the result has; all of it is one point.
      radius: of the ball.
    """
    direction_key, radius_key = jax.random.split(key)
    direction = standard_normal(direction_key, like)
    distance = radius * jax.random.uniform(radius_key) ** (1 / _size(like))
    factor = distance / global_norm(direction)
    return jax.tree.map(lambda leaf: (factor * leaf).astype(leaf.dtype), direction)


def _check_form(form: str, scale: str, threshold: float, period: int) -> None:
    """Raises InputError for options of the other form."""
    if form == "ball":
        check_number("threshold", threshold, "> 0")
        if scale != "norm":
            raise InputError(f"scale: expected 'norm' with form='ball', got {scale!r}")
        return
    for name, value in (("threshold", threshold), ("period", period)):
        if value:
            raise InputError(f"{name}: expected 0 with form='gaussian', got {value}")


def _gaussian(inner: Direction, radius: float, scale: str) -> Direction:
    """Noise on every direction; its state is the inner one's."""

    def propose(objective: Objective, params: Params, batch: Batch, state: PyTree, key: Array) -> Proposal:
        proposal = inner.propose(objective, params, batch, state, key)
        deviation = radius / math.sqrt(_size(params)) if scale == "norm" else radius
        noise = standard_normal(noise_key(key), proposal.direction)
        noisy = moved(proposal.direction, jax.tree.map(lambda leaf: deviation * leaf, noise))
        return proposal._replace(direction=noisy)

    return Direction(inner.init, propose)


def _ball(inner: Direction, radius: float, threshold: float, period: int) -> Direction:
    """A move of the parameters once in a while."""

    def init(params: Params) -> BallState:
        return BallState(jnp.int32(0), jnp.int32(-period - 1), inner.init(params))

    def propose(objective: Objective, params: Params, batch: Batch, state: BallState, key: Array) -> Proposal:
        first = inner.propose(objective, params, batch, state.inner, key)
        due = (global_norm(first.direction) <= threshold) & (state.step - state.last > period)

        def move() -> tuple[Params, PyTree, Params]:
            jump = uniform_in_ball(noise_key(key), params, radius)
            again = inner.propose(objective, moved(params, jump), batch, state.inner, key)
            return again.direction, again.state, _together(jump, again.shift)

        def stay() -> tuple[Params, PyTree, Params]:
            return first.direction, first.state, _together(jax.tree.map(jnp.zeros_like, params), first.shift)

        direction, inner_state, shift = jax.lax.cond(due, move, stay)
        kept = BallState(state.step + 1, jnp.where(due, state.step, state.last), inner_state)
        return Proposal(direction, first.aux, kept, shift)

    return Direction(init, propose)


def _together(shift: Params, another: Params | None) -> Params:
    """A shift, and that of the inner direction if it has one."""
    return shift if another is None else jax.tree.map(jnp.add, shift, another)


def _size(params: Params) -> int:
    """The number of parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
