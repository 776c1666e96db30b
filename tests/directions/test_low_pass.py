"""LPF-SGD: five steps with the noise recorded against NumPy in float64, norms of filters, and running statistics."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from imbal_jax.corrections.weights import cross_entropy
from imbal_jax.directions.gradient import gradient
from imbal_jax.directions.low_pass import filter_noise, filter_norms, low_pass
from imbal_jax.directions.noise import standard_normal
from imbal_jax.directions.wrapping import noise_key
from imbal_jax.errors import InputError
from imbal_jax.models.batch_norm import BatchNorm
from imbal_jax.training.objective import make_objective
from imbal_jax.types import Batch, Horizon
from tests.directions import softmax_regression as problem


def norms_by_hand(value):
    """Per column of a matrix, over all of a vector."""
    return np.linalg.norm(value, axis=0) if value.ndim > 1 else np.linalg.norm(value) + 1e-16


def recorded(count):
    """The standard normal numbers of every step and micro-batch."""
    like = jax.tree.map(jnp.asarray, problem.PARAMS)
    return [
        [
            jax.tree.map(np.asarray, standard_normal(jax.random.fold_in(noise_key(problem.key_of(step)), m), like))
            for m in range(count)
        ]
        for step in range(problem.STEPS)
    ]


@pytest.mark.parametrize(("micro_batches", "increase"), [(1, 0.0), (3, 0.0), (4, 15.0)])
def test_five_steps_equal_numpy(micro_batches, increase):
    std, total = 0.1, 10  # half of the cosine is walked
    with jax.enable_x64(True):
        noises = recorded(micro_batches)

        def direction_of(step, params):
            factor = std * (1 + increase * (0.5 - 0.5 * np.cos(np.pi * step / total)))
            gathered = {name: np.zeros_like(value) for name, value in params.items()}
            for m in range(micro_batches):
                noise = noises[step][m]
                nearby = {n: v + factor * norms_by_hand(v) * noise[n] for n, v in params.items()}
                inputs, labels = problem.inputs_of(step, (m, micro_batches))
                for name, value in problem.gradient_by_hand(nearby, inputs, labels).items():
                    gathered[name] += value / micro_batches
            return gathered, None

        options = {"std": std, "increase": increase, "micro_batches": micro_batches}
        path, proposals = problem.path_of(low_pass(problem.structure(Horizon(5, 2)), **options))
        expected = problem.path_by_hand(direction_of)
        # Noise and cosine are taken in float32, whose last digit depends on how a program is compiled.
        problem.assert_same_path(path, expected, rtol=1e-6)
        assert problem.far_apart(path, problem.path_of(gradient())[0])
        # Losses and prediction are those at the parameters given, of the whole batch.
        inputs, labels = problem.inputs_of(1)
        np.testing.assert_allclose(proposals[1].aux.losses, problem.losses_by_hand(expected[0], inputs, labels)[0])
        np.testing.assert_allclose(proposals[1].aux.prediction.aux["seen"], inputs.mean(axis=0))


def test_filters_end_on_the_last_axis():
    rng = np.random.default_rng(0)
    convolution, vector = rng.normal(size=(3, 2, 4, 5)), rng.normal(size=7)
    norms = filter_norms(jnp.asarray(convolution, jnp.float32))
    assert norms.shape == (1, 1, 1, 5)
    for channel in range(5):
        np.testing.assert_allclose(norms[0, 0, 0, channel], np.linalg.norm(convolution[..., channel]), rtol=1e-5)
    np.testing.assert_allclose(filter_norms(jnp.asarray(vector, jnp.float32)), np.linalg.norm(vector), rtol=1e-6)
    assert 0 < filter_norms(jnp.zeros(3)) < 1e-15
    np.testing.assert_allclose(filter_norms(jnp.float32(-2.0)), 2.0)


def test_the_factor_is_of_standard_deviations():
    params = {"kernel": jnp.tile(jnp.array([0.5, 2.0]), (5000, 1)), "bias": jnp.full(10_000, 0.01)}
    noise = filter_noise(jax.random.key(0), params, 0.1)
    norms = np.array([0.5, 2.0]) * np.sqrt(5000)
    np.testing.assert_allclose(np.std(noise["kernel"], axis=0), 0.1 * norms, rtol=0.05)
    np.testing.assert_allclose(np.std(noise["bias"]), 0.1, rtol=0.05)  # the norm of the whole vector is 1


class Normalised(nn.Module):
    @nn.compact
    def __call__(self, inputs, train):
        features = nn.tanh(BatchNorm(name="norm")(nn.Dense(6, name="hidden")(inputs), train))
        return nn.Dense(problem.CLASSES, name="classifier")(features), features


BATCH = Batch(jnp.asarray(problem.BATCHES[0][0], jnp.float32), jnp.asarray(problem.BATCHES[0][1], jnp.int32))
MODEL = Normalised()
VARIABLES = MODEL.init(jax.random.key(1), BATCH.inputs, train=False)
KEY = jax.random.key(5)


def run(params, statistics, rows):
    """Mean loss, and losses, logits and new statistics, by Flax alone."""
    variables = {"params": params, "batch_stats": statistics}
    (logits, _), new = MODEL.apply(variables, BATCH.inputs[rows], train=True, mutable=["batch_stats"])
    losses = -jax.nn.log_softmax(logits)[jnp.arange(len(logits)), BATCH.labels[rows]]
    return jnp.mean(losses), (losses, logits, new["batch_stats"])


@pytest.mark.parametrize("evidence", ["clean", "noisy"])
def test_statistics_and_losses_are_those_of_a_clean_pass_or_of_the_noisy_ones_in_turn(evidence):
    objective = make_objective(
        MODEL, cross_entropy(), "mean", model_state={"batch_stats": VARIABLES["batch_stats"]}, progress=0.0, train=True
    )
    direction = low_pass(problem.structure(), std=0.2, micro_batches=2, evidence=evidence)
    params = VARIABLES["params"]
    proposal = jax.jit(lambda params: direction.propose(objective, params, BATCH, direction.init(params), KEY))(params)
    statistics, gathered, told = VARIABLES["batch_stats"], [], []
    for m, rows in enumerate((slice(0, 6), slice(6, 12))):
        noise = filter_noise(jax.random.fold_in(noise_key(KEY), m), params, 0.2)
        nearby = jax.tree.map(jnp.add, params, noise)
        slope, (losses, logits, statistics) = jax.grad(run, has_aux=True)(nearby, statistics, rows)
        gathered.append(slope)
        told.append((losses, logits))
    mean = jax.tree.map(lambda one, other: (one + other) / 2, *gathered)
    chex.assert_trees_all_close(proposal.direction, mean, rtol=1e-4, atol=1e-6)
    noisy = (*(jnp.concatenate(parts) for parts in zip(*told, strict=True)), statistics)
    clean = run(params, VARIABLES["batch_stats"], slice(None))[1]
    expected, other = (clean, noisy) if evidence == "clean" else (noisy, clean)
    found = (proposal.aux.losses, proposal.aux.prediction.logits, proposal.aux.prediction.aux["batch_stats"])
    chex.assert_trees_all_close(found, expected, rtol=1e-4, atol=1e-5)
    for one, another in zip(jax.tree.leaves(found), jax.tree.leaves(other), strict=True):
        assert np.abs(one - another).max() > 1e-3
    assert proposal.aux.prediction.features.shape == (12, 6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"std": -0.1}, r"^std: expected a number >= 0, got -0\.1$"),
        ({"increase": -1.0}, r"^increase: expected a number >= 0, got -1\.0$"),
        ({"micro_batches": 0}, r"^micro_batches: expected a whole number >= 1, got 0$"),
        ({"micro_batches": 5}, r"^micro_batches: expected a divisor of the batch size 12, got 5$"),
        ({"evidence": "none"}, r"^evidence: no 'none'"),
    ],
)
def test_refuses(options, message):
    with pytest.raises(InputError, match=message):
        low_pass(problem.structure(), **options)


def test_an_increase_needs_to_know_how_long_the_run_is():
    with pytest.raises(InputError, match=r"^increase: needs to know how long the run is"):
        low_pass(problem.structure(None), increase=15.0)
