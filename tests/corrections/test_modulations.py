"""Per-example factors against NumPy in float64, and their behaviour where the softmax saturates."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imbal_jax.corrections.modulations import (
    alpha_focal,
    focal,
    influence,
    influence_balanced,
    probability_of_error,
)
from imbal_jax.corrections.weights import cross_entropy
from imbal_jax.errors import InputError
from imbal_jax.losses import corrected_losses
from imbal_jax.types import Prediction

COUNTS = (60, 12, 3)
INVERSE_FREQUENCY = np.array([3.0, 15.0, 60.0]) / 26.0  # 1/60 : 1/12 : 1/3, mean one
LABELS = np.array([0, 2, 1, 0, 2], np.int32)
TRUTH = np.eye(3)[LABELS]
GAMMAS = (0.0, 0.1, 0.5, 1.0, 2.0, 5.0)


def _softmax(logits):
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def _focal_reference(logits, features, gamma):
    """(1 - q)^gamma (-log q) for q = p_y, its gradient by the logits, and none by the features."""
    p = _softmax(logits)
    q = (p * TRUTH).sum(axis=1)
    slope = gamma * q * (1 - q) ** (gamma - 1) * np.log(q) - (1 - q) ** gamma  # q d loss / d q
    return -((1 - q) ** gamma) * np.log(q), slope[:, None] * (TRUTH - p), np.zeros_like(features)


def _influence_reference(logits, features, alpha, epsilon, constant_factor):
    """alpha (-log q) / (||p - y||_1 ||h||_1 + epsilon), and its gradients by logits and features."""
    p = _softmax(logits)
    q = (p * TRUTH).sum(axis=1)
    feature_norm = np.abs(features).sum(axis=1)
    denominator = np.abs(p - TRUTH).sum(axis=1) * feature_norm + epsilon
    losses = -alpha * np.log(q) / denominator
    if constant_factor:
        return losses, (alpha / denominator)[:, None] * (p - TRUTH), np.zeros_like(features)
    # The denominator is 2 (1 - q) ||h|| + epsilon.
    slope = -alpha / denominator - 2 * q * feature_norm * alpha * np.log(q) / denominator**2  # q d loss / d q
    by_features = (alpha * np.log(q) / denominator**2 * 2 * (1 - q))[:, None] * np.sign(features)
    return losses, slope[:, None] * (TRUTH - p), by_features


def _weighted(reference, logits, features, *options):
    """The reference times inverse-frequency weights."""
    weights = INVERSE_FREQUENCY[LABELS]
    losses, by_logits, by_features = reference(logits, features, *options)
    return weights * losses, weights[:, None] * by_logits, weights[:, None] * by_features


CASES = {
    "focal": (focal(), lambda z, h: _focal_reference(z, h, 1.0)),
    "focal_weak": (focal(gamma=0.5), lambda z, h: _focal_reference(z, h, 0.5)),
    "focal_strong": (focal(gamma=5.0), lambda z, h: _focal_reference(z, h, 5.0)),
    "alpha_focal": (alpha_focal(COUNTS), lambda z, h: _weighted(_focal_reference, z, h, 2.0)),
    "influence": (influence(), lambda z, h: _influence_reference(z, h, 1000.0, 1e-3, False)),
    "influence_constant_factor": (
        influence(alpha=7.0, epsilon=0.1, stop_gradient_factor=True),
        lambda z, h: _influence_reference(z, h, 7.0, 0.1, True),
    ),
    "influence_balanced": (
        influence_balanced(COUNTS),
        lambda z, h: _weighted(_influence_reference, z, h, 1000.0, 1e-3, False),
    ),
    "influence_balanced_constant_factor": (
        influence_balanced(COUNTS, alpha=10.0, epsilon=0.5, stop_gradient_factor=True),
        lambda z, h: _weighted(_influence_reference, z, h, 10.0, 0.5, True),
    ),
}


def _example():
    """Logits [5, 3] and features [5, 4] of both signs, float64."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(5, 3), scale=2.0), rng.normal(size=(5, 4))


@functools.cache
def _compiled(correction):
    """The jitted function (logits, features, labels) -> losses and the gradients of their sum by the first two."""

    def losses(logits, features, labels):
        return corrected_losses(correction.correct(Prediction(logits, features), labels, 0.0), labels)

    def evaluate(logits, features, labels):
        gradients = jax.grad(lambda z, h: losses(z, h, labels).sum(), argnums=(0, 1))(logits, features)
        return losses(logits, features, labels), *gradients

    return jax.jit(evaluate)


def _compiled_together(corrections):
    """One jitted function for many corrections: a list of their results."""
    return jax.jit(lambda *arguments: [_compiled(correction)(*arguments) for correction in corrections])


def _losses_and_gradients(correction, logits, features, labels=LABELS):
    """Corrected losses and the gradients of their sum by logits and features, in the precision of the logits."""
    return jax.tree.map(np.asarray, _compiled(correction)(logits, features, labels))


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float64", 1e-11)])
def test_losses_and_gradients(dtype, tolerance):
    logits, features = _example()
    with jax.enable_x64(dtype == "float64"):
        corrections = [correction for correction, _ in CASES.values()]
        arguments = (jnp.asarray(logits, dtype), jnp.asarray(features, dtype), LABELS)
        results = jax.device_get(_compiled_together(corrections)(*arguments))
    for (name, (_, reference)), result in zip(CASES.items(), results, strict=True):
        for actual, expected in zip(result, reference(logits, features), strict=True):
            assert actual.dtype == dtype
            atol = tolerance * np.abs(expected).max()
            np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=atol, err_msg=name)


# With the factor held constant the gradient is not that of the loss, by design.
@pytest.mark.parametrize("name", [name for name in CASES if "constant_factor" not in name])
def test_references_differentiate_their_own_losses(name):
    reference = CASES[name][1]
    logits, features = _example()
    _, by_logits, by_features = reference(logits, features)
    for array, gradient in ((logits, by_logits), (features, by_features)):
        for column in range(array.shape[1]):
            original, step = array[:, column].copy(), 1e-5
            array[:, column] = original + step
            above = reference(logits, features)[0]
            array[:, column] = original - step
            below = reference(logits, features)[0]
            array[:, column] = original
            np.testing.assert_allclose(
                (above - below) / (2 * step), gradient[:, column], rtol=1e-6, atol=1e-8 * np.abs(gradient).max()
            )


@pytest.mark.parametrize("correction", [focal(gamma=0.0), alpha_focal((9, 9, 9), gamma=0.0)])
def test_no_focusing_recovers_cross_entropy(correction):
    logits, features = map(jnp.float32, _example())
    jax.tree.map(
        np.testing.assert_array_equal,
        _losses_and_gradients(correction, logits, features),
        _losses_and_gradients(cross_entropy(), logits, features),
    )


def test_focal_loss_falls_with_gamma_and_never_exceeds_cross_entropy():
    logits, features = map(jnp.float32, _example())
    losses = [_losses_and_gradients(focal(gamma=gamma), logits, features)[0] for gamma in (0.0, 1.0, 2.0)]
    assert (losses[0] > losses[1]).all()
    assert (losses[1] > losses[2]).all()


def test_probability_of_error():
    logits, _ = _example()
    expected = 1 - (_softmax(logits) * TRUTH).sum(axis=1)
    np.testing.assert_allclose(jax.jit(probability_of_error)(jnp.float32(logits), LABELS), expected, rtol=2e-6)


@pytest.fixture(scope="module")
def saturating():
    """Float32 logits whose first class leads by more and more, beyond where the softmax is exactly one-hot."""
    gaps = np.concatenate([np.linspace(0.0, 110.0, 221), [1000.0, 1e6]])
    return np.stack([gaps, np.zeros_like(gaps), np.zeros_like(gaps)], axis=1).astype(np.float32)


def _focal_in_float64(logits, label, gamma):
    """Focal losses and gradients, exact where 1 - q is tiny; the limit 0 at q = 1."""
    logits = logits.astype(np.float64)
    p = _softmax(logits)
    others = np.delete(p, label, axis=1).sum(axis=1)
    log_q = np.where(others < 0.5, np.log1p(-np.minimum(others, 0.5)), np.log(np.maximum(p[:, label], 1e-300)))
    log_q = np.where(p[:, label] > 0, log_q, logits[:, label] - logits.max(axis=1))
    positive = np.maximum(others, 1e-300)
    slope = gamma * p[:, label] * positive ** (gamma - 1) * log_q - positive**gamma
    residual = np.where(np.arange(3) == label, others[:, None], -p)
    return -(positive**gamma) * log_q, slope[:, None] * residual


@jax.jit
def _focal_at_every_gamma(logits, labels):
    """Losses, their gradients and a Hessian-vector product, for each of GAMMAS."""

    def losses(gamma, logits):
        return corrected_losses(focal(gamma=gamma).correct(Prediction(logits), labels, 0.0), labels)

    results = []
    for gamma in GAMMAS:
        gradient = jax.grad(lambda z, gamma=gamma: losses(gamma, z).sum())
        curvature = jax.jvp(gradient, (logits,), (jnp.full_like(logits, 0.3).at[:, 0].set(1.0),))[1]
        results.append((losses(gamma, logits), gradient(logits), curvature))
    return results


@pytest.mark.parametrize("label", [0, 1])
def test_focal_is_finite_and_right_where_the_softmax_saturates(label, saturating):
    results = _focal_at_every_gamma(saturating, np.full(len(saturating), label, np.int32))
    for gamma, (values, gradient, curvature) in zip(GAMMAS, results, strict=True):
        expected_values, expected_gradient = _focal_in_float64(saturating, label, gamma)
        assert np.isfinite(curvature).all()
        assert (np.asarray(values) >= 0).all()
        np.testing.assert_allclose(values, expected_values, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-5, atol=1e-6)
        if label == 0:  # q = 1 in float32
            np.testing.assert_array_equal(values[-2:], 0.0)
            np.testing.assert_array_equal(np.asarray(gradient)[-2:, 0], 0.0)
        else:  # q = 0
            np.testing.assert_array_equal(values[-2:], [1000.0, 1e6])
            np.testing.assert_array_equal(gradient[-2:], [[1.0, -1.0, 0.0]] * 2)


@pytest.mark.parametrize("stop_gradient_factor", [False, True])
def test_influence_is_finite_where_the_softmax_saturates(stop_gradient_factor, saturating):
    correction = influence(stop_gradient_factor=stop_gradient_factor)
    features = np.tile(np.float32([[1.0, 0.0, 2.0]]), (len(saturating), 1))
    features[::3] = 0.0  # a dead example: all features 0 after the rectifier
    for label in (0, 1):
        labels = np.full(len(saturating), label, np.int32)
        losses, by_logits, by_features = _losses_and_gradients(correction, saturating, features, labels)
        assert np.isfinite(losses).all()
        assert np.isfinite(by_logits).all()
        assert np.isfinite(by_features).all()
        assert (losses >= 0).all()
        if label == 0:  # q = 1 in float32: nothing is left to learn
            for result in (losses, by_logits, by_features):
                np.testing.assert_array_equal(result[-2:], 0.0)


def _gradient_norms(stop_gradient_factor, logits):
    features = jnp.full((len(logits), 4), 0.25)
    correction = influence(alpha=10.0, epsilon=1e-9, stop_gradient_factor=stop_gradient_factor)
    gradient = _losses_and_gradients(correction, logits, features, np.zeros(len(logits), np.int32))[1]
    return np.linalg.norm(gradient, axis=1)


def test_fitted_examples_keep_their_gradient_only_if_the_factor_is_held_constant():
    error = np.array([0.5, 0.1, 0.01, 1e-3])  # 1 - q, two classes, ||h||_1 = 1
    logits = jnp.float32(np.stack([np.log((1 - error) / error), np.zeros(4)], axis=1))
    held = _gradient_norms(True, logits)
    # alpha ||p - y||_2 / (||p - y||_1 ||h||_1): the same for every example
    np.testing.assert_allclose(held, 10.0 / np.sqrt(2.0), rtol=2e-4)
    through = _gradient_norms(False, logits)
    assert (np.diff(through) < 0).all()
    # -log q / (2 (1 - q)) has a finite slope at q = 1, so that the gradient vanishes as 1 - q does
    np.testing.assert_allclose(through[2:], 10.0 * np.sqrt(2.0) * error[2:] / 4.0, rtol=0.02)
    assert through[2] < 0.01 * held[2]


def test_influence_needs_features():
    for correction in (influence(), influence_balanced(COUNTS)):
        with pytest.raises(InputError, match=r"^features: the influence factor needs the model's features, got None$"):
            correction.correct(Prediction(jnp.zeros((5, 3))), LABELS, 0.0)


def test_modulations_keep_the_logits_and_have_no_weights_of_their_own():
    logits, features = map(jnp.float32, _example())
    for correction in (focal(), influence()):
        corrected = correction.correct(Prediction(logits, features), LABELS, 0.0)
        assert corrected.logits is logits
        np.testing.assert_array_equal(corrected.weights, np.ones(5))
        assert correction.infer(logits, 1.0) is logits


def test_class_weights_stay_apart_from_the_modulation():
    logits, features = map(jnp.float32, _example())
    for correction in (alpha_focal(COUNTS), influence_balanced(COUNTS)):
        corrected = correction.correct(Prediction(logits, features), LABELS, 0.0)
        np.testing.assert_allclose(corrected.weights, INVERSE_FREQUENCY[LABELS], rtol=1e-6)
    thesis = alpha_focal(COUNTS, normalization="sum_one").correct(Prediction(logits), LABELS, 0.0)
    np.testing.assert_allclose(thesis.weights, INVERSE_FREQUENCY[LABELS] / 3, rtol=1e-6)
    raw = influence_balanced(COUNTS, normalization="none").correct(Prediction(logits, features), LABELS, 0.0)
    np.testing.assert_allclose(raw.weights, 1 / np.array(COUNTS)[LABELS], rtol=1e-6)
