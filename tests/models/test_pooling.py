"""Pooling against PyTorch and NumPy, values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imbal_jax.models.pooling import global_average_pool, max_pool_2x2


def numpy_max_pool(images, cotangent):
    """Values, and the gradient to each window's first maximum, window by window."""
    batch, height, width, channels = images.shape
    values = np.zeros((batch, height // 2, width // 2, channels), images.dtype)
    gradient = np.zeros_like(images)
    for n, i, j, c in np.ndindex(values.shape):
        window = images[n, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2, c]
        row, column = np.unravel_index(np.argmax(window), (2, 2))
        values[n, i, j, c] = window[row, column]
        gradient[n, 2 * i + row, 2 * j + column, c] = cotangent[n, i, j, c]
    return values, gradient


@pytest.mark.parametrize("shape", [(2, 4, 6, 3), (1, 5, 7, 2), (1, 2, 3, 1)])
@pytest.mark.parametrize("tied", [False, True])
def test_max_pool_takes_the_first_maximum_of_each_window(shape, tied):
    random = np.random.default_rng(0)
    images = random.normal(size=shape).astype(np.float32)
    if tied:
        images = np.maximum(np.round(images), 0)  # many windows of equal values, as after a ReLU
    values, pull_back = jax.vjp(max_pool_2x2, jnp.asarray(images))
    cotangent = random.normal(size=values.shape).astype(np.float32)
    expected, expected_gradient = numpy_max_pool(images, cotangent)
    np.testing.assert_array_equal(values, expected)
    np.testing.assert_array_equal(pull_back(jnp.asarray(cotangent))[0], expected_gradient)


@pytest.mark.parametrize("shape", [(2, 6, 6, 3), (2, 5, 7, 3)])
def test_max_pool_matches_torch_in_values_and_gradients(shape):
    torch = pytest.importorskip("torch")
    random = np.random.default_rng(1)
    images = np.maximum(random.normal(size=shape), 0).astype(np.float32)
    values, pull_back = jax.vjp(max_pool_2x2, jnp.asarray(images))
    cotangent = random.normal(size=values.shape).astype(np.float32)
    theirs = torch.tensor(images.transpose(0, 3, 1, 2), requires_grad=True)
    pooled = torch.nn.functional.max_pool2d(theirs, 2, 2)
    pooled.backward(torch.tensor(cotangent.transpose(0, 3, 1, 2)))
    np.testing.assert_array_equal(values, pooled.detach().numpy().transpose(0, 2, 3, 1))
    np.testing.assert_array_equal(pull_back(jnp.asarray(cotangent))[0], theirs.grad.numpy().transpose(0, 2, 3, 1))


@pytest.mark.parametrize("position", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_max_pool_lets_no_nan_disappear(position):
    images = np.arange(4, dtype=np.float32).reshape(1, 2, 2, 1)
    images[0, position[0], position[1], 0] = np.nan
    assert np.isnan(max_pool_2x2(jnp.asarray(images))).all()


def test_global_average_pool_is_the_mean_over_positions():
    images = np.random.default_rng(2).normal(size=(2, 3, 5, 4))
    pooled = global_average_pool(jnp.asarray(images, jnp.float32))
    np.testing.assert_allclose(pooled, images.reshape(2, 15, 4).mean(1), atol=1e-6)
