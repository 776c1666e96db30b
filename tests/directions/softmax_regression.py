"""Weighted softmax regression in float64 with gradients by hand, for tests of directions that wrap others."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from imbal_jax.types import Batch, Horizon, Objective, Prediction, Structure

EXAMPLES, INPUTS, CLASSES, STEPS = 12, 4, 3, 5
HORIZON = Horizon(steps_per_epoch=1, epochs=STEPS)
CLASS_WEIGHTS = np.array([0.5, 1.0, 2.5])
RATE, MOMENTUM, DECAY = 0.25, 0.5, 0.125  # exact in binary, so that no cast of theirs rounds

_RNG = np.random.default_rng(0)
PARAMS = {"bias": _RNG.normal(size=CLASSES), "kernel": _RNG.normal(size=(INPUTS, CLASSES))}
BATCHES = [(_RNG.normal(size=(EXAMPLES, INPUTS)), _RNG.integers(0, CLASSES, EXAMPLES)) for _ in range(STEPS)]


def predict(params, batch, key):
    """Logits from inputs of which the key drops one in four, as dropout would."""
    inputs = batch.inputs * jax.random.bernoulli(key, 0.75, batch.inputs.shape)
    return Prediction(inputs @ params["kernel"] + params["bias"], inputs, {"seen": jnp.mean(inputs, axis=0)})


def losses(prediction, batch):
    """Class-weighted cross-entropies."""
    entropies = -jax.nn.log_softmax(prediction.logits)[jnp.arange(len(batch.labels)), batch.labels]
    return jnp.asarray(CLASS_WEIGHTS)[batch.labels] * entropies


def class_weights(prediction, batch):
    return jnp.asarray(CLASS_WEIGHTS)[batch.labels]


OBJECTIVE = Objective(predict, losses, class_weights)


def batch_of(step):
    """A step's batch on the device."""
    return Batch(jnp.asarray(BATCHES[step][0]), jnp.asarray(BATCHES[step][1], jnp.int32))


def key_of(step):
    return jax.random.fold_in(jax.random.key(7), step)


def structure(horizon=HORIZON):
    return Structure(OBJECTIVE, PARAMS, batch_of(0), horizon)


def inputs_of(step, part=None):
    """A step's inputs after dropout, or those of one part with the key of its own."""
    inputs, labels = BATCHES[step]
    key = key_of(step)
    if part is not None:
        number, count = part
        size = len(labels) // count
        rows = slice(number * size, (number + 1) * size)
        inputs, labels, key = inputs[rows], labels[rows], jax.random.fold_in(key, number)
    return inputs * np.asarray(jax.random.bernoulli(key, 0.75, inputs.shape)), labels


def losses_by_hand(params, inputs, labels):
    """Losses [batch] and the gradient of each with respect to the logits [batch, classes]."""
    logits = inputs @ params["kernel"] + params["bias"]
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities = shifted / shifted.sum(axis=1, keepdims=True)
    weights = CLASS_WEIGHTS[labels]
    told = -weights * np.log(probabilities[np.arange(len(labels)), labels])
    return told, weights[:, None] * (probabilities - np.eye(CLASSES)[labels])


def gradient_by_hand(params, inputs, labels, factors=1.0):
    """The gradient of the mean of the losses times factors that are held constant."""
    errors = losses_by_hand(params, inputs, labels)[1] * np.broadcast_to(factors, len(labels))[:, None] / len(labels)
    return {"bias": errors.sum(axis=0), "kernel": inputs.T @ errors}


def path_by_hand(direction_of):
    """Parameters after each step of momentum and decay; direction_of(step, params) -> (direction, shift or None)."""
    params = {name: value.copy() for name, value in PARAMS.items()}
    velocity = {name: np.zeros_like(value) for name, value in PARAMS.items()}
    path = []
    for step in range(STEPS):
        direction, shift = direction_of(step, params)
        for name in params:
            start = params[name] if shift is None else params[name] + shift[name]
            velocity[name] = MOMENTUM * velocity[name] + direction[name] + DECAY * start
            params[name] = start - RATE * velocity[name]
        path.append(dict(params))
    return path


def path_of(direction, objective=OBJECTIVE):
    """The same with a direction of the package, and its proposals; to be called where 64 bits are enabled."""
    params = jax.tree.map(jnp.asarray, PARAMS)
    velocity = jax.tree.map(jnp.zeros_like, params)
    state, path, proposals = direction.init(params), [], []
    propose = jax.jit(functools.partial(direction.propose, objective))
    for step in range(STEPS):
        proposal = propose(params, batch_of(step), state, key_of(step))
        state = proposal.state
        if proposal.shift is not None:
            params = jax.tree.map(jnp.add, params, proposal.shift)
        velocity = jax.tree.map(lambda v, d, p: MOMENTUM * v + d + DECAY * p, velocity, proposal.direction, params)
        params = jax.tree.map(lambda p, v: p - RATE * v, params, velocity)
        path.append(params)
        proposals.append(proposal)
    return path, proposals


def assert_same_path(path, expected, rtol=1e-9):
    """Every step's parameters agree."""
    assert len(path) == len(expected) == STEPS
    for params, wanted in zip(path, expected, strict=True):
        for name, value in wanted.items():
            assert params[name].dtype == np.float64
            np.testing.assert_allclose(params[name], value, rtol=rtol, atol=1e-12)


def far_apart(path, other):
    """Whether two paths end in different places."""
    return max(np.abs(np.asarray(path[-1][name]) - np.asarray(other[-1][name])).max() for name in PARAMS) > 1e-3
