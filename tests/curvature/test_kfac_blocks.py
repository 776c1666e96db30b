"""The eigenbasis and the second moments in it, and which layers kfac-jax recognises."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from imbal_jax.curvature import kfac_blocks
from imbal_jax.models import cnn, mlp, resnet, vgg

RNG = np.random.default_rng(0)


def random_layer(examples, positions, inputs, outputs):
    rows, cotangents = (RNG.normal(size=(examples, positions, size)) for size in (inputs, outputs))
    bases = [np.linalg.qr(RNG.normal(size=(size, size)))[0] for size in (inputs, outputs)]
    return rows, cotangents, kfac_blocks.Eigenbasis(*bases, ())


@pytest.mark.parametrize("most", [1, 60, 2**23])
@pytest.mark.parametrize(
    "shape", [(6, 1, 5, 3), (6, 2, 5, 4), (6, 50, 5, 3), (7, 50, 3, 5)], ids=["dense", "rows", "products", "prime"]
)
def test_moments_equal_those_of_explicit_gradients(shape, most, monkeypatch):
    monkeypatch.setattr(kfac_blocks, "_MOST_HELD", most)
    monkeypatch.setattr(kfac_blocks, "_MOST_HELD_ON_CPU", most)
    rows, cotangents, basis = random_layer(*shape)
    gradients = np.einsum("nta,ntg->nag", rows, cotangents)
    rotated = np.einsum("ai,nag,gj->nij", basis.inputs, gradients, basis.outputs)
    with jax.enable_x64(True):
        mean, second = kfac_blocks.projected_moments(jnp.asarray(rows), jnp.asarray(cotangents), basis)
    np.testing.assert_allclose(mean, rotated.mean(axis=0), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(second, (rotated**2).mean(axis=0), rtol=1e-10)


def test_fresh_basis_diagonalises_both_factors():
    rows, cotangents, _ = random_layer(9, 4, 5, 3)
    with jax.enable_x64(True):
        basis = kfac_blocks.fresh_basis(jnp.asarray(rows), jnp.asarray(cotangents), running=True)
    values = []
    for array, vectors in ((rows, basis.inputs), (cotangents, basis.outputs)):
        flat = array.reshape(36, -1)
        vectors = np.asarray(vectors)
        np.testing.assert_allclose(vectors.T @ vectors, np.eye(len(vectors)), atol=1e-12)
        diagonal = vectors.T @ (flat.T @ flat / 36) @ vectors
        np.testing.assert_allclose(diagonal, np.diag(np.diag(diagonal)), atol=1e-12)
        values.append(np.diag(diagonal))
    np.testing.assert_allclose(basis.second_moments, 4 * np.outer(*values), rtol=1e-9)


@pytest.mark.parametrize("rows", ["few", "repeated", "zero", "one", "many"])
def test_second_moment_basis_is_one(rows):
    count = {"one": 1, "many": 40}.get(rows, 5)
    array = RNG.normal(size=(count, 12))
    array = {"repeated": np.repeat(array[:1], count, axis=0), "zero": 0 * array}.get(rows, array)
    with jax.enable_x64(True):
        values, vectors = map(np.asarray, kfac_blocks.second_moment_basis(jnp.asarray(array)))
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(12), atol=1e-12)
    np.testing.assert_allclose(vectors * values @ vectors.T, array.T @ array / count, atol=1e-12)


def test_eigenvalues_of_few_rows_are_never_negative():
    rows, cotangents, _ = random_layer(3, 1, 40, 30)
    basis = kfac_blocks.fresh_basis(jnp.asarray(rows, jnp.float32), jnp.asarray(cotangents, jnp.float32), running=True)
    assert np.asarray(basis.second_moments).min() >= 0


def blocks_of(model, images, examples=None):
    """The blocks of a flax model, traced with shapes only."""
    variables = jax.eval_shape(lambda key: model.init(key, jnp.zeros(images), train=False), jax.random.key(0))
    found = []

    def trace(variables, inputs):
        others = {name: value for name, value in variables.items() if name != "params"}

        def register(params):
            (logits, _), _ = model.apply(
                {"params": params, **others},
                inputs,
                train=True,
                mutable=list(others),
                rngs={"dropout": jax.random.key(0)},
            )
            kfac_blocks.register_squared_error(logits, jnp.zeros_like(logits))

        estimator = kfac_blocks.curvature_estimator(register, examples or images[0], True)
        estimator.finalize((variables["params"],))
        found.extend(estimator.blocks)

    jax.eval_shape(trace, variables, jax.ShapeDtypeStruct(images, jnp.float32))
    return found


def kinds(blocks):
    """How many layers of each kind, as (with an eigenbasis, normalisations, others)."""
    counts = collections.Counter(
        "basis"
        if isinstance(b, kfac_blocks.EigenbasisBlock)
        else "norm"
        if kfac_blocks.is_normalisation(b)
        else "other"
        for b in blocks
    )
    return counts["basis"], counts["norm"], counts["other"]


@pytest.mark.parametrize(
    ("model", "images", "expected"),
    [
        (mlp.mlp(10, dropout=0.1), (4, 8, 8, 1), (3, 0, 0)),
        (cnn.cnn(10), (4, 8, 8, 1), (3, 2, 0)),
        (vgg.vgg11_bn(10), (4, 32, 32, 3), (11, 8, 0)),
        (resnet.resnet32(10), (4, 32, 32, 3), (32, 31, 0)),
        (cnn.cnn(10, classifier="cosine"), (4, 8, 8, 1), (2, 2, 1)),
    ],
    ids=["mlp", "cnn", "vgg11_bn", "resnet32", "cosine"],
)
def test_all_layers_of_our_models_are_recognised(model, images, expected):
    assert kinds(blocks_of(model, images)) == expected


def test_convolutions_of_vgg_have_the_shapes_of_their_factors():
    shapes = [
        b.shape for b in blocks_of(vgg.vgg11_bn(10), (4, 32, 32, 3)) if isinstance(b, kfac_blocks.EigenbasisBlock)
    ]
    assert sorted(shapes)[:3] == [(28, 64), (513, 4096), (577, 128)]
    assert (
        sum(inputs * outputs for inputs, outputs in shapes) + 2 * sum((64, 128, 256, 256, 512, 512, 512, 512))
        == 28149514
    )


class Single(nn.Module):
    """One layer and the mean over what it leaves."""

    layer: nn.Module

    @nn.compact
    def __call__(self, inputs, train):
        hidden = self.layer(inputs)
        return hidden.reshape(-1, hidden.shape[-1])[:4], None


@pytest.mark.parametrize(
    ("layer", "inputs"),
    [
        (nn.Conv(4, (3, 3), feature_group_count=2), (4, 6, 6, 2)),
        (nn.Conv(4, (3,)), (4, 6, 2)),
        (nn.ConvTranspose(4, (3, 3), strides=(2, 2)), (4, 6, 6, 2)),
        (nn.Dense(4, dtype=jnp.bfloat16), (4, 6)),
    ],
    ids=["grouped", "one-dimensional", "transposed", "bfloat16"],
)
def test_unsupported_layers_keep_their_gradient(layer, inputs):
    assert kinds(blocks_of(Single(layer), inputs))[0] == 0


def test_rows_of_no_single_example_keep_their_gradient():
    assert kinds(blocks_of(Single(nn.Dense(4)), (12, 6), examples=12))[0] == 1
    assert kinds(blocks_of(Single(nn.Dense(4)), (12, 6), examples=4))[0] == 0
