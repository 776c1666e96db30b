"""VGG11-BN: its size, initial weights and input sizes; its values are in test_torch_parity.py."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imbal_jax.models.vgg import vgg11_bn

# Compilation dominates these tests; the values are the same without XLA's optimisations.
QUICK = {"xla_backend_optimization_level": 0}


def shapes_of(model, images):
    return jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), images)


@pytest.mark.parametrize(("classifier", "count"), [("linear", 28_149_514), ("cosine", 28_149_504)])
def test_parameter_count(classifier, count):
    variables = shapes_of(vgg11_bn(10, classifier=classifier), jnp.zeros((1, 32, 32, 3)))
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == count


@pytest.mark.parametrize("shape", [(32, 32, 3), (33, 70, 1), (64, 96, 3)])
def test_any_image_of_at_least_32_pixels_a_side(shape):
    model, images = vgg11_bn(10), jnp.zeros((2, *shape))
    variables = shapes_of(model, images)
    assert variables["params"]["dense1"]["kernel"].shape == (512, 4096)
    logits, features = jax.eval_shape(functools.partial(model.apply, train=False), variables, images)
    assert (logits.shape, features.shape) == ((2, 10), (2, 4096))


@pytest.mark.slow
def test_initial_weights_are_those_of_torchvision():
    initialise = jax.jit(functools.partial(vgg11_bn(10).init, train=False), compiler_options=QUICK)
    params = initialise(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]
    for layer, channels in enumerate((64, 128, 256, 256, 512, 512, 512, 512), start=1):
        kernel, bias = params[f"convolution{layer}"]["kernel"], params[f"convolution{layer}"]["bias"]
        # 1,728 entries in the first layer: the standard error of its deviation is 1.7 %.
        np.testing.assert_allclose(jnp.std(kernel), np.sqrt(2 / (9 * channels)), rtol=0.06 if layer == 1 else 0.02)
        np.testing.assert_array_equal(bias, 0.0)
        np.testing.assert_array_equal(params[f"norm{layer}"]["scale"], 1.0)
        np.testing.assert_array_equal(params[f"norm{layer}"]["bias"], 0.0)
    for name in ("dense1", "dense2", "classifier"):
        np.testing.assert_allclose(jnp.std(params[name]["kernel"]), 0.01, rtol=0.02)
        np.testing.assert_array_equal(params[name]["bias"], 0.0)
