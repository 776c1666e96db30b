"""Class weights against exact arithmetic, published numbers and the formulas in NumPy."""

import functools
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imbal_jax.class_counts import class_counts
from imbal_jax.corrections.weights import (
    class_balanced,
    cross_entropy,
    effective_number_weights,
    inverse_frequency,
    inverse_frequency_weights,
    keep_logits,
    normalize_weights,
    weighted,
)
from imbal_jax.errors import InputError
from imbal_jax.losses import corrected_losses
from imbal_jax.types import Prediction

# CIFAR-10-LT with an imbalance of 100.
LONG_TAIL = (5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50)
COUNTS = (60, 12, 3)
LABELS = np.array([0, 2, 1, 0, 2], np.int32)
MASKED = class_counts([6, 0, 2, 1], empty_classes="mask")


def _softmax(logits):
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


@pytest.mark.parametrize(
    ("beta", "first", "last", "half_digit"),
    [(0.9999, 0.0506, 3.993, 5e-4), (0.99, 0.784, 1.984, 5e-4), (0.9, 0.9995, 1.0046, 5e-5)],
)
def test_published_effective_number_weights(beta, first, last, half_digit):
    weights = effective_number_weights(class_counts(LONG_TAIL), beta=beta)
    assert weights.dtype == np.float64
    np.testing.assert_allclose([weights.min(), weights[0]], first, atol=half_digit)
    np.testing.assert_allclose([weights.max(), weights[-1]], last, atol=half_digit)
    np.testing.assert_allclose(weights.sum(), 10.0, rtol=1e-14)


def test_published_head_weight_to_its_last_digit():
    assert round(effective_number_weights(class_counts(LONG_TAIL), beta=0.9999)[0], 4) == 0.0506


def test_effective_number_saturates_for_frequent_classes():
    weights = effective_number_weights(class_counts(LONG_TAIL), beta=0.99)
    np.testing.assert_allclose(weights[:4], weights[0], rtol=3e-5)
    assert weights[4] > weights[0] * 1.001


@pytest.mark.parametrize("beta", [0.9, 0.999, 0.9999, 0.999999])
@pytest.mark.parametrize("counts", [(1, 2), (2, 3, 1000), LONG_TAIL])
def test_effective_number_weights_are_exact(counts, beta):
    exact_beta = Fraction(beta)
    expected = [float((1 - exact_beta) / (1 - exact_beta**count)) for count in counts]
    weights = effective_number_weights(class_counts(counts), beta=beta, normalization="none")
    np.testing.assert_allclose(weights, expected, rtol=1e-14)


def test_one_example_has_weight_one_and_two_have_its_share():
    weights = effective_number_weights(class_counts([1, 2]), beta=0.9999, normalization="none")
    np.testing.assert_allclose(weights, [1.0, 1.0 / 1.9999], rtol=1e-15)


@pytest.mark.parametrize("normalization", ["mean_one", "sum_one", "none"])
@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_inverse_frequency_weights(power, normalization):
    raw = [1.0 / count**power for count in LONG_TAIL]
    scale = {"mean_one": 10.0 / sum(raw), "sum_one": 1.0 / sum(raw), "none": 1.0}[normalization]
    weights = inverse_frequency_weights(class_counts(LONG_TAIL), power=power, normalization=normalization)
    np.testing.assert_allclose(weights, [scale * weight for weight in raw], rtol=1e-14)


def test_normalizations():
    weights = np.array([3.0, 0.0, 1.0])
    np.testing.assert_allclose(normalize_weights(weights, "mean_one"), [1.5, 0.0, 0.5], rtol=1e-15)
    np.testing.assert_allclose(normalize_weights(weights, "sum_one"), [0.75, 0.0, 0.25], rtol=1e-15)
    np.testing.assert_array_equal(normalize_weights(weights, "none"), weights)
    with pytest.raises(InputError, match=r"^normalization: expected 'mean_one', 'sum_one' or 'none', got 'max_one'$"):
        normalize_weights(weights, "max_one")


def test_weights_at_the_limits():
    long_tail = class_counts(LONG_TAIL)
    np.testing.assert_array_equal(inverse_frequency_weights(long_tail, power=0.0), np.ones(10))
    np.testing.assert_array_equal(effective_number_weights(long_tail, beta=0.0), np.ones(10))
    np.testing.assert_allclose(
        effective_number_weights(long_tail, beta=1.0 - 1e-12), inverse_frequency_weights(long_tail), rtol=1e-8
    )


@pytest.mark.parametrize(
    "weights_of",
    [inverse_frequency_weights, lambda counts, **options: effective_number_weights(counts, beta=0.99, **options)],
    ids=["inverse_frequency", "effective_number"],
)
def test_masked_classes_have_no_weight_and_no_say(weights_of):
    without = weights_of(class_counts([6, 2, 1]))
    with_masked = weights_of(MASKED)
    np.testing.assert_allclose(with_masked, np.insert(without, 1, 0.0), rtol=1e-14)
    np.testing.assert_allclose(with_masked.sum(), 3.0, rtol=1e-14)
    np.testing.assert_allclose(weights_of(MASKED, normalization="sum_one").sum(), 1.0, rtol=1e-14)


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


WEIGHT_CORRECTIONS = {
    "cross_entropy": (cross_entropy(), (1.0, 1.0, 1.0)),
    "weighted": (weighted(np.array([0.3, 1.0, 5.0])), (0.3, 1.0, 5.0)),
    # 1/60 : 1/12 : 1/3 = 1 : 5 : 20
    "inverse_frequency": (inverse_frequency(COUNTS), (3 / 26, 15 / 26, 60 / 26)),
    "inverse_frequency_sum_one": (inverse_frequency(COUNTS, normalization="sum_one"), (1 / 26, 5 / 26, 20 / 26)),
    "inverse_frequency_none": (inverse_frequency(COUNTS, normalization="none"), (1 / 60, 1 / 12, 1 / 3)),
    "inverse_frequency_power": (inverse_frequency(COUNTS, power=2.0, normalization="none"), (1 / 3600, 1 / 144, 1 / 9)),
    "class_balanced": (
        class_balanced(COUNTS, beta=0.9, normalization="none"),
        (0.1 / (1 - 0.9**60), 0.1 / (1 - 0.9**12), 0.1 / (1 - 0.9**3)),
    ),
}


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float64", 1e-12)])
def test_losses_and_gradients_of_weighted_corrections(dtype, tolerance):
    logits = np.random.default_rng(1).normal(size=(5, 3), scale=2.0)
    probabilities = _softmax(logits)
    with jax.enable_x64(dtype == "float64"):
        corrections = [correction for correction, _ in WEIGHT_CORRECTIONS.values()]
        results = jax.device_get(_compiled_together(corrections)(jnp.asarray(logits, dtype), LABELS))
    for (name, (_, weights)), (losses, gradient) in zip(WEIGHT_CORRECTIONS.items(), results, strict=True):
        assert losses.dtype == gradient.dtype == dtype
        per_example = np.array(weights)[LABELS]
        expected = -per_example * np.log(probabilities[np.arange(5), LABELS])
        np.testing.assert_allclose(losses, expected, rtol=tolerance, err_msg=name)
        expected = per_example[:, None] * (probabilities - np.eye(3)[LABELS])
        atol = tolerance * np.abs(expected).max()
        np.testing.assert_allclose(gradient, expected, rtol=tolerance, atol=atol, err_msg=name)


@pytest.mark.parametrize("correction", [inverse_frequency(COUNTS, power=0.0), class_balanced(COUNTS, beta=0.0)])
def test_weights_at_the_limits_recover_cross_entropy(correction):
    logits = jnp.float32(np.random.default_rng(2).normal(size=(5, 3), scale=3.0))
    jax.tree.map(
        np.testing.assert_array_equal,
        _value_and_gradient(correction, logits),
        _value_and_gradient(cross_entropy(), logits),
    )


def test_weights_keep_the_logits_of_the_predictive_distribution():
    logits = jnp.ones((2, 3))
    assert keep_logits(logits, 0.5) is logits
    for correction in (cross_entropy(), inverse_frequency(COUNTS), class_balanced(COUNTS)):
        assert correction.infer(logits, 1.0) is logits


def test_beta_outside_its_range_is_told():
    for beta in (-0.1, 1.0, float("nan")):
        with pytest.raises(InputError, match=rf"^beta: expected a number in \[0, 1\), got {beta}$"):
            effective_number_weights(class_counts(COUNTS), beta=beta)
