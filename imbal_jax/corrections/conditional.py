"""Families of corrections for loss-conditional training: their hyper-parameters are drawn anew for every step.

Every hyper-parameter is given as a tuple: of one number, which is fixed, or of three, (a, b, h_b), which stand for the
density L(a, b, h_b) that it is drawn from (`linear_density`). Those that are drawn form the condition, in the order of
the options; a family with none is an ordinary correction. The model sees the condition if it has a FiLM block; without
one this is the ablation "LCT without FiLM" of the paper's Table 4.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from imbal_jax.class_counts import ClassCounts, class_counts
from imbal_jax.corrections.linear_density import LinearDensity, linear_density
from imbal_jax.corrections.margins import LOG_ZERO, affine
from imbal_jax.corrections.modulations import probability_of_error, safe_power
from imbal_jax.corrections.weights import keep_logits
from imbal_jax.errors import InputError, check_number
from imbal_jax.types import Array, Conditional, Corrected, Correction, Prediction


def conditional_vector_scaling(
    counts,
    *,
    multiplicative: tuple[float, ...] = (0.0, 0.3, 3.3),
    additive: tuple[float, ...] = (0.0, 3.0, 0.33),
    weight: tuple[float, ...] = (),
) -> Correction:
    """The VS loss over a distribution of its hyper-parameters (loss-conditional training, Eqs. 3, 4 and 7).

    The defaults are all but uniform densities of the paper's Table 2. For two classes and beta = n_- / n_+ the loss is
    log(1 + e^eta) of negatives and log(1 + e^-eta) of positives, eta = z_+ / beta^multiplicative - z_- - additive
    log(beta), Eq. 4.

    Args:
      counts: training examples per class, [num_classes], or a `ClassCounts`.
      multiplicative: gamma of the paper, the exponent of the multiplicative adjustment, >= 0.
      additive: tau of the paper, the strength of the additive adjustment, >= 0.
      weight: Omega of the published code, in [0, 1]: negatives (class 0) weigh 1 - Omega and positives Omega. Of two
        classes only; empty for no weights.

    Raises:
      InputError: a class is empty, a number is out of its range, a density is none, or there is a weight and the
        number of classes is not two.
    """
    counts = class_counts(counts)
    occupied = np.where(counts.present, counts.counts, counts.counts.max()).astype(np.float64)
    log_scale = np.log(occupied / occupied.max())
    log_prior = np.log(np.where(counts.present, counts.priors, 1.0))
    drawn = {
        "multiplicative": _hyperparameter("multiplicative", multiplicative, ">= 0"),
        "additive": _hyperparameter("additive", additive, ">= 0"),
    }
    intervals = dict.fromkeys(drawn, ">= 0")
    if weight:
        _check_two_classes("weight", counts)
        drawn["weight"], intervals["weight"] = _hyperparameter("weight", weight, "in [0, 1]"), "in [0, 1]"

    def member(multiplicative, additive, weight=None) -> Correction:
        masked = jnp.where(jnp.asarray(additive) > 0, LOG_ZERO, 0.0)
        shift = jnp.where(counts.present, additive * log_prior, masked)
        weights = counts.present if weight is None else counts.present * jnp.stack([1.0 - weight, weight])
        return affine(jnp.exp(multiplicative * log_scale), shift, weights)

    return _family(drawn, intervals, member)


def conditional_focal(
    counts, *, alpha: tuple[float, ...] = (0.25, 0.75, 2.0), phi: tuple[float, ...] = (1.0, 3.0, 0.5)
) -> Correction:
    """The alpha-balanced focal loss over a distribution of its hyper-parameters, for two classes.

    -alpha_y (1 - p_y)^phi log p_y with alpha_+ = alpha and alpha_- = 1 - alpha (loss-conditional training, Eqs. 2 and
    7). The gradient flows through the factor. The defaults are the uniform densities of the paper's Table 2.

    Args:
      counts: training examples per class, [2], or a `ClassCounts`; the positives are class 1.
      alpha: the weight of positives, in [0, 1].
      phi: the focusing strength, >= 0.

    Raises:
      InputError: the number of classes is not two, a class is empty, a number is out of its range, or a density is
        none.
    """
    counts = class_counts(counts)
    _check_two_classes("conditional_focal", counts)
    drawn = {"alpha": _hyperparameter("alpha", alpha, "in [0, 1]"), "phi": _hyperparameter("phi", phi, ">= 0")}

    def member(alpha, phi) -> Correction:
        def correct(prediction: Prediction, labels: Array, progress) -> Corrected:
            del progress
            logits = prediction.logits
            weights = jnp.asarray(counts.present * jnp.stack([1.0 - alpha, alpha]), logits.dtype)[labels]
            return Corrected(logits, weights, safe_power(probability_of_error(logits, labels), phi))

        return Correction(correct, keep_logits)

    return _family(drawn, {"alpha": "in [0, 1]", "phi": ">= 0"}, member)


def with_default(correction: Correction, condition: tuple[float, ...], *, name: str = "condition") -> Correction:
    """The same family, evaluated at another condition unless told otherwise.

    Args:
      correction: a conditional one.
      condition: [k].
      name: of the option, for messages.

    Raises:
      InputError: the correction is not conditional, or the condition is no k numbers in their ranges.
    """
    conditional = check_condition(correction, condition, name=name)
    member = conditional.at(jnp.asarray(condition))
    return Correction(member.correct, member.infer, conditional=conditional._replace(default=tuple(condition)))


def check_condition(correction: Correction, condition: tuple[float, ...], *, name: str) -> Conditional:
    """Returns the family of a conditional correction that has a member at a condition.

    Raises:
      InputError: see `with_default`.
    """
    conditional = correction.conditional
    if conditional is None:
        raise InputError(f"{name}: needs a conditional correction, such as conditional_vector_scaling, got {condition}")
    if len(condition) != len(conditional.names):
        expected = ", ".join(conditional.names)
        raise InputError(f"{name}: expected {len(conditional.names)} numbers ({expected}), got {tuple(condition)}")
    for each, value, interval in zip(conditional.names, condition, conditional.intervals, strict=True):
        check_number(f"{name} ({each})", value, interval)
    return conditional


def _family(
    hyperparameters: Mapping[str, float | LinearDensity],
    intervals: Mapping[str, str],
    member: Callable[..., Correction],
) -> Correction:
    """The correction of these hyper-parameters; conditional if any of them is drawn.

    Args:
      hyperparameters: each fixed or with its density.
      intervals: of every one.
      member: from hyper-parameters by name, numbers that may be traced, to their correction.
    """
    densities = {name: each for name, each in hyperparameters.items() if isinstance(each, LinearDensity)}
    if not densities:
        return member(**hyperparameters)

    def draw(key: Array) -> Array:
        keys = jax.random.split(key, len(densities))
        return jnp.stack([density.sample(each) for density, each in zip(densities.values(), keys, strict=True)])

    def at(condition: Array) -> Correction:
        return member(**{**hyperparameters, **{name: condition[i] for i, name in enumerate(densities)}})

    default = tuple(density.mean for density in densities.values())
    centre = at(jnp.asarray(default))
    names = tuple(densities)
    conditional = Conditional(names, draw, at, default, tuple(intervals[name] for name in names))
    return Correction(centre.correct, centre.infer, conditional=conditional)


def _hyperparameter(name: str, given: tuple[float, ...], interval: str) -> float | LinearDensity:
    """A fixed number or a density, with everything in its range."""
    if len(given) == 1:
        return check_number(name, given[0], interval)
    if len(given) != 3:
        raise InputError(f"{name}: expected one number, or a, b, h_b of a density L(a, b, h_b), got {tuple(given)}")
    for end in given[:2]:
        check_number(name, end, interval)
    return linear_density(*given, name=name)


def _check_two_classes(name: str, counts: ClassCounts) -> None:
    """Raises InputError unless there are two classes."""
    if counts.num_classes != 2:
        raise InputError(f"{name}: expected two classes, got {counts.num_classes}")
