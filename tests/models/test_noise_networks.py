"""The networks of the studies of noisy labels, against convolutions written out in NumPy, and their sizes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imbal_jax.models.basic_resnet import ProjectedBlock, resnet18, resnet34
from imbal_jax.models.cnn8 import cnn8

EPSILON = 1e-5


def sizes_of(model, side=32):
    """The shapes of a model's parameters."""
    images = jnp.zeros((1, side, side, 3))
    return jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), images)["params"]


def count(params):
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def resnet_count(blocks, num_classes, width=64):
    """Parameters written out from the architecture: two 3x3 convolutions and their norms, projections where needed."""
    total, inputs = 9 * 3 * width + 2 * width, width
    for stage, number in enumerate(blocks):
        channels = width * 2**stage
        for block in range(number):
            total += 9 * inputs * channels + 9 * channels**2 + 4 * channels
            if inputs != channels or (stage > 0 and block == 0):
                total += inputs * channels + 2 * channels
            inputs = channels
    return total + inputs * num_classes + num_classes


def test_the_formula_gives_the_published_count():
    assert resnet_count((2, 2, 2, 2), 10) == 11_173_962


@pytest.mark.parametrize(
    ("builder", "blocks", "documented"),
    [(resnet18, (2, 2, 2, 2), 11_220_132), (resnet34, (3, 4, 6, 3), 21_328_292)],
)
def test_sizes_of_the_residual_networks(builder, blocks, documented):
    assert count(sizes_of(builder(100))) == resnet_count(blocks, 100) == documented
    assert count(sizes_of(builder(10, width=4))) == resnet_count(blocks, 10, 4)
    assert sizes_of(builder(100))["classifier"]["kernel"].shape == (512, 100)


def test_size_of_the_eight_layers():
    convolutions = [(3, 64), (64, 64), (64, 128), (128, 128), (128, 196), (196, 196)]
    expected = sum(9 * i * o + o + 2 * o for i, o in convolutions)
    expected += 4 * 4 * 196 * 256 + 256 + 2 * 256 + 256 * 10 + 10
    params = sizes_of(cnn8(10))
    assert count(params) == expected == 1_639_794
    assert sum("kernel" in each for each in params.values()) == 8


def convolve(images, kernel, stride=1, padding=1):
    """A convolution as a sum over the kernel's positions, [batch, height, width, channels]."""
    size = kernel.shape[0]
    padded = np.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    height = (padded.shape[1] - size) // stride + 1
    width = (padded.shape[2] - size) // stride + 1
    total = 0.0
    for row in range(size):
        for column in range(size):
            window = padded[:, row : row + stride * height : stride, column : column + stride * width : stride]
            total = total + window[:, :height, :width] @ kernel[row, column]
    return total


def normalise(values, norm):
    """Batch normalisation with running statistics 0 and 1."""
    return values / np.sqrt(1 + EPSILON) * norm["scale"] + norm["bias"]


def scrambled(params, seed=0):
    """The same tree with random numbers in every leaf, float64."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape) * 0.5, params)


def applied(model, params, statistics, images):
    """The model in float32, evaluated with running statistics 0 and 1 in these shapes."""
    statistics = {
        name: {"mean": jnp.zeros(shapes["mean"].shape), "var": jnp.ones(shapes["var"].shape)}
        for name, shapes in statistics.items()
    }
    variables = {"params": jax.tree.map(jnp.float32, params), "batch_stats": statistics}
    return jax.jit(functools.partial(model.apply, train=False))(variables, jnp.float32(images))


@pytest.mark.parametrize(("channels", "stride"), [(3, 1), (4, 2)])
def test_a_block_against_numpy(channels, stride):
    images = np.random.default_rng(1).normal(size=(2, 5, 6, 3))
    block = ProjectedBlock(channels, stride)
    variables = jax.eval_shape(functools.partial(block.init, train=False), jax.random.key(0), jnp.float32(images))
    params = scrambled(variables["params"])
    hidden = np.maximum(normalise(convolve(images, params["convolution1"]["kernel"], stride), params["norm1"]), 0)
    hidden = normalise(convolve(hidden, params["convolution2"]["kernel"]), params["norm2"])
    shortcut = images
    if channels != 3 or stride != 1:
        projected = convolve(images, params["shortcut_convolution"]["kernel"], stride, padding=0)
        shortcut = normalise(projected, params["shortcut_norm"])
    expected = np.maximum(hidden + shortcut, 0)
    actual = applied(block, params, variables["batch_stats"], images)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


def test_the_eight_layers_against_numpy():
    images = np.random.default_rng(1).normal(size=(2, 8, 8, 3))
    model = cnn8(4)
    variables = jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), jnp.float32(images))
    params = jax.tree.map(lambda leaf: leaf * 0.1, scrambled(variables["params"]))
    hidden = images
    for layer in range(1, 7):
        convolution, norm = params[f"convolution{layer}"], params[f"norm{layer}"]
        hidden = np.maximum(normalise(convolve(hidden, convolution["kernel"]) + convolution["bias"], norm), 0)
        if layer % 2 == 0:
            half = hidden.shape[1] // 2
            hidden = hidden.reshape(2, half, 2, half, 2, -1).max(axis=(2, 4))
    dense = hidden.reshape(2, -1) @ params["dense1"]["kernel"] + params["dense1"]["bias"]
    features = np.maximum(normalise(dense, params["dense_norm1"]), 0)
    logits, told = applied(model, params, variables["batch_stats"], images)
    np.testing.assert_allclose(told, features, rtol=1e-4, atol=1e-5)
    expected = features @ params["classifier"]["kernel"] + params["classifier"]["bias"]
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
