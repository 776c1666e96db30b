"""Losses that bear wrong labels against NumPy in float64, their limits, and what is pruned."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imbal_jax.corrections.compose import composed, deferred
from imbal_jax.corrections.margins import ldam, logit_adjustment
from imbal_jax.corrections.modulations import focal
from imbal_jax.corrections.noise_robust import generalized_cross_entropy, symmetric_cross_entropy
from imbal_jax.corrections.weights import class_balanced, cross_entropy, inverse_frequency
from imbal_jax.errors import InputError
from imbal_jax.losses import corrected_losses, reducible_losses
from imbal_jax.types import Prediction

LABELS = np.array([0, 2, 1, 0, 2], np.int32)
TRUTH = np.eye(3)[LABELS]
COUNTS = (60, 12, 3)


def _softmax(logits):
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def _sce_reference(logits, alpha, beta, log_clip=-9.210340371976182, least=0.0):
    """alpha CE - beta sum_c p_c log(clip(onehot_c)), as written, and its gradient by the logits."""
    p = _softmax(logits)
    clipped = np.clip(p, least, 1.0)
    reverse = -(clipped * np.where(TRUTH == 1, 0.0, log_clip)).sum(axis=1)
    losses = alpha * -np.log((p * TRUTH).sum(axis=1)) + beta * reverse
    slopes = np.where((TRUTH == 0) & (p > least), -log_clip, 0.0)  # d reverse / d p
    by_reverse = p * (slopes - (p * slopes).sum(axis=1, keepdims=True))
    return losses, alpha * (p - TRUTH) + beta * by_reverse


def _gce_reference(logits, q, k=0.0):
    """v [(1 - p^q) / q - (1 - k^q) / q] and its gradient by the logits; k = 0 for no pruning."""
    p = _softmax(logits)
    of_truth = (p * TRUTH).sum(axis=1)
    losses, gradient = (1 - of_truth**q) / q, (of_truth**q)[:, None] * (p - TRUTH)
    if k:
        kept = of_truth > k
        losses, gradient = kept * (losses - (1 - k**q) / q), kept[:, None] * gradient
    return losses, gradient


CASES = {
    "sce": (symmetric_cross_entropy(), lambda z: _sce_reference(z, 0.1, 1.0)),
    "sce_cifar100": (
        symmetric_cross_entropy(alpha=6.0, beta=0.1, probability_clip=1e-7),
        lambda z: _sce_reference(z, 6.0, 0.1, least=1e-7),
    ),
    "sce_clipped": (
        symmetric_cross_entropy(alpha=0.5, beta=2.0, log_clip=-4.0, probability_clip=0.05),
        lambda z: _sce_reference(z, 0.5, 2.0, -4.0, 0.05),
    ),
    "reverse_alone": (symmetric_cross_entropy(alpha=0.0), lambda z: _sce_reference(z, 0.0, 1.0)),
    "gce": (generalized_cross_entropy(), lambda z: _gce_reference(z, 0.7)),
    "gce_weak": (generalized_cross_entropy(q=0.1), lambda z: _gce_reference(z, 0.1)),
    "mae": (generalized_cross_entropy(q=1.0), lambda z: _gce_reference(z, 1.0)),
    "pruned": (generalized_cross_entropy(truncation=0.5), lambda z: _gce_reference(z, 0.7, 0.5)),
    "pruned_weak": (generalized_cross_entropy(q=0.3, truncation=0.2), lambda z: _gce_reference(z, 0.3, 0.2)),
}


def _example():
    """Logits [5, 3] of both signs, float64: of the true class probabilities from 0.01 up."""
    return np.random.default_rng(4).normal(size=(5, 3), scale=2.0)


@functools.cache
def _compiled(correction):
    """The jitted function (logits, labels) -> losses and the gradient of their sum."""

    def losses(logits, labels):
        return corrected_losses(correction.correct(Prediction(logits), labels, 0.0), labels)

    return jax.jit(lambda z, y: (losses(z, y), jax.grad(lambda z: losses(z, y).sum())(z)))


def _losses_and_gradient(correction, logits, labels=LABELS):
    return jax.device_get(_compiled(correction)(logits, labels))


def test_the_example_has_probabilities_on_both_sides_of_the_bounds():
    p = _softmax(_example())
    of_truth = (p * TRUTH).sum(axis=1)
    for bound in (0.2, 0.5):
        assert 0 < (of_truth > bound).sum() < 5
        assert np.abs(of_truth - bound).min() > 1e-3
    assert 0 < (p[TRUTH == 0] < 0.05).sum() < 10


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-6), ("float64", 1e-13)])
def test_losses_and_gradients(dtype, tolerance):
    logits = _example()
    with jax.enable_x64(dtype == "float64"):
        together = jax.jit(lambda z: [_compiled(correction)(z, LABELS) for correction, _ in CASES.values()])
        results = jax.device_get(together(jnp.asarray(logits, dtype)))
    for (name, (_, reference)), result in zip(CASES.items(), results, strict=True):
        for actual, expected in zip(result, reference(logits), strict=True):
            assert actual.dtype == dtype
            scale = np.abs(expected).max()
            np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=4 * tolerance * scale, err_msg=name)


@pytest.mark.parametrize("name", CASES)
def test_references_differentiate_their_own_losses(name):
    reference, logits, step = CASES[name][1], _example(), 1e-6
    _, gradient = reference(logits)
    for column in range(3):
        shift = step * np.eye(3)[column]
        slope = (reference(logits + shift)[0] - reference(logits - shift)[0]) / (2 * step)
        np.testing.assert_allclose(slope, gradient[:, column], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", CASES)
def test_five_steps_in_float64(name):
    """Gradient descent on a linear model, against the same steps taken in NumPy."""
    correction, reference = CASES[name]
    rng = np.random.default_rng(2)
    inputs, kernel = rng.normal(size=(5, 4)), rng.normal(size=(4, 3))
    expected = kernel
    with jax.enable_x64(True):

        def loss(kernel):
            return reducible_losses(correction.correct(Prediction(inputs @ kernel), LABELS, 0.0), LABELS, "mean").mean()

        gradient, actual = jax.jit(jax.grad(loss)), jnp.asarray(kernel)
        for _ in range(5):
            actual = actual - 0.5 * gradient(actual)
            expected = expected - 0.5 * inputs.T @ reference(inputs @ expected)[1] / 5
    assert np.abs(expected - kernel).max() > 1e-3
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-12)


def test_gce_tends_to_cross_entropy_as_q_falls():
    logits = jnp.float32(_example())
    expected = _losses_and_gradient(cross_entropy(), logits)
    for q, tolerance in ((1e-2, 6e-2), (1e-4, 6e-4), (1e-7, 2e-6), (1e-30, 2e-6)):
        actual = _losses_and_gradient(generalized_cross_entropy(q=q), logits)
        for one, other in zip(actual, expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=tolerance, atol=1e-7)


def test_gce_at_one_is_the_probability_of_error():
    logits = _example()
    losses, _ = _losses_and_gradient(generalized_cross_entropy(q=1.0), jnp.float32(logits))
    of_truth = (_softmax(logits) * TRUTH).sum(axis=1)
    np.testing.assert_allclose(losses, np.abs(_softmax(logits) - TRUTH).sum(axis=1) / 2, rtol=2e-6)
    np.testing.assert_allclose(losses, 1 - of_truth, rtol=2e-6)


def test_sce_without_the_reverse_is_a_multiple_of_cross_entropy():
    logits = jnp.float32(_example())
    plain = _losses_and_gradient(cross_entropy(), logits)
    for beta in (0.0, 1e-9):
        actual = _losses_and_gradient(symmetric_cross_entropy(alpha=2.0, beta=beta), logits)
        for one, other in zip(actual, plain, strict=True):
            np.testing.assert_allclose(one, 2 * other, rtol=1e-6, atol=1e-6)


BOUNDS = {"gce": 1 / 0.7, "gce_weak": 10.0, "mae": 1.0, "reverse_alone": -math.log(1e-4)}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_saturated_examples_are_finite(dtype):
    """Fitted ever better and ever worse, to +-1000."""
    gaps = np.concatenate([[0.0], np.geomspace(1e-3, 1e3, 60)])
    logits = np.zeros((2 * len(gaps), 3))
    logits[:, 0] = np.concatenate([gaps, -gaps])
    labels = np.zeros(len(logits), np.int32)
    with jax.enable_x64(dtype == "float64"):
        together = jax.jit(lambda z: {name: _compiled(case[0])(z, labels) for name, case in CASES.items()})
        results = jax.device_get(together(jnp.asarray(logits, dtype)))
    for name, (losses, gradient) in results.items():
        assert np.isfinite(losses).all(), name
        assert np.isfinite(gradient).all(), name
        right, wrong = losses[: len(gaps)], losses[len(gaps) :]
        if "pruned" not in name:  # where the loss of a wrong example rises to 0 and that of a pruned one stays there
            assert (np.diff(right) <= 1e-6).all(), name
            assert (np.diff(wrong) >= -1e-6).all(), name
        assert wrong[-1] == pytest.approx(BOUNDS.get(name, wrong[-1]), rel=1e-6), name


def test_gradients_where_the_softmax_is_exact():
    """At p = 1 and p = 0 in float32 the gradients are those of the limits, not of a quotient 0 / 0."""
    logits = jnp.array([[200.0, 0.0, 0.0], [-200.0, 0.0, 0.0]])
    labels = np.zeros(2, np.int32)
    _, bounded = _losses_and_gradient(generalized_cross_entropy(), logits, labels)
    np.testing.assert_array_equal(bounded, 0.0)
    _, symmetric = _losses_and_gradient(symmetric_cross_entropy(alpha=0.1), logits, labels)
    np.testing.assert_allclose(symmetric, 0.1 * np.array([[0, 0, 0], [-1, 0.5, 0.5]]), atol=1e-7)


def test_pruned_examples_have_no_gradient_and_no_loss():
    logits = _example()
    kept = (_softmax(logits) * TRUTH).sum(axis=1) > 0.5
    losses, gradient = _losses_and_gradient(generalized_cross_entropy(truncation=0.5), jnp.float32(logits))
    assert (losses[kept] < 0).all()
    np.testing.assert_array_equal(losses[~kept], 0.0)
    np.testing.assert_array_equal(gradient[~kept], 0.0)
    _, whole = _losses_and_gradient(generalized_cross_entropy(), jnp.float32(logits))
    np.testing.assert_allclose(gradient[kept], whole[kept], rtol=1e-6)


def test_pruning_by_epochs_leaves_the_choice_to_the_run():
    logits = _example()
    of_truth = (_softmax(logits) * TRUTH).sum(axis=1)
    correction = generalized_cross_entropy(truncation=0.5, refresh="epochs", start=3, every=2)
    losses, _ = _losses_and_gradient(correction, jnp.float32(logits))
    np.testing.assert_allclose(losses, (1 - of_truth**0.7) / 0.7 - (1 - 0.5**0.7) / 0.7, rtol=1e-5, atol=1e-6)
    assert (correction.keeping.start, correction.keeping.every) == (3, 2)
    kept = correction.keeping.keep(Prediction(jnp.float32(logits)), LABELS, 0.0)
    np.testing.assert_array_equal(kept, of_truth > 0.5)
    assert generalized_cross_entropy(truncation=0.5).keeping is None
    with pytest.raises(InputError, match=r"^truncation: expected a number > 0 with refresh='epochs', got 0.0$"):
        generalized_cross_entropy(refresh="epochs")


def test_without_weights_there_is_nothing_to_weigh():
    with pytest.raises(InputError, match=r"^alpha: expected alpha or beta > 0, got 0.0 for both$"):
        symmetric_cross_entropy(alpha=0.0, beta=0.0)


# ---- with margins, other factors, class weights and deferral

BOTH = pytest.mark.parametrize("robust", [symmetric_cross_entropy(), generalized_cross_entropy()], ids=["sce", "gce"])


@BOTH
def test_class_weights_multiply_the_whole_loss(robust):
    logits = jnp.float32(_example())
    weight = class_balanced(COUNTS, beta=0.9)
    alone = _losses_and_gradient(robust, logits)
    weights = weight.correct(Prediction(logits), LABELS, 0.0).weights
    together = _losses_and_gradient(composed(modulation=robust, weight=weight), logits)
    np.testing.assert_allclose(together[0], weights * alone[0], rtol=1e-6)
    np.testing.assert_allclose(together[1], weights[:, None] * alone[1], rtol=1e-6)


@BOTH
@pytest.mark.parametrize("margin", [ldam(COUNTS), logit_adjustment(COUNTS)], ids=["ldam", "logit_adjustment"])
def test_the_loss_is_that_of_the_logits_under_the_margin(robust, margin):
    logits = jnp.float32(np.tanh(_example()))
    moved = margin.correct(Prediction(logits), LABELS, 0.0).logits
    together, _ = _losses_and_gradient(composed(margin=margin, modulation=robust), logits)
    np.testing.assert_allclose(together, _losses_and_gradient(robust, moved)[0], rtol=1e-6)


@BOTH
def test_a_later_factor_multiplies_what_is_added(robust):
    logits = jnp.float32(_example())
    losses, _ = _losses_and_gradient(composed(margin=robust, modulation=focal(gamma=2.0)), logits)
    of_truth = (_softmax(_example()) * TRUTH).sum(axis=1)
    np.testing.assert_allclose(losses, (1 - of_truth) ** 2 * _losses_and_gradient(robust, logits)[0], rtol=1e-5)


def test_what_is_added_adds_up():
    logits = jnp.float32(_example())
    parts = [generalized_cross_entropy(q=0.5), symmetric_cross_entropy(alpha=1.0, beta=2.0)]
    losses, _ = _losses_and_gradient(composed(margin=parts[0], modulation=parts[1]), logits)
    # The second has a factor 1 and its own term; the first has no cross-entropy.
    expected = _gce_reference(_example(), 0.5)[0] + _sce_reference(_example(), 0.0, 2.0)[0]
    np.testing.assert_allclose(losses, expected, rtol=1e-6)


@BOTH
@pytest.mark.parametrize("other", [cross_entropy(), inverse_frequency(COUNTS)], ids=["plain", "weighted"])
def test_deferral_in_both_orders(robust, other):
    logits = jnp.float32(_example())

    def losses(correction, progress):
        return corrected_losses(correction.correct(Prediction(logits), LABELS, progress), LABELS)

    first, last = deferred(after=robust, before=other, at=0.5), deferred(after=other, before=robust, at=0.5)
    for before, after, correction in ((other, robust, first), (robust, other, last)):
        np.testing.assert_array_equal(losses(correction, 0.4), losses(before, 0.4))
        np.testing.assert_array_equal(losses(correction, 0.6), losses(after, 0.6))


def test_a_composition_keeps_what_its_part_keeps_of_the_logits_that_it_sees():
    pruned = generalized_cross_entropy(truncation=0.5, refresh="epochs")
    margin = logit_adjustment(COUNTS, tau=3.0)
    correction = composed(margin=margin, modulation=pruned, weight=inverse_frequency(COUNTS))
    prediction = Prediction(jnp.float32(_example()))
    moved = margin.correct(prediction, LABELS, 0.0).logits
    kept = correction.keeping.keep(prediction, LABELS, 0.0)
    np.testing.assert_array_equal(kept, pruned.keeping.keep(Prediction(moved), LABELS, 0.0))
    assert (np.asarray(kept) != pruned.keeping.keep(prediction, LABELS, 0.0)).any()
    assert correction.keeping[1:] == pruned.keeping[1:]


def test_deferred_pruning_keeps_everything_before_the_switch():
    pruned = generalized_cross_entropy(truncation=0.5, refresh="epochs")
    correction = deferred(after=pruned, at=0.5)
    prediction = Prediction(jnp.float32(_example()))
    np.testing.assert_array_equal(correction.keeping.keep(prediction, LABELS, 0.4), 1.0)
    np.testing.assert_array_equal(
        correction.keeping.keep(prediction, LABELS, 0.5), pruned.keeping.keep(prediction, LABELS, 0.5)
    )


def test_pruning_by_epochs_cannot_be_taken_back_or_doubled():
    pruned = generalized_cross_entropy(truncation=0.5, refresh="epochs")
    with pytest.raises(InputError, match=r"^before: expected a correction that leaves no example out for good"):
        deferred(after=cross_entropy(), before=pruned)
    with pytest.raises(InputError, match=r"^composed: expected one correction that prunes by epochs, got 2$"):
        composed(margin=pruned, modulation=pruned)
