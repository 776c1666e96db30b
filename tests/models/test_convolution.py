"""The 3x3 convolution, by whichever way it is computed, against plain NumPy, with derivatives of both orders."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from imbal_jax.models import convolution
from imbal_jax.models.convolution import Convolution3x3

# Each way of computing: products of patches for few channels or tiny images, else the backend's own convolution.
SHAPES = [((2, 5, 7, 6), 4, 1), ((2, 5, 7, 6), 4, 2), ((3, 8, 8, 6), 5, 2), ((2, 5, 4, 3), 4, 1), ((2, 2, 1, 6), 4, 1)]


def reference(images, kernel, stride):
    """Nine shifted products in NumPy."""
    _, height, width, _ = images.shape
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return sum(
        padded[:, row : row + height : stride, column : column + width : stride] @ kernel[row, column]
        for row, column in itertools.product(range(3), range(3))
    )


def convolve(images, kernel, stride):
    module = Convolution3x3(kernel.shape[-1], stride, use_bias=False)
    return module.apply({"params": {"kernel": kernel}}, images)


def arrays(shape, features, stride, count=1):
    """`count` pairs of images and kernel, and a cotangent of the output."""
    generator = np.random.default_rng(0)
    outputs = (shape[0], -(-shape[1] // stride), -(-shape[2] // stride), features)
    pairs = [(generator.normal(size=shape), generator.normal(size=(3, 3, shape[3], features))) for _ in range(count)]
    return pairs, generator.normal(size=outputs)


@pytest.fixture(params=[(np.float32, 1e-5), (np.float64, 1e-12)], ids=["float32", "float64"])
def precision(request):
    with jax.enable_x64(request.param[0] == np.float64):
        yield request.param


def assert_close(actual, expected, tolerance):
    """Relative to the largest entry, as rounding errors of a sum are."""
    for left, right in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(left, right, rtol=0, atol=tolerance * np.abs(right).max())


@pytest.mark.parametrize(("shape", "features", "stride"), SHAPES)
def test_values_and_derivatives_of_both_orders(shape, features, stride, precision):
    dtype, tolerance = precision
    (at, along), weights = arrays(shape, features, stride, count=2)
    at_, along_, weights_ = jax.tree.map(lambda array: jnp.asarray(array, dtype), (at, along, weights))

    def loss(pair):
        return (weights_ * jnp.square(convolve(*pair, stride))).sum() / 2

    output = reference(*at, stride)
    tangent = reference(along[0], at[1], stride) + reference(at[0], along[1], stride)
    value, derivative = jax.jvp(lambda pair: convolve(*pair, stride), (at_,), (along_,))
    assert value.dtype == dtype
    assert_close((value, derivative), (output, tangent), tolerance)

    # The convolution is linear in each argument, so its transposes in NumPy come from unit vectors.
    def transposes(pair, cotangent):
        def each(index):
            def entry(place):
                unit = np.zeros(pair[index].shape)
                unit[place] = 1
                return (reference(*(unit if i == index else pair[i] for i in (0, 1)), stride) * cotangent).sum()

            return np.array([entry(place) for place in np.ndindex(pair[index].shape)]).reshape(pair[index].shape)

        return each(0), each(1)

    gradient, product = jax.jvp(jax.grad(loss), (at_,), (along_,))
    assert_close(gradient, transposes(at, weights * output), tolerance)
    images_part, _ = transposes((at[0], along[1]), weights * output)
    _, kernel_part = transposes((along[0], at[1]), weights * output)
    first, second = transposes(at, weights * tangent)
    assert_close(product, (first + images_part, second + kernel_part), tolerance)


@pytest.mark.parametrize(("shape", "features", "stride"), SHAPES)
def test_vmap_over_kernels_and_over_both(shape, features, stride):
    pairs, _ = arrays(shape, features, stride, count=3)
    images, kernels = (np.stack(each).astype(np.float32) for each in zip(*pairs, strict=True))
    over_kernels = jax.vmap(lambda kernel: convolve(images[0], kernel, stride))(kernels)
    assert_close(over_kernels, np.stack([reference(images[0], kernel, stride) for kernel in kernels]), 1e-5)
    over_both = jax.vmap(lambda image, kernel: convolve(image, kernel, stride))(images, kernels)
    assert_close(over_both, np.stack([reference(*pair, stride) for pair in zip(images, kernels, strict=True)]), 1e-5)


def test_a_value_that_is_not_finite_stays_so():
    images = np.zeros((1, 8, 8, 6), np.float32)
    images[0, 0, 0, 0], images[0, 7, 7, 0] = np.nan, np.inf
    output = np.asarray(convolve(images, np.ones((3, 3, 6, 1), np.float32), 1))[0, ..., 0]
    assert np.isnan(output[:2, :2]).all()
    assert np.isposinf(output[6:, 6:]).all()
    assert np.isfinite(output[3:5]).all()


class Residual(nn.Module):
    """Blocks as ResNet-32 has them, without normalisation."""

    @nn.compact
    def __call__(self, images):
        for _ in range(4):
            hidden = nn.relu(Convolution3x3(6)(images))
            images = nn.relu(Convolution3x3(6)(hidden) + images)
        return images.sum()


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="only XLA's CPU backend repeats work in fusions")
def test_the_backend_repeats_less_of_a_residual_network(monkeypatch):
    images = jnp.zeros((2, 8, 8, 6))
    variables = Residual().init(jax.random.key(0), images)

    def bytes_accessed():
        gradient = jax.jit(lambda variables: jax.grad(Residual().apply)(variables, images))
        return gradient.lower(variables).compile().cost_analysis()["bytes accessed"]

    stored = bytes_accessed()
    monkeypatch.setattr(convolution, "_stored", lambda images: images)
    assert stored < bytes_accessed()
