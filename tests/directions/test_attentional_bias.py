"""ABSGD and exponentiated-gradient weights against NumPy in float64, in their limits, and shared out among devices."""

import json
import os
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imbal_jax.directions.attentional_bias import attentional_bias, exponentiated_gradient, reweighted
from imbal_jax.directions.empirical_fisher import empirical_fisher, improved_empirical_fisher
from imbal_jax.directions.gradient import gradient
from imbal_jax.directions.sharpness_aware import sharpness_aware
from imbal_jax.errors import InputError
from imbal_jax.types import Batch, Horizon, Objective, Prediction
from tests.conftest import ROOT
from tests.directions import softmax_regression as problem

# Of five steps in a run of ten the weights begin at the third.
LATER = {"at": 0.2}


def path_by_hand(
    *, temperature, gamma, begin=0, initial="first_batch", normaliser_factor=1.0, plus_one=False, descend=None
):
    """Algorithm 1 with s as it is, and the published variants; also all weights."""
    descend = problem.gradient_by_hand if descend is None else descend
    normaliser, seen = None, []

    def direction_of(step, params):
        nonlocal normaliser
        inputs, labels = problem.inputs_of(step)
        losses, _ = problem.losses_by_hand(params, inputs, labels)
        weights = np.ones_like(losses)
        if step >= begin:
            mean = normaliser_factor * np.mean(np.exp(losses / temperature))
            if normaliser is None:
                normaliser = mean if initial == "first_batch" else 0.0
            normaliser = (1 - gamma) * normaliser + gamma * mean
            weights = np.exp(losses / temperature) / normaliser + plus_one
        seen.append(weights)
        return descend(params, inputs, labels, weights), None

    return problem.path_by_hand(direction_of), seen


PUBLISHED = {"initial": "zero", "normaliser_factor": 0.5}
CASES = {
    "imbalance": {"temperature": 1.5, "gamma": 0.3},
    "noisy labels": {"temperature": -0.5, "gamma": 0.9},
    "from zero": {"temperature": 2.0, "gamma": 0.4, "initial": "zero"},
    "published": {"temperature": 5.0, "gamma": 0.5, **PUBLISHED},
    "factor from the first batch": {"temperature": 2.0, "gamma": 0.4, "normaliser_factor": 2.0},
    "published for noise": {"temperature": -1.0, "gamma": 0.9, "plus_one": True, **PUBLISHED},
    "two stages": {"temperature": 1.5, "gamma": 0.3, **LATER},
    "two stages from zero": {"temperature": 1.5, "gamma": 0.6, "initial": "zero", **LATER},
}


@pytest.mark.parametrize("case", CASES)
def test_five_steps_equal_numpy(case):
    options = dict(CASES[case])
    with jax.enable_x64(True):
        path, proposals = problem.path_of(attentional_bias(problem.structure(Horizon(5, 2)), **options))
        begin = 2 if options.pop("at", 0) else 0
        expected, weights = path_by_hand(begin=begin, **options)
        problem.assert_same_path(path, expected)
        assert problem.far_apart(path, problem.path_of(gradient())[0])
        assert np.ptp(weights[-1]) > 0.1
        # The losses told are the objective's own.
        inputs, labels = problem.inputs_of(1)
        np.testing.assert_allclose(proposals[1].aux.losses, problem.losses_by_hand(expected[0], inputs, labels)[0])


def test_the_cases_differ():
    paths = []
    for case in CASES.values():
        options = dict(case)
        paths.append(path_by_hand(begin=2 if options.pop("at", 0) else 0, **options)[0])
    for i, one in enumerate(paths):
        assert all(problem.far_apart(one, other) for other in paths[:i])


def test_the_first_published_weights_are_too_large():
    options = {"temperature": 5.0, "gamma": 0.1, **PUBLISHED}
    weights = path_by_hand(**options)[1]
    np.testing.assert_allclose(weights[0].mean(), 20)


@pytest.mark.parametrize("temperature", [1.5, -0.5])
def test_exponentiated_gradient_weights_are_those_of_the_batch_alone(temperature):
    def direction_of(step, params):
        inputs, labels = problem.inputs_of(step)
        exponentials = np.exp(problem.losses_by_hand(params, inputs, labels)[0] / temperature)
        weights = exponentials / exponentials.sum() * len(labels)
        return problem.gradient_by_hand(params, inputs, labels, weights), None

    with jax.enable_x64(True):
        path, _ = problem.path_of(exponentiated_gradient(problem.structure(), temperature=temperature))
        problem.assert_same_path(path, problem.path_by_hand(direction_of))
        other, _ = problem.path_of(attentional_bias(problem.structure(), temperature=temperature, gamma=0.5))
        assert problem.far_apart(path, other)


def test_a_large_temperature_approaches_the_inner_direction():
    with jax.enable_x64(True):
        plain, _ = problem.path_of(gradient())
        distances = []
        for temperature in (1e3, 1e5, -1e5):
            path, _ = problem.path_of(attentional_bias(problem.structure(), temperature=temperature))
            distances.append(np.abs(path[-1]["kernel"] - plain[-1]["kernel"]).max())
        assert 0 < distances[1] < 1.1e-2 * distances[0] < 1e-3
        np.testing.assert_allclose(distances[2], distances[1], rtol=1e-2)


@pytest.mark.parametrize(
    "options",
    [{"temperature": np.inf}, {"temperature": -np.inf}, {"temperature": 200.0, "plain_from": 200.0}, {"at": 1.0}],
    ids=str,
)
def test_without_weights_it_is_the_inner_direction(options):
    inner = gradient()
    assert attentional_bias(problem.structure(), inner=inner, **options) is inner


def test_until_the_weights_begin_every_bit_is_that_of_the_inner_direction():
    plain, _ = problem.path_of(gradient(), OBJECTIVE_32)
    direction = attentional_bias(problem.structure(Horizon(5, 2)), temperature=0.5, at=0.3)
    path, _ = problem.path_of(direction, OBJECTIVE_32)
    chex.assert_trees_all_equal(path[:3], plain[:3])
    assert problem.far_apart(path[3:], plain[3:])


def losses_32(prediction, batch):
    entropies = -jax.nn.log_softmax(prediction.logits)[jnp.arange(len(batch.labels)), batch.labels]
    return jnp.asarray(problem.CLASS_WEIGHTS, jnp.float32)[batch.labels] * entropies


OBJECTIVE_32 = Objective(problem.predict, losses_32)


# --- numbers ------------------------------------------------------------------------------------------------------


def scaled_objective(scale):
    """Losses as large as one likes: the parameter is multiplied by fixed numbers."""

    def predict(params, batch, key):
        return Prediction(params["w"] * batch.inputs, None, ())

    return Objective(predict, lambda prediction, batch: scale * prediction.logits[:, 0])


@pytest.mark.parametrize("temperature", [0.1, -0.1, 1e-3])
@pytest.mark.parametrize("initial", ["first_batch", "zero"])
def test_no_loss_is_too_large(temperature, initial):
    objective, params = scaled_objective(1e4), {"w": jnp.float32(1.0)}
    batches = [Batch(jnp.array([[1.0], [0.5], [1e-5], [0.0]]) * size, jnp.zeros(4, jnp.int32)) for size in (1.0, 1e-4)]
    structure = problem.structure()._replace(objective=objective, params=params, batch=batches[0])
    direction = attentional_bias(structure, temperature=temperature, gamma=0.5, initial=initial)
    state, log_normaliser = direction.init(params), None
    for batch in batches:
        proposal = jax.jit(direction.propose, static_argnums=0)(objective, params, batch, state, jax.random.key(0))
        state = proposal.state
        # In float64 with the largest exponent taken out.
        scaled = 1e4 * np.asarray(batch.inputs[:, 0], np.float64) / temperature
        log_mean = scaled.max() + np.log(np.mean(np.exp(scaled - scaled.max())))
        if log_normaliser is None:
            log_normaliser = log_mean + (0.0 if initial == "first_batch" else np.log(0.5))
        else:
            log_normaliser = np.logaddexp(log_normaliser, log_mean) + np.log(0.5)
        assert np.isfinite(state.log_normaliser)
        np.testing.assert_allclose(state.log_normaliser, log_normaliser, rtol=1e-5, atol=1e-3)
        weights = np.exp(scaled - log_normaliser)
        expected = np.mean(weights * 1e4 * np.asarray(batch.inputs[:, 0]))
        assert np.isfinite(proposal.direction["w"])
        np.testing.assert_allclose(proposal.direction["w"], expected, rtol=1e-5, atol=1e-3)


def test_weights_are_held_constant():
    weighted = reweighted(problem.OBJECTIVE, lambda losses: losses)

    def loss(logits):
        return jnp.sum(weighted.losses(Prediction(logits), problem.batch_of(0)))

    with jax.enable_x64(True):
        logits = jnp.asarray(np.random.default_rng(1).normal(size=(problem.EXAMPLES, problem.CLASSES)))
        told, slopes = problem.losses_by_hand(
            {"kernel": np.zeros((1, 3)), "bias": 0.0}, np.zeros((12, 1)), problem.BATCHES[0][1]
        )
        kernel = {"kernel": np.asarray(logits), "bias": np.zeros(3)}
        told, slopes = problem.losses_by_hand(kernel, np.eye(problem.EXAMPLES), problem.BATCHES[0][1])
        np.testing.assert_allclose(jax.grad(loss)(logits), told[:, None] * slopes)


# --- under other directions ---------------------------------------------------------------------------------------


def jacobian_by_hand(params, inputs, labels):
    """The gradients of the losses, [batch, parameters]: the bias first."""
    slopes = problem.losses_by_hand(params, inputs, labels)[1]
    return np.concatenate([slopes, np.einsum("ni,nc->nic", inputs, slopes).reshape(len(labels), -1)], axis=1)


def as_tree(vector):
    return {"bias": vector[: problem.CLASSES], "kernel": vector[problem.CLASSES :].reshape(-1, problem.CLASSES)}


def fisher_by_hand(params, inputs, labels, weights):
    """EF with all weights, by class and by loss, on the right-hand side and none in J (damping 0.5, summed units)."""
    by_class = problem.CLASS_WEIGHTS[labels]
    plain = jacobian_by_hand(params, inputs, labels) / by_class[:, None]
    system = plain @ plain.T + 0.5 * np.eye(len(labels))
    return as_tree(plain.T @ np.linalg.solve(system, weights * by_class))


def improved_by_hand(params, inputs, labels, weights):
    """iEF with weighted losses."""
    weighted = weights[:, None] * jacobian_by_hand(params, inputs, labels)
    slopes = weights[:, None] * problem.losses_by_hand(params, inputs, labels)[1]
    system = weighted @ weighted.T + 0.5 * np.eye(len(labels))
    return as_tree(weighted.T @ np.linalg.solve(system, np.sum(slopes**2, axis=1)))


@pytest.mark.parametrize(
    ("inner", "by_hand"), [(empirical_fisher, fisher_by_hand), (improved_empirical_fisher, improved_by_hand)]
)
def test_fisher_directions_treat_the_weights_as_class_weights(inner, by_hand):
    with jax.enable_x64(True):
        exact = inner(damping=0.5, damping_mode="absolute", units="sum", engine="vmap", precision="float64")
        direction = attentional_bias(problem.structure(), temperature=1.5, gamma=0.3, inner=exact)
        path, _ = problem.path_of(direction, BATCHED_OBJECTIVE)
        expected, _ = path_by_hand(temperature=1.5, gamma=0.3, descend=by_hand)
        problem.assert_same_path(path, expected, rtol=1e-6)


def predict_alone(params, batch, key):
    """The prediction whose dropout is that of the step, also where examples are predicted one by one."""
    inputs = batch.inputs
    return Prediction(inputs @ params["kernel"] + params["bias"], inputs, ())


BATCHED_OBJECTIVE = Objective(predict_alone, problem.losses, problem.class_weights)


@pytest.fixture(autouse=True)
def without_dropout(request, monkeypatch):
    """Examples that are predicted one by one draw masks of their own, which the reference does not follow."""
    if request.node.name.startswith("test_fisher"):
        monkeypatch.setattr(problem, "inputs_of", lambda step: problem.BATCHES[step])


def test_over_sam_both_passes_are_weighted_by_their_own_losses():
    rho, temperature, gamma = 0.5, 1.5, 0.3
    normaliser = None

    def direction_of(step, params):
        nonlocal normaliser
        inputs, labels = problem.inputs_of(step)

        def weights_at(point):
            exponentials = np.exp(problem.losses_by_hand(point, inputs, labels)[0] / temperature)
            before = exponentials.mean() if normaliser is None else normaliser
            updated = (1 - gamma) * before + gamma * exponentials.mean()
            return exponentials / updated, updated

        weights, updated = weights_at(params)
        ascent = problem.gradient_by_hand(params, inputs, labels, weights)
        norm = np.sqrt(sum(np.sum(value**2) for value in ascent.values()))
        nearby = {name: params[name] + rho * ascent[name] / norm for name in params}
        direction = problem.gradient_by_hand(nearby, inputs, labels, weights_at(nearby)[0])
        normaliser = updated
        return direction, None

    with jax.enable_x64(True):
        inner = sharpness_aware(problem.structure(), rho=rho)
        path, _ = problem.path_of(
            attentional_bias(problem.structure(), temperature=temperature, gamma=gamma, inner=inner)
        )
        problem.assert_same_path(path, problem.path_by_hand(direction_of))


# --- devices ------------------------------------------------------------------------------------------------------

SHARED_OUT = """
import json, jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from imbal_jax.directions.attentional_bias import attentional_bias
from imbal_jax.types import Batch, Objective, Prediction, Structure
rng = np.random.default_rng(0)
params = {"kernel": jnp.asarray(rng.normal(size=(4, 3)), jnp.float32)}
batch = Batch(jnp.asarray(3 * rng.normal(size=(16, 4)), jnp.float32), jnp.asarray(rng.integers(0, 3, 16), jnp.int32))
def losses(prediction, batch):
    return -jax.nn.log_softmax(prediction.logits)[jnp.arange(16), batch.labels]
objective = Objective(lambda params, batch, key: Prediction(batch.inputs @ params["kernel"]), losses)
direction = attentional_bias(Structure(objective, params, batch), temperature=0.7, gamma=0.3)
state = direction.init(params)
batch = jax.device_put(batch, NamedSharding(Mesh(np.array(jax.devices()), ("batch",)), PartitionSpec("batch")))
propose = jax.jit(direction.propose, static_argnums=0)
for step in range(3):
    proposal = propose(objective, params, batch, state, jax.random.key(0))
    state, params = proposal.state, jax.tree.map(lambda p, d: p - 0.1 * d, params, proposal.direction)
assert len(batch.inputs.sharding.device_set) == len(jax.devices())
print(json.dumps([len(jax.devices()), float(state.log_normaliser), np.asarray(params["kernel"]).tolist()]))
"""


def test_eight_devices_share_one_normaliser():
    told = []
    for devices in (1, 8):
        flags = f"--xla_force_host_platform_device_count={devices}"
        environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, "-c", SHARED_OUT],
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        told.append(json.loads(done.stdout))
        assert told[-1][0] == devices
    np.testing.assert_allclose(told[1][1], told[0][1], rtol=1e-6)
    np.testing.assert_allclose(told[1][2], told[0][2], rtol=1e-5, atol=1e-6)


# --- bad input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, r"^temperature: expected a number other than 0, got 0\.0$"),
        ({"temperature": float("nan")}, r"^temperature: expected a number other than 0, got nan$"),
        ({"gamma": 0.0}, r"^gamma: expected a number in \(0, 1\], got 0\.0$"),
        ({"gamma": 1.5}, r"^gamma: expected a number in \(0, 1\], got 1\.5$"),
        ({"at": -0.1}, r"^at: expected a number in \[0, 1\], got -0\.1$"),
        ({"initial": "one"}, r"^initial: no 'one'"),
        ({"normaliser_factor": 0.0}, r"^normaliser_factor: expected a number > 0, got 0\.0$"),
        ({"plain_from": 0.0}, r"^plain_from: expected a number > 0, got 0\.0$"),
    ],
)
def test_refuses(options, message):
    with pytest.raises(InputError, match=message):
        attentional_bias(problem.structure(), **options)


def test_exponentiated_gradient_refuses_a_temperature_of_zero():
    with pytest.raises(InputError, match=r"^temperature: expected a number other than 0, got 0\.0$"):
        exponentiated_gradient(problem.structure(), temperature=0.0)


def test_two_stages_need_to_know_how_long_the_run_is():
    with pytest.raises(InputError, match=r"^at: needs to know how long the run is"):
        attentional_bias(problem.structure(None), at=0.5)
