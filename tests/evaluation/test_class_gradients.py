"""Class sums of classifier gradients, against Jacobians written out in NumPy float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from imbal_jax.corrections.margins import logit_adjustment
from imbal_jax.corrections.weights import cross_entropy, inverse_frequency
from imbal_jax.data.dataset import Split
from imbal_jax.data.padding import pad_split
from imbal_jax.evaluation.class_gradients import class_gradient_norms, make_class_gradients
from imbal_jax.evaluation.evaluate import make_evaluate
from imbal_jax.losses import corrected_losses
from imbal_jax.types import Corrected, Correction, Prediction

CLASSES, SHAPE, HIDDEN, EXAMPLES = 3, (2, 2, 1), 5, 23
COUNTS = np.array([14, 7, 2])
RNG = np.random.default_rng(0)
SPLIT = Split(
    RNG.normal(size=(EXAMPLES, *SHAPE)).astype(np.float32),
    RNG.permutation(np.repeat(np.arange(CLASSES), COUNTS)).astype(np.int32),
)


class SmallNetwork(nn.Module):
    """A hidden layer with running statistics and dropout below the classifier."""

    @nn.compact
    def __call__(self, inputs, *, train):
        features = nn.tanh(nn.Dense(HIDDEN)(inputs.reshape(len(inputs), -1)))
        features = nn.BatchNorm(use_running_average=not train)(features)
        features = nn.Dropout(0.5, deterministic=not train)(features)
        return nn.Dense(CLASSES, name="classifier")(features), features


MODEL = SmallNetwork()
FOCUS = 2.0


def focal():
    """Modulates by (1 - p)^2 with its derivative, and scales by the progress."""

    def correct(prediction, labels, progress):
        probabilities = jax.nn.softmax(prediction.logits)[jnp.arange(len(labels)), labels]
        return Corrected(prediction.logits, jnp.full(labels.shape, progress), (1 - probabilities) ** FOCUS)

    return Correction(correct, lambda logits, progress: logits)


def double(images):
    return images * 2


@pytest.fixture(scope="module")
def variables():
    return MODEL.init(jax.random.key(1), jnp.zeros((1, *SHAPE)), train=False)


def sums_of(variables, correction, *, progress=0.5, batch_size=8):
    """Class sums per batch, as the training loop computes them."""
    class_gradients = make_evaluate(make_class_gradients(MODEL, correction, double, CLASSES), stacked=False)
    model_state = {"batch_stats": variables["batch_stats"]}
    return class_gradients(variables["params"], model_state, progress, pad_split(SPLIT, batch_size))


def features_of(variables):
    """What enters the classifier, and the probabilities that leave it, float64."""
    logits, features = MODEL.apply(variables, jnp.asarray(double(SPLIT.images)), train=False)
    exponentials = np.exp(np.asarray(logits, np.float64))
    return np.asarray(features, np.float64), np.asarray(logits, np.float64), exponentials


def reference(variables, per_example):
    """The class sums of d loss_n / d classifier from d loss_n / d logits, [examples, classes]."""
    features, _, _ = features_of(variables)
    kernel = np.einsum("nf,nk->nfk", features, per_example)  # the dense Jacobian of the losses
    members = np.arange(CLASSES)[:, None] == SPLIT.labels
    return {"kernel": np.einsum("cn,nfk->cfk", members, kernel), "bias": members @ per_example}


def error_signal(logits):
    """d cross-entropy / d logits: probabilities minus the one-hot label."""
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True) - np.eye(CLASSES)[SPLIT.labels]


def add_batches(sums):
    return jax.tree.map(lambda *leaves: np.sum([np.asarray(leaf, np.float64) for leaf in leaves], axis=0), *sums)


def logit_gradients(name, logits):
    """d loss_n / d logits of each correction, by hand."""
    if name == "cross_entropy":
        return error_signal(logits)
    if name == "inverse_frequency":
        weights = (1 / COUNTS) / np.mean(1 / COUNTS)
        return weights[SPLIT.labels, None] * error_signal(logits)
    if name == "logit_adjustment":
        return error_signal(logits + np.log(COUNTS / COUNTS.sum()))
    error = error_signal(logits)
    p = (error + np.eye(CLASSES)[SPLIT.labels])[np.arange(EXAMPLES), SPLIT.labels]
    # d/dp of -(1 - p)^g log p, times p: dp/dz is -p times the error signal.
    slope = p * FOCUS * (1 - p) ** (FOCUS - 1) * np.log(p) - (1 - p) ** FOCUS
    return 0.5 * -slope[:, None] * error


CORRECTIONS = {
    "cross_entropy": cross_entropy(),
    "inverse_frequency": inverse_frequency(COUNTS),
    "logit_adjustment": logit_adjustment(COUNTS, tau=1.0),
    "focal": focal(),
}


@pytest.fixture(scope="module", params=CORRECTIONS)
def case(request, variables):
    """A correction's class sums per batch and their reference."""
    _, logits, _ = features_of(variables)
    return (
        CORRECTIONS[request.param],
        sums_of(variables, CORRECTIONS[request.param]),
        reference(variables, logit_gradients(request.param, logits)),
    )


def test_class_sums_equal_the_dense_jacobian(case):
    _, sums, expected = case
    assert len(sums) == 3
    total = add_batches(sums)
    assert set(total) == {"kernel", "bias"}  # of the classifier alone
    for name, value in expected.items():
        assert total[name].shape == (CLASSES, *value.shape[1:])
        np.testing.assert_allclose(total[name], value, rtol=1e-4, atol=1e-5)


def test_contributions_add_up_to_the_gradient_of_the_mean_loss(case, variables):
    correction, sums, _ = case

    def mean_loss(params):
        inputs = jnp.asarray(double(SPLIT.images))
        logits, features = MODEL.apply({**variables, "params": params}, inputs, train=False)
        corrected = correction.correct(Prediction(logits, features), SPLIT.labels, 0.5)
        return jnp.mean(corrected_losses(corrected, SPLIT.labels))

    gradient = jax.jit(jax.grad(mean_loss))(variables["params"])["classifier"]
    for name, total in add_batches(sums).items():
        np.testing.assert_allclose(total.sum(axis=0) / EXAMPLES, gradient[name], rtol=1e-4, atol=1e-6)


def test_norms_are_those_of_the_contributions(case):
    _, sums, expected = case
    norms = class_gradient_norms(sums, EXAMPLES)
    contributions = np.concatenate([value.reshape(CLASSES, -1) for value in expected.values()], axis=1) / EXAMPLES
    assert norms.dtype == np.float64
    np.testing.assert_allclose(norms, np.linalg.norm(contributions, axis=1), rtol=1e-4)


def test_batches_do_not_matter(case, variables):
    correction, sums, _ = case
    for batch_size in (5, EXAMPLES):
        norms = class_gradient_norms(sums_of(variables, correction, batch_size=batch_size), EXAMPLES)
        np.testing.assert_allclose(norms, class_gradient_norms(sums, EXAMPLES), rtol=1e-4)


def test_a_class_without_examples_contributes_nothing(variables):
    only = Split(SPLIT.images[SPLIT.labels != 1], SPLIT.labels[SPLIT.labels != 1])
    class_gradients = make_evaluate(make_class_gradients(MODEL, cross_entropy(), double, CLASSES), stacked=False)
    sums = class_gradients(variables["params"], {"batch_stats": variables["batch_stats"]}, 0.0, pad_split(only, 10))
    norms = class_gradient_norms(sums, len(only.labels))
    assert norms[1] == 0
    assert (norms[[0, 2]] > 0).all()


def test_stacked_seeds(variables):
    class_gradients = make_evaluate(make_class_gradients(MODEL, cross_entropy(), double, CLASSES), stacked=True)
    other = jax.tree.map(lambda leaf: leaf * 0.5, variables)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), variables, other)
    sums = class_gradients(
        stacked["params"], {"batch_stats": stacked["batch_stats"]}, np.full(2, 0.5), pad_split(SPLIT, 8)
    )
    for seed, one in enumerate((variables, other)):
        total = add_batches([jax.tree.map(lambda leaf: leaf[seed], batch) for batch in sums])  # noqa: B023
        expected = add_batches(sums_of(one, cross_entropy()))
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5), total, expected)
