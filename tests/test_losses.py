"""Losses and their two reductions, against NumPy in float64 and against PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imbal_jax.errors import InputError
from imbal_jax.losses import (
    check_reduction,
    corrected_losses,
    cross_entropy_losses,
    reducible_losses,
    reduction_denominator,
)
from imbal_jax.types import Corrected

FLOAT32 = {"rtol": 1e-5, "atol": 1e-6}
CLASS_WEIGHTS = np.array([0.2, 0.7, 2.1])
LABELS = np.array([0, 0, 1, 2, 0, 1], np.int32)


def _softmax(logits):
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def _cross_entropy(logits, labels):
    shifted = logits - logits.max(axis=1, keepdims=True)
    return np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(labels)), labels]


@pytest.fixture
def example():
    """Logits, weights of the labels, and a modulation, in float64."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(6, 3), scale=2.0), CLASS_WEIGHTS[LABELS], rng.uniform(0.1, 1.0, size=6)


@jax.jit
def _value_and_gradient(logits, labels):
    return cross_entropy_losses(logits, labels), jax.grad(lambda z: cross_entropy_losses(z, labels).sum())(logits)


def _reduced(reduction):
    """A jitted function of (logits, weights, modulation, labels): the reduced loss and its gradient by the logits."""

    def loss(logits, weights, modulation, labels):
        return reducible_losses(Corrected(logits, weights, modulation), labels, reduction).mean()

    return jax.jit(jax.value_and_grad(loss))


REDUCED = {reduction: _reduced(reduction) for reduction in ("mean", "weighted_mean")}


def _reduce(reduction, logits, weights, modulation, labels):
    loss, gradient = REDUCED[reduction](*(jnp.float32(a) for a in (logits, weights, modulation)), jnp.asarray(labels))
    return float(loss), np.asarray(gradient)


def test_cross_entropy_and_its_gradient(example):
    logits = example[0]
    values, gradient = _value_and_gradient(jnp.float32(logits), LABELS)
    np.testing.assert_allclose(values, _cross_entropy(logits, LABELS), **FLOAT32)
    np.testing.assert_allclose(gradient, _softmax(logits) - np.eye(3)[LABELS], **FLOAT32)


def test_cross_entropy_is_finite_and_never_negative_at_extreme_logits():
    gaps = np.concatenate([np.linspace(-120.0, 120.0, 241), [1000.0, -1000.0, 1e30]])
    for offset in (0.0, 37.3, -5000.0):
        logits = np.stack([gaps + offset, np.full_like(gaps, offset)], axis=1).astype(np.float32)
        values, gradient = _value_and_gradient(logits, np.zeros(len(gaps), np.int32))
        assert np.isfinite(values).all()
        assert (np.asarray(values) >= 0).all()
        assert np.isfinite(gradient).all()
    values, _ = _value_and_gradient(np.float32([[0.0, 1000.0], [1000.0, 0.0]]), np.zeros(2, np.int32))
    assert values.tolist() == [1000.0, 0.0]


def test_corrected_loss_is_the_product_of_its_factors(example):
    logits, weights, modulation = example
    corrected = Corrected(*(jnp.float32(a) for a in (logits, weights, modulation)))
    values = jax.jit(corrected_losses)(corrected, LABELS)
    np.testing.assert_allclose(values, weights * modulation * _cross_entropy(logits, LABELS), **FLOAT32)


def test_mean_divides_by_the_number_of_examples(example):
    logits, weights, modulation = example
    loss, gradient = _reduce("mean", *example, LABELS)
    expected = np.sum(weights * modulation * _cross_entropy(logits, LABELS)) / 6
    np.testing.assert_allclose(loss, expected, **FLOAT32)
    factors = (weights * modulation)[:, None]
    np.testing.assert_allclose(gradient, factors * (_softmax(logits) - np.eye(3)[LABELS]) / 6, **FLOAT32)


def test_weighted_mean_divides_by_the_weights_but_not_by_the_modulation(example):
    logits, weights, modulation = example
    loss, gradient = _reduce("weighted_mean", *example, LABELS)
    expected = np.sum(weights * modulation * _cross_entropy(logits, LABELS)) / weights.sum()
    np.testing.assert_allclose(loss, expected, **FLOAT32)
    factors = (weights * modulation)[:, None]
    np.testing.assert_allclose(gradient, factors * (_softmax(logits) - np.eye(3)[LABELS]) / weights.sum(), **FLOAT32)


def test_weighted_mean_is_that_of_torch(example):
    torch = pytest.importorskip("torch")
    logits, weights, _ = example
    leaf = torch.tensor(logits, requires_grad=True)
    theirs = torch.nn.functional.cross_entropy(
        leaf, torch.tensor(LABELS.astype(np.int64)), weight=torch.tensor(CLASS_WEIGHTS), reduction="mean"
    )
    theirs.backward()
    loss, gradient = _reduce("weighted_mean", logits, weights, np.ones(6), LABELS)
    np.testing.assert_allclose(loss, theirs.item(), **FLOAT32)
    np.testing.assert_allclose(gradient, leaf.grad.numpy(), **FLOAT32)


def test_scale_of_the_weights_drops_out_of_the_weighted_mean_only(example):
    logits, weights, modulation = example
    loss, gradient = _reduce("weighted_mean", *example, LABELS)
    scaled_loss, scaled_gradient = _reduce("weighted_mean", logits, 1000.0 * weights, modulation, LABELS)
    np.testing.assert_allclose(scaled_loss, loss, rtol=1e-6)
    np.testing.assert_allclose(scaled_gradient, gradient, rtol=1e-5, atol=1e-8)
    loss, gradient = _reduce("mean", *example, LABELS)
    scaled_loss, scaled_gradient = _reduce("mean", logits, 1000.0 * weights, modulation, LABELS)
    np.testing.assert_allclose(scaled_loss, 1000.0 * loss, rtol=1e-6)
    np.testing.assert_allclose(scaled_gradient, 1000.0 * gradient, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("label", [0, 2])
def test_weights_cancel_on_examples_of_a_single_class(label, example):
    logits, _, modulation = example
    labels = np.full(6, label, np.int32)
    arguments = (logits, CLASS_WEIGHTS[labels], modulation, labels)
    unweighted, unweighted_gradient = _reduce("mean", logits, np.ones(6), modulation, labels)
    loss, gradient = _reduce("weighted_mean", *arguments)
    np.testing.assert_allclose(loss, unweighted, rtol=1e-6)
    np.testing.assert_allclose(gradient, unweighted_gradient, **FLOAT32)
    loss, _ = _reduce("mean", *arguments)
    np.testing.assert_allclose(loss, CLASS_WEIGHTS[label] * unweighted, rtol=1e-6)


def test_denominators():
    weights = jnp.float32([0.5, 0.25, 3.0])
    assert reduction_denominator(weights, "mean") == 3
    assert float(reduction_denominator(weights, "weighted_mean")) == 3.75


@pytest.mark.parametrize("reduction", ["sum", "none", "", None])
def test_unknown_reductions_are_told(reduction):
    message = f"^reduction: expected 'mean' or 'weighted_mean', got {reduction!r}$"
    with pytest.raises(InputError, match=message):
        check_reduction(reduction)
    with pytest.raises(InputError, match=message):
        reduction_denominator(jnp.ones(2), reduction)
    with pytest.raises(InputError, match=message):
        reducible_losses(Corrected(jnp.zeros((1, 2)), jnp.ones(1), jnp.ones(1)), jnp.zeros(1, int), reduction)


@pytest.mark.parametrize("reduction", ["mean", "weighted_mean"])
def test_what_is_added_is_weighted_like_the_rest(example, reduction):
    logits, weights, modulation = example
    added = np.random.default_rng(1).normal(size=6)
    corrected = Corrected(*(jnp.float32(a) for a in (logits, weights, modulation, added)))
    losses = weights * (modulation * _cross_entropy(logits, LABELS) + added)
    np.testing.assert_allclose(corrected_losses(corrected, LABELS), losses, **FLOAT32)
    denominator = 6 if reduction == "mean" else weights.sum()
    reduced = reducible_losses(corrected, LABELS, reduction).mean()
    np.testing.assert_allclose(reduced, losses.sum() / denominator, **FLOAT32)


def test_nothing_added_is_nothing(example):
    corrected = Corrected(*map(jnp.float32, example))
    assert corrected.added is None
    with_zeros = corrected._replace(added=jnp.zeros(6))
    np.testing.assert_array_equal(corrected_losses(corrected, LABELS), corrected_losses(with_zeros, LABELS))
