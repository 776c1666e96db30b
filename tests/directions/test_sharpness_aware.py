"""SAM and ASAM against NumPy in float64, their schedules, and which running statistics are kept."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from imbal_jax.corrections.weights import cross_entropy
from imbal_jax.directions.gradient import gradient
from imbal_jax.directions.perturbed import perturbed
from imbal_jax.directions.sharpness_aware import perturbation, sharpness_aware
from imbal_jax.errors import InputError
from imbal_jax.models.batch_norm import BatchNorm
from imbal_jax.training.objective import make_objective
from imbal_jax.types import Batch, Horizon
from tests.directions import softmax_regression as problem


def perturbation_by_hand(gradient, params, rho, kind):
    """epsilon of Foret et al. 2021 (normalised), Rangwani et al. 2022 Eq. 6, and Kwon et al. 2021."""
    if kind == "unnormalised":
        return {name: rho * value for name, value in gradient.items()}
    scales = {name: np.abs(params[name]) if kind == "adaptive" else np.ones_like(params[name]) for name in params}
    norm = np.sqrt(sum(np.sum((scales[name] * value) ** 2) for name, value in gradient.items()))
    return {name: rho * scales[name] ** 2 * value / (norm + 1e-12) for name, value in gradient.items()}


def path_by_hand(rho_at, kind="normalised"):
    def direction_of(step, params):
        inputs, labels = problem.inputs_of(step)
        ascent = problem.gradient_by_hand(params, inputs, labels)
        change = perturbation_by_hand(ascent, params, rho_at(step), kind)
        nearby = {name: params[name] + change[name] for name in params}
        return problem.gradient_by_hand(nearby, inputs, labels), None

    return problem.path_by_hand(direction_of)


KINDS = {
    "normalised": {},
    "unnormalised": {"normalised": False},
    "adaptive": {"adaptive": True},
}


@pytest.mark.parametrize("kind", KINDS)
def test_five_steps_equal_numpy(kind):
    with jax.enable_x64(True):
        path, proposals = problem.path_of(sharpness_aware(problem.structure(), rho=0.5, **KINDS[kind]))
        plain, _ = problem.path_of(gradient())
        expected = path_by_hand(lambda step: 0.5, kind)
        problem.assert_same_path(path, expected)
        assert problem.far_apart(path, plain)
        # Losses and prediction are those at the parameters given.
        inputs, labels = problem.inputs_of(1)
        np.testing.assert_allclose(proposals[1].aux.losses, problem.losses_by_hand(expected[0], inputs, labels)[0])
        np.testing.assert_allclose(proposals[1].aux.prediction.features, inputs)


def test_the_kinds_differ():
    paths = [path_by_hand(lambda step: 0.5, kind) for kind in KINDS]
    assert problem.far_apart(paths[0], paths[1])
    assert problem.far_apart(paths[0], paths[2])


SCHEDULES = [
    # The boundary of 1.5 epochs of two steps is step 3.
    ({"rho": 0.1, "boundaries": (0.5, 1.5), "rhos": (0.4, 0.9)}, [0.1, 0.4, 0.4, 0.9, 0.9]),
    ({"rho": 0.1, "boundaries": (1, 2), "rhos": (0.5, 0.3), "interpolation": "linear"}, [0.1, 0.3, 0.5, 0.4, 0.3]),
    ({"rho": 0.8, "boundaries": (2,), "rhos": (0.0,), "interpolation": "linear"}, [0.8, 0.6, 0.4, 0.2, 0.0]),
    ({"rho": 0.0, "boundaries": (1,), "rhos": (0.5,)}, [0.0, 0.0, 0.5, 0.5, 0.5]),
]


@pytest.mark.parametrize(("options", "rhos"), SCHEDULES, ids=str)
def test_rho_follows_its_schedule(options, rhos):
    with jax.enable_x64(True):
        path, _ = problem.path_of(sharpness_aware(problem.structure(Horizon(2, 3)), **options))
        # rho is kept in float32
        problem.assert_same_path(path, path_by_hand(lambda step: rhos[step]), rtol=1e-6)


def test_the_published_schedule_of_large_sets_changes_at_its_epochs():
    options = {"rho": 0.05, "boundaries": (5.0, 160.0, 180.0), "rhos": (0.1, 0.5, 0.6)}
    steps = [0, 34, 35, 1119, 1120, 1259, 1260, 1399]
    direction = sharpness_aware(problem.structure(Horizon(7, 200)), normalised=False, **options)
    params, batch, key = jax.tree.map(jnp.float32, problem.PARAMS), problem.batch_of(0), problem.key_of(0)
    batch = batch._replace(inputs=batch.inputs.astype(jnp.float32))

    @jax.jit
    def at(step):
        state = direction.init(params)._replace(step=step)
        return direction.propose(problem.OBJECTIVE, params, batch, state, key).direction

    ascent = gradient().propose(problem.OBJECTIVE, params, batch, (), key).direction
    for step, rho in zip(steps, np.repeat([0.05, 0.1, 0.5, 0.6], 2), strict=True):
        nearby = jax.tree.map(lambda p, g: p + rho * g, params, ascent)  # noqa: B023
        expected = gradient().propose(problem.OBJECTIVE, nearby, batch, (), key).direction
        chex.assert_trees_all_close(at(jnp.int32(step)), expected, rtol=1e-5)


def test_a_gradient_of_zero_gives_no_perturbation():
    zeros = {"a": jnp.zeros(3), "b": jnp.zeros((2, 2))}
    for options in KINDS.values():
        chex.assert_trees_all_equal(perturbation(zeros, jax.tree.map(jnp.ones_like, zeros), 0.5, **options), zeros)


def test_norms_of_half_precision_are_taken_in_float32():
    params = {"a": jnp.arange(4, dtype=jnp.bfloat16), "b": jnp.ones((2, 2), jnp.float32)}
    change = perturbation(jax.tree.map(jnp.ones_like, params), params, 0.5)
    np.testing.assert_allclose(np.asarray(change["a"], np.float32), 0.5 / np.sqrt(8), rtol=1e-2)
    np.testing.assert_allclose(change["b"], 0.5 / np.sqrt(8), rtol=1e-6)


# --- running statistics -------------------------------------------------------------------------------------------


class Normalised(nn.Module):
    @nn.compact
    def __call__(self, inputs, train):
        features = nn.tanh(BatchNorm(name="norm")(nn.Dense(6, name="hidden")(inputs), train))
        return nn.Dense(problem.CLASSES, name="classifier")(features), features


BATCH = Batch(jnp.asarray(problem.BATCHES[0][0], jnp.float32), jnp.asarray(problem.BATCHES[0][1], jnp.int32))
MODEL = Normalised()
VARIABLES = MODEL.init(jax.random.key(1), BATCH.inputs, train=False)


def two_passes(rho):
    """Running statistics after the pass at w, and after another at w + epsilon, by Flax alone."""

    def run(params, statistics):
        variables = {"params": params, "batch_stats": statistics}
        (logits, _), new = MODEL.apply(variables, BATCH.inputs, train=True, mutable=["batch_stats"])
        entropies = -jax.nn.log_softmax(logits)[jnp.arange(problem.EXAMPLES), BATCH.labels]
        return jnp.mean(entropies), new["batch_stats"]

    params = VARIABLES["params"]
    ascent, first = jax.grad(run, has_aux=True)(params, VARIABLES["batch_stats"])
    norm = jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(ascent)))
    nearby = jax.tree.map(lambda p, g: p + rho * g / norm, params, ascent)
    direction, second = jax.grad(run, has_aux=True)(nearby, first)
    return direction, first, second


@pytest.mark.parametrize("statistics", ["first", "both"])
def test_running_statistics_are_those_of_the_first_pass_or_of_both_in_turn(statistics):
    objective = make_objective(
        MODEL,
        cross_entropy(),
        "mean",
        model_state={"batch_stats": VARIABLES["batch_stats"]},
        progress=0.0,
        train=True,
    )
    direction = sharpness_aware(problem.structure(), rho=0.5, statistics=statistics)
    state = direction.init(VARIABLES["params"])
    proposal = jax.jit(lambda params: direction.propose(objective, params, BATCH, state, jax.random.key(0)))(
        VARIABLES["params"]
    )
    expected, first, second = two_passes(0.5)
    chex.assert_trees_all_close(proposal.direction, expected, rtol=1e-4, atol=1e-6)  # the same for both
    kept = proposal.aux.prediction.aux["batch_stats"]
    chex.assert_trees_all_close(kept, second if statistics == "both" else first, rtol=1e-5)
    assert np.abs(first["norm"]["mean"] - second["norm"]["mean"]).max() > 1e-2


def test_both_statistics_need_an_objective_that_can_go_on():
    direction = sharpness_aware(problem.structure(), statistics="both")
    with pytest.raises(InputError, match=r"^objective: expected one that can go on from other running statistics"):
        direction.propose(
            problem.OBJECTIVE, problem.PARAMS, problem.batch_of(0), direction.init(problem.PARAMS), problem.key_of(0)
        )


# --- over other directions, and what is refused -------------------------------------------------------------------


def test_an_inner_shift_is_passed_on():
    inner = perturbed(form="ball", radius=0.1, threshold=1e3)
    direction = sharpness_aware(problem.structure(), rho=0.1, inner=inner)
    with jax.enable_x64(True):
        _, proposals = problem.path_of(direction)
        _, own = problem.path_of(inner)
        chex.assert_trees_all_close(proposals[0].shift, own[0].shift)
        assert np.abs(own[0].shift["kernel"]).max() > 1e-3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rho": -0.1}, r"^rho: expected a number >= 0, got -0\.1$"),
        ({"rho": float("nan")}, r"^rho: expected a number >= 0, got nan$"),
        ({"boundaries": (1.0,)}, r"^rhos: expected one per boundary \(1\), got \(\)$"),
        ({"boundaries": (1.0,), "rhos": (-1.0,)}, r"^rhos: expected a number >= 0, got -1\.0$"),
        ({"boundaries": (2.0, 1.0), "rhos": (0.1, 0.2)}, r"^boundaries: expected ascending epochs > 0, got \(2\.0, 1"),
        ({"boundaries": (0.0,), "rhos": (0.1,)}, r"^boundaries: expected ascending epochs > 0, got \(0\.0,\)$"),
        ({"interpolation": "cosine"}, r"^interpolation: no 'cosine'"),
        ({"interpolation": "linear"}, r"^interpolation: 'linear' needs boundaries, got none$"),
        ({"adaptive": True, "normalised": False}, r"^normalised: expected True with adaptive=True, got False$"),
        ({"statistics": "second"}, r"^statistics: no 'second'"),
    ],
)
def test_refuses(options, message):
    with pytest.raises(InputError, match=message):
        sharpness_aware(problem.structure(), **options)


def test_a_schedule_needs_to_know_how_long_the_run_is():
    with pytest.raises(InputError, match=r"^boundaries: needs to know how long the run is"):
        sharpness_aware(problem.structure(None), boundaries=(1.0,), rhos=(0.1,))
