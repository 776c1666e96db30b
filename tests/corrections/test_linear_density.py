"""The linear density against its analytic distribution function and moments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from imbal_jax.corrections.linear_density import linear_density
from imbal_jax.errors import InputError

# a, b, h_b: triangles at both ends, uniform (exactly, and up to rounding), and in between; most are in Table 2.
DENSITIES = [
    (0.0, 3.0, 0.0),
    (0.0, 3.0, 2.0 / 3.0),
    (1.0, 3.0, 0.5),
    (0.1, 0.3, 5.0),
    (0.0, 0.2, 5.0),
    (0.0, 0.3, 3.3),
    (0.25, 0.75, 4.0),
    (0.1, 0.9, 1.25),
    (1.0, 4.0, 0.33),
    (-2.0, 5.0, 0.25),
]
every_density = pytest.mark.parametrize("numbers", DENSITIES, ids=str)
SAMPLES = 20_000


def distribution_of(low, high, height):
    """The distribution function, by integrating the straight line."""
    at_low = 2.0 / (high - low) - height
    slope = (height - at_low) / (high - low)
    return lambda x: at_low * (x - low) + 0.5 * slope * (x - low) ** 2


def density_of(low, high, height):
    at_low = 2.0 / (high - low) - height
    return lambda x: at_low + (height - at_low) * (x - low) / (high - low)


@every_density
def test_samples_have_the_distribution(numbers):
    drawn = np.asarray(linear_density(*numbers).sample(jax.random.key(0), (SAMPLES,)), np.float64)
    assert drawn.min() >= np.float32(numbers[0])
    assert drawn.max() <= np.float32(numbers[1])
    assert stats.kstest(drawn, distribution_of(*numbers)).pvalue > 1e-3


@every_density
def test_moments(numbers):
    density, pdf = linear_density(*numbers), density_of(*numbers)
    low, high, _ = numbers
    drawn = np.asarray(density.sample(jax.random.key(1), (SAMPLES,)), np.float64)
    for power in (1, 2):
        moment, _ = integrate.quad(lambda x: x**power * pdf(x), low, high)  # noqa: B023
        error = 5 * (drawn**power).std() / np.sqrt(SAMPLES)
        assert abs((drawn**power).mean() - moment) < error
        if power == 1:
            assert density.mean == pytest.approx(moment, rel=1e-9, abs=1e-12)


@every_density
def test_quantiles_invert_the_distribution(numbers):
    levels = np.linspace(0, 1, 101)
    with jax.enable_x64(True):
        quantiles = np.asarray(linear_density(*numbers).quantile(jnp.asarray(levels)))
    np.testing.assert_allclose(distribution_of(*numbers)(quantiles), levels, atol=1e-12)
    assert (np.diff(quantiles) > 0).all()
    np.testing.assert_allclose(quantiles[[0, -1]], numbers[:2], rtol=1e-12, atol=1e-12)


def test_slopes_next_to_zero_lose_no_digits_in_float32():
    levels = jnp.linspace(0, 1, 101)
    for difference in (0.0, 1e-12, 1e-8, -1e-8, 1e-5, -1e-5):
        found = linear_density(0.0, 1.0, 1.0 + difference).quantile(levels)
        np.testing.assert_allclose(found, levels, atol=1e-5 + 2e-7)


def test_draws_are_traced_and_functions_of_their_key():
    density = linear_density(0.0, 3.0, 0.1)
    keys = jax.random.split(jax.random.key(0), 4)
    together = jax.jit(jax.vmap(density.sample))(keys)
    np.testing.assert_allclose(together, [density.sample(key) for key in keys], rtol=1e-6)
    assert len(set(np.asarray(together).tolist())) == 4


@pytest.mark.parametrize(
    ("numbers", "told"),
    [
        ((1.0, 3.0, 2.0), r"expected h_b in \[0, 1\], .* got L\(1, 3, 2\)"),  # the paper's own, Table 2
        ((0.0, 0.3, 7.0), r"expected h_b in \[0, 6.66667\], .* got L\(0, 0.3, 7\)"),
        ((0.0, 1.0, -0.1), r"expected h_b in \[0, 2\], .* got L\(0, 1, -0.1\)"),
        ((1.0, 1.0, 0.0), r"expected a < b .* got L\(1, 1, 0\)"),
        ((2.0, 1.0, 0.0), r"expected a < b .* got L\(2, 1, 0\)"),
        ((0.0, float("nan"), 0.0), "expected finite numbers .* got L"),
        ((0.0, float("inf"), 0.0), "expected finite numbers .* got L"),
    ],
)
def test_what_is_no_density_is_refused(numbers, told):
    with pytest.raises(InputError, match=f"^phi: {told}"):
        linear_density(*numbers, name="phi")
