"""Gaussian noise: its distribution, and that no two numbers of it have anything to do with each other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from imbal_jax.directions import noise as noise_module
from imbal_jax.directions.noise import standard_normal

SIZE = 200_000
KEY = jax.random.key(3)


def draw(key, size=SIZE):
    return np.asarray(standard_normal(key, {"a": jnp.zeros(size)})["a"])


@pytest.mark.parametrize("seed", range(3))
def test_it_is_standard_normal(seed):
    noise = draw(jax.random.key(seed))
    assert stats.kstest(noise, "norm").pvalue > 1e-3
    assert np.isfinite(noise).all()
    np.testing.assert_allclose([noise.mean(), noise.std()], [0, 1], atol=4 / np.sqrt(SIZE))
    np.testing.assert_allclose([stats.skew(noise), stats.kurtosis(noise)], [0, 0], atol=0.05)
    assert 4 < np.abs(noise).max() < 5.5


def test_it_is_finite_where_the_bits_are_extreme(monkeypatch):
    extreme = jnp.array([0, 511, 512, 2**31 - 1, 2**31, 2**32 - 1], jnp.uint32)
    monkeypatch.setattr(noise_module, "_bits", lambda key, first, count: extreme)
    drawn = np.asarray(jax.jit(standard_normal)(KEY, jnp.zeros(6)), np.float64)
    # Of 2^23 equal parts the outermost two on each side, and the innermost two, at their midpoints.
    parts = np.array([0.5, 0.5, 1.5, 2**22 - 0.5, 2**22 + 0.5, 2**23 - 0.5]) / 2**23
    np.testing.assert_allclose(drawn, stats.norm.ppf(parts), rtol=1e-5)


def correlation(one, other):
    return abs(np.corrcoef(one, other)[0, 1]) * np.sqrt(len(one))  # standard normal, folded


@pytest.mark.parametrize("lag", [1, 2, 3, 64, 256, 65536])
def test_neighbours_are_uncorrelated(lag):
    noise = draw(KEY)
    assert correlation(noise[:-lag], noise[lag:]) < 4.5
    assert correlation(noise[:-lag] ** 2, noise[lag:] ** 2) < 4.5


def test_keys_steps_and_leaves_are_uncorrelated():
    tree = standard_normal(KEY, {"a": jnp.zeros(SIZE), "b": jnp.zeros(SIZE)})
    others = [draw(jax.random.fold_in(KEY, step)) for step in range(2)] + [draw(jax.random.key(4))]
    drawn = [np.asarray(tree["a"]), np.asarray(tree["b"]), *others]
    for i, one in enumerate(drawn):
        for other in drawn[:i]:
            assert correlation(one, other) < 4.5
            assert correlation(np.abs(one), np.abs(other)) < 4.5
            assert np.mean(np.isin(one, other)) < 0.1  # nor is one a reordering of the other


def test_shapes_and_types_are_those_asked_for():
    with jax.enable_x64(True):
        like = {"a": jnp.zeros((2, 3), jnp.bfloat16), "b": jnp.zeros(()), "c": jnp.zeros(4, jnp.float64)}
        noise = standard_normal(KEY, like)
        assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), noise) == jax.tree.map(
            lambda leaf: (leaf.shape, leaf.dtype), like
        )


def test_seeds_together_draw_what_each_draws_alone():
    keys = jax.random.split(KEY, 3)
    together = jax.vmap(lambda key: standard_normal(key, jnp.zeros(5)))(keys)
    np.testing.assert_array_equal(together, [standard_normal(key, jnp.zeros(5)) for key in keys])
