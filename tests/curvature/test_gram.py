"""Gram matrices of layers against explicit gradients, and the choice between their two forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imbal_jax.curvature import gram
from imbal_jax.curvature.gram import cheapest_form, explicit_gram, form_costs, layer_gram

RNG = np.random.default_rng(0)

# Positions, inputs, outputs; measured at batch 32 on two CPU cores, where the other form took 1.6 to 400 times as long.
MEASURED = {
    "convolution1": (1024, 27, 64, "gradient"),
    "convolution2": (256, 576, 128, "gradient"),
    "convolution4": (64, 2304, 256, "position"),
    "convolution5": (16, 2304, 512, "position"),
    "convolution6": (16, 4608, 512, "position"),
    "convolution7 and 8": (4, 4608, 512, "position"),
    "dense1": (1, 512, 4096, "position"),
    "dense2": (1, 4096, 4096, "position"),
    "classifier": (1, 4096, 10, "position"),
    "HuBERT adapter A": (200, 768, 8, "gradient"),
    "HuBERT adapter B": (200, 8, 768, "gradient"),
}


def explicit(rows, cotangents):
    """The Gram matrix of the gradients, in float64."""
    gradients = np.einsum("nta,ntg->nag", rows.astype(np.float64), cotangents.astype(np.float64))
    return np.einsum("nag,mag->nm", gradients, gradients)


# Few and many examples: from 512 rows on, the position form uses its symmetry, here with pieces of unequal size.
@pytest.mark.parametrize("examples, positions", [(5, 3), (9, 60), (1, 1), (1, 600)])
def test_both_forms_are_the_gram_matrix_of_the_gradients(examples, positions):
    rows = RNG.normal(size=(examples, positions, 4)).astype(np.float32)
    cotangents = RNG.normal(size=(examples, positions, 3)).astype(np.float32)
    expected = explicit(rows, cotangents)
    for form in ("position", "gradient"):
        result = layer_gram(jnp.asarray(rows), jnp.asarray(cotangents), form)
        np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5 * expected.max())
        assert result.dtype == np.float32


@pytest.mark.parametrize("held", [1, 30, 100])
def test_gradients_in_blocks_of_outputs(monkeypatch, held):
    monkeypatch.setattr(gram, "_MOST_HELD", held)
    rows, cotangents = RNG.normal(size=(4, 2, 3)), RNG.normal(size=(4, 2, 7))
    with jax.enable_x64(True):
        result = layer_gram(jnp.asarray(rows), jnp.asarray(cotangents), "gradient")
    np.testing.assert_allclose(result, explicit(rows, cotangents), rtol=1e-12)
    assert result.dtype == np.float64


def test_explicit_gram_of_gradients_of_any_shape():
    gradients = RNG.normal(size=(3, 2, 2, 5)).astype(np.float32)
    expected = np.einsum("nabc,mabc->nm", gradients, gradients)
    np.testing.assert_allclose(explicit_gram(jnp.asarray(gradients)), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("positions, inputs, outputs, faster", MEASURED.values(), ids=MEASURED)
def test_the_faster_form_is_chosen(positions, inputs, outputs, faster):
    assert cheapest_form(32, positions, inputs, outputs) == faster


@pytest.mark.parametrize("positions, inputs, outputs, lower", [(64, 9, 4, "gradient"), (1, 64, 64, "position")])
def test_the_default_is_the_cheaper_form(monkeypatch, positions, inputs, outputs, lower):
    costs = form_costs(4, positions, inputs, outputs)
    assert min(costs, key=costs.get) == cheapest_form(4, positions, inputs, outputs) == lower
    taken = []
    for form in ("position", "gradient"):
        monkeypatch.setattr(gram, f"_{form}_form", lambda *_, form=form: taken.append(form))
    layer_gram(jnp.zeros((4, positions, inputs)), jnp.zeros((4, positions, outputs)))
    assert taken == [lower]
