"""What every direction must do; a new one is tested by being in the builders."""

import inspect

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from imbal_jax.builders import DIRECTIONS
from imbal_jax.types import Batch, Objective, Prediction, Structure

EXAMPLES, INPUTS, CLASSES = 24, 5, 3
RNG = np.random.default_rng(0)
TRUE_KERNEL = RNG.normal(size=(INPUTS, CLASSES))
X = RNG.normal(size=(EXAMPLES, INPUTS))
LABELS = np.argmax(X @ TRUE_KERNEL + RNG.normal(size=(EXAMPLES, CLASSES)), axis=1)
BATCH = Batch(jnp.asarray(X, jnp.float32), jnp.asarray(LABELS, jnp.int32))
PARAMS = {
    "hidden": {"scale": jnp.asarray(RNG.uniform(0.5, 1.5, INPUTS), jnp.float32)},
    "classifier": {
        "kernel": jnp.asarray(RNG.normal(size=(INPUTS, CLASSES)), jnp.float32),
        "bias": jnp.asarray(RNG.normal(size=CLASSES), jnp.float32),
    },
}


class Scale(nn.Module):
    """A layer of a kind that no direction knows."""

    @nn.compact
    def __call__(self, inputs):
        return inputs * self.param("scale", nn.initializers.ones, inputs.shape[-1:])


class Linear(nn.Module):
    @nn.compact
    def __call__(self, inputs):
        features = Scale(name="hidden")(inputs)
        return nn.Dense(CLASSES, name="classifier")(features), features


def predict(params, batch, key):
    """A linear model; the key shifts the running statistic only, so that losses are deterministic."""
    logits, features = Linear().apply({"params": params}, batch.inputs)
    return Prediction(logits, features, {"seen": jnp.mean(batch.inputs, axis=0) + jax.random.uniform(key)})


def losses(prediction, batch):
    """Squared errors [batch], for which the classifier's problem is quadratic."""
    return 0.5 * jnp.sum((prediction.logits - jax.nn.one_hot(batch.labels, CLASSES)) ** 2, axis=1)


OBJECTIVE = Objective(predict, losses)
STRUCTURE = Structure(OBJECTIVE, PARAMS, BATCH)
# Here are more examples than parameters, so that without damping the empirical Fisher's system is nearly singular.
OPTIONS = {"empirical_fisher": {"damping": 0.1}}
# Learning rates that solve the problem in forty steps; the others take 0.1.
RATES = {"empirical_fisher": 0.03, "improved_empirical_fisher": 10.0}
KEYS = jax.random.split(jax.random.key(0), 40)


def mean_loss(params):
    return jnp.mean(losses(predict(params, BATCH, KEYS[0]), BATCH))


class Case:
    """A direction with its `propose` compiled once for all tests."""

    def __init__(self, name):
        builder = DIRECTIONS[name]
        positional = [p for p in inspect.signature(builder).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
        self.direction = builder(*[STRUCTURE][: len(positional)], **OPTIONS.get(name, {}))
        self.rate = RATES.get(name, 0.1)
        self.propose = jax.jit(lambda params, state, key: self.direction.propose(OBJECTIVE, params, BATCH, state, key))

    def follow(self, params, state, keys):
        """Steps of fixed length against the proposals."""
        for key in keys:
            proposal = self.propose(params, state, key)
            params = jax.tree.map(lambda value, step: value - self.rate * step, params, proposal.direction)
            state = proposal.state
        return params, state


@pytest.fixture(scope="module", params=DIRECTIONS)
def case(request):
    return Case(request.param)


def test_jits_and_agrees_with_plain_python(case):
    state = case.direction.init(PARAMS)
    compiled = case.propose(PARAMS, state, KEYS[0])
    plain = case.direction.propose(OBJECTIVE, PARAMS, BATCH, state, KEYS[0])
    chex.assert_trees_all_equal_shapes_and_dtypes(compiled, plain)
    chex.assert_trees_all_close(compiled, plain, rtol=1e-4, atol=1e-5)


def test_keeps_structure_shapes_and_types(case):
    state = case.direction.init(PARAMS)
    proposal = case.propose(PARAMS, state, KEYS[0])
    chex.assert_trees_all_equal_shapes_and_dtypes(proposal.direction, PARAMS)
    assert not any(leaf.weak_type for leaf in jax.tree.leaves(proposal.direction))
    # Otherwise each step would compile anew, and scan refuse it.
    chex.assert_trees_all_equal_shapes_and_dtypes(proposal.state, state)


def test_evidence_is_taken_at_the_parameters_given(case):
    proposal = case.propose(PARAMS, case.direction.init(PARAMS), KEYS[0])
    told, prediction = proposal.aux
    logits = X * np.asarray(PARAMS["hidden"]["scale"]) @ np.asarray(PARAMS["classifier"]["kernel"])
    logits = logits + np.asarray(PARAMS["classifier"]["bias"])
    np.testing.assert_allclose(prediction.logits, logits, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(told, 0.5 * np.sum((logits - np.eye(CLASSES)[LABELS]) ** 2, axis=1), rtol=1e-4)
    assert told.shape == (EXAMPLES,)
    assert prediction.features.shape == (EXAMPLES, INPUTS)
    shift = prediction.aux["seen"] - X.mean(axis=0)
    np.testing.assert_allclose(shift, np.full(INPUTS, shift[0]), atol=1e-5)  # one application of the model


def test_descends(case):
    params, _ = case.follow(PARAMS, case.direction.init(PARAMS), KEYS)
    solution, *_ = np.linalg.lstsq(np.c_[X, np.ones(EXAMPLES)], np.eye(CLASSES)[LABELS], rcond=None)
    least = 0.5 * np.mean(np.sum((np.c_[X, np.ones(EXAMPLES)] @ solution - np.eye(CLASSES)[LABELS]) ** 2, axis=1))
    start, end = float(mean_loss(PARAMS)), float(mean_loss(params))
    assert least - 1e-5 <= end < least + 0.1 * (start - least)


def test_first_proposal_points_downhill(case):
    proposal = case.propose(PARAMS, case.direction.init(PARAMS), KEYS[0])
    slope = jax.jvp(mean_loss, (PARAMS,), (proposal.direction,))[1]
    assert slope > 0  # the step rule takes the negative


def test_resumes_from_a_saved_state(case):
    state = case.direction.init(PARAMS)
    whole = case.follow(PARAMS, state, KEYS[:6])
    saved = jax.tree.map(np.asarray, case.follow(PARAMS, state, KEYS[:3]))
    resumed = case.follow(*jax.tree.map(jnp.asarray, saved), KEYS[3:6])
    chex.assert_trees_all_equal(resumed, whole)


def test_gradient_equals_its_formula():
    proposal = Case("gradient").propose(PARAMS, (), KEYS[0])
    scale, kernel, bias = (
        np.asarray(leaf, np.float64)
        for leaf in (PARAMS["hidden"]["scale"], PARAMS["classifier"]["kernel"], PARAMS["classifier"]["bias"])
    )
    error = ((X * scale) @ kernel + bias - np.eye(CLASSES)[LABELS]) / EXAMPLES
    expected = {
        "hidden": {"scale": np.sum(X * (error @ kernel.T), axis=0)},
        "classifier": {"kernel": (X * scale).T @ error, "bias": error.sum(axis=0)},
    }
    chex.assert_trees_all_close(proposal.direction, expected, rtol=1e-4, atol=1e-5)
