"""Exact draws from a Dirichlet distribution conditioned on every class keeping enough examples.

With alpha = 0.1, ten classes, total 4500 and a bound of 100 about one unconditional draw in two million passes, so
drawing and rejecting is slow. The draw here is exact as well, but proposes from a distribution that knows the
bound: with a = (min_count + 1) / total and s = 1 - C a write gamma = a + s u, u on the simplex; then the conditional
density of u is proportional to prod_c (a + s u_c)^(alpha - 1), and u ~ Dir(b), alpha <= b <= 1, is accepted with
probability prod_c r(u_c) / max r, r(u) = (a + s u)^(alpha - 1) u^(1 - b).
"""

from typing import NamedTuple

import numpy as np

from imbal_jax.errors import InputError, check_number

_PILOT_DRAWS = 20_000
_BATCH = 100_000
_MAX_DRAWS = 50_000_000


class _Proposal(NamedTuple):
    """A proposal distribution of the rejection sampler."""

    concentration: float  # of the Dirichlet that is drawn from
    shifted: bool  # whether the bound is built in (gamma = a + s u)


def dirichlet_counts(
    rng: np.random.Generator, *, alpha: float, total: int, min_count: int, available: np.ndarray
) -> np.ndarray:
    """Class counts n_c = floor(gamma_c * total), gamma ~ Dir(alpha 1) given min_count < n_c <= available_c.

    Source: thesis 4.1.1, where the bound is "ensured" by a mechanism that is not said; here it is the exact
    conditional distribution.

    Args:
      rng: source of randomness.
      alpha: concentration, > 0; the smaller, the more imbalanced.
      total: what the proportions are multiplied by; the counts sum to a little less.
      min_count: every class keeps more than this many examples.
      available: examples per class that there are, [num_classes]; no class asks for more.

    Returns:
      int64 [num_classes].

    Raises:
      InputError: alpha <= 0, or the bounds cannot be met or are too improbable to be met.
    """
    available = np.asarray(available, np.int64)
    _check(alpha, total, min_count, available)
    num_classes = len(available)
    spare = total - num_classes * (min_count + 1)
    if spare == 0:
        return np.full(num_classes, min_count + 1, np.int64)

    def attempt(proposal: _Proposal, draws: int) -> tuple[np.ndarray, np.ndarray]:
        """Draws counts [draws, num_classes] and the probability of accepting each [draws]."""
        point = rng.dirichlet(np.full(num_classes, proposal.concentration), draws)
        if proposal.shifted:
            counts = min_count + 1 + np.floor(point * spare).astype(np.int64)
            log_probability = _log_acceptance(point, alpha, proposal.concentration, total, spare, min_count)
        else:
            counts = np.floor(point * total).astype(np.int64)
            log_probability = np.where((counts > min_count).all(axis=1), 0.0, -np.inf)
        return counts, np.where((counts <= available).all(axis=1), np.exp(log_probability), 0.0)

    proposals = [_Proposal(alpha, False)]
    proposals += [_Proposal(float(b), True) for b in np.linspace(min(alpha, 1.0), 1.0, 9)]
    best = max(proposals, key=lambda proposal: attempt(proposal, _PILOT_DRAWS)[1].mean())
    for _ in range(_MAX_DRAWS // _BATCH):
        counts, probability = attempt(best, _BATCH)
        accepted = np.flatnonzero(rng.random(_BATCH) < probability)
        if len(accepted):
            return counts[accepted[0]]
    raise InputError(
        f"profile: none of {_MAX_DRAWS} draws of Dir(alpha={alpha}) with total={total} gave every class more than"
        f" min_count={min_count} and at most its {available.tolist()} examples; change total, min_count or alpha"
    )


def _check(alpha: float, total: int, min_count: int, available: np.ndarray) -> None:
    """Refuses what is impossible, with the arithmetic."""
    num_classes = len(available)
    check_number("alpha", alpha, "> 0")
    check_number("min_count", min_count, ">= 0")
    if num_classes * (min_count + 1) > total:
        raise InputError(
            f"min_count: {num_classes} classes with more than {min_count} examples each need at least {num_classes} x"
            f" {min_count + 1} = {num_classes * (min_count + 1)} examples, but total is {total}"
        )
    if available.min() <= min_count:
        raise InputError(
            f"min_count: class {int(available.argmin())} has {int(available.min())} examples, but every class must keep"
            f" more than {min_count}"
        )
    if (available + 1).sum() <= total:
        raise InputError(
            f"total: the classes have {int(available.sum())} examples together ({available.tolist()}), too few for"
            f" counts that sum to about {total}"
        )


def _log_acceptance(
    point: np.ndarray, alpha: float, concentration: float, total: int, spare: int, min_count: int
) -> np.ndarray:
    """The log of target over proposal, divided by its maximum, at each point of the simplex."""
    num_classes = point.shape[1]
    bound, scale = (min_count + 1) / total, spare / total

    def log_ratio(u):
        with np.errstate(divide="ignore"):
            by_proposal = (1.0 - concentration) * np.log(u) if concentration != 1.0 else 0.0
        return (alpha - 1.0) * np.log(bound + scale * u) + by_proposal

    if alpha >= 1.0:  # concave: the maximum over the simplex is at its centre
        largest = log_ratio(1.0 / num_classes)
    elif concentration == alpha:
        largest = log_ratio(1.0)
    else:
        stationary = (1.0 - concentration) * bound / (scale * (concentration - alpha))
        largest = log_ratio(min(stationary, 1.0)) if concentration < 1.0 else log_ratio(0.0)
    return (log_ratio(point) - largest).sum(axis=1)
