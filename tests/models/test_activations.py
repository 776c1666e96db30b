"""Functions with derivatives of their own, against SciPy and JAX's derivatives of the same formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from imbal_jax.models.activations import gelu, normalise_channels, softmax, wide_product

INPUTS = np.random.default_rng(0).normal(scale=3.0, size=(3, 4, 7))
FUNCTIONS = {
    "gelu": (gelu, lambda x: jax.nn.gelu(x, approximate=False), lambda x: x * scipy.stats.norm.cdf(x)),
    "softmax": (softmax, jax.nn.softmax, lambda x: scipy.special.softmax(x, axis=-1)),
    "normalise_channels": (
        lambda x: normalise_channels(x, 0.1),
        lambda x: (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 0.1),
        lambda x: (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 0.1),
    ),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_values(name):
    function, _, expected = FUNCTIONS[name]
    with jax.enable_x64(True):
        np.testing.assert_allclose(function(jnp.asarray(INPUTS)), expected(INPUTS), rtol=1e-12, atol=1e-14)
    single = function(jnp.asarray(INPUTS, jnp.float32))
    assert single.dtype == jnp.float32
    np.testing.assert_allclose(single, expected(INPUTS), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_first_and_second_derivatives(name):
    function, plain, _ = FUNCTIONS[name]
    with jax.enable_x64(True):
        inputs, weights = jnp.asarray(INPUTS), jnp.asarray(np.random.default_rng(1).normal(size=INPUTS.shape))
        change = jnp.asarray(np.random.default_rng(2).normal(size=INPUTS.shape))

        def both(each):
            gradient = jax.grad(lambda x: jnp.sum(weights * each(x)))
            return gradient(inputs), jax.jvp(gradient, (inputs,), (change,))[1]

        for got, expected in zip(both(function), both(plain), strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-10, atol=1e-12)


def test_extreme_inputs_have_finite_values_and_slopes():
    extreme = jnp.array([-1e30, -40.0, 0.0, 40.0, 1e30], jnp.float32)
    np.testing.assert_allclose(gelu(extreme), [0, 0, 0, 40, 1e30], rtol=1e-6)
    np.testing.assert_allclose(jax.vmap(jax.grad(gelu))(extreme), [0, 0, 0.5, 1, 1], rtol=1e-6)
    scores = jnp.array([0.0, jnp.finfo(jnp.float32).min, 1.0])
    np.testing.assert_allclose(softmax(scores), scipy.special.softmax([0.0, -np.inf, 1.0]), rtol=1e-6)
    np.testing.assert_allclose(softmax(jnp.full(4, jnp.finfo(jnp.float32).min)), np.full(4, 0.25))
    constant = jnp.full((2, 5), 3.0)
    assert not normalise_channels(constant, 1e-5).any()
    assert jnp.isfinite(jax.grad(lambda x: normalise_channels(x, 1e-5)[0, 0])(constant)).all()


def test_gelu_in_half_precision_is_the_rounded_value():
    inputs = jnp.asarray(INPUTS, jnp.bfloat16)
    expected = FUNCTIONS["gelu"][2](np.asarray(inputs, np.float64))
    assert gelu(inputs).dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(gelu(inputs), np.float64), expected, rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_a_wide_product_and_its_derivatives(dtype):
    with jax.enable_x64(True):
        rng = np.random.default_rng(3)
        left, right, weights = (jnp.asarray(rng.normal(size=size)) for size in ((2, 3, 4), (2, 4, 5), (2, 3, 5)))
        left, right = left.astype(dtype), right.astype(dtype)
        product, pullback = jax.vjp(wide_product, left, right)
        exact = [np.asarray(each, np.float64) for each in (left, right)]
        np.testing.assert_allclose(product, exact[0] @ exact[1], rtol=1e-6 if dtype == "bfloat16" else 1e-13)
        assert product.dtype == ("float32" if dtype == "bfloat16" else "float64")
        weights = weights.astype(product.dtype)
        expected = (weights @ exact[1].swapaxes(1, 2), exact[0].swapaxes(1, 2) @ weights)
        for got, each in zip(pullback(weights), expected, strict=True):
            assert got.dtype == dtype
            tolerance = (0.03 if dtype == "bfloat16" else 1e-13) * np.abs(each).max()
            np.testing.assert_allclose(np.asarray(got, np.float64), each, rtol=0, atol=tolerance)
