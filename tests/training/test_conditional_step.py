"""Training over a distribution of hyper-parameters: steps against NumPy float64, draws, seeds, both passes, resume."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from imbal_jax.corrections.conditional import conditional_focal, conditional_vector_scaling
from imbal_jax.data import augmentation
from imbal_jax.directions.empirical_fisher import empirical_fisher
from imbal_jax.directions.gradient import gradient
from imbal_jax.training import schedules, step_rules
from imbal_jax.training.objective import draw_condition, example_for, make_structure
from imbal_jax.training.state import TrainState, initial_state, keys_of
from imbal_jax.training.step import DeviceData, make_driver, make_step, read_metrics
from imbal_jax.training.step_effects import make_step_effects
from imbal_jax.types import Conditioned, Direction

COUNTS, EXAMPLES, BATCH, STEPS = (30, 6), 36, 8, 5
SHAPE = (2, 2, 1)
RATE, MOMENTUM = 0.25, 0.9  # a rate that schedules, which are float32, tell exactly
RNG = np.random.default_rng(0)
LABELS = np.r_[np.zeros(30, np.int32), np.ones(6, np.int32)]
IMAGES = (RNG.normal(size=(EXAMPLES, *SHAPE)) + LABELS[:, None, None, None]).astype(np.float32)
DATA = DeviceData(jnp.asarray(IMAGES), jnp.asarray(LABELS))
INDICES = jnp.asarray(np.stack([RNG.permutation(EXAMPLES)[:BATCH] for _ in range(STEPS)]), jnp.int32)
FAMILIES = {
    "vector_scaling": functools.partial(conditional_vector_scaling, additive=(0.0, 1.0, 1.0)),
    "focal": functools.partial(conditional_focal, phi=(0.5, 2.0, 0.2)),
}


class Logistic(nn.Module):
    """Logistic regression on the pixels, and on the condition if there is a block for it."""

    film: str | None = "seen"

    @nn.compact
    def __call__(self, inputs, *, train):
        del train
        if self.film is not None:
            assert isinstance(inputs, Conditioned)
            images, condition = inputs
            features = jnp.concatenate([images.reshape(len(images), -1), condition], axis=1)
        else:
            features = inputs.reshape(len(inputs), -1)
        return nn.Dense(2, name="classifier")(features), features


def parts(model, correction, direction=None):
    schedule = schedules.constant(schedules.Horizon(STEPS, 1), learning_rate=RATE)
    rule = step_rules.sgd(schedule, momentum=MOMENTUM)
    return model, correction, "mean", direction or gradient(), rule, augmentation.none(), (None, None), STEPS


def start(model, correction, seed=0, direction=None):
    rule = parts(model, correction)[4]
    return initial_state(model, direction or gradient(), rule, example_for(model, correction, SHAPE), seed)


def conditions_of(correction, seed, steps=STEPS):
    """The conditions that the steps of a seed draw, recorded from their keys."""
    keys = [jax.random.split(jax.random.fold_in(keys_of(seed).step, step))[1] for step in range(steps)]
    return np.array([draw_condition(correction, key)[1] for key in keys], np.float64)


def loss_gradient(name, logits, labels, condition):
    """Losses and their gradients with respect to the logits: Eqs. 2 and 3 of the paper, by hand."""

    def softmax(values):
        exponentials = np.exp(values - values.max(axis=1, keepdims=True))
        return exponentials / exponentials.sum(axis=1, keepdims=True)

    truth = np.eye(2)[labels]
    first, second = condition
    if name == "vector_scaling":
        counts = np.array(COUNTS, np.float64)
        scale, shift = (counts / counts.max()) ** first, second * np.log(counts / counts.sum())
        probabilities = softmax(scale * logits + shift)
        return -np.log((probabilities * truth).sum(axis=1)), scale * (probabilities - truth)
    probabilities = softmax(logits)
    p = (probabilities * truth).sum(axis=1)
    weight = np.where(labels == 1, first, 1 - first)
    by_p = weight * (second * (1 - p) ** (second - 1) * np.log(p) - (1 - p) ** second / p)
    return -weight * (1 - p) ** second * np.log(p), by_p[:, None] * p[:, None] * (truth - probabilities)


def reference(name, params, conditions, *, told):
    """Five steps of SGD with momentum on logistic regression, in NumPy float64."""
    kernel, bias = (np.asarray(params["classifier"][key], np.float64) for key in ("kernel", "bias"))
    velocity, losses = [np.zeros_like(kernel), np.zeros_like(bias)], []
    for rows, condition in zip(np.asarray(INDICES), conditions, strict=True):
        features = IMAGES[rows].reshape(BATCH, -1).astype(np.float64)
        if told:
            features = np.c_[features, np.tile(condition, (BATCH, 1))]
        loss, by_logits = loss_gradient(name, features @ kernel + bias, LABELS[rows], condition)
        losses.append(loss.mean())
        gradients = (features.T @ by_logits / BATCH, by_logits.mean(axis=0))
        velocity = [MOMENTUM * v + g for v, g in zip(velocity, gradients, strict=True)]
        kernel, bias = kernel - RATE * velocity[0], bias - RATE * velocity[1]
    return {"kernel": kernel, "bias": bias}, losses


@pytest.mark.parametrize("film", ["seen", None], ids=["told", "not_told"])
@pytest.mark.parametrize("name", FAMILIES)
def test_five_steps_are_those_of_numpy_with_the_recorded_conditions(name, film):
    with jax.enable_x64(True):
        correction, model = FAMILIES[name](COUNTS), Logistic(film)
        state = start(model, correction)
        state = jax.tree.map(lambda leaf: leaf.astype(jnp.float64) if leaf.dtype == jnp.float32 else leaf, state)
        data = DeviceData(jnp.asarray(IMAGES, jnp.float64), DATA.labels)
        conditions = conditions_of(correction, 0)
        params, losses = reference(name, state.params, conditions, told=film is not None)
        step, told = jax.jit(make_step(*parts(model, correction))), []
        for rows in INDICES:
            state, metrics = step(state, data, rows, keys_of(0).step)
            told.append(float(metrics.loss))
        np.testing.assert_allclose(told, losses, rtol=1e-9)
        for key, expected in params.items():
            np.testing.assert_allclose(state.params["classifier"][key], expected, rtol=1e-9)
    assert np.ptp(conditions, axis=0).min() > 0.01  # every step had its own


def test_conditions_differ_between_steps_and_seeds_and_come_from_the_key_alone():
    correction = FAMILIES["vector_scaling"](COUNTS)
    first, again, other = (conditions_of(correction, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert len(np.unique(np.r_[first, other], axis=0)) == 2 * STEPS


def recording(calls):
    """A direction that predicts twice and keeps what it saw."""

    def propose(objective, params, batch, state, key):
        proposal = gradient().propose(objective, params, batch, (), key)
        second = objective.losses(objective.predict(params, batch, key), batch)
        calls.append((batch.inputs, proposal.aux.losses, second))
        return proposal._replace(state=state)

    return Direction(lambda params: (), propose)


@pytest.mark.slow
def test_all_examples_and_both_passes_of_a_step_see_one_condition():
    correction, model, calls = FAMILIES["vector_scaling"](COUNTS), Logistic(), []
    make_step(*parts(model, correction, recording(calls)))(start(model, correction), DATA, INDICES[0], keys_of(0).step)
    ((inputs, first, second),) = calls
    np.testing.assert_allclose(inputs.condition, np.tile(conditions_of(correction, 0, 1), (BATCH, 1)), rtol=1e-6)
    np.testing.assert_array_equal(first, second)


def test_drawing_changes_the_update_and_so_does_telling():
    def update(correction, model):
        state = start(model, correction)
        after, _ = make_step(*parts(model, correction))(state, DATA, INDICES[0], keys_of(0).step)
        return np.asarray(after.params["classifier"]["kernel"] - state.params["classifier"]["kernel"])

    drawn = FAMILIES["vector_scaling"](COUNTS)
    default = drawn.conditional.default
    fixed = conditional_vector_scaling(COUNTS, multiplicative=default[:1], additive=default[1:])
    plain = update(fixed, Logistic(None))
    assert np.abs(update(drawn, Logistic(None)) - plain).max() > 0.01 * np.abs(plain).max()
    told = update(drawn, Logistic())
    assert told.shape[0] == plain.shape[0] + 2
    assert np.abs(told[-2:]).min() > 0


def run_seeds(seeds, kind, stacked, steps=STEPS):
    correction, model = FAMILIES["vector_scaling"](COUNTS), Logistic()
    drive = make_driver(make_step(*parts(model, correction)), kind, stacked=stacked)
    many = jnp.asarray(seeds, jnp.uint32) if stacked else seeds[0]
    states = jax.vmap(lambda seed: start(model, correction, seed))(many) if stacked else start(model, correction, many)
    keys = jax.vmap(lambda seed: keys_of(seed).step)(many) if stacked else keys_of(many).step
    indices = jnp.broadcast_to(INDICES, (len(seeds), *INDICES.shape)) if stacked else INDICES
    state, metrics = drive(states, DATA, indices, keys, 0, steps)
    return state, read_metrics(metrics)


def test_seeds_by_vmap_and_steps_by_scan_are_those_one_by_one():
    together, metrics = run_seeds((0, 3), "scan", True)
    for i, seed in enumerate((0, 3)):
        alone, told = run_seeds((seed,), "calls", False)
        mine = jax.tree.map(lambda leaf: leaf[i], together.params)  # noqa: B023
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), mine, alone.params)
        np.testing.assert_allclose(metrics.loss[:, i], told.loss, rtol=1e-5)


def test_a_saved_state_continues_exactly():
    correction, model = FAMILIES["focal"](COUNTS), Logistic()
    step = jax.jit(make_step(*parts(model, correction)))

    def follow(state, rows):
        for row in rows:
            state, _ = step(state, DATA, row, keys_of(0).step)
        return state

    whole = follow(start(model, correction), INDICES)
    saved = TrainState(*jax.tree.map(np.asarray, follow(start(model, correction), INDICES[:2])))
    chex.assert_trees_all_equal(follow(jax.tree.map(jnp.asarray, saved), INDICES[2:]), whole)


def test_second_order_directions_see_the_condition():
    correction, model = FAMILIES["vector_scaling"](COUNTS), Logistic()
    structure = make_structure(model, correction, "mean", SHAPE, BATCH)
    assert structure.batch.inputs.condition.shape == (BATCH, 2)
    directions = [empirical_fisher(damping=0.1, engine=engine) for engine in ("gram", "vmap")]
    steps = [make_step(*parts(model, correction, direction)) for direction in directions]
    after = [step(start(model, correction), DATA, INDICES[0], keys_of(0).step)[0].params for step in steps]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), *after)


def test_step_effects_are_of_the_member_that_the_step_trained_with():
    correction, model = FAMILIES["vector_scaling"](COUNTS), Logistic()
    made = parts(model, correction)
    effects = jax.jit(make_step_effects(*made))(start(model, correction), DATA, INDICES[0], keys_of(0).step)
    state = start(model, correction)
    after, _ = make_step(*made)(state, DATA, INDICES[0], keys_of(0).step)
    (condition,) = conditions_of(correction, 0, 1)
    features = np.c_[IMAGES[np.asarray(INDICES[0])].reshape(BATCH, -1), np.tile(condition, (BATCH, 1))]

    def losses(params):
        kernel, bias = (np.asarray(params["classifier"][key], np.float64) for key in ("kernel", "bias"))
        return loss_gradient("vector_scaling", features @ kernel + bias, LABELS[np.asarray(INDICES[0])], condition)[0]

    np.testing.assert_allclose(effects.actual, losses(after.params) - losses(state.params), rtol=1e-3, atol=1e-6)
