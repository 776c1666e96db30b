"""What all directions that wrap another one have in common."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imbal_jax.build import build_experiment
from imbal_jax.builders import DIRECTIONS, nested_builders, options_of
from imbal_jax.config import load_config
from imbal_jax.directions.ekfac import ekfac
from imbal_jax.directions.empirical_fisher import improved_empirical_fisher
from imbal_jax.directions.gdn import gdn
from imbal_jax.directions.gradient import gradient
from imbal_jax.resolve import resolve
from imbal_jax.types import Horizon
from tests.conftest import ROOT
from tests.directions import test_contract as problem

STRUCTURE = problem.STRUCTURE._replace(horizon=Horizon(steps_per_epoch=1, epochs=4))
# Settings that do something, with a schedule where there is one, and those that do nothing.
ACTIVE = {
    "sharpness_aware": {"rho": 0.1, "boundaries": (2.0,), "rhos": (0.5,)},
    "perturbed": {"radius": 0.5},
    "low_pass": {"std": 0.1, "increase": 15.0, "micro_batches": 3},
    "attentional_bias": {"temperature": 5.0, "at": 0.25},
    "exponentiated_gradient": {"temperature": -5.0},
}
NEUTRAL = {
    "sharpness_aware": [{"rho": 0.0}, {"rho": 0.0, "boundaries": (1.0,), "rhos": (0.0,)}],
    "perturbed": [{"radius": 0.0}, {"form": "ball", "radius": 0.0, "threshold": 1e9}],
    "low_pass": [{"std": 0.0}, {"std": 0.0, "micro_batches": 4, "increase": 15.0}],
    "attentional_bias": [{"temperature": np.inf}, {"temperature": -np.inf, "at": 0.5}],
    "exponentiated_gradient": [{"temperature": np.inf}],
}
INNER = {
    "gradient": lambda: gradient(),
    "improved_empirical_fisher": lambda: improved_empirical_fisher(damping=0.1),
    "gdn": lambda: gdn(STRUCTURE),
    "ekfac": lambda: ekfac(STRUCTURE, refresh_period=2),
}


def build(name, options, inner=None):
    """A wrapper over a direction, the gradient by default."""
    given = () if name == "perturbed" else (STRUCTURE,)
    return DIRECTIONS[name](*given, inner=inner, **options)


def run(direction, count=3, propose=None):
    """Proposals from a fixed path of parameters, so that only the state connects them."""
    state, proposals = direction.init(problem.PARAMS), []
    propose = jax.jit(direction.propose, static_argnums=0) if propose is None else propose
    for step in range(count):
        params = jax.tree.map(lambda leaf: leaf * (1 - 0.1 * step), problem.PARAMS)  # noqa: B023
        proposal = propose(problem.OBJECTIVE, params, problem.BATCH, state, problem.KEYS[step])
        state = proposal.state
        proposals.append(proposal)
    return proposals


@pytest.fixture(scope="module")
def plain():
    """Proposals of the directions that are wrapped."""
    return {name: run(make()) for name, make in INNER.items()}


def test_every_wrapper_is_tested_here():
    wrappers = {
        name
        for name, builder in DIRECTIONS.items()
        if any(nested_builders(option.annotation) for option in options_of(builder).values())
    }
    assert wrappers == ACTIVE.keys() == NEUTRAL.keys()


@pytest.mark.parametrize("inner", ["gradient", "ekfac"])
@pytest.mark.parametrize(
    ("name", "options"), [(name, options) for name, cases in NEUTRAL.items() for options in cases], ids=str
)
def test_neutral_settings_give_the_inner_direction_bit_for_bit(name, options, inner, plain):
    for found, expected in zip(run(build(name, options, INNER[inner]())), plain[inner], strict=True):
        chex.assert_trees_all_equal(found.direction, expected.direction)
        chex.assert_trees_all_equal(found.aux, expected.aux)
        assert found.shift is None


@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize("name", ACTIVE)
def test_over_any_direction_the_proposal_changes_and_the_inner_state_goes_on(name, inner, plain):
    proposals = run(build(name, ACTIVE[name], INNER[inner]()))
    for step, (found, expected) in enumerate(zip(proposals, plain[inner], strict=True)):
        distance = max(
            float(jnp.max(jnp.abs(one - other)))
            for one, other in zip(jax.tree.leaves(found.direction), jax.tree.leaves(expected.direction), strict=True)
        )
        assert np.isfinite(distance)
        begins = 1 if name == "attentional_bias" else 0
        assert (distance > 1e-5) == (step >= begins)
        chex.assert_trees_all_equal_shapes_and_dtypes(found.direction, expected.direction)
        inner_state = found.state if name == "perturbed" else found.state.inner
        chex.assert_trees_all_equal_shapes_and_dtypes(inner_state, expected.state)
        if inner in ("gdn", "ekfac"):
            passes = 3 if name == "low_pass" else 1
            assert int(inner_state.step) == passes * (step + 1)
        # The losses told are the objective's own, at the parameters given.
        chex.assert_trees_all_close(found.aux.losses, plain["gradient"][step].aux.losses, rtol=1e-5)


def test_wrappers_wrap_each_other(plain):
    chain = gradient()
    for name in ("perturbed", "low_pass", "sharpness_aware", "attentional_bias"):
        chain = build(name, ACTIVE[name], chain)
    [first] = run(build("perturbed", {"form": "ball", "radius": 0.1, "threshold": 1e9}, chain), 1)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((first.direction, first.shift)))
    chex.assert_trees_all_equal_shapes_and_dtypes(first.shift, problem.PARAMS)
    chex.assert_trees_all_close(first.aux.losses, plain["gradient"][0].aux.losses, rtol=1e-5)


CASES = {**ACTIVE, "perturbed by a ball": {"form": "ball", "radius": 0.5, "threshold": 1.2, "period": 1}}


@pytest.mark.parametrize("case", CASES)
def test_seeds_together_and_scans_give_what_one_seed_gives_step_by_step(case):
    direction = build(case.partition(" ")[0], CASES[case])

    def step(carry, key):
        params, state = carry
        proposal = direction.propose(problem.OBJECTIVE, params, problem.BATCH, state, key)
        if proposal.shift is not None:
            params = jax.tree.map(jnp.add, params, proposal.shift)
        return (jax.tree.map(lambda p, d: p - 0.05 * d, params, proposal.direction), proposal.state), proposal.shift

    @jax.jit
    def alone(seed):
        keys = jax.random.split(jax.random.key(seed), 4)
        params = jax.tree.map(lambda leaf: leaf * (1 + 0.1 * seed), problem.PARAMS)
        carry, _ = jax.lax.scan(step, (params, direction.init(params)), keys)
        return carry

    together = jax.jit(jax.vmap(alone))(jnp.arange(2))
    for seed in range(2):
        keys = jax.random.split(jax.random.key(seed), 4)
        params = jax.tree.map(lambda leaf: leaf * (1 + 0.1 * seed), problem.PARAMS)  # noqa: B023
        carry, compiled = (params, direction.init(params)), jax.jit(step)
        for key in keys:
            carry, _ = compiled(carry, key)
        chex.assert_trees_all_close(alone(seed), carry, rtol=1e-4, atol=1e-5)
        chex.assert_trees_all_close(jax.tree.map(lambda leaf: leaf[seed], together), carry, rtol=1e-4, atol=1e-5)  # noqa: B023


# --- from the command line ----------------------------------------------------------------------------------------


def test_inner_directions_are_chosen_from_the_command_line():
    overrides = {
        "direction.name": "sharpness_aware",
        "direction.rho": "0.5",
        "direction.boundaries": "2.5",
        "direction.rhos": "0.8",
        "direction.inner.name": "attentional_bias",
        "direction.inner.at": "0.5",
        "direction.inner.inner.name": "ekfac",
        "direction.inner.inner.damping": "0.1",
    }
    config = resolve(load_config(str(ROOT / "configs" / "digits.py")), {**overrides, "model.width": "2"})
    assert (config.direction.rho, config.direction.rhos) == (0.5, (0.8,))
    assert config.direction.inner.inner.to_dict() == {
        "name": "ekfac",
        "damping": 0.1,
        "refresh_period": 100,
        "second_moments": "batch",
        "moment_decay": 0.75,
        "precision": "highest",
    }
    # Both need the length of the run, and EKFAC the layers.
    experiment = build_experiment(config)
    assert callable(experiment.direction.propose)


def test_without_an_inner_direction_it_is_the_gradient():
    config = resolve(load_config(str(ROOT / "configs" / "digits.py")), {"direction.name": "low_pass"})
    assert config.direction.inner is None
