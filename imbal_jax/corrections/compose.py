"""Composition and deferral of corrections."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from imbal_jax.corrections.weights import cross_entropy
from imbal_jax.errors import InputError, check_number
from imbal_jax.types import Array, Conditional, Corrected, Correction, Keeping, Prediction

# Progress is a float32 quotient of steps; a switch must not slip by a step because the quotient rounds down. Two
# units in the last place: runs of up to four million steps switch at the exact step.
_PROGRESS_ROUNDING = 2.5e-7


def chain(*corrections: Correction) -> Correction:
    """Applies corrections one after another: each sees the logits of the one before, factors multiply.

    The factor by example of a later correction also multiplies what an earlier one adds to the cross-entropy.

    Raises:
      InputError: more than one of the corrections remembers the training examples.
    """

    def correct(prediction: Prediction, labels: Array, progress) -> Corrected:
        result = cross_entropy().correct(prediction, labels, progress)
        for correction in corrections:
            step = correction.correct(prediction._replace(logits=result.logits), labels, progress)
            added = None if result.added is None else result.added * step.modulation
            if step.added is not None:
                added = step.added if added is None else added + step.added
            result = Corrected(step.logits, result.weights * step.weights, result.modulation * step.modulation, added)
        return result

    def infer(logits: Array, progress) -> Array:
        for correction in corrections:
            logits = correction.infer(logits, progress)
        return logits

    return Correction(correct, infer, _keeping_of_chain(corrections), _conditional(corrections, chain))


def _keeping_of_chain(corrections: tuple[Correction, ...]) -> Keeping | None:
    """Which examples a chain keeps: those of its one part that decides, by the logits that this part sees."""
    deciding = [i for i, correction in enumerate(corrections) if correction.keeping is not None]
    if not deciding:
        return None
    if len(deciding) > 1:
        raise InputError(f"composed: expected one correction that prunes by epochs, got {len(deciding)}")
    before, keeping = chain(*corrections[: deciding[0]]), corrections[deciding[0]].keeping
    assert keeping is not None

    def keep(prediction: Prediction, labels: Array, progress) -> Array:
        logits = before.correct(prediction, labels, progress).logits
        return keeping.keep(prediction._replace(logits=logits), labels, progress)

    return keeping._replace(keep=keep)


def _conditional(parts: tuple[Correction, ...], combine: Callable[..., Correction]) -> Conditional | None:
    """The family that a combination is where one of its parts is a family; None where none is.

    Raises:
      InputError: several parts are families.
    """
    families = [(i, part.conditional) for i, part in enumerate(parts) if part.conditional is not None]
    if not families:
        return None
    if len(families) > 1:
        raise InputError(f"correction: expected at most one conditional part, got {len(families)}")
    ((place, family),) = families

    def at(condition: Array) -> Correction:
        return combine(*parts[:place], family.at(condition), *parts[place + 1 :])

    return family._replace(at=at)


def composed(
    *,
    margin: Correction | None = None,
    modulation: Correction | None = None,
    weight: Correction | None = None,
) -> Correction:
    """Composes a margin, a modulation and a weight, in this order.

    So focal over LDAM sees the probabilities under the margin, and LDAM-DRW is
    ``composed(margin=ldam(...), weight=deferred(after=inverse_frequency(...), at=0.5))``.

    Args:
      margin: a correction of the logits.
      modulation: a per-example factor, computed from the logits after the margin.
      weight: a factor by class.

    Raises:
      InputError: none of the three is given, or more than one of them prunes by epochs.
    """
    parts = [part for part in (margin, modulation, weight) if part is not None]
    if not parts:
        raise InputError("composed: expected at least one of margin, modulation and weight, got none")
    return chain(*parts)


def deferred(*, after: Correction, at: float = 0.5, before: Correction | None = None) -> Correction:
    """Switches from one correction to another at a fraction of training.

    With `after=inverse_frequency(...)` this is deferred re-weighting (DRW; thesis 3.4 and 4.1.5), and with at = 0
    it is initial re-weighting (IRW).

    Args:
      after: the correction from the switch on.
      at: fraction of training, in [0, 1]; the first step with progress >= at is corrected by `after`, none if at is
        1. The thesis uses 0.5, the published LDAM-DRW 0.8 (0-based epoch 160 of 200).
      before: the correction until the switch; cross-entropy when absent.

    Raises:
      InputError: at is outside [0, 1], or `before` prunes by epochs.
    """
    check_number("at", at, "in [0, 1]")
    earlier = cross_entropy() if before is None else before
    if earlier.keeping is not None:
        raise InputError("before: expected a correction that leaves no example out for good; use refresh='batch'")
    return earlier if at == 1.0 else _switched(at, earlier, after)


def _switched(at: float, earlier: Correction, after: Correction) -> Correction:
    """`deferred` with both corrections given."""

    def switched(progress) -> Array:
        return jnp.asarray(progress) >= at - _PROGRESS_ROUNDING

    def correct(prediction: Prediction, labels: Array, progress) -> Corrected:
        later = after.correct(prediction, labels, progress)
        first = earlier.correct(prediction, labels, progress)
        if later.added is not None or first.added is not None:
            later, first = _with_added(later), _with_added(first)
        return jax.tree.map(lambda new, old: jnp.where(switched(progress), new, old), later, first)

    def infer(logits: Array, progress) -> Array:
        return jnp.where(switched(progress), after.infer(logits, progress), earlier.infer(logits, progress))

    keeping = _keeping_once(switched, after.keeping)
    return Correction(correct, infer, keeping, _conditional((earlier, after), functools.partial(_switched, at)))


def _with_added(corrected: Corrected) -> Corrected:
    """The same with zeros in the place of nothing added."""
    return corrected if corrected.added is not None else corrected._replace(added=jnp.zeros_like(corrected.modulation))


def _keeping_once(switched: Callable[[Array | float], Array], keeping: Keeping | None) -> Keeping | None:
    """The same decisions after a switch, and every example before it."""
    if keeping is None:
        return None

    def keep(prediction: Prediction, labels: Array, progress) -> Array:
        factors = keeping.keep(prediction, labels, progress)
        return jnp.where(switched(progress), factors, jnp.ones_like(factors))

    return keeping._replace(keep=keep)
