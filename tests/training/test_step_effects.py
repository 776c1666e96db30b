"""The effects of a step on every loss, against float64 Jacobians written out and in limits, and their averages."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from imbal_jax.builders import DIRECTIONS
from imbal_jax.class_counts import class_counts
from imbal_jax.corrections.weights import cross_entropy
from imbal_jax.data import augmentation
from imbal_jax.directions.empirical_fisher import empirical_fisher, improved_empirical_fisher
from imbal_jax.directions.gradient import gradient
from imbal_jax.errors import InputError
from imbal_jax.training import step_rules
from imbal_jax.training.experiment import RecordOptions, check_record_options
from imbal_jax.training.objective import make_objective, make_structure, standardise
from imbal_jax.training.state import initial_state, keys_of
from imbal_jax.training.step import DeviceData, make_step
from imbal_jax.training.step_effects import (
    StepEffects,
    by_class,
    make_step_effects,
    minority_classes,
    over_first_batches,
)
from imbal_jax.types import Batch, Corrected, Correction, Horizon

CLASSES, EXAMPLES, BATCH, HIDDEN, TOTAL_STEPS = 3, 40, 6, 7, 8
SHAPE = (4, 4, 2)
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (EXAMPLES, *SHAPE), dtype=np.uint8)
LABELS = RNG.integers(0, CLASSES, EXAMPLES).astype(np.int32)
STATISTICS = np.array([120.0, 130.0], np.float32), np.array([70.0, 75.0], np.float32)
DATA = DeviceData(jnp.asarray(IMAGES), jnp.asarray(LABELS))
INDICES = jnp.asarray(RNG.permutation(EXAMPLES)[: 4 * BATCH].reshape(4, BATCH), jnp.int32)
KEY = keys_of(0).step
WEIGHTS, MODULATION = np.array([0.5, 1.0, 3.0]), 0.7


class SmoothNetwork(nn.Module):
    """More parameters than a batch has examples, so that the rows of its Jacobian are independent."""

    @nn.compact
    def __call__(self, inputs, *, train):
        del train
        features = nn.tanh(nn.Dense(HIDDEN, name="hidden")(inputs.reshape(len(inputs), -1)))
        return nn.Dense(CLASSES, name="classifier")(features), features


class NoisyNetwork(nn.Module):
    """Batch statistics and dropout."""

    @nn.compact
    def __call__(self, inputs, *, train):
        hidden = nn.Dense(HIDDEN)(inputs.reshape(len(inputs), -1))
        features = nn.tanh(nn.BatchNorm(use_running_average=not train)(hidden))
        features = nn.Dropout(0.25, deterministic=not train)(features)
        return nn.Dense(CLASSES, name="classifier")(features), features


def corrected_everywhere():
    """A correction with class weights, a modulation, and the progress in the logits."""

    def correct(prediction, labels, progress):
        logits = prediction.logits + progress * jnp.arange(CLASSES)
        weights = jnp.asarray(WEIGHTS, jnp.float32)[labels]
        return Corrected(logits, weights, jnp.full(labels.shape, MODULATION))

    return Correction(correct, lambda logits, progress: logits)


def parts_of(direction, *, model=None, correction=None, rate=0.05, augment=None, **rule):
    """The arguments of `make_step`."""
    step_rule = step_rules.sgd(lambda count: rate, **rule)
    augment = augment or augmentation.none()
    correction = correction or cross_entropy()
    return (
        model or SmoothNetwork(),
        correction,
        "weighted_mean",
        direction,
        step_rule,
        augment,
        STATISTICS,
        TOTAL_STEPS,
    )


def start_of(parts):
    """A fresh state."""
    return initial_state(parts[0], parts[3], parts[4], SHAPE, 0)


def effects_of(parts, state, row=0):
    """The effects of one step."""
    return jax.tree.map(np.asarray, jax.jit(make_step_effects(*parts))(state, DATA, INDICES[row], KEY))


def float64(tree):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


def losses_by_hand(params, inputs, labels, progress):
    """The losses of a corrected `SmoothNetwork` without their class weights."""
    hidden = jnp.tanh(inputs @ params["hidden"]["kernel"] + params["hidden"]["bias"])
    logits = hidden @ params["classifier"]["kernel"] + params["classifier"]["bias"] + progress * jnp.arange(CLASSES)
    return -MODULATION * jax.nn.log_softmax(logits)[jnp.arange(len(labels)), labels]


def inputs_by_hand(augment, step):
    """The augmented and standardised batch of a step."""
    augment_key, model_key = jax.random.split(jax.random.fold_in(KEY, step))
    images = augment(augment_key, DATA.images[INDICES[step]])
    return Batch(standardise(images, *STATISTICS), DATA.labels[INDICES[step]]), model_key


def direction_of(name, model):
    """A direction with its defaults, built for the batches of these tests."""
    builder = DIRECTIONS[name]
    positional = [p for p in inspect.signature(builder).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    structure = make_structure(model, corrected_everywhere(), "weighted_mean", SHAPE, BATCH)
    return builder(*[structure][: len(positional)])


# --- the effects of one step --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DIRECTIONS)
def test_effects_equal_float64_autodiff_at_the_step_the_run_takes(name):
    augment, model = augmentation.crop_flip(padding=1), SmoothNetwork()
    # Momentum, decay, augmentation and a progress above 0: whatever decides the run's step decides the one measured.
    rule = {"momentum": 0.9, "weight_decay": 0.1}
    parts = parts_of(direction_of(name, model), model=model, correction=corrected_everywhere(), augment=augment, **rule)
    step, state = jax.jit(make_step(*parts)), start_of(parts)
    for row in range(2):
        state, _ = step(state, DATA, INDICES[row], KEY)
    effects = effects_of(parts, state, row=2)
    after, _ = step(state, DATA, INDICES[2], KEY)
    batch, _ = inputs_by_hand(augment, 2)
    with jax.enable_x64(True):
        before, later, inputs = (
            float64(state.params),
            float64(after.params),
            np.asarray(batch.inputs, np.float64).reshape(BATCH, -1),
        )
        labels = np.asarray(batch.labels)

        def losses(params):
            return losses_by_hand(params, inputs, labels, 2 / TOTAL_STEPS)

        jacobian = jax.tree.leaves(jax.jacrev(losses)(before))
        actual = np.asarray(losses(later) - losses(before))
    rows = np.concatenate([np.asarray(leaf).reshape(BATCH, -1) for leaf in jacobian], axis=1)
    change = np.concatenate(
        [(y - x).ravel() for x, y in zip(jax.tree.leaves(before), jax.tree.leaves(later), strict=True)]
    )
    assert np.abs(rows @ change).max() > 1e-3
    np.testing.assert_array_equal(effects.labels, labels)
    np.testing.assert_allclose(effects.linearised, rows @ change, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(effects.kappa, rows @ change / np.linalg.norm(rows, axis=1), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(effects.actual, actual, rtol=1e-4, atol=2e-6)
    assert effects.moved.all()


@pytest.mark.parametrize(("weighted", "wanted"), [(False, np.ones(CLASSES)), (True, WEIGHTS)])
def test_empirical_fisher_lowers_every_linearised_loss_by_eta(weighted, wanted):
    options = {"damping": 1e-6, "units": "sum", "precision": "float64"}
    correction = corrected_everywhere() if weighted else None
    parts = parts_of(empirical_fisher(**options), rate=0.02, correction=correction)
    effects = effects_of(parts, start_of(parts))
    # With class weights in proportion to them, here divided by their mean over the batch (the reduction).
    shares = wanted[effects.labels] / wanted[effects.labels].mean()
    assert len(set(effects.labels)) == CLASSES
    np.testing.assert_allclose(effects.linearised, -0.02 * shares, rtol=1e-3)


def test_improved_empirical_fisher_lowers_them_in_proportion_to_the_logit_gradients():
    options = {"damping": 1e-6, "units": "sum", "precision": "float64"}
    parts = parts_of(improved_empirical_fisher(**options), rate=0.02)
    state = start_of(parts)
    effects = effects_of(parts, state)
    batch, _ = inputs_by_hand(augmentation.none(), 0)
    logits = np.asarray(parts[0].apply({"params": state.params}, batch.inputs, train=True)[0], np.float64)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    squares = np.sum((probabilities - np.eye(CLASSES)[batch.labels]) ** 2, axis=1)
    assert squares.max() > 2 * squares.min()
    np.testing.assert_allclose(effects.linearised, -0.02 * squares, rtol=1e-3)


def test_the_gradient_raises_losses_of_the_minority_that_the_empirical_fisher_lowers():
    # One example of class 1 among examples of class 0 that look alike, as in thesis Figure 3.2.
    images = jnp.asarray(IMAGES[:1] // 2 + RNG.integers(0, 60, (BATCH, *SHAPE)), jnp.float32)
    data = DeviceData(images, jnp.asarray([0] * (BATCH - 1) + [1], jnp.int32))
    told = {}
    for name, direction in (("gradient", gradient()), ("ef", empirical_fisher(damping=1e-6, units="sum"))):
        parts = parts_of(direction, rate=0.02)
        state = start_of(parts)
        state.params["classifier"]["bias"] = jnp.array([0.0, 0.0, -9.0])  # the third class takes no part
        told[name] = jax.jit(make_step_effects(*parts))(state, data, jnp.arange(BATCH), KEY).actual
    assert (told["ef"] < 0).all()
    assert (told["gradient"][:-1] < 0).all() and told["gradient"][-1] > 0


def test_actual_and_linearised_changes_agree_to_second_order():
    errors = []
    for rate in (0.08, 0.02):
        parts = parts_of(gradient(), rate=rate)
        effects = effects_of(parts, start_of(parts))
        errors.append(np.abs(effects.actual - effects.linearised).max() / np.abs(effects.linearised).max())
    assert errors[1] < 0.05
    assert errors[1] == pytest.approx(errors[0] / 4, rel=0.25)  # the relative error is of first order in the rate


@pytest.mark.slow
def test_losses_are_those_of_the_training_mode():
    parts = parts_of(gradient(), model=NoisyNetwork(), correction=corrected_everywhere())
    state = start_of(parts)
    effects = effects_of(parts, state)
    after, _ = jax.jit(make_step(*parts))(state, DATA, INDICES[0], KEY)
    batch, model_key = inputs_by_hand(augmentation.none(), 0)
    objective = make_objective(
        parts[0], parts[1], "weighted_mean", model_state=state.model_state, progress=0.0, train=True
    )
    weights = WEIGHTS[batch.labels] / WEIGHTS[batch.labels].mean()

    def losses(params):
        return objective.losses(objective.predict(params, batch, model_key), batch) / weights

    np.testing.assert_allclose(effects.actual, losses(after.params) - losses(state.params), rtol=1e-3, atol=2e-6)
    # Batch statistics couple the examples: row by row the Jacobian is a share, but its sum is the whole gradient.
    change = jax.tree.map(jnp.subtract, after.params, state.params)
    total = jax.jvp(lambda params: jnp.sum(losses(params)), (state.params,), (change,))[1]
    np.testing.assert_allclose(effects.linearised.sum(), total, rtol=1e-4)


def test_steps_of_length_zero_and_gradients_of_zero_are_told_apart():
    parts = parts_of(gradient(), rate=0.0)
    still = effects_of(parts, start_of(parts))
    assert not still.moved.any()
    parts = parts_of(
        gradient(), correction=Correction(_nothing_left, lambda logits, progress: logits), weight_decay=0.1
    )
    decayed = effects_of(parts, start_of(parts))
    assert decayed.moved.all()
    for effects in (still, decayed):
        np.testing.assert_array_equal(np.stack([effects.kappa, effects.linearised, effects.actual]), 0)


def _nothing_left(prediction, labels, progress):
    """Takes all losses away."""
    return Corrected(prediction.logits, jnp.ones(labels.shape), jnp.zeros(labels.shape))


def test_seeds_together_and_several_batches():
    parts = parts_of(gradient(), model=SmoothNetwork(), momentum=0.9)
    one = jax.jit(make_step_effects(*parts))
    states = [initial_state(parts[0], parts[3], parts[4], SHAPE, seed) for seed in (0, 1)]
    keys = [keys_of(seed).step for seed in (0, 1)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    indices = jnp.stack([INDICES, INDICES[::-1]])
    copy = jax.tree.map(np.array, stacked)
    several = over_first_batches(make_step_effects(*parts), 3, stacked=True)(stacked, DATA, indices, jnp.stack(keys))
    assert len(several) == 3
    for i, together in enumerate(several):
        for seed, (state, key) in enumerate(zip(states, keys, strict=True)):
            expected = one(state, DATA, indices[seed, i], key)
            for found, wanted in zip(together, expected, strict=True):
                np.testing.assert_allclose(found[seed], wanted, rtol=1e-4, atol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, stacked, copy)  # neither changed nor donated
    assert over_first_batches(make_step_effects(*parts), 0, stacked=True)(stacked, DATA, indices, keys) == []


# --- averages by class ----------------------------------------------------------------------------------------------


def test_averages_by_class():
    counts = class_counts([50, 20, 10, 5])
    first = StepEffects(
        np.array([0, 0, 1]),
        np.array([-1.0, -3.0, 4.0]),
        np.array([-0.5, -0.1, 0.2]),
        np.array([-0.4, 0.1, 0.3]),
        np.array([True] * 3),
    )
    second = StepEffects(np.array([0, 3]), *np.array([[2.0, -6.0], [0.3, -0.2], [0.0, -0.1]]), np.array([True] * 2))
    still = StepEffects(np.array([2, 2]), *np.zeros((3, 2)), np.array([False] * 2))
    told = by_class([first, second, still], counts)
    nan = np.nan
    np.testing.assert_allclose(told["kappa"], [-2 / 3, 4, nan, -6])
    np.testing.assert_allclose(told["linearised"], [-0.1, 0.2, nan, -0.2], rtol=1e-12)
    np.testing.assert_allclose(told["actual"], [-0.1, 0.3, nan, -0.1], rtol=1e-12)
    np.testing.assert_allclose(told["falls"], [1 / 3, 0, nan, 1])
    np.testing.assert_array_equal(told["count"], [3, 1, 0, 1])
    assert told["minority"].tolist() == [False, False, True, True]
    assert told["minority_falls"] == 1
    assert told["majority_falls"] == pytest.approx(1 / 4)
    nothing = by_class([still], counts)
    assert np.isnan(nothing["kappa"]).all() and np.isnan([nothing["minority_falls"], nothing["majority_falls"]]).all()


@pytest.mark.parametrize(
    ("counts", "minority"),
    [
        ([50, 20, 10, 5], [0, 0, 1, 1]),
        ([5, 50, 20], [1, 0, 1]),
        ([100, 10], [0, 1]),
        ([9, 9, 9], [1, 1, 1]),
        ([0, 50, 20, 5], [0, 0, 1, 1]),  # the absent class counts for nothing
    ],
)
def test_the_minority_is_at_or_below_the_median(counts, minority):
    assert minority_classes(class_counts(counts, empty_classes="mask")).tolist() == [bool(each) for each in minority]


@pytest.mark.parametrize("batches", [-1, 16])
def test_a_number_of_batches_that_an_epoch_does_not_have_is_refused(batches):
    check_record_options(RecordOptions(step_effects_batches=15), Horizon(15, 2))
    with pytest.raises(InputError, match=rf"^record\.step_effects_batches: expected a number in 0\.\.15, .*{batches}$"):
        check_record_options(RecordOptions(step_effects_batches=batches), Horizon(15, 2))
