"""PGD in both forms: five steps with the noise recorded against NumPy in float64, and the distribution of the ball."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from scipy import stats

from imbal_jax.corrections.weights import cross_entropy
from imbal_jax.data import augmentation
from imbal_jax.directions.gradient import gradient
from imbal_jax.directions.noise import standard_normal
from imbal_jax.directions.perturbed import perturbed, uniform_in_ball
from imbal_jax.directions.wrapping import noise_key
from imbal_jax.errors import InputError
from imbal_jax.training import step_rules
from imbal_jax.training.state import initial_state, keys_of
from imbal_jax.training.step import DeviceData, make_step
from tests.directions import softmax_regression as problem

SIZE = problem.CLASSES * (problem.INPUTS + 1)


def gradient_at(step, params):
    return problem.gradient_by_hand(params, *problem.inputs_of(step))


def norm_of(tree):
    return np.sqrt(sum(np.sum(value**2) for value in tree.values()))


@pytest.mark.parametrize(("scale", "deviation"), [("norm", 0.3 / np.sqrt(SIZE)), ("coordinate", 0.3)])
def test_gaussian_steps_equal_numpy(scale, deviation):
    with jax.enable_x64(True):
        like = jax.tree.map(jnp.asarray, problem.PARAMS)
        noises = [standard_normal(noise_key(problem.key_of(step)), like) for step in range(problem.STEPS)]
        noises = jax.tree.map(np.asarray, noises)

        def direction_of(step, params):
            exact = gradient_at(step, params)
            return {name: exact[name] + deviation * noises[step][name] for name in exact}, None

        path, proposals = problem.path_of(perturbed(radius=0.3, scale=scale))
        expected = problem.path_by_hand(direction_of)
        problem.assert_same_path(path, expected)
        assert problem.far_apart(path, problem.path_of(gradient())[0])
        inputs, labels = problem.inputs_of(1)
        np.testing.assert_allclose(proposals[1].aux.losses, problem.losses_by_hand(expected[0], inputs, labels)[0])
        assert proposals[1].shift is None


@pytest.mark.parametrize("period", [0, 1, 3])
def test_ball_steps_equal_numpy(period):
    threshold, radius = 0.95, 0.2
    moves = []
    with jax.enable_x64(True):
        like = jax.tree.map(jnp.asarray, problem.PARAMS)
        jumps = [uniform_in_ball(noise_key(problem.key_of(step)), like, radius) for step in range(problem.STEPS)]
        jumps = jax.tree.map(np.asarray, jumps)

        def direction_of(step, params):
            small = norm_of(gradient_at(step, params)) <= threshold
            rested = not moves or step - moves[-1] > period
            if not (small and rested):
                return gradient_at(step, params), None
            moves.append(step)
            moved = {name: params[name] + jumps[step][name] for name in params}
            return gradient_at(step, moved), jumps[step]

        path, proposals = problem.path_of(perturbed(form="ball", radius=radius, threshold=threshold, period=period))
        expected = problem.path_by_hand(direction_of)
        problem.assert_same_path(path, expected)
        # The case has steps that move, and steps that do not because of either condition.
        assert moves == {0: [0, 1, 3, 4], 1: [0, 3], 3: [0, 4]}[period]
        for step, proposal in enumerate(proposals):
            before = expected[step - 1] if step else problem.PARAMS
            told = problem.losses_by_hand(before, *problem.inputs_of(step))[0]
            np.testing.assert_allclose(proposal.aux.losses, told)
            assert (np.abs(proposal.shift["kernel"]).max() > 0) == (step in moves)


class SoftmaxRegression(nn.Module):
    @nn.compact
    def __call__(self, images, train):
        features = images.reshape(len(images), -1)
        return nn.Dense(2, name="classifier")(features), features


def test_the_training_step_starts_from_the_moved_parameters():
    direction = perturbed(form="ball", radius=0.5, threshold=1e6)
    rule = step_rules.sgd(lambda count: 0.1, weight_decay=0.25)
    images = np.random.default_rng(0).normal(size=(4, 2, 2, 1)).astype(np.float32)
    data = DeviceData(jnp.asarray(images), jnp.array([0, 1, 0, 1]))
    pixels = (np.zeros(1, np.float32), np.ones(1, np.float32))
    step = make_step(
        SoftmaxRegression(), cross_entropy(), "mean", direction, rule, augmentation.none(), pixels, total_steps=4
    )
    state, key = initial_state(SoftmaxRegression(), direction, rule, (2, 2, 1), 0), keys_of(0).step
    after, _ = jax.jit(step)(state, data, jnp.arange(4), key)
    model_key = jax.random.split(jax.random.fold_in(key, 0))[1]
    jump = uniform_in_ball(noise_key(model_key), state.params, 0.5)
    start = jax.tree.map(lambda p, s: np.asarray(p + s, np.float64), state.params, jump)["classifier"]
    features = images.reshape(4, -1).astype(np.float64)
    logits = features @ start["kernel"] + start["bias"]
    error = (np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True) - np.eye(2)[[0, 1, 0, 1]]) / 4
    kernel = start["kernel"] - 0.1 * (features.T @ error + 0.25 * start["kernel"])
    np.testing.assert_allclose(after.params["classifier"]["kernel"], kernel, rtol=1e-4, atol=1e-6)


def test_the_ball_is_filled_evenly():
    like = {"a": jnp.zeros(2), "b": jnp.zeros((1, 1))}
    points = jax.vmap(lambda key: uniform_in_ball(key, like, 2.0))(jax.random.split(jax.random.key(0), 5000))
    points = np.concatenate([np.asarray(points["a"]), np.asarray(points["b"]).reshape(-1, 1)], axis=1)
    radii = np.linalg.norm(points, axis=1)
    assert radii.max() <= 2.0
    assert stats.kstest((radii / 2) ** 3, "uniform").pvalue > 1e-3
    # On a sphere in three dimensions every coordinate is uniform (Archimedes).
    for axis in range(3):
        assert stats.kstest(points[:, axis] / radii, "uniform", args=(-1, 2)).pvalue > 1e-3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"radius": -0.1}, r"^radius: expected a number >= 0, got -0\.1$"),
        ({"radius": float("inf")}, r"^radius: expected a number >= 0, got inf$"),
        ({"form": "sphere"}, r"^form: no 'sphere'"),
        ({"scale": "leaf"}, r"^scale: no 'leaf'"),
        ({"threshold": -1.0}, r"^threshold: expected a number >= 0, got -1\.0$"),
        ({"threshold": 1.0}, r"^threshold: expected 0 with form='gaussian', got 1\.0$"),
        ({"period": 2}, r"^period: expected 0 with form='gaussian', got 2$"),
        ({"form": "ball"}, r"^threshold: expected a number > 0, got 0\.0$"),
        ({"form": "ball", "threshold": 1.0, "period": -1}, r"^period: expected a whole number >= 0, got -1$"),
        ({"form": "ball", "threshold": 1.0, "period": True}, r"^period: expected a whole number >= 0, got True$"),
        ({"form": "ball", "threshold": 1.0, "scale": "coordinate"}, r"^scale: expected 'norm' with form='ball', got"),
    ],
)
def test_refuses(options, message):
    with pytest.raises(InputError, match=message):
        perturbed(**options)
