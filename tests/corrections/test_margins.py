"""Logit corrections against their formulas in NumPy, with gradients by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imbal_jax.class_counts import class_counts
from imbal_jax.corrections.margins import (
    class_dependent_temperatures,
    ldam,
    ldam_margins,
    logit_adjustment,
    vector_scaling,
)
from imbal_jax.corrections.weights import cross_entropy
from imbal_jax.losses import corrected_losses
from imbal_jax.types import Prediction

LONG_TAIL = (5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50)
COUNTS = (400, 81, 16, 3)
LABELS = np.array([0, 3, 1, 0, 2, 3], np.int32)
TRUTH = np.eye(4)[LABELS]
MASKED = class_counts([60, 0, 12, 3], empty_classes="mask")
PRESENT = np.array([0, 2, 3])


def _softmax(logits):
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def _margin_reference(logits, max_margin, scale):
    """Losses and gradients of -log softmax_y(s (z - m_y e_y)), m_c = max_margin (n_min / n_c)^(1/4)."""
    margins = [max_margin * (min(COUNTS) / count) ** 0.25 for count in COUNTS]
    probabilities = _softmax(scale * (logits - np.array(margins)[LABELS][:, None] * TRUTH))
    return -np.log((probabilities * TRUTH).sum(axis=1)), scale * (probabilities - TRUTH)


def _scaling_reference(logits, multiplicative, additive):
    """Losses and gradients of the cross-entropy of z_c / (n_max / n_c)^multiplicative + additive log pi_c."""
    temperatures = np.array([(max(COUNTS) / count) ** multiplicative for count in COUNTS])
    shifts = np.array([additive * np.log(count / sum(COUNTS)) for count in COUNTS])
    probabilities = _softmax(logits / temperatures + shifts)
    return -np.log((probabilities * TRUTH).sum(axis=1)), (probabilities - TRUTH) / temperatures


CASES = {
    "ldam": (ldam(COUNTS), _margin_reference, (0.5, 30.0)),
    "ldam_on_raw_logits": (ldam(COUNTS, max_margin=2.0, scale=1.0), _margin_reference, (2.0, 1.0)),
    "logit_adjustment": (logit_adjustment(COUNTS), _scaling_reference, (0.0, 1.0)),
    "logit_adjustment_strong": (logit_adjustment(COUNTS, tau=2.5), _scaling_reference, (0.0, 2.5)),
    "class_dependent_temperatures": (class_dependent_temperatures(COUNTS), _scaling_reference, (0.3, 0.0)),
    "vector_scaling": (vector_scaling(COUNTS), _scaling_reference, (0.3, 1.0)),
    "vector_scaling_published_example": (
        vector_scaling(COUNTS, multiplicative=0.2, additive=1.2),
        _scaling_reference,
        (0.2, 1.2),
    ),
}


@functools.cache
def _compiled(correction):
    """The jitted function (logits, labels) -> corrected losses and the gradient of their sum by the logits."""

    def losses(logits, labels):
        return corrected_losses(correction.correct(Prediction(logits), labels, 0.0), labels)

    return jax.jit(lambda z, labels: (losses(z, labels), jax.grad(lambda z: losses(z, labels).sum())(z)))


def _compiled_together(corrections):
    """One jitted function for many corrections: a list of their results."""
    return jax.jit(lambda *arguments: [_compiled(correction)(*arguments) for correction in corrections])


def _value_and_gradient(correction, logits, labels=LABELS):
    """Corrected losses and the gradient of their sum by the logits, in the precision of the logits."""
    return jax.tree.map(np.asarray, _compiled(correction)(logits, labels))


def _logits(scale=2.0):
    return np.random.default_rng(0).normal(size=(6, 4), scale=scale)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float64", 1e-12)])
def test_losses_and_gradients(dtype, tolerance):
    logits = np.tanh(_logits())  # in place of cosines
    with jax.enable_x64(dtype == "float64"):
        corrections = [correction for correction, _, _ in CASES.values()]
        results = jax.device_get(_compiled_together(corrections)(jnp.asarray(logits, dtype), LABELS))
    for (name, (_, reference, options)), result in zip(CASES.items(), results, strict=True):
        for actual, expected in zip(result, reference(logits, *options), strict=True):
            assert actual.dtype == dtype
            atol = tolerance * np.abs(expected).max()
            np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=atol, err_msg=name)


def test_known_margins_of_a_long_tail():
    margins = ldam_margins(class_counts(LONG_TAIL), 0.5)
    assert margins.dtype == np.float64
    np.testing.assert_allclose(margins[[0, 9]], [0.158114, 0.5], rtol=1e-6)  # 0.5 * 100^(-1/4) and max_margin
    np.testing.assert_allclose(margins, [0.5 * (50 / count) ** 0.25 for count in LONG_TAIL], rtol=1e-14)


def test_margin_is_taken_from_the_true_class_only():
    logits = jnp.zeros((6, 4))
    adjusted = np.asarray(ldam([16, 1, 1, 1], max_margin=0.5, scale=10.0).correct(Prediction(logits), LABELS, 0.0)[0])
    np.testing.assert_allclose(adjusted, TRUTH * np.where(LABELS == 0, -2.5, -5.0)[:, None], rtol=1e-6)


@pytest.mark.parametrize(
    "correction",
    [
        ldam(COUNTS, max_margin=0.0, scale=1.0),
        logit_adjustment(COUNTS, tau=0.0),
        class_dependent_temperatures(COUNTS, multiplicative=0.0),
        vector_scaling(COUNTS, multiplicative=0.0, additive=0.0),
    ],
    ids=["ldam", "logit_adjustment", "class_dependent_temperatures", "vector_scaling"],
)
def test_no_strength_recovers_cross_entropy(correction):
    logits = jnp.float32(_logits(3.0))
    jax.tree.map(
        np.testing.assert_array_equal,
        _value_and_gradient(correction, logits),
        _value_and_gradient(cross_entropy(), logits),
    )


@pytest.mark.parametrize(
    ("special", "general"),
    [
        (logit_adjustment(COUNTS, tau=1.7), vector_scaling(COUNTS, multiplicative=0.0, additive=1.7)),
        (
            class_dependent_temperatures(COUNTS, multiplicative=0.4),
            vector_scaling(COUNTS, multiplicative=0.4, additive=0.0),
        ),
    ],
    ids=["logit_adjustment", "class_dependent_temperatures"],
)
def test_special_cases_of_vector_scaling(special, general):
    logits = jnp.float32(_logits())
    jax.tree.map(
        np.testing.assert_array_equal, _value_and_gradient(special, logits), _value_and_gradient(general, logits)
    )


def test_logit_adjustment_of_indifferent_logits_is_the_prior():
    losses, _ = _value_and_gradient(logit_adjustment(COUNTS), jnp.zeros((6, 4)))
    np.testing.assert_allclose(losses, -np.log(np.array(COUNTS)[LABELS] / 500), rtol=1e-5)


def test_strong_adjustment_of_very_rare_classes_keeps_its_digits():
    # pi^tau = 1e-14 would vanish beside the 1e-12 that other code adds.
    counts = (9_999_999, 1)
    adjusted = logit_adjustment(counts, tau=2.0).correct(Prediction(jnp.zeros((1, 2))), np.array([1]), 0.0).logits
    np.testing.assert_allclose(adjusted, [[2 * np.log1p(-1e-7), 2 * np.log(1e-7)]], rtol=1e-6)


def test_only_margins_scale_the_predictive_logits():
    logits = jnp.float32(_logits())
    np.testing.assert_allclose(ldam(COUNTS, scale=12.0).infer(logits, 1.0), 12.0 * logits, rtol=1e-6)
    for correction in (logit_adjustment(COUNTS), class_dependent_temperatures(COUNTS), vector_scaling(COUNTS)):
        assert correction.infer(logits, 1.0) is logits


@pytest.mark.parametrize(
    ("masked", "without"),
    [
        (logit_adjustment(MASKED), logit_adjustment([60, 12, 3])),
        (vector_scaling(MASKED), vector_scaling([60, 12, 3])),
        (vector_scaling(MASKED, additive=1e-3), vector_scaling([60, 12, 3], additive=1e-3)),
    ],
    ids=["logit_adjustment", "vector_scaling", "vector_scaling_weak"],
)
def test_adjusted_softmax_ignores_masked_classes(masked, without):
    logits = np.float32(_logits())
    logits[:, 1] = [0.0, 50.0, -50.0, 1000.0, 3.0, 1e6]
    labels = np.array([0, 3, 2, 0, 2, 3], np.int32)
    losses, gradient = _value_and_gradient(masked, jnp.asarray(logits), labels)
    compact_labels = np.searchsorted(PRESENT, labels).astype(np.int32)
    compact = _value_and_gradient(without, jnp.asarray(logits[:, PRESENT]), compact_labels)
    np.testing.assert_allclose(losses, compact[0], rtol=1e-6)
    np.testing.assert_allclose(gradient[:, PRESENT], compact[1], rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(gradient[:, 1], 0.0)


def test_masked_classes_have_no_margin_and_no_temperature():
    margins = ldam_margins(MASKED, 0.5)
    np.testing.assert_allclose(margins, np.insert(ldam_margins(class_counts([60, 12, 3]), 0.5), 1, 0.0), rtol=1e-14)
    prediction = Prediction(jnp.ones((1, 4)))
    adjusted = class_dependent_temperatures(MASKED, multiplicative=0.5).correct(prediction, np.array([0]), 0.0).logits
    np.testing.assert_allclose(adjusted[0], [1.0, 1.0, np.sqrt(12 / 60), np.sqrt(3 / 60)], rtol=1e-6)


@pytest.mark.parametrize(
    "correction",
    [ldam(MASKED), logit_adjustment(MASKED), logit_adjustment(MASKED, tau=0.0), vector_scaling(MASKED)],
    ids=["ldam", "logit_adjustment", "no_logit_adjustment", "vector_scaling"],
)
def test_examples_of_a_masked_class_weigh_nothing(correction):
    weights = correction.correct(Prediction(jnp.float32(_logits(3.0))), LABELS, 0.0).weights
    np.testing.assert_array_equal(weights, np.asarray(MASKED.present, np.float32)[LABELS])
