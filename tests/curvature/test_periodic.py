"""Periodic work under vmap."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imbal_jax.curvature.periodic import uniform


def work(predicate, value):
    return jax.lax.cond(predicate, lambda value: jnp.sin(value), lambda value: value, value)


def lazily(step, value):
    return work(uniform(step == 3), value)


def eagerly(step, value):
    return work(step == 3, value)


def primitives(jaxpr):
    """The names of all primitives, also inside of others."""
    names = set()
    for equation in jaxpr.eqns:
        names.add(equation.primitive.name)
        for parameter in jax.tree.leaves(equation.params, is_leaf=lambda leaf: hasattr(leaf, "eqns")):
            inner = getattr(parameter, "jaxpr", parameter)
            if hasattr(inner, "eqns"):
                names |= primitives(inner)
    return names


STEPS, VALUES = jnp.asarray([3, 3, 3]), jnp.asarray([1.0, 2.0, 3.0])


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["plain", "jit"])
def test_cond_stays_cond_under_vmap(wrap):
    names = primitives(jax.make_jaxpr(jax.vmap(wrap(lazily)))(STEPS, VALUES).jaxpr)
    assert "cond" in names
    assert "select_n" not in names


def test_without_it_both_branches_run():
    names = primitives(jax.make_jaxpr(jax.vmap(eagerly))(STEPS, VALUES).jaxpr)
    assert "cond" not in names
    assert "select_n" in names


def test_cond_stays_cond_under_two_vmaps():
    twice = jax.vmap(jax.vmap(lazily))
    names = primitives(jax.make_jaxpr(twice)(STEPS[None], VALUES[None]).jaxpr)
    assert "cond" in names and "select_n" not in names


@pytest.mark.parametrize("step", [3, 4])
def test_the_result_is_that_of_each_seed(step):
    together = jax.jit(jax.vmap(lazily))(jnp.full(3, step), VALUES)
    np.testing.assert_array_equal(together, jax.jit(jax.vmap(eagerly))(jnp.full(3, step), VALUES))


def test_one_that_needs_it_is_enough():
    np.testing.assert_allclose(jax.vmap(lazily)(jnp.asarray([1, 3, 2]), VALUES), np.sin([1.0, 2.0, 3.0]), rtol=1e-6)


def test_an_unbatched_predicate_stays_as_it_is():
    together = jax.vmap(lazily, in_axes=(None, 0))
    np.testing.assert_array_equal(together(jnp.int32(1), VALUES), VALUES)
    np.testing.assert_allclose(together(jnp.int32(3), VALUES), np.sin([1.0, 2.0, 3.0]), rtol=1e-6)
