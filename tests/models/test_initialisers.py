"""The distributions of initial weights, by their bounds and moments."""

import jax
import numpy as np
import pytest

from imbal_jax.models.initialisers import bias_uniform, fan_in_uniform, kaiming_normal, unit_columns

KERNEL = (3, 3, 40, 80)  # fan_in 360, fan_out 720; 28,800 entries: the standard error of the deviation is 0.4 %


@pytest.mark.parametrize(("fan", "size"), [("fan_in", 360), ("fan_out", 720)])
def test_kaiming_normal_has_variance_two_over_fan_and_is_not_truncated(fan, size):
    values = np.asarray(kaiming_normal(fan)(jax.random.key(0), KERNEL))
    deviation = np.sqrt(2 / size)
    np.testing.assert_allclose(values.std(), deviation, rtol=0.02)
    assert abs(values.mean()) < 4 * deviation / np.sqrt(values.size)
    # A normal has 78 of 28,800 values beyond three deviations, one truncated at two has none beyond 2.28.
    assert 40 < np.sum(np.abs(values) > 3 * deviation) < 120


def test_fan_in_uniform_fills_the_interval_of_torch_linear():
    values = np.asarray(fan_in_uniform()(jax.random.key(0), (100, 300)))
    bound = 0.1
    assert np.abs(values).max() <= bound
    assert np.abs(values).max() > 0.999 * bound
    np.testing.assert_allclose(values.std(), bound / np.sqrt(3), rtol=0.02)


def test_bias_uniform_fills_the_interval_of_the_fan_in():
    values = np.asarray(bias_uniform(25)(jax.random.key(0), (10_000,)))
    assert values.min() < -0.199
    assert values.max() > 0.199
    assert np.abs(values).max() <= 0.2
    np.testing.assert_allclose(values.std(), 0.2 / np.sqrt(3), rtol=0.05)


def test_initial_layer_matches_torch_linear_in_distribution():
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    layer = torch.nn.Linear(50, 2000)
    kernel = np.asarray(fan_in_uniform()(jax.random.key(1), (50, 2000)))
    bias = np.asarray(bias_uniform(50)(jax.random.key(2), (2000,)))
    quantiles = np.linspace(0, 1, 9)
    for ours, theirs in ((kernel, layer.weight), (bias, layer.bias)):
        expected = np.quantile(theirs.detach().numpy(), quantiles)
        np.testing.assert_allclose(np.quantile(ours, quantiles), expected, atol=0.01)


def test_unit_columns_are_scaled_uniform_entries():
    key, shape = jax.random.key(3), (64, 10)
    values = np.asarray(unit_columns(key, shape), np.float64)
    np.testing.assert_allclose(np.linalg.norm(values, axis=0), 1.0, atol=1e-6)
    # Entries uniform in a cube: within a column the largest is sqrt(3) of the root mean square, not 3 as for normals.
    ratios = np.abs(values).max(axis=0) * np.sqrt(shape[0])
    assert np.all(ratios > 1.4)
    assert np.all(ratios < 2.1)
    assert values.min() < 0 < values.max()
