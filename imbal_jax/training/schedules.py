"""Learning-rate schedules: optax schedules, functions of the step count.

Every schedule can begin with a warm-up by whole epochs, lr (e + 1) / warmup_epochs in 0-based epoch e, as in the
published long-tail code.
"""

import jax.numpy as jnp
import optax

from imbal_jax.errors import InputError, check_number
from imbal_jax.types import Horizon


def constant(horizon: Horizon, *, learning_rate: float = 0.1, warmup_epochs: int = 0) -> optax.Schedule:
    """The same learning rate throughout (thesis 4.1.4, CIFAR-10).

    Args:
      horizon: the run's length.
      learning_rate: > 0.
      warmup_epochs: epochs of warm-up; 0 for none.

    Raises:
      InputError: an argument is out of range.
    """
    return _schedule(horizon, learning_rate, warmup_epochs, lambda step, progress: 1.0)


def linear(
    horizon: Horizon, *, learning_rate: float = 0.1, end_factor: float = 0.0, warmup_epochs: int = 0
) -> optax.Schedule:
    """Falls in a straight line from the end of the warm-up to the end of training (thesis 4.1.4, speech).

    Args:
      horizon: the run's length.
      learning_rate: > 0, at the start.
      end_factor: what is left of it at the end, in [0, 1].
      warmup_epochs: epochs of warm-up; 0 for none.

    Raises:
      InputError: an argument is out of range.
    """
    check_number("end_factor", end_factor, "in [0, 1]")

    def factor(step, progress):
        return 1.0 - (1.0 - end_factor) * progress

    return _schedule(horizon, learning_rate, warmup_epochs, factor)


def cosine(
    horizon: Horizon, *, learning_rate: float = 0.1, end_factor: float = 0.0, warmup_epochs: int = 0
) -> optax.Schedule:
    """Falls along half a cosine from the end of the warm-up to the end of training (Loshchilov and Hutter 2017).

    Args:
      horizon: the run's length.
      learning_rate: > 0, at the start.
      end_factor: what is left of it at the end, in [0, 1].
      warmup_epochs: epochs of warm-up; 0 for none.

    Raises:
      InputError: an argument is out of range.
    """
    check_number("end_factor", end_factor, "in [0, 1]")

    def factor(step, progress):
        return end_factor + (1.0 - end_factor) * 0.5 * (1.0 + jnp.cos(jnp.pi * progress))

    return _schedule(horizon, learning_rate, warmup_epochs, factor)


def multi_step(
    horizon: Horizon,
    *,
    learning_rate: float = 0.1,
    boundaries: tuple[float, ...] = (),
    factors: tuple[float, ...] = (),
    warmup_epochs: int = 0,
) -> optax.Schedule:
    """The learning rate times a factor from each boundary on (Cao et al. 2019: epochs 160, 180, factors 1e-2, 1e-4).

    Args:
      horizon: the run's length.
      learning_rate: > 0, before the first boundary.
      boundaries: 0-based epochs, ascending; half epochs are allowed.
      factors: of the base learning rate (not of the one before), one per boundary.
      warmup_epochs: epochs of warm-up; 0 for none.

    Raises:
      InputError: an argument is out of range, or there are not as many factors as boundaries.
    """
    if len(boundaries) != len(factors):
        raise InputError(f"factors: expected one per boundary ({len(boundaries)}), got {tuple(factors)}")
    if list(boundaries) != sorted(set(boundaries)):
        raise InputError(f"boundaries: expected ascending epochs, got {tuple(boundaries)}")
    for each in factors:
        check_number("factors", each, ">= 0")
    steps = [horizon.first_step_of(each) for each in boundaries]
    table = jnp.asarray([1.0, *factors])

    def factor(step, progress):
        return table[jnp.sum(step >= jnp.asarray(steps, jnp.int32))]

    return _schedule(horizon, learning_rate, warmup_epochs, factor)


def switch(
    horizon: Horizon, *, learning_rate: float = 0.1, at: float = 0.5, factor: float = 0.5, warmup_epochs: int = 0
) -> optax.Schedule:
    """The learning rate times a factor from a fraction of training on, in step with a deferred correction.

    Args:
      horizon: the run's length.
      learning_rate: > 0, before the switch.
      at: the fraction of training at which it changes, in [0, 1], as of `imbal_jax.corrections.compose.deferred`.
      factor: of the learning rate afterwards, >= 0; thesis Table B.7 has 10 -> 5.
      warmup_epochs: epochs of warm-up; 0 for none.

    Raises:
      InputError: an argument is out of range.
    """
    check_number("at", at, "in [0, 1]")
    check_number("factor", factor, ">= 0")
    first = horizon.first_step_at(at)

    def multiplier(step, progress):
        del progress  # which counts from the end of the warm-up
        return jnp.where(step >= first, factor, 1.0)

    return _schedule(horizon, learning_rate, warmup_epochs, multiplier)


def _schedule(horizon: Horizon, learning_rate: float, warmup_epochs: int, factor) -> optax.Schedule:
    """Warm-up by whole epochs times a factor of the step and of the progress since the warm-up, in [0, 1]."""
    check_number("learning_rate", learning_rate, "> 0")
    warmup_steps = warmup_epochs * horizon.steps_per_epoch
    if not 0 <= warmup_steps <= horizon.total_steps:
        raise InputError(f"warmup_epochs: expected 0 to the number of epochs, got {warmup_epochs}")
    remaining = max(horizon.total_steps - warmup_steps, 1)

    def schedule(count):
        warmup = jnp.minimum(1.0, (count // horizon.steps_per_epoch + 1) / max(warmup_epochs, 1))
        progress = jnp.clip((count - warmup_steps) / remaining, 0.0, 1.0)
        return jnp.asarray(learning_rate * warmup * factor(count, progress), jnp.float32)

    return schedule
