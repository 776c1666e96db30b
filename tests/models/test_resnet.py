"""ResNet-32: its size, shortcut and initial weights; its values are in test_torch_parity.py."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imbal_jax.models.resnet import resnet32, shortcut

# Compilation dominates these tests; the values are the same without XLA's optimisations.
QUICK = {"xla_backend_optimization_level": 0}


def shapes_of(model, images):
    return jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), images)


def count_by_formula(width, num_classes):
    """Parameters written out from the architecture: 9 weights per channel pair, 2 per normalised channel."""
    total, inputs = 9 * 3 * width + 2 * width, width
    for channels in (width, 2 * width, 4 * width):
        for _ in range(5):
            total += 9 * inputs * channels + 9 * channels * channels + 4 * channels
            inputs = channels
    return total + inputs * num_classes + num_classes


def test_the_formula_gives_the_published_count():
    assert count_by_formula(16, 10) == 464_154


@pytest.mark.parametrize(("width", "num_classes"), [(16, 10), (16, 100), (64, 10)])
def test_parameter_count(width, num_classes):
    variables = shapes_of(resnet32(num_classes, width=width), jnp.zeros((1, 32, 32, 3)))
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == count_by_formula(width, num_classes)
    assert variables["params"]["convolution"]["kernel"].shape == (3, 3, 3, width)
    assert variables["params"]["classifier"]["kernel"].shape == (4 * width, num_classes)


def test_shortcut_subsamples_and_pads_channels_on_both_sides():
    images = np.random.default_rng(0).normal(size=(2, 5, 4, 4)).astype(np.float32)
    expected = np.zeros((2, 3, 2, 8), np.float32)
    expected[..., 2:6] = images[:, ::2, ::2]
    np.testing.assert_array_equal(shortcut(jnp.asarray(images), 8, 2), expected)
    np.testing.assert_array_equal(shortcut(jnp.asarray(images), 4, 1), images)


def test_shortcut_adds_an_odd_channel_at_the_end():
    images = np.ones((1, 1, 1, 1), np.float32)
    np.testing.assert_array_equal(shortcut(jnp.asarray(images), 2, 1)[0, 0, 0], [1.0, 0.0])


def test_initial_weights_are_kaiming_normal_in_the_convolutions_and_the_classifier():
    initialise = jax.jit(functools.partial(resnet32(10).init, train=False), compiler_options=QUICK)
    params = initialise(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))["params"]
    convolutions = [
        block[name]["kernel"]
        for key, block in params.items()
        if key.startswith("stage")
        for name in ("convolution1", "convolution2")
    ]
    assert len(convolutions) == 30
    for kernel in convolutions:
        # 2,304 entries at least: a standard error of 1.5 %.
        np.testing.assert_allclose(jnp.std(kernel), np.sqrt(2 / (9 * kernel.shape[2])), rtol=0.06)
    np.testing.assert_allclose(jnp.std(params["convolution"]["kernel"]), np.sqrt(2 / 27), rtol=0.15)
    np.testing.assert_allclose(jnp.std(params["classifier"]["kernel"]), np.sqrt(2 / 64), rtol=0.12)
    bias = np.abs(params["classifier"]["bias"])
    assert bias.min() > 0
    assert bias.max() <= 1 / 8
