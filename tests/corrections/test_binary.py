"""The binary closed forms against the corrections of two classes, and against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imbal_jax.corrections import binary
from imbal_jax.corrections.compose import composed
from imbal_jax.corrections.margins import vector_scaling
from imbal_jax.corrections.modulations import focal
from imbal_jax.corrections.weights import minority_weight
from imbal_jax.errors import InputError
from imbal_jax.losses import corrected_losses
from imbal_jax.types import Prediction

COUNTS = (700, 7)  # beta = 100
RATIO = 100.0
LABELS = np.array([0, 1, 1, 0, 1, 0], np.int32)
STRENGTHS = [(0.0, 0.0), (0.3, 1.0), (0.0, 3.0), (0.15, 0.0)]


def _logits(scale=3.0):
    return np.random.default_rng(0).normal(size=(6, 2), scale=scale)


def _losses(correction, logits):
    return corrected_losses(correction.correct(Prediction(logits), LABELS, 0.0), LABELS)


@pytest.mark.parametrize(("multiplicative", "additive"), STRENGTHS)
def test_eta_is_the_vs_loss_of_two_classes(multiplicative, additive):
    """Eq. 4 of loss-conditional training, values and gradients, in float64."""
    options = {"ratio": RATIO, "multiplicative": multiplicative, "additive": additive}
    correction = vector_scaling(COUNTS, multiplicative=multiplicative, additive=additive)
    with jax.enable_x64(True):
        logits = jnp.asarray(_logits())
        actual = jax.vjp(lambda z: binary.vector_scaling_losses(z, LABELS, **options), logits)
        expected = jax.vjp(lambda z: _losses(correction, z), logits)
        np.testing.assert_allclose(actual[0], expected[0], rtol=1e-12, atol=1e-14)
        cotangent = jnp.arange(1.0, 7.0)
        np.testing.assert_allclose(actual[1](cotangent)[0], expected[1](cotangent)[0], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("multiplicative", "additive"), STRENGTHS)
def test_losses_as_printed(multiplicative, additive):
    negative, positive = _logits().T
    eta = positive / RATIO**multiplicative - (negative + additive * np.log(RATIO))
    expected = np.where(LABELS == 1, np.log1p(np.exp(-eta)), np.log1p(np.exp(eta)))
    options = {"ratio": RATIO, "multiplicative": multiplicative, "additive": additive}
    with jax.enable_x64(True):
        actual = binary.vector_scaling_losses(jnp.asarray(_logits()), LABELS, **options)
    np.testing.assert_allclose(actual, expected, rtol=1e-12)


def test_omega_weighs_positives_and_the_rest():
    logits = jnp.float32(_logits())
    options = {"ratio": RATIO, "multiplicative": 0.3, "additive": 1.0}
    weighted = binary.vector_scaling_losses(logits, LABELS, positive_weight=0.9, **options)
    plain = binary.vector_scaling_losses(logits, LABELS, **options)
    np.testing.assert_allclose(weighted, np.where(LABELS == 1, 0.9, 0.1) * plain, rtol=1e-6)
    margin = vector_scaling(COUNTS, multiplicative=0.3, additive=1.0)
    correction = composed(margin=margin, weight=minority_weight(COUNTS, weight=0.9))
    np.testing.assert_allclose(weighted, _losses(correction, logits), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.9, 0.5), (0.5, 0.0)])
def test_alpha_balanced_focal_is_the_composition(alpha, gamma):
    with jax.enable_x64(True):
        logits = jnp.asarray(_logits())
        actual = binary.focal_losses(logits, LABELS, alpha=alpha, gamma=gamma)
        correction = composed(modulation=focal(gamma=gamma), weight=minority_weight(COUNTS, weight=alpha))
        np.testing.assert_allclose(actual, _losses(correction, logits), rtol=1e-10)
    exponentials = np.exp(_logits())
    p = exponentials[np.arange(6), LABELS] / exponentials.sum(axis=1)
    weights = np.where(LABELS == 1, alpha, 1 - alpha)
    np.testing.assert_allclose(actual, -weights * (1 - p) ** gamma * np.log(p), rtol=1e-10)


def test_one_logit_is_the_positive_one_beside_zero():
    single = jnp.float32(_logits()[:, 1])
    both = jnp.stack([jnp.zeros_like(single), single], axis=1)
    options = {"ratio": RATIO, "multiplicative": 0.2, "additive": 1.5}
    np.testing.assert_array_equal(
        binary.vector_scaling_losses(single, LABELS, **options), binary.vector_scaling_losses(both, LABELS, **options)
    )
    np.testing.assert_array_equal(
        binary.focal_losses(single, LABELS, alpha=0.7, gamma=2.0),
        binary.focal_losses(both, LABELS, alpha=0.7, gamma=2.0),
    )


def test_strengths_may_be_traced():
    logits = jnp.float32(_logits())

    @jax.jit
    def traced(ratio, multiplicative, additive, weight, gamma):
        options = {"ratio": ratio, "multiplicative": multiplicative, "additive": additive, "positive_weight": weight}
        return binary.vector_scaling_losses(logits, LABELS, **options), binary.focal_losses(
            logits, LABELS, alpha=weight, gamma=gamma
        )

    scaled, focused = traced(RATIO, 0.3, 1.0, 0.8, 2.0)
    options = {"ratio": RATIO, "multiplicative": 0.3, "additive": 1.0, "positive_weight": 0.8}
    np.testing.assert_allclose(scaled, binary.vector_scaling_losses(logits, LABELS, **options), rtol=1e-5)
    np.testing.assert_allclose(focused, binary.focal_losses(logits, LABELS, alpha=0.8, gamma=2.0), rtol=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_saturated_examples_are_finite(gamma):
    logits = jnp.array([[1e3, -1e3], [-1e3, 1e3], [1e3, 1e3], [0.0, 200.0], [0.0, -200.0], [1e3, -1e3]])

    def total(z):
        losses = binary.focal_losses(z, LABELS, alpha=0.5, gamma=gamma)
        return jnp.sum(losses) + jnp.sum(
            binary.vector_scaling_losses(z, LABELS, ratio=200.0, multiplicative=0.3, additive=3.0)
        )

    value, gradient = jax.value_and_grad(total)(logits)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("ratio", [0.5, 0.0, -1.0, float("nan")])
def test_a_ratio_below_one_is_refused(ratio):
    with pytest.raises(InputError, match=rf"^ratio: expected a number >= 1, .*, got {ratio}$"):
        binary.vector_scaling_losses(jnp.zeros(6), LABELS, ratio=ratio)


@pytest.mark.parametrize("shape", [(6, 3), (6, 1), (2, 6, 2)])
def test_more_than_two_classes_are_refused(shape):
    with pytest.raises(InputError, match=r"^logits: expected shape \[batch\] or \[batch, 2\], got "):
        binary.focal_losses(jnp.zeros(shape), LABELS, alpha=0.5, gamma=1.0)


@pytest.mark.parametrize(("counts", "expected"), [((700, 7), (0.1, 0.9)), ((7, 700), (0.9, 0.1)), ((5, 5), (0.1, 0.9))])
def test_minority_weight_goes_to_the_rarer_class(counts, expected):
    corrected = minority_weight(counts, weight=0.9).correct(Prediction(jnp.zeros((2, 2))), np.arange(2), 0.0)
    np.testing.assert_allclose(corrected.weights, expected, rtol=1e-6)


@pytest.mark.parametrize("weight", [-0.1, 1.1, float("nan")])
def test_minority_weight_is_a_share(weight):
    with pytest.raises(InputError, match=rf"^weight: expected a number in \[0, 1\], got {weight}$"):
        minority_weight(COUNTS, weight=weight)


def test_minority_weight_needs_two_classes():
    with pytest.raises(InputError, match=r"^minority_weight: expected two classes, got 3$"):
        minority_weight((5, 4, 3))
