"""Spectra of whole networks, class by class, against dense Hessians in float64."""

import types
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from imbal_jax.corrections.weights import cross_entropy, inverse_frequency
from imbal_jax.curvature.class_samples import class_groups, sample_classes
from imbal_jax.curvature.density import Quadrature, wasserstein
from imbal_jax.curvature.lanczos import lanczos, ritz
from imbal_jax.curvature.products import Data, make_operator
from imbal_jax.curvature.spectrum import check_operator, require_symmetric, spectrum
from imbal_jax.curvature.subsets import select_parameters
from imbal_jax.models.batch_norm import BatchNorm
from imbal_jax.models.convolution import Convolution3x3
from imbal_jax.models.mlp import mlp
from imbal_jax.training.class_curvature import Moment, class_problem, operands_of

CLASSES = 3
LABELS = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [16, 6, 2])).astype(np.int32)
COUNTS = np.bincount(LABELS)
WEIGHTS = 1 / COUNTS * CLASSES / np.sum(1 / COUNTS)
MEAN, STD = 0.3, 0.5  # a power of two: however it is divided by, single precision rounds alike
KEY = jax.random.key(2)


class Convolutional(nn.Module):
    """A convolution and batch normalisation."""

    @nn.compact
    def __call__(self, images, train):
        hidden = BatchNorm(name="norm")(Convolution3x3(3, use_bias=False, name="convolution")(images), train)
        features = nn.relu(hidden).mean(axis=(1, 2))
        return nn.Dense(CLASSES, name="classifier")(features), features


class Adapted(nn.Module):
    """A dense layer with a low-rank update beside it, and a head."""

    @nn.compact
    def __call__(self, images, train):
        inputs = images.reshape(len(images), -1)
        down = nn.Dense(2, use_bias=False, name="lora_A")(inputs)
        hidden = nn.Dense(5, name="base")(inputs) + 2 * nn.Dense(5, use_bias=False, name="lora_B")(down)
        features = nn.tanh(hidden)
        return nn.Dense(CLASSES, name="classifier")(features), features


class Case(NamedTuple):
    """A network, what of it is looked at, and its exact Hessians."""

    make: object
    operands: dict  # of each group, by its class or None
    exact: dict  # [size, size] likewise
    subset: object


CASES = {
    "softmax regression": (mlp(CLASSES, hidden=()), (1, 2, 3), "all", cross_entropy()),
    "mlp": (mlp(CLASSES, hidden=(4,)), (1, 2, 2), "all", cross_entropy()),
    "convolution": (Convolutional(), (4, 4, 1), "all", inverse_frequency(COUNTS)),
    "lora": (Adapted(), (1, 2, 2), "lora_and_head", cross_entropy()),
}


def softmax_hessian(params, inputs, coefficients):
    """mean of kron(x x^T, diag p - p p^T), by NumPy."""
    rows = np.concatenate([np.ones((len(inputs), 1)), inputs.reshape(len(inputs), -1)], axis=1)
    logits = rows @ np.concatenate([params["classifier"]["bias"][None], params["classifier"]["kernel"]])
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    terms = [np.kron(np.outer(x, x), np.diag(q) - np.outer(q, q)) for x, q in zip(rows, p, strict=True)]
    return np.einsum("n,nij->ij", coefficients, terms)


def exact_hessian(model, variables, subset, weights, inputs):
    """The function coefficients -> Hessian of the weighted mean cross-entropy, by `jax.hessian`."""

    def mean_loss(vector, coefficients):
        params = subset.insert(variables["params"], vector)
        logits, _ = model.apply({**variables, "params": params}, inputs, train=False)
        losses = jax.nn.logsumexp(logits, axis=1) - logits[jnp.arange(len(LABELS)), LABELS]
        return jnp.sum(coefficients * jnp.asarray(weights)[LABELS] * losses)

    hessian = jax.jit(jax.hessian(mean_loss))
    return lambda coefficients: np.asarray(hessian(subset.extract(variables["params"]), jnp.asarray(coefficients)))


@pytest.fixture(scope="module", params=CASES)
def case(request):
    model, shape, which, correction = CASES[request.param]
    rng = np.random.default_rng(1)
    images = rng.normal(size=(len(LABELS), *shape)).astype(np.float32)
    with jax.enable_x64(True):
        shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, *shape)), train=False))
        variables = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), shapes)
        state = {"batch_stats": jax.tree.map(jnp.abs, variables["batch_stats"])} if "batch_stats" in variables else {}
        variables = {**variables, **state}
        data = types.SimpleNamespace(mean=np.float32(MEAN), std=np.float32(STD))
        experiment = types.SimpleNamespace(model=model, correction=correction, data=data, augmentation=None)
        subset = select_parameters(variables["params"], which)
        problem = class_problem(experiment, subset, dtype=jnp.float64)
        samples = sample_classes(LABELS, CLASSES, 0, seed=0)
        groups = class_groups(LABELS, ("head", "middle", "tail"), samples, size=8)
        source = Data(jnp.asarray(images), jnp.asarray(LABELS))
        operands = {
            group.class_index: operands_of(
                variables["params"], Moment(state, 0.0), source, group.batches, KEY, jnp.float64
            )
            for group in groups
        }
        inputs = ((images - np.float32(MEAN)) / np.float32(STD)).astype(np.float64)
        weights = np.ones(CLASSES) if request.param != "convolution" else WEIGHTS
        hessian = exact_hessian(model, variables, subset, weights, inputs)
        coefficients = {index: (index == LABELS) / COUNTS[index] for index in range(CLASSES)}
        coefficients[None] = np.full(len(LABELS), 1 / len(LABELS))
        exact = {index: hessian(each) for index, each in coefficients.items()}
        if request.param == "softmax regression":
            for index, each in coefficients.items():
                expected = softmax_hessian(variables["params"], inputs, each)
                np.testing.assert_allclose(exact[index], expected, atol=1e-13)
        return Case(make_operator(problem), operands, exact, subset)


@pytest.fixture
def double():
    with jax.enable_x64(True):
        yield


GROUPS = [None, 0, 1, 2]


@pytest.mark.parametrize("index", GROUPS)
def test_products_are_those_of_the_dense_hessian(case, index, double):
    operator = case.make(case.operands[index])
    found = operator.product(operator.operands, jnp.eye(operator.size), 0)
    np.testing.assert_allclose(found, case.exact[index], atol=1e-12)
    require_symmetric(check_operator(operator, KEY), operator.dtype)


def test_the_classes_add_up(case):
    mixture = sum(COUNTS[index] / len(LABELS) * case.exact[index] for index in range(CLASSES))
    np.testing.assert_allclose(case.exact[None], mixture, atol=1e-13)


@pytest.mark.parametrize("index", GROUPS)
def test_spectra_against_dense_hessians(case, index, double):
    eigenvalues = np.linalg.eigvalsh(case.exact[index])
    order = min(90, len(eigenvalues))
    found = spectrum(case.make(case.operands[index]), order=order, probes=10, key=KEY, together=True)
    scale = np.max(np.abs(eigenvalues))
    assert found.lambda_max == pytest.approx(eigenvalues[-1], rel=1e-4)
    # A softmax regression's smallest eigenvalue is zero.
    assert found.lambda_min == pytest.approx(eigenvalues[0], rel=1e-4, abs=1e-12 * scale)
    assert found.ratio == pytest.approx(abs(eigenvalues[0] / eigenvalues[-1]), rel=1e-3, abs=1e-12)
    assert abs(found.trace - eigenvalues.sum()) < 4 * found.trace_standard_error
    # Ten probes know the weight of each eigenvalue, 1 / n, to about sqrt(2 / 10) of it.
    quadrature = Quadrature(found.values, found.weights)
    distance = wasserstein(quadrature, eigenvalues, sigma=0.01 * scale)
    size = np.mean(np.abs(eigenvalues))
    assert distance < np.sqrt(2 / 10) * size
    for wrong in (0 * eigenvalues, 3 * eigenvalues, eigenvalues - size):
        assert wasserstein(quadrature, wrong, sigma=0.01 * scale) > np.sqrt(2 / 10) * size


@pytest.mark.parametrize("index", GROUPS)
def test_an_orthogonal_basis_of_starts_gives_the_very_density(case, index, double):
    operator = case.make(case.operands[index])
    eigenvalues = np.linalg.eigvalsh(case.exact[index])
    starts = jnp.eye(operator.size)
    rows = ritz(lanczos(operator, starts, operator.size, key=KEY))
    quadrature = Quadrature(np.array([one.values for one in rows]), np.array([one.weights for one in rows]))
    scale = np.max(np.abs(eigenvalues))
    assert wasserstein(quadrature, eigenvalues) < 1e-9 * scale
    assert wasserstein(quadrature, eigenvalues, sigma=0.003 * scale) < 1e-9 * scale
    assert wasserstein(quadrature, eigenvalues + 1e-6 * scale) > 0.9e-6 * scale


def test_early_stops_are_right(case, double):
    for index in GROUPS:
        eigenvalues = np.linalg.eigvalsh(case.exact[index])
        operator = case.make(case.operands[index])
        found = spectrum(operator, order=len(eigenvalues), probes=10, tolerance=1e-3, key=KEY, together=True)
        ends = [found.lambda_min, found.lambda_max]
        np.testing.assert_allclose(ends, eigenvalues[[0, -1]], rtol=1e-3, atol=1e-6 * eigenvalues[-1])
