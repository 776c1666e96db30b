"""Families of corrections: every member against NumPy float64, and what a family promises."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imbal_jax.class_counts import class_counts
from imbal_jax.corrections import compose, margins, modulations, weights
from imbal_jax.corrections.conditional import conditional_focal, conditional_vector_scaling, with_default
from imbal_jax.errors import InputError
from imbal_jax.losses import corrected_losses
from imbal_jax.types import Prediction

RNG = np.random.default_rng(0)
COUNTS, THREE = (500, 20), (500, 60, 3)
LABELS = np.array([0, 1, 1, 0, 1, 0, 0], np.int32)
LOGITS = RNG.normal(size=(7, 2)) * 3
NAN = float("nan")
FAMILIES = {"vector_scaling": conditional_vector_scaling, "focal": conditional_focal}
every_family = pytest.mark.parametrize("name", FAMILIES)


def losses_of(correction, logits=LOGITS, labels=LABELS):
    return corrected_losses(correction.correct(Prediction(jnp.asarray(logits)), jnp.asarray(labels), 0.0), labels)


def binary_vector_scaling(logits, labels, counts, gamma, tau):
    """Eq. 4 of the paper, with n_- / n_+ = beta."""
    beta = counts[0] / counts[1]
    eta = logits[:, 1] / beta**gamma - logits[:, 0] - tau * np.log(beta)
    return np.log1p(np.exp(np.where(labels == 1, -eta, eta)))


def softmax(logits):
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def balanced_focal(logits, labels, alpha, phi):
    """Eq. 2 of the paper."""
    of_truth = softmax(logits)[np.arange(len(labels)), labels]
    return -np.where(labels == 1, alpha, 1 - alpha) * (1 - of_truth) ** phi * np.log(of_truth)


@pytest.mark.parametrize(("gamma", "tau"), [(0.0, 0.0), (0.3, 0.0), (0.0, 3.0), (0.2, 1.0), (0.3, 4.0)])
def test_members_of_vector_scaling_are_equation_4(gamma, tau):
    with jax.enable_x64(True):
        family = conditional_vector_scaling(COUNTS).conditional
        found = jax.jit(lambda condition: losses_of(family.at(condition)))(jnp.array([gamma, tau]))
    np.testing.assert_allclose(found, binary_vector_scaling(LOGITS, LABELS, COUNTS, gamma, tau), rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize(("gamma", "tau"), [(0.0, 0.0), (0.3, 1.5)])
def test_members_of_several_classes_are_vector_scaling(gamma, tau):
    logits, labels = RNG.normal(size=(6, 3)), np.array([0, 1, 2, 0, 1, 2])
    with jax.enable_x64(True):
        member = conditional_vector_scaling(THREE).conditional.at(jnp.array([gamma, tau]))
        plain = margins.vector_scaling(THREE, multiplicative=gamma, additive=tau)
        np.testing.assert_allclose(
            losses_of(member, logits, labels), losses_of(plain, logits, labels), rtol=1e-12, atol=1e-12
        )


@pytest.mark.parametrize(("alpha", "phi"), [(0.5, 0.0), (0.25, 2.0), (0.9, 0.4), (0.0, 1.0), (1.0, 3.0)])
def test_members_of_focal_are_equation_2(alpha, phi):
    with jax.enable_x64(True):
        family = conditional_focal(COUNTS).conditional
        found = jax.jit(lambda condition: losses_of(family.at(condition)))(jnp.array([alpha, phi]))
    np.testing.assert_allclose(found, balanced_focal(LOGITS, LABELS, alpha, phi), rtol=1e-9, atol=1e-15)


def test_weights_of_vector_scaling_are_those_of_the_published_code():
    with jax.enable_x64(True):
        correction = conditional_vector_scaling(COUNTS, weight=(0.3, 0.9, 1.0))
        assert correction.conditional.names == ("multiplicative", "additive", "weight")
        found = losses_of(correction.conditional.at(jnp.array([0.1, 1.0, 0.8])))
    expected = np.where(LABELS == 1, 0.8, 0.2) * binary_vector_scaling(LOGITS, LABELS, COUNTS, 0.1, 1.0)
    np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_neutral_members_are_cross_entropy():
    plain = losses_of(weights.cross_entropy())
    np.testing.assert_allclose(
        losses_of(conditional_vector_scaling(COUNTS).conditional.at(jnp.zeros(2))), plain, rtol=1e-5, atol=1e-6
    )
    half = losses_of(conditional_focal(COUNTS).conditional.at(jnp.array([0.5, 0.0])))
    np.testing.assert_allclose(half, 0.5 * plain, rtol=1e-6)


def test_what_is_fixed_is_no_part_of_the_condition():
    correction = conditional_vector_scaling(COUNTS, multiplicative=(0.2,), additive=(0.0, 4.0, 0.1))
    family = correction.conditional
    assert family.names == ("additive",)
    assert family.draw(jax.random.key(0)).shape == (1,)
    found = losses_of(family.at(jnp.array([1.5])))
    np.testing.assert_allclose(found, binary_vector_scaling(LOGITS, LABELS, COUNTS, 0.2, 1.5), rtol=1e-5, atol=1e-6)


def test_a_family_of_nothing_drawn_is_an_ordinary_correction():
    fixed = conditional_vector_scaling(COUNTS, multiplicative=(0.2,), additive=(1.0,))
    assert fixed.conditional is None
    np.testing.assert_allclose(
        losses_of(fixed), binary_vector_scaling(LOGITS, LABELS, COUNTS, 0.2, 1.0), rtol=1e-5, atol=1e-6
    )
    focal = conditional_focal(COUNTS, alpha=(0.25,), phi=(2.0,))
    assert focal.conditional is None
    np.testing.assert_allclose(losses_of(focal), balanced_focal(LOGITS, LABELS, 0.25, 2.0), rtol=1e-4)


@every_family
def test_the_default_member_is_at_the_means_of_the_densities(name):
    correction = FAMILIES[name](COUNTS)
    family = correction.conditional
    draws = np.asarray(jax.vmap(family.draw)(jax.random.split(jax.random.key(0), 4000)))
    np.testing.assert_allclose(draws.mean(axis=0), family.default, atol=5 * draws.std(axis=0).max() / np.sqrt(4000))
    np.testing.assert_allclose(losses_of(correction), losses_of(family.at(jnp.asarray(family.default))), rtol=1e-6)


def test_hyperparameters_are_drawn_independently():
    family = conditional_vector_scaling(COUNTS).conditional
    draws = np.asarray(jax.vmap(family.draw)(jax.random.split(jax.random.key(0), 4000)))
    assert abs(np.corrcoef(draws.T)[0, 1]) < 0.06
    assert draws.min(axis=0) == pytest.approx([0, 0], abs=0.01)
    assert draws.max(axis=0) == pytest.approx([0.3, 3], abs=0.01)


@every_family
def test_losses_and_gradients_depend_on_the_condition(name):
    family = FAMILIES[name](COUNTS).conditional

    def gradient(condition):
        return jax.grad(lambda logits: losses_of(family.at(condition), logits).sum())(jnp.asarray(LOGITS))

    first, second = gradient(jnp.array([0.1, 0.5])), gradient(jnp.array([0.3, 2.5]))
    assert np.abs(first - second).max() > 0.01 * np.abs(first).max()


@every_family
@pytest.mark.parametrize("phi", [0.0, 0.5, 2.0])
def test_saturated_logits_stay_finite_in_float32(name, phi):
    family = FAMILIES[name](COUNTS).conditional
    logits = jnp.array([[1e4, -1e4], [-1e4, 1e4], [0.0, 0.0]], jnp.float32)
    labels = np.array([0, 0, 1])

    def total(logits):
        return losses_of(family.at(jnp.array([0.2, phi])), logits, labels).sum()

    value, gradient = jax.value_and_grad(total)(logits)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


@every_family
@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_precisions_are_kept(name, dtype):
    correction = FAMILIES[name](COUNTS)
    with jax.enable_x64(True):
        prediction = Prediction(jnp.asarray(LOGITS, dtype))
        condition = jnp.asarray(correction.conditional.default, jnp.float32)
        for member in (correction, correction.conditional.at(condition)):
            corrected = jax.eval_shape(member.correct, prediction, LABELS, np.float32(0.5))
            assert {leaf.dtype for leaf in jax.tree.leaves(corrected)} == {jnp.dtype(dtype)}
            assert member.infer(prediction.logits, 0.5) is prediction.logits


@pytest.mark.parametrize("condition", [(0.0, 0.0), (0.3, 0.0), (0.3, 2.0)])
def test_masked_classes_leave_the_softmax_where_priors_shift_it(condition):
    masked = class_counts((60, 12, 0), empty_classes="mask")
    member = conditional_vector_scaling(masked).conditional.at(jnp.asarray(condition))
    logits, labels = jnp.asarray(RNG.normal(size=(3, 3))), np.arange(3)
    losses, gradient = jax.value_and_grad(lambda z: losses_of(member, z, labels).sum())(logits)
    assert np.isfinite(losses) and np.isfinite(gradient).all()
    np.testing.assert_array_equal(gradient[2], 0.0)  # an example of the masked class weighs nothing
    assert (np.asarray(gradient[:2, 2]) == 0).all() == (condition[1] > 0)


def test_another_default():
    correction = with_default(conditional_vector_scaling(COUNTS), (0.1, 4.0))
    assert correction.conditional.default == (0.1, 4.0)
    np.testing.assert_allclose(
        losses_of(correction), binary_vector_scaling(LOGITS, LABELS, COUNTS, 0.1, 4.0), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(
    ("condition", "told"),
    [
        ((0.1,), r"expected 2 numbers \(multiplicative, additive\), got \(0.1,\)"),
        ((0.1, -1.0), r"\(additive\): expected a number >= 0, got -1.0"),
    ],
)
def test_defaults_out_of_range_are_told(condition, told):
    with pytest.raises(InputError, match=f"^evaluation.condition.*{told}"):
        with_default(conditional_vector_scaling(COUNTS), condition, name="evaluation.condition")


def test_a_default_needs_a_family():
    with pytest.raises(InputError, match=r"^condition: needs a conditional correction"):
        with_default(weights.cross_entropy(), (1.0,))


def test_a_family_may_be_a_part_of_a_composition():
    family = conditional_vector_scaling(COUNTS)
    weighted = compose.composed(margin=family, weight=weights.inverse_frequency(COUNTS))
    condition = jnp.array([0.1, 2.0])
    assert weighted.conditional.names == family.conditional.names
    found = losses_of(weighted.conditional.at(condition))
    of_class = np.array([1 / 500, 1 / 20]) / np.mean([1 / 500, 1 / 20])
    np.testing.assert_allclose(found, of_class[LABELS] * losses_of(family.conditional.at(condition)), rtol=1e-5)
    switched = compose.deferred(after=family, at=0.5).conditional.at(condition)
    prediction = Prediction(jnp.asarray(LOGITS))
    for progress, expected in ((0.0, weights.cross_entropy()), (0.9, family.conditional.at(condition))):
        found = corrected_losses(switched.correct(prediction, LABELS, progress), LABELS)
        np.testing.assert_allclose(found, losses_of(expected), rtol=1e-6)


def test_two_families_in_one_composition_are_refused():
    with pytest.raises(InputError, match=r"^correction: expected at most one conditional part, got 2"):
        compose.composed(margin=conditional_vector_scaling(COUNTS), modulation=conditional_focal(COUNTS))


@pytest.mark.parametrize(
    ("builder", "options", "told"),
    [
        (conditional_vector_scaling, {"multiplicative": (-0.1,)}, "multiplicative: expected a number >= 0, got -0.1"),
        (conditional_vector_scaling, {"multiplicative": (-0.1, 1.0, 0.5)}, "multiplicative: expected a number >= 0"),
        (conditional_vector_scaling, {"additive": (NAN,)}, "additive: expected a number >= 0, got nan"),
        (conditional_vector_scaling, {"additive": (1.0, 3.0, 2.0)}, "additive: expected h_b in"),
        (conditional_vector_scaling, {"additive": ()}, "additive: expected one number, or a, b, h_b"),
        (conditional_vector_scaling, {"additive": (0.0, 1.0)}, "additive: expected one number, or a, b, h_b"),
        (conditional_vector_scaling, {"weight": (1.5,)}, "weight: expected a number in"),
        (conditional_focal, {"alpha": (0.5, 1.5, 1.0)}, "alpha: expected a number in"),
        (conditional_focal, {"alpha": (-0.1,)}, "alpha: expected a number in"),
        (conditional_focal, {"phi": (-1.0,)}, "phi: expected a number >= 0"),
        (conditional_focal, {"phi": (1.0, 3.0, 2.0)}, r"phi: expected h_b in \[0, 1\].*L\(1, 3, 2\)"),
    ],
)
def test_faulty_options_are_told(builder, options, told):
    with pytest.raises(InputError, match=f"^{told}"):
        builder(COUNTS, **options)


@pytest.mark.parametrize(
    ("builder", "options"), [(conditional_focal, {}), (conditional_vector_scaling, {"weight": (0.5,)})]
)
def test_what_is_made_for_two_classes_is_refused_for_three(builder, options):
    with pytest.raises(InputError, match="expected two classes, got 3"):
        builder(THREE, **options)


def test_powers_with_traced_exponents_equal_those_with_fixed_ones():
    base = jnp.array([0.0, 1e-3, 0.5, 1.0])
    for exponent in (0.0, 0.5, 1.0, 2.5):
        traced = jax.jit(modulations.safe_power)(base, jnp.float32(exponent))
        np.testing.assert_allclose(traced, modulations.safe_power(base, exponent), rtol=1e-6)
