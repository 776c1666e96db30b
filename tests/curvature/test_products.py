"""Products against dense matrices: explicit NumPy formulas, finite differences and `jax.hessian`, all in float64."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from imbal_jax.corrections.margins import ldam
from imbal_jax.corrections.modulations import focal, influence_balanced
from imbal_jax.corrections.weights import cross_entropy, inverse_frequency
from imbal_jax.curvature.class_samples import class_groups, sample_classes
from imbal_jax.curvature.lanczos import lanczos
from imbal_jax.curvature.products import MATRICES, Data, Operands, Problem, make_operator
from imbal_jax.curvature.spectrum import OperatorError, check_operator, require_symmetric
from imbal_jax.curvature.subsets import select_parameters
from imbal_jax.errors import InputError
from imbal_jax.models.batch_norm import BatchNorm
from imbal_jax.models.convolution import Convolution3x3
from imbal_jax.models.mlp import mlp
from imbal_jax.training.objective import make_objective

CLASSES = 3
NAMES = ("a", "b", "c")
LABELS = np.array([0] * 9 + [1] * 4 + [2], np.int32)  # a class with a single example
COUNTS = np.bincount(LABELS)
RNG = np.random.default_rng(0)
VECTORS = RNG.normal(size=(len(LABELS), 1, 1, 4))
IMAGES = RNG.normal(size=(len(LABELS), 4, 4, 1))
KEY = jax.random.key(7)
DRIVERS = {"calls": ("calls", 0.0), "linearised": ("calls", 1e12), "compiled": ("compiled", 0.0)}


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


class TinyNet(nn.Module):
    """A convolution, batch normalisation and dropout."""

    dropout: float = 0.0

    @nn.compact
    def __call__(self, images, train):
        hidden = nn.tanh(BatchNorm(name="norm")(Convolution3x3(2, use_bias=False, name="convolution")(images), train))
        features = nn.Dropout(self.dropout, deterministic=not train)(hidden.mean(axis=(1, 2)))
        return nn.Dense(CLASSES, name="classifier")(features), features


def random_like(tree, seed):
    """A float64 tree of normal numbers."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), tree)


class Setup(NamedTuple):
    """A model at some parameters."""

    model: nn.Module
    images: np.ndarray
    params: dict
    state: dict

    def problem(self, correction=None, *, train=False, prepare=lambda keys, images: images, dtype=jnp.float64, **rest):
        def objective(state):
            chosen = correction or cross_entropy()
            return make_objective(self.model, chosen, "mean", model_state=state, progress=0.0, train=train)

        return Problem(objective, prepare, select_parameters(self.params), dtype=dtype, **rest)

    def operands(self, group, images=None):
        data = Data(jax.tree.map(jnp.asarray, self.images if images is None else images), jnp.asarray(LABELS))
        return Operands(self.params, self.state, data, jax.tree.map(jnp.asarray, group.batches), KEY)

    def hessian(self, losses, *, train=False):
        """(coefficients, images, labels) -> Hessian of sum_n coefficients[n] losses(logits, features, labels)[n]."""
        subset = select_parameters(self.params)

        def mean(vector, coefficients, images, labels):
            variables = {"params": subset.insert(self.params, vector), **self.state}
            output = self.model.apply(variables, images, train=train, mutable=list(self.state) if train else False)
            logits, features = output[0] if train else output
            return jnp.sum(coefficients * losses(logits, features, labels))

        exact = jax.jit(jax.hessian(mean))

        def of(coefficients, images=self.images, labels=LABELS):
            return np.asarray(exact(self.vector, *(jnp.asarray(each) for each in (coefficients, images, labels))))

        return of

    @property
    def vector(self):
        return select_parameters(self.params).extract(self.params)


def setup(model, images):
    with jax.enable_x64(True):
        shapes = jax.ShapeDtypeStruct((1, *images.shape[1:]), jnp.float64)
        variables = jax.eval_shape(lambda inputs: model.init(jax.random.key(0), inputs, train=False), shapes)
        state = {name: value for name, value in variables.items() if name != "params"}
        state = jax.tree.map(lambda leaf: jnp.abs(leaf), random_like(state, 2))  # running variances are positive
        return Setup(model, images, random_like(variables["params"], 1), state)


@pytest.fixture(scope="module")
def softmax():
    return setup(mlp(CLASSES, hidden=()), VECTORS)


@pytest.fixture(scope="module")
def network():
    return setup(mlp(CLASSES, hidden=(3,)), VECTORS)


@pytest.fixture(scope="module")
def plain_hessian(network):
    return network.hessian(plain_losses)


@pytest.fixture(scope="module")
def convolution():
    return setup(TinyNet(), IMAGES)


def groups_of(size=5, examples=0, **options):
    samples = sample_classes(LABELS, CLASSES, examples, seed=0)
    return class_groups(LABELS, NAMES, samples, size=size, **options)


def dense(operator, draw=0):
    """The matrix of an operator: its products with all unit vectors."""
    product = jax.jit(operator.product) if operator.traceable else operator.product
    return np.asarray(product(operator.operands, jnp.eye(operator.size, dtype=operator.dtype), draw))


def make(problem, driver="calls"):
    name, kept = DRIVERS[driver]
    return make_operator(problem, driver=name, linearise_below=kept)


def coefficients_of(group):
    """The coefficient of every example of the split."""
    result = np.zeros(len(LABELS))
    np.add.at(result, np.ravel(group.batches.indices), np.ravel(group.batches.coefficients))
    return result


def log_softmax(logits):
    return logits - jax.nn.logsumexp(logits, axis=-1, keepdims=True)


def plain_losses(logits, features, labels):
    return -log_softmax(logits)[jnp.arange(len(labels)), labels]


# Softmax regression, by NumPy alone.


def softmax_matrices(params, images, coefficients):
    """All three matrices of softmax regression, in the order biases, kernel."""
    inputs = np.concatenate([np.ones((len(images), 1)), np.reshape(images, (len(images), -1))], axis=1)
    weights = np.concatenate([params["classifier"]["bias"][None], params["classifier"]["kernel"]])
    logits = inputs @ weights
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    hessian = fisher = 0
    for x, q, label, coefficient in zip(inputs, p, LABELS, coefficients, strict=True):
        hessian = hessian + coefficient * np.kron(np.outer(x, x), np.diag(q) - np.outer(q, q))
        gradient = np.kron(x, q - np.eye(CLASSES)[label])
        fisher = fisher + coefficient * np.outer(gradient, gradient)
    return {"hessian": hessian, "gauss_newton": hessian, "empirical_fisher": fisher}


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("matrix", MATRICES)
def test_softmax_regression_by_explicit_formulas(softmax, matrix, driver):
    make_one = make(softmax.problem(matrix=matrix), driver)
    for group in groups_of():
        operator = make_one(softmax.operands(group))
        assert operator.traceable == (driver == "compiled") and operator.size == 15
        expected = softmax_matrices(softmax.params, VECTORS, coefficients_of(group))[matrix]
        np.testing.assert_allclose(dense(operator), expected, atol=1e-14)


def test_several_vectors_at_once_are_each_by_itself(softmax):
    operator = make(softmax.problem())(softmax.operands(groups_of()[0]))
    vectors = jnp.asarray(RNG.normal(size=(3, operator.size)))
    together = operator.product(operator.operands, vectors, 0)
    for i in range(3):
        alone = operator.product(operator.operands, vectors[i : i + 1], 0)
        np.testing.assert_allclose(alone[0], together[i], rtol=1e-13)


@pytest.mark.parametrize("driver", DRIVERS)
def test_groups_share_one_program(softmax, driver):
    problem, traced, counts = softmax.problem(), [], []

    def objective(state):
        traced.append(1)
        return problem.objective(state)

    make_one = make(problem._replace(objective=objective), driver)
    for group in groups_of():
        operator = make_one(softmax.operands(group))
        lanczos(operator, jnp.ones((1, operator.size)), 2, key=KEY)
        counts.append(len(traced))
    assert len(counts) == 4 and counts[0] == counts[-1] > 0


# A network with a hidden layer.


def network_gradient(network, vector, coefficients):
    """The gradient of the mean cross-entropy of the network, by NumPy; order as in the vector."""
    shapes = [(CLASSES,), (3, CLASSES), (3,), (4, 3)]
    pieces = np.split(vector, np.cumsum([int(np.prod(shape)) for shape in shapes])[:-1])
    bias2, kernel2, bias1, kernel1 = (piece.reshape(shape) for piece, shape in zip(pieces, shapes, strict=True))
    x = VECTORS.reshape(-1, 4)
    before = x @ kernel1 + bias1
    hidden = np.maximum(before, 0)
    logits = hidden @ kernel2 + bias2
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    delta2 = (p - np.eye(CLASSES)[LABELS]) * coefficients[:, None]
    delta1 = (delta2 @ kernel2.T) * (before > 0)
    gradients = (delta2.sum(axis=0), hidden.T @ delta2, delta1.sum(axis=0), x.T @ delta1)
    return np.concatenate([np.ravel(each) for each in gradients])


def test_the_hessian_of_a_network_by_finite_differences_and_by_jax(network, plain_hessian):
    make_one, at = make(network.problem()), np.asarray(network.vector)
    for group in groups_of()[:2]:
        coefficients = coefficients_of(group)
        found = dense(make_one(network.operands(group)))
        steps = 1e-5 * np.eye(len(at))
        expected = [
            (network_gradient(network, at + step, coefficients) - network_gradient(network, at - step, coefficients))
            / 2e-5
            for step in steps
        ]
        np.testing.assert_allclose(found, expected, atol=1e-8)
        np.testing.assert_allclose(found, found.T, atol=1e-14)
        assert np.linalg.eigvalsh(found)[0] < -1e-2  # not a Gauss-Newton matrix
        np.testing.assert_allclose(found, plain_hessian(coefficients), atol=1e-13)


def test_gauss_newton_is_the_fisher_matrix_and_its_empirical_form_uses_the_labels(network):
    group = groups_of()[0]
    coefficients = coefficients_of(group)

    def log_probabilities(vector):
        variables = {"params": select_parameters(network.params).insert(network.params, vector)}
        return log_softmax(network.model.apply(variables, jnp.asarray(VECTORS), train=False)[0])

    scores = np.asarray(jax.jit(jax.jacobian(log_probabilities))(network.vector))  # [n, classes, size]
    p = np.exp(log_probabilities(network.vector))
    fisher = np.einsum("n,nk,nki,nkj->ij", coefficients, p, scores, scores)
    own = scores[np.arange(len(LABELS)), LABELS]
    empirical = np.einsum("n,ni,nj->ij", coefficients, own, own)
    for driver in ("calls", "linearised"):
        for matrix, expected in (("gauss_newton", fisher), ("empirical_fisher", empirical)):
            operator = make(network.problem(matrix=matrix), driver)(network.operands(group))
            np.testing.assert_allclose(dense(operator), expected, atol=1e-14)


def test_single_precision(network, plain_hessian):
    group = groups_of()[0]
    exact = plain_hessian(coefficients_of(group))
    with jax.enable_x64(False):
        operands = network.operands(group)
        operands = operands._replace(params=jax.tree.map(lambda leaf: leaf.astype(jnp.float32), network.params))
        operator = make(network.problem(dtype=jnp.float32))(operands)
        found = dense(operator)
        assert found.dtype == np.float32 and operands.data.images.dtype == jnp.float32
        np.testing.assert_allclose(found, exact, atol=1e-6 * np.abs(exact).max())
        require_symmetric(check_operator(operator, KEY), operator.dtype)


WEIGHTS = (1 / COUNTS) * CLASSES / np.sum(1 / COUNTS)


def ldam_losses(logits, features, labels):
    margins = 0.5 * COUNTS**-0.25 / np.max(COUNTS**-0.25)
    return plain_losses(
        4 * (logits - jnp.eye(CLASSES)[labels] * jnp.asarray(margins)[labels][:, None]), features, labels
    )


def focal_losses(logits, features, labels):
    losses = plain_losses(logits, features, labels)
    return (1 - jnp.exp(-losses)) ** 1.5 * losses


def influence_losses(logits, features, labels):
    losses = plain_losses(logits, features, labels)
    norm = 2 * (1 - jnp.exp(-losses)) * jnp.sum(jnp.abs(features), axis=1)
    return jnp.asarray(WEIGHTS)[labels] * 10 / (norm + 0.1) * losses


CORRECTIONS = {
    "ldam": (ldam(COUNTS, max_margin=0.5, scale=4.0), ldam_losses),
    "focal": (focal(gamma=1.5), focal_losses),
    "influence": (influence_balanced(COUNTS, alpha=10.0, epsilon=0.1), influence_losses),
}


@pytest.mark.parametrize("name", CORRECTIONS)
def test_the_hessians_of_corrected_losses(network, plain_hessian, name):
    correction, losses = CORRECTIONS[name]
    group = groups_of()[0]
    coefficients = coefficients_of(group)
    expected = network.hessian(losses)(coefficients)
    found = dense(make(network.problem(correction))(network.operands(group)))
    np.testing.assert_allclose(found, expected, atol=1e-12 * np.abs(expected).max())
    assert np.abs(found - plain_hessian(coefficients)).max() > 0.1 * np.abs(found).max()


def test_gauss_newton_of_a_loss_that_sees_the_features(network):
    group = groups_of()[0]
    coefficients = coefficients_of(group)

    def outputs(vector):
        variables = {"params": select_parameters(network.params).insert(network.params, vector)}
        return jnp.concatenate(network.model.apply(variables, jnp.asarray(VECTORS), train=False), axis=1)

    def loss(output, label):
        return influence_losses(output[None, :CLASSES], output[None, CLASSES:], label[None])[0]

    jacobian = jax.jit(jax.jacobian(outputs))(network.vector)
    bend = jax.jit(jax.vmap(jax.hessian(loss)))(outputs(network.vector), jnp.asarray(LABELS))
    expected = np.einsum("n,nai,nab,nbj->ij", coefficients, jacobian, bend, jacobian)
    found = dense(make(network.problem(CORRECTIONS["influence"][0], matrix="gauss_newton"))(network.operands(group)))
    np.testing.assert_allclose(found, expected, atol=1e-12 * np.abs(expected).max())


def test_class_weights_do_not_cancel(softmax):
    plain, weighted = make(softmax.problem()), make(softmax.problem(inverse_frequency(COUNTS)))
    whole, *classes = groups_of()
    for group in classes:
        found, expected = (dense(each(softmax.operands(group))) for each in (weighted, plain))
        np.testing.assert_allclose(found, WEIGHTS[group.class_index] * expected, atol=1e-14)
    mixture = sum(
        COUNTS[group.class_index] / len(LABELS) * dense(weighted(softmax.operands(group))) for group in classes
    )
    np.testing.assert_allclose(dense(weighted(softmax.operands(whole))), mixture, atol=1e-14)


# What a product must not depend on.


def test_the_classes_add_up_to_the_whole_whatever_the_sample(softmax):
    make_one = make(softmax.problem(prepare=noisy))
    whole, *classes = groups_of(examples=2, copies=3)
    assert whole.sampled == 5
    mixture = sum(
        COUNTS[group.class_index] / len(LABELS) * dense(make_one(softmax.operands(group))) for group in classes
    )
    np.testing.assert_allclose(dense(make_one(softmax.operands(whole))), mixture, atol=1e-14)


def noisy(keys, images):
    """An augmentation: noise, other for every key."""
    return images + jax.vmap(lambda key: jax.random.normal(key, images.shape[1:], images.dtype))(keys)


def test_the_size_of_micro_batches_changes_nothing(softmax):
    found = {}
    for driver, size in (("calls", 1), ("calls", 100), ("compiled", 5)):
        make_one = make(softmax.problem(prepare=noisy), driver)
        found[driver, size] = [dense(make_one(softmax.operands(group))) for group in groups_of(size, copies=2)]
    for matrices in found.values():
        np.testing.assert_allclose(matrices, found["calls", 1], atol=1e-14)


def test_every_copy_of_an_example_has_noise_of_its_own(softmax):
    def noise(index, copy):
        key = jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(KEY, 0), index), copy)
        return np.asarray(jax.random.normal(key, VECTORS.shape[1:], jnp.float64))

    found = dense(make(softmax.problem(prepare=noisy))(softmax.operands(groups_of(copies=3)[0])))
    expected = 0
    for copy in range(3):
        images = VECTORS + np.stack([noise(index, copy) for index in range(len(LABELS))])
        uniform = np.full(len(LABELS), 1 / len(LABELS))
        expected = expected + softmax_matrices(softmax.params, images, uniform)["hessian"] / 3
    np.testing.assert_allclose(found, expected, atol=1e-14)


@pytest.mark.parametrize("driver", DRIVERS)
def test_redrawn_augmentation_changes_from_product_to_product(softmax, driver):
    group = groups_of()[0]
    redrawn = make(softmax.problem(prepare=noisy, redraw=True), driver)(softmax.operands(group))
    first, second = dense(redrawn, 1), dense(redrawn, 2)
    assert np.abs(first - second).max() > 1e-2 * np.abs(first).max()
    np.testing.assert_array_equal(first, dense(redrawn, 1))


def test_redrawn_augmentation_is_found_out(softmax):
    group = groups_of()[0]
    redrawn = make(softmax.problem(prepare=noisy, redraw=True))(softmax.operands(group))
    assert check_operator(redrawn, KEY).change > 0.05
    with pytest.raises(OperatorError, match=r"^the products with the matrix change from one to the next, by \d"):
        require_symmetric(check_operator(redrawn, KEY), redrawn.dtype)
    fixed = make(softmax.problem(prepare=noisy))(softmax.operands(group))
    checks = check_operator(fixed, KEY)
    assert checks.change == 0 and checks.asymmetry < 1e-14
    require_symmetric(checks, fixed.dtype)


# Batch statistics and dropout.


def test_batch_statistics_are_those_of_the_mixed_batches(convolution):
    make_one = make(convolution.problem(train=True))
    exact = convolution.hessian(plain_losses, train=True)
    for group in groups_of(5, mixed=True, whole=False, wanted=(0, 1)):
        found, expected = dense(make_one(convolution.operands(group))), 0
        assert group.batches.filled == (2 if group.class_index == 0 else 1) and len(group.batches.indices) == 2
        for i in range(group.batches.filled):
            indices, coefficients = group.batches.indices[i], group.batches.coefficients[i]
            assert len(set(indices)) == 5
            expected = expected + exact(coefficients, IMAGES[indices], LABELS[indices])
        np.testing.assert_allclose(found, expected, atol=1e-13)


def test_dropout_is_the_same_in_every_product_and_for_every_group(convolution):
    """Also where a class is missing from some of the mixed batches, so that its batches stand at other places."""
    dropping = convolution._replace(model=TinyNet(dropout=0.5))
    make_one = make(dropping.problem(train=True))
    seed = next(seed for seed in range(99) if 13 not in groups_of(2, mixed=True, seed=seed)[0].batches.indices[0])
    whole, *classes = groups_of(2, mixed=True, copies=2, seed=seed)
    assert any(group.batches.filled < whole.batches.filled for group in classes)
    matrices = [dense(make_one(dropping.operands(group)), draw=3) for group in classes]
    mixture = sum(COUNTS[group.class_index] / len(LABELS) * each for group, each in zip(classes, matrices, strict=True))
    found = dense(make_one(dropping.operands(whole)))
    np.testing.assert_allclose(found, mixture, atol=1e-13)
    np.testing.assert_array_equal(found, dense(make_one(dropping.operands(whole)), draw=5))
    undropped = dense(make(convolution.problem(train=True))(convolution.operands(whole)))
    assert np.abs(found - undropped).max() > 1e-2


class Clips(NamedTuple):
    """Inputs of more than one array."""

    samples: np.ndarray
    lengths: np.ndarray


def test_inputs_may_be_trees(softmax):
    def prepare(keys, clips):
        assert clips.lengths.dtype == jnp.int32
        kept = jnp.arange(4) < clips.lengths[:, None]
        return (clips.samples * kept)[:, None, None, :]

    lengths = (np.arange(len(LABELS)) % 4 + 1).astype(np.int32)
    clips = Clips(VECTORS[:, 0, 0], lengths)
    group = groups_of()[0]
    found = dense(make(softmax.problem(prepare=prepare))(softmax.operands(group, clips)))
    masked = VECTORS[:, 0, 0] * (np.arange(4) < lengths[:, None])
    expected = softmax_matrices(softmax.params, masked, coefficients_of(group))["hessian"]
    np.testing.assert_allclose(found, expected, atol=1e-14)


def test_drivers_and_refusals(softmax):
    operands = softmax.operands(groups_of()[0])
    on_cpu = jax.default_backend() == "cpu"
    assert make_operator(softmax.problem())(operands).traceable == (not on_cpu)
    with pytest.raises(InputError, match=r"^matrix: no 'hesian'; did you mean 'hessian'\? \(valid: hessian, "):
        make_operator(softmax.problem(matrix="hesian"))
    with pytest.raises(InputError, match=r"^driver: no 'scan' \(valid: auto, calls, compiled\)$"):
        make_operator(softmax.problem(), driver="scan")
