"""The damped system against NumPy in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imbal_jax.curvature.woodbury import (
    check_system,
    damping_of,
    kept_rows,
    rounding_floor,
    solve_damped,
)
from imbal_jax.errors import InputError

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def fast():
    """Compiled fast rather than well."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def float32(values):
    return jnp.asarray(np.asarray(values), jnp.float32)


def gram_of(rows):
    """J J^T, rounded once."""
    rows = np.asarray(rows, np.float64)
    return float32(rows @ rows.T)


@functools.partial(jax.jit, static_argnames=("mode", "drop_above", "precision"))
def solve(gram, right, damping, mode="absolute", drop_above=1.0, precision="float32"):
    return solve_damped(gram, right, damping, mode=mode, drop_above=drop_above, precision=precision)


@pytest.mark.parametrize("mode, scale", [("absolute", 1.0), ("trace", (1 + 4 + 25) / 3), ("max_diagonal", 25.0)])
def test_damping_modes(mode, scale):
    gram = gram_of(np.diag([1.0, 2.0, 5.0]))
    np.testing.assert_allclose(damping_of(gram, 0.1, mode), 0.1 * scale, rtol=1e-6)
    expected = np.ones(3) / (np.array([1.0, 4.0, 25.0]) + 0.1 * scale)
    np.testing.assert_allclose(solve(gram, jnp.ones(3), 0.1, mode=mode), expected, rtol=1e-5)


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_solution_equals_numpy(precision):
    gram, right = gram_of(RNG.normal(size=(7, 20))), float32(RNG.normal(size=7))
    expected = np.linalg.solve(np.asarray(gram, np.float64) + 0.3 * np.eye(7), np.asarray(right, np.float64))
    result = solve(gram, right, 0.3, precision=precision)
    np.testing.assert_allclose(result, expected, rtol=1e-4)
    assert result.dtype == np.float32


def test_without_damping_almost_none_is_added():
    gram = gram_of(RNG.normal(size=(5, 40)))
    result = solve(gram, jnp.ones(5), 0.0, precision="float64")
    np.testing.assert_allclose(result, np.linalg.solve(np.asarray(gram, np.float64), np.ones(5)), rtol=1e-5)
    np.testing.assert_allclose(rounding_floor(gram), 2 * 2.0**-23 * np.max(np.diag(gram)), rtol=1e-6)


# Condition number 1e6: float32 loses most digits, float64 nearly none.
ROTATION = np.linalg.qr(RNG.normal(size=(8, 8)))[0]
STIFF = float32((ROTATION * np.logspace(0, -6, 8)) @ ROTATION.T)
STIFF = (STIFF + STIFF.T) / 2
EXACT = np.linalg.solve(np.asarray(STIFF, np.float64) + 1e-5 * np.eye(8), np.ones(8))
WAYS = {
    "plain": lambda solve: solve(STIFF),
    "jit": lambda solve: jax.jit(solve)(STIFF),
    "vmap": lambda solve: jax.jit(jax.vmap(solve))(jnp.stack([STIFF, 2 * STIFF]))[0],
    "scan": lambda solve: jax.jit(lambda k: jax.lax.scan(lambda c, _: (c, solve(c)), k, None, length=2)[1][1])(STIFF),
    "cond": lambda solve: jax.jit(lambda k: jax.lax.cond(k[0, 0] > 0, solve, lambda k: k[0], k))(STIFF),
}


@pytest.mark.parametrize("way", WAYS)
def test_float64_without_x64_inside_transformations(way):
    assert not jax.config.jax_enable_x64
    result, rough = (
        WAYS[way](
            lambda gram, precision=precision: solve_damped(
                gram, jnp.ones(8), 1e-5, mode="absolute", precision=precision
            )
        )
        for precision in ("float64", "float32")
    )
    error, rough_error = (np.max(np.abs(each - EXACT)) / np.max(np.abs(EXACT)) for each in (result, rough))
    assert result.dtype == np.float32
    assert error < 1e-6
    assert rough_error > 10 * error  # the option makes the difference


def test_a_float64_system_is_never_narrowed():
    with jax.enable_x64(True):
        gram = np.asarray(STIFF, np.float64)
        result = solve_damped(jnp.asarray(gram), jnp.ones(8, jnp.float64), 1e-5, mode="absolute", precision="float32")
        assert result.dtype == np.float64
    np.testing.assert_allclose(result, EXACT, rtol=1e-9)


def loop_of_kept_rows(gram, drop_above):
    """Pair by pair, as the published iEF code describes it."""
    keep = np.ones(len(gram), bool)
    for n in range(len(gram)):
        for m in range(n + 1, len(gram)):
            shorter = m if gram[n, n] >= gram[m, m] else n  # of equal ones the first stays
            if abs(gram[n, m]) > drop_above * np.sqrt(gram[n, n] * gram[m, m]):
                keep[shorter] = False
    return keep


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("drop_above", [0.5, 0.9, 0.99])
def test_kept_rows_equal_a_loop(seed, drop_above):
    random = np.random.default_rng(seed)
    rows = random.normal(size=(12, 3)).round(1)
    rows[5], rows[7], rows[9], rows[10] = rows[2], -2 * rows[3], 0, 1.001 * rows[2]
    gram = np.asarray(gram_of(rows))
    kept = np.asarray(kept_rows(jnp.asarray(gram), drop_above))
    np.testing.assert_array_equal(kept, loop_of_kept_rows(gram, drop_above))
    assert not kept[5]
    assert kept[9]  # a row of length zero is parallel to none
    assert 0 < kept.sum() < 12


def test_dropped_rows_have_no_part_in_the_solution():
    rows = np.array([[1.0, 0, 0], [0, 1, 0], [0, 2, 0.01], [0, 0, 3]])
    gram, right = gram_of(rows), float32([1, 2, 3, 4])
    result = solve(gram, right, 0.1, drop_above=0.99)
    keep = [0, 2, 3]
    expected = np.zeros(4)
    expected[keep] = np.linalg.solve(np.asarray(gram)[np.ix_(keep, keep)] + 0.1 * np.eye(3), np.asarray(right)[keep])
    np.testing.assert_allclose(result, expected, rtol=1e-5)
    assert solve(gram, right, 0.1)[1] != 0


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("examples", [2, 32, 512])
def test_duplicates_only(examples, precision):
    row = RNG.normal(size=30)
    gram = gram_of(np.tile(row, (examples, 1)))
    for damping in (0.0, 1e-12, 1e-3):
        result = np.asarray(solve(gram, jnp.ones(examples), damping, precision=precision))
        assert np.all(np.isfinite(result))
        # Whatever the split among equal examples, J J^T v is near the right-hand side.
        np.testing.assert_allclose(np.asarray(gram, np.float64) @ result, 1, atol=0.02)
    kept = kept_rows(gram, 0.99)
    assert kept[0]
    assert kept.sum() == 1


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("size", [1e-15, 1.0, 1e15])
@pytest.mark.parametrize("drop_above", [0.99, 1.0])
def test_gradients_of_any_size(size, drop_above, precision):
    rows = RNG.normal(size=(6, 9))
    rows[4] = rows[1]
    gram = gram_of(rows)
    scaled = solve(float32(gram * size**2), jnp.ones(6), 1e-3, "trace", drop_above, precision)
    expected = solve(gram, jnp.ones(6), 1e-3, "trace", drop_above, precision)
    np.testing.assert_allclose(np.asarray(scaled, np.float64) * size**2, expected, rtol=1e-2)
    assert np.any(expected)


@pytest.mark.parametrize("mode", ["absolute", "trace", "max_diagonal"])
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_zero_gram_gives_zero(mode, precision):
    for damping in (0.0, 1e-3):
        result = solve(jnp.zeros((3, 3)), jnp.ones(3), damping, mode=mode, precision=precision)
        np.testing.assert_array_equal(result, 0)


def test_single_example():
    np.testing.assert_allclose(solve(jnp.full((1, 1), 4.0), jnp.ones(1), 1.0), [0.2], rtol=1e-6)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"damping": -1e-7}, "damping: expected a number >= 0, got -1e-07"),
        ({"damping": float("nan")}, "damping: expected"),
        ({"drop_above": 0.0}, "drop_above: expected a number in"),
        ({"drop_above": 1.01}, "drop_above: expected a number in"),
        ({"damping_mode": "relative"}, "damping_mode: expected one of absolute, trace, max_diagonal, got 'relative'"),
        ({"precision": "float16"}, "precision: expected one of float32, float64, got 'float16'"),
    ],
)
def test_bad_options(options, message):
    valid = {"damping": 0.1, "damping_mode": "trace", "drop_above": 1.0, "precision": "float32"}
    check_system(**valid)
    with pytest.raises(InputError, match=message):
        check_system(**(valid | options))
