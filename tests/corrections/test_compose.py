"""Composition and deferral: order, factors, and the exact step of the switch."""

import functools
import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imbal_jax.corrections.compose import chain, composed, deferred
from imbal_jax.corrections.margins import ldam, logit_adjustment
from imbal_jax.corrections.modulations import alpha_focal, focal, influence, influence_balanced
from imbal_jax.corrections.weights import class_balanced, cross_entropy, inverse_frequency, weighted
from imbal_jax.errors import InputError
from imbal_jax.losses import corrected_losses
from imbal_jax.types import Prediction

COUNTS = (400, 81, 16)
LABELS = np.array([0, 2, 1, 0, 2], np.int32)
TRUTH = np.eye(3)[LABELS]
ZEROS = jnp.zeros((1, 2))
ZERO = np.zeros(1, np.int32)


def _example():
    """Cosine-like logits [5, 3] and features [5, 4], float32."""
    rng = np.random.default_rng(0)
    return jnp.float32(np.tanh(rng.normal(size=(5, 3)))), jnp.float32(rng.normal(size=(5, 4)))


@functools.cache
def _compiled(correction):
    """The jitted function (logits, features, progress) -> corrected, losses, gradients of their sum."""

    def losses(logits, features, progress):
        return corrected_losses(correction.correct(Prediction(logits, features), LABELS, progress), LABELS)

    @jax.jit
    def evaluate(logits, features, progress):
        gradients = jax.grad(lambda z, h: losses(z, h, progress).sum(), argnums=(0, 1))(logits, features)
        corrected = correction.correct(Prediction(logits, features), LABELS, progress)
        return corrected, losses(logits, features, progress), gradients

    return evaluate


def _assert_same(actual, expected):
    """Equal up to what two different programs may round differently."""
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6, atol=2e-7), actual, expected)


def _softmax(logits):
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def test_modulation_sees_the_logits_under_the_margin():
    correction = composed(
        margin=ldam(COUNTS, max_margin=0.4, scale=5.0),
        modulation=focal(gamma=2.0),
        weight=inverse_frequency(COUNTS, normalization="none"),
    )
    logits, features = _example()
    corrected, losses, (gradient, _) = _compiled(correction)(logits, features, 0.0)
    margins = np.array([0.4 * (16 / count) ** 0.25 for count in COUNTS])[LABELS]
    adjusted = 5.0 * (np.asarray(logits, np.float64) - margins[:, None] * TRUTH)
    p = _softmax(adjusted)
    q = (p * TRUTH).sum(axis=1)
    weights = 1.0 / np.array(COUNTS)[LABELS]
    np.testing.assert_allclose(corrected.logits, adjusted, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(corrected.weights, weights, rtol=1e-6)
    np.testing.assert_allclose(corrected.modulation, (1 - q) ** 2, rtol=1e-5)
    np.testing.assert_allclose(losses, -weights * (1 - q) ** 2 * np.log(q), rtol=1e-5)
    slope = 2 * q * (1 - q) * np.log(q) - (1 - q) ** 2
    expected = (weights * slope)[:, None] * (TRUTH - p) * 5.0
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def test_a_composition_does_not_depend_on_the_order_of_its_arguments():
    parts = {"weight": class_balanced(COUNTS), "modulation": focal(), "margin": logit_adjustment(COUNTS)}
    forwards = composed(**parts)
    backwards = composed(**dict(reversed(parts.items())))
    _assert_same(_compiled(forwards)(*_example(), 0.0), _compiled(backwards)(*_example(), 0.0))


def test_alpha_focal_is_a_composition():
    built = composed(modulation=focal(gamma=1.5), weight=inverse_frequency(COUNTS, normalization="sum_one"))
    named = alpha_focal(COUNTS, gamma=1.5, normalization="sum_one")
    _assert_same(_compiled(named)(*_example(), 0.0), _compiled(built)(*_example(), 0.0))


@pytest.mark.parametrize("stop_gradient_factor", [False, True])
def test_influence_balanced_is_a_composition(stop_gradient_factor):
    factor = {"alpha": 30.0, "epsilon": 0.01, "stop_gradient_factor": stop_gradient_factor}
    built = composed(modulation=influence(**factor), weight=inverse_frequency(COUNTS, normalization="none"))
    named = influence_balanced(COUNTS, normalization="none", **factor)
    _assert_same(_compiled(named)(*_example(), 0.0), _compiled(built)(*_example(), 0.0))


def test_an_empty_chain_is_cross_entropy():
    _assert_same(_compiled(chain())(*_example(), 0.0), _compiled(cross_entropy())(*_example(), 0.0))
    logits, _ = _example()
    assert chain().infer(logits, 0.0) is logits


def test_a_chain_infers_through_all_its_parts():
    logits, _ = _example()
    correction = chain(ldam(COUNTS, scale=3.0), focal(), ldam(COUNTS, scale=2.0), inverse_frequency(COUNTS))
    np.testing.assert_allclose(correction.infer(logits, 0.0), 6.0 * logits, rtol=1e-6)


def test_composition_of_nothing_is_told():
    message = "^composed: expected at least one of margin, modulation and weight, got none$"
    with pytest.raises(InputError, match=message):
        composed()


def test_initial_reweighting_is_deferral_to_the_start():
    weight = inverse_frequency(COUNTS)
    initial, from_the_start = _compiled(weight), _compiled(deferred(after=weight, at=0.0))
    for progress in (0.0, 1e-7, 0.3, 0.5, 0.99, 1.0):
        _assert_same(from_the_start(*_example(), progress), initial(*_example(), progress))


def test_deferral_to_the_end_is_cross_entropy_throughout():
    plain, to_the_end = _compiled(cross_entropy()), _compiled(deferred(after=ldam(COUNTS), at=1.0))
    for step in (0, 1, 9_700, 19_399):
        _assert_same(to_the_end(*_example(), step / 19_400), plain(*_example(), step / 19_400))


def test_deferral_switches_logits_factors_gradients_and_inference():
    before = composed(margin=logit_adjustment(COUNTS), modulation=focal(gamma=0.5))
    after = composed(margin=ldam(COUNTS, scale=7.0), weight=class_balanced(COUNTS))
    switched = deferred(after=after, at=0.25, before=before)
    evaluate, infer = _compiled(switched), jax.jit(switched.infer)
    logits, features = _example()
    for progress, correction in ((0.0, before), (0.2499, before), (0.25, after), (1.0, after)):
        _assert_same(evaluate(logits, features, progress), _compiled(correction)(logits, features, progress))
        _assert_same(infer(logits, progress), correction.infer(logits, progress))


def test_deferrals_nest():
    def twice(progress):
        correction = deferred(
            before=deferred(before=weighted(np.array([1.0, 0.0])), after=weighted(np.array([2.0, 0.0])), at=0.3),
            after=weighted(np.array([3.0, 0.0])),
            at=0.6,
        )
        return correction.correct(Prediction(ZEROS), ZERO, progress).weights[0]

    weights = jax.jit(jax.vmap(twice))(jnp.linspace(0.0, 1.0, 11))
    np.testing.assert_array_equal(weights, [1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3])


def test_a_margin_is_kept_while_its_weight_is_deferred():
    margin, weight = ldam(COUNTS), class_balanced(COUNTS, beta=0.9)
    evaluate = _compiled(composed(margin=margin, weight=deferred(after=weight, at=0.8)))
    _assert_same(evaluate(*_example(), 0.7), _compiled(margin)(*_example(), 0.0))
    _assert_same(evaluate(*_example(), 0.8), _compiled(composed(margin=margin, weight=weight))(*_example(), 0.0))


def _weight_at_step(at, total_steps):
    """The weight, 1 before the switch and 2 after, by the step, with progress as the training step computes it."""
    correction = deferred(before=weighted(np.array([1.0, 9.0])), after=weighted(np.array([2.0, 9.0])), at=at)

    def weight(step):
        return correction.correct(Prediction(ZEROS), ZERO, step / total_steps).weights[0]

    return weight


@pytest.mark.parametrize("steps_per_epoch", [97, 141])
@pytest.mark.parametrize("at", [0.5, 0.8, 1 / 3], ids=["half", "published", "third"])
def test_the_switch_happens_at_its_step_exactly(at, steps_per_epoch):
    total_steps = 200 * steps_per_epoch
    weight = _weight_at_step(at, total_steps)
    switch = math.ceil(Fraction(at).limit_denominator(100) * total_steps)
    if at == 0.8:
        assert switch == 160 * steps_per_epoch  # the start of 0-based epoch 160 of 200, as published
    compiled = jax.jit(weight)
    assert [float(compiled(jnp.int32(step))) for step in (0, switch - 1, switch, switch + 1)] == [1.0, 1.0, 2.0, 2.0]
    every_step = np.asarray(jax.jit(jax.vmap(weight))(jnp.arange(total_steps, dtype=jnp.int32)))
    np.testing.assert_array_equal(every_step, np.where(np.arange(total_steps) < switch, 1.0, 2.0))


@pytest.mark.parametrize("fraction", [Fraction(1, 10), Fraction(1, 3), Fraction(2, 3), Fraction(4, 5), Fraction(9, 10)])
def test_the_switch_happens_at_its_step_whatever_the_length_of_training(fraction):
    for total_steps in (3, 7, 10, 30, 49, 1000, 99_990, 300_000):
        weight = _weight_at_step(float(fraction), np.float32(total_steps))
        switch = math.ceil(fraction * total_steps)
        weights = [float(weight(np.float32(step))) for step in (switch - 1, switch)]
        assert weights == [1.0, 2.0], total_steps


@pytest.mark.parametrize("at", [0.1, 0.5, 0.8, 0.999])
def test_a_quotient_that_an_accelerator_rounds_down_still_switches(at):
    """Divisions on accelerators may be wrong in the last two digits of a float32."""
    two_below = np.nextafter(np.nextafter(np.float32(at), np.float32(0)), np.float32(0))
    assert two_below < np.float32(at)
    assert float(_weight_at_step(at, np.float32(1))(two_below)) == 2.0


@pytest.mark.parametrize("at", [-0.01, 1.01, float("nan"), 160])
def test_fraction_outside_training_is_told(at):
    with pytest.raises(InputError, match=rf"^at: expected a number in \[0, 1\], got {at}$"):
        deferred(after=cross_entropy(), at=at)
