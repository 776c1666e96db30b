"""Patches against XLA's convolutions and a loop in NumPy."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imbal_jax.curvature.patches import extract_patches

CASES = {
    "1-d": ((3, 7, 2), (3,), (1,), "SAME", (1,)),
    "2-d same": ((2, 5, 4, 3), (3, 3), (1, 1), "SAME", (1, 1)),
    "even kernel, stride": ((2, 6, 5, 2), (2, 3), (2, 1), "SAME", (1, 1)),
    "padded in front": ((2, 6, 5, 2), (2, 2), (2, 2), "SAME_LOWER", (1, 1)),
    "valid, stride": ((2, 7, 6, 2), (3, 2), (3, 2), "VALID", (1, 1)),
    "dilated": ((2, 7, 7, 1), (3, 2), (1, 1), "SAME", (2, 3)),
    "uneven padding": ((2, 4, 5, 2), (3, 3), (2, 1), ((0, 2), (1, 0)), (1, 1)),
    "3-d": ((1, 3, 4, 3, 2), (2, 2, 2), (1, 2, 1), "VALID", (1, 1, 1)),
}


@pytest.mark.parametrize("shape, size, strides, padding, dilation", CASES.values(), ids=CASES)
def test_product_with_the_kernel_is_the_convolution(shape, size, strides, padding, dilation):
    random = np.random.default_rng(0)
    images = random.normal(size=shape).astype(np.float32)
    kernel = random.normal(size=(*size, shape[-1], 4)).astype(np.float32)
    letters = "HWD"[: len(size)]
    expected = jax.lax.conv_general_dilated(
        images,
        kernel,
        strides,
        padding,
        rhs_dilation=dilation,
        dimension_numbers=(f"N{letters}C", f"{letters}IO", f"N{letters}C"),
    )
    patches = extract_patches(jnp.asarray(images), size, strides, padding, dilation)
    product = np.asarray(patches) @ kernel.reshape(-1, 4)
    np.testing.assert_allclose(product, expected.reshape(shape[0], -1, 4), rtol=1e-4, atol=1e-5)


def test_rows_are_receptive_fields_in_row_major_order():
    images = np.arange(2 * 4 * 5 * 2, dtype=np.float32).reshape(2, 4, 5, 2)
    expected = np.stack(
        [
            [images[n, i : i + 2, j : j + 3].reshape(-1) for i, j in itertools.product(range(0, 3, 2), range(0, 3, 1))]
            for n in range(2)
        ]
    )
    patches = extract_patches(jnp.asarray(images), (2, 3), (2, 1), "VALID", (1, 1))
    np.testing.assert_array_equal(patches, expected)
