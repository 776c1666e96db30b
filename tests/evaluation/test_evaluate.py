"""Sums over padded splits, against NumPy float64 on the whole split at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from sklearn import metrics as sklearn_metrics

from imbal_jax.data.dataset import Split
from imbal_jax.data.padding import PaddedSplit, pad_split
from imbal_jax.evaluation.evaluate import Sums, make_batch_sums, make_evaluate, metrics_of, read_sums
from imbal_jax.types import Corrected, Correction

CLASSES, SHAPE = 4, (3, 3, 1)
SEEDS = 2
PROGRESS = 0.25
CLASS_WEIGHTS = np.array([0.5, 1.0, 2.0, 4.0])
RNG = np.random.default_rng(0)


class Normalised(nn.Module):
    """Running statistics, dropout and a classifier."""

    @nn.compact
    def __call__(self, inputs, *, train):
        features = nn.BatchNorm(use_running_average=not train)(inputs.reshape(len(inputs), -1))
        features = nn.Dropout(0.5, deterministic=not train)(features)
        return nn.Dense(CLASSES, name="classifier")(features), features


def correct(prediction, labels, progress):
    """Weights by class, a modulation by features, the progress in the logits."""
    shifted = prediction.logits + progress * jnp.arange(CLASSES)
    modulation = 1 + jnp.abs(prediction.features[:, 0])
    return Corrected(shifted, jnp.asarray(CLASS_WEIGHTS, jnp.float32)[labels], modulation)


def infer(logits, progress):
    """Scales classes differently, so that it changes the predicted class."""
    return logits * (1 + progress * jnp.array([0.0, 4.0, 8.0, 0.0]))


def halve(images):
    return images.astype(jnp.float32) / 2


def random_variables(seed):
    """Parameters and running statistics."""
    rng = np.random.default_rng(seed)

    def array(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    params = {
        "classifier": {"kernel": array(9, CLASSES), "bias": array(CLASSES)},
        "BatchNorm_0": {"scale": array(9), "bias": array(9)},
    }
    return params, {"batch_stats": {"BatchNorm_0": {"mean": array(9), "var": jnp.abs(array(9)) + 0.5}}}


def split_of(size):
    """Random images and labels."""
    images = RNG.normal(size=(size, *SHAPE)).astype(np.float32)
    return Split(images, RNG.integers(0, CLASSES, size).astype(np.int32))


def reference(split, params, model_state):
    """The four sums by their definitions."""
    params, model_state = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), (params, model_state))
    statistics, norm, classifier = (
        model_state["batch_stats"]["BatchNorm_0"],
        params["BatchNorm_0"],
        params["classifier"],
    )
    features = split.images.reshape(len(split.labels), -1).astype(np.float64) / 2
    features = (features - statistics["mean"]) / np.sqrt(statistics["var"] + 1e-5) * norm["scale"] + norm["bias"]
    logits = features @ classifier["kernel"] + classifier["bias"]
    inferred = logits * (1 + PROGRESS * np.array([0, 4, 8, 0]))

    def cross_entropy(logits):
        largest = logits.max(axis=1)
        normaliser = largest + np.log(np.exp(logits - largest[:, None]).sum(axis=1))
        return normaliser - logits[np.arange(len(logits)), split.labels]

    weights = CLASS_WEIGHTS[split.labels]
    losses = weights * (1 + np.abs(features[:, 0])) * cross_entropy(logits + PROGRESS * np.arange(CLASSES))
    confusion = sklearn_metrics.confusion_matrix(split.labels, inferred.argmax(axis=1), labels=range(CLASSES))
    assert (inferred.argmax(axis=1) != logits.argmax(axis=1)).any()  # `infer` matters
    return Sums(confusion, losses.sum(), weights.sum(), cross_entropy(inferred).sum())


@pytest.fixture(scope="module")
def evaluate():
    return make_evaluate(make_batch_sums(Normalised(), Correction(correct, infer), halve, CLASSES), stacked=False)


@pytest.fixture(scope="module")
def evaluate_stacked():
    return make_evaluate(make_batch_sums(Normalised(), Correction(correct, infer), halve, CLASSES), stacked=True)


def assert_sums_close(sums, expected):
    np.testing.assert_array_equal(sums.confusion, expected.confusion)
    for one, other in zip(sums[1:], expected[1:], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)


@pytest.mark.parametrize(
    ("size", "batch_size", "multiple_of"), [(23, 5, 1), (23, 8, 4), (24, 8, 1), (23, 23, 1), (23, 100, 1), (23, 7, 4)]
)
def test_sums_of_padded_batches_equal_those_of_the_split(evaluate, size, batch_size, multiple_of):
    split = split_of(size)
    params, model_state = random_variables(0)
    padded = pad_split(split, batch_size, multiple_of=multiple_of)
    sums = read_sums(evaluate(params, model_state, PROGRESS, padded))
    assert all(np.asarray(leaf).dtype == np.float64 for leaf in sums)
    assert sums.confusion.sum() == size
    assert_sums_close(sums, reference(split, params, model_state))


def test_stacked_seeds_equal_separate_ones(evaluate_stacked):
    split = split_of(13)
    variables = [random_variables(seed) for seed in range(SEEDS)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *variables)
    sums = read_sums(evaluate_stacked(*stacked, np.full(SEEDS, PROGRESS), pad_split(split, 5)))
    assert sums.confusion.shape == (SEEDS, CLASSES, CLASSES)
    assert sums.corrected.shape == sums.weights.shape == sums.cross_entropy.shape == (SEEDS,)
    for seed in range(SEEDS):
        assert_sums_close(Sums(*(column[seed] for column in sums)), reference(split, *variables[seed]))


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e38])
def test_padding_never_reaches_the_sums(evaluate, value):
    split = split_of(23)
    params, model_state = random_variables(0)
    padded = pad_split(split, 8)
    images = np.where(padded.counted[..., None, None, None] > 0, padded.images, np.float32(value))
    poisoned = read_sums(evaluate(params, model_state, PROGRESS, padded._replace(images=images)))
    assert_sums_close(poisoned, reference(split, params, model_state))


def test_progress_is_not_compiled_in():
    traces = []

    def batch_function(params, model_state, progress, images, labels, counted):
        traces.append(1)
        return progress * jnp.sum(counted)

    evaluate = make_evaluate(batch_function, stacked=False)
    padded = pad_split(split_of(12), 4)
    results = [evaluate((), (), progress, padded) for progress in (0.0, 0.5, 1.0)]
    np.testing.assert_array_equal(results, [[0.0] * 3, [2.0] * 3, [4.0] * 3])
    assert len(traces) == 1


def test_read_sums_adds_in_float64():
    # In float32 the second and third batch would be lost.
    ones = np.ones((2, 2), np.float32)
    batches = [Sums(ones, *np.full(3, value, np.float32)) for value in (2**24, 1, 1)]
    sums = read_sums(batches)
    np.testing.assert_array_equal(sums.confusion, 3 * ones)
    assert sums[1:] == (2**24 + 2,) * 3


SUMS = Sums(
    np.array([[5.0, 1.0, 0.0], [2.0, 2.0, 0.0], [0.0, 1.0, 3.0]]), np.float64(7.0), np.float64(3.5), np.float64(28.0)
)


@pytest.mark.parametrize(("reduction", "loss"), [("mean", 7 / 14), ("weighted_mean", 7 / 3.5)])
def test_loss_follows_the_reduction(reduction, loss):
    metrics = metrics_of(SUMS, reduction, np.array([200, 50, 5]), head_above=100, tail_below=20)
    assert metrics["loss"] == loss
    assert metrics["cross_entropy"] == 2.0


def test_metrics_of_a_split():
    metrics = metrics_of(SUMS, "mean", np.array([200, 50, 5]), head_above=100, tail_below=20)
    labels = np.repeat([0, 0, 1, 1, 2, 2], [5, 1, 2, 2, 1, 3])
    predictions = np.repeat([0, 1, 0, 1, 1, 2], [5, 1, 2, 2, 1, 3])
    assert metrics["accuracy"] == sklearn_metrics.accuracy_score(labels, predictions)
    expected = {
        "balanced_accuracy": sklearn_metrics.balanced_accuracy_score(labels, predictions),
        "macro_f1": sklearn_metrics.f1_score(labels, predictions, average="macro"),
        "recall_head": 5 / 6,
        "recall_mid": 2 / 4,
        "recall_tail": 3 / 4,
    }
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-12)
    np.testing.assert_allclose(metrics["per_class_recall"], [5 / 6, 2 / 4, 3 / 4], rtol=1e-12)
    # The bounds are those given: now class 1 is a head class and class 2 a middle one.
    moved = metrics_of(SUMS, "mean", np.array([200, 50, 5]), head_above=40, tail_below=3)
    np.testing.assert_allclose(moved["recall_head"], (5 / 6 + 2 / 4) / 2, rtol=1e-12)
    assert moved["recall_mid"] == 3 / 4
    assert moved["recall_tail"] is None


def test_the_weighted_mean_of_no_weighted_example_is_undefined():
    sums = SUMS._replace(corrected=np.float64(0.0), weights=np.float64(0.0))
    metrics = metrics_of(sums, "weighted_mean", np.array([200, 50, 5]), head_above=100, tail_below=20)
    assert np.isnan(metrics["loss"])
    assert metrics["cross_entropy"] == 2.0


@pytest.mark.parametrize(
    ("size", "batch_size", "multiple_of", "shape"),
    [
        (23, 5, 1, (5, 5)),
        (23, 8, 1, (3, 8)),
        (24, 8, 1, (3, 8)),
        (23, 100, 1, (1, 23)),
        (23, 100, 8, (1, 24)),
        (23, 5, 4, (3, 8)),
        (1, 1, 1, (1, 1)),
        (3, 2, 8, (1, 8)),
    ],
)
def test_pad_split(size, batch_size, multiple_of, shape):
    split = split_of(size)
    padded = pad_split(split, batch_size, multiple_of=multiple_of)
    assert isinstance(padded, PaddedSplit)
    assert padded.labels.shape == padded.counted.shape == shape
    assert padded.images.shape == (*shape, *SHAPE)
    assert (padded.images.dtype, padded.labels.dtype, padded.counted.dtype) == (np.float32, np.int32, np.float32)
    counted = padded.counted.reshape(-1)
    np.testing.assert_array_equal(counted, np.arange(shape[0] * shape[1]) < size)
    images, labels = padded.images.reshape(-1, *SHAPE), padded.labels.reshape(-1)
    np.testing.assert_array_equal(images[:size], split.images)
    np.testing.assert_array_equal(labels[:size], split.labels)
    assert (images[size:] == split.images[0]).all()
    assert (labels[size:] == split.labels[0]).all()
