"""Objectives: standardised inputs, train and evaluation mode, and what the mean of the losses is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from imbal_jax.corrections.weights import cross_entropy, inverse_frequency
from imbal_jax.errors import InputError
from imbal_jax.training.objective import make_objective, standardise
from imbal_jax.types import Batch, Corrected, Correction, Prediction

CLASSES = 3


class SmallNetwork(nn.Module):
    """Batch normalisation and dropout before the classifier."""

    @nn.compact
    def __call__(self, inputs, *, train):
        features = nn.BatchNorm(use_running_average=not train, momentum=0.9)(inputs.reshape(len(inputs), -1))
        features = nn.Dropout(0.5, deterministic=not train)(features)
        return nn.Dense(CLASSES, name="classifier")(features), features


RNG = np.random.default_rng(0)
BATCH = Batch(
    jnp.asarray(RNG.normal(2.0, 3.0, (16, 2, 2, 1)), jnp.float32), jnp.asarray(RNG.integers(0, CLASSES, 16), jnp.int32)
)
FLAT = np.asarray(BATCH.inputs, np.float64).reshape(16, -1)


@pytest.fixture(scope="module")
def variables():
    """Parameters, and running statistics that are not the initial ones."""
    variables = SmallNetwork().init(jax.random.key(0), BATCH.inputs, train=False)
    statistics = {"BatchNorm_0": {"mean": jnp.array([1.0, 2.0, 3.0, 4.0]), "var": jnp.array([4.0, 9.0, 1.0, 2.0])}}
    return {"params": variables["params"], "model_state": {"batch_stats": statistics}}


def objective(variables, *, train, correction=None, reduction="mean", progress=0.0):
    correction = correction or cross_entropy()
    return make_objective(
        SmallNetwork(), correction, reduction, model_state=variables["model_state"], progress=progress, train=train
    )


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_standardise(dtype):
    images = RNG.integers(0, 256, (5, 4, 4, 3)).astype(dtype)
    mean, std = np.array([120.0, 100.5, 30.0], np.float32), np.array([60.0, 3.5, 1.0], np.float32)
    result = standardise(jnp.asarray(images), mean, std)
    assert result.dtype == jnp.float32
    expected = (images.astype(np.float64) - mean.astype(np.float64)) / std.astype(np.float64)
    np.testing.assert_allclose(result, expected, rtol=1e-6, atol=1e-6)


def test_training_uses_and_updates_batch_statistics(variables):
    predict = objective(variables, train=True).predict
    prediction = predict(variables["params"], BATCH, jax.random.key(1))
    # What dropout keeps is doubled.
    normalised = (FLAT - FLAT.mean(axis=0)) / np.sqrt(FLAT.var(axis=0) + 1e-5)
    kept = np.asarray(prediction.features) != 0
    assert 0.2 < kept.mean() < 0.8
    np.testing.assert_allclose(prediction.features, np.where(kept, 2 * normalised, 0), rtol=1e-4, atol=1e-4)
    old, new = (state["batch_stats"]["BatchNorm_0"] for state in (variables["model_state"], prediction.aux))
    np.testing.assert_allclose(new["mean"], 0.9 * old["mean"] + 0.1 * FLAT.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(new["var"], 0.9 * old["var"] + 0.1 * FLAT.var(axis=0), rtol=1e-5)
    assert jax.tree.structure(prediction.aux) == jax.tree.structure(variables["model_state"])


def test_the_key_is_that_of_dropout(variables):
    predict = objective(variables, train=True).predict
    one, same, other = (predict(variables["params"], BATCH, jax.random.key(seed)).features for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert ((one != 0) != (other != 0)).any()


def test_evaluation_uses_and_keeps_running_statistics(variables):
    predict = objective(variables, train=False).predict
    prediction = predict(variables["params"], BATCH, jax.random.key(1))
    statistics = variables["model_state"]["batch_stats"]["BatchNorm_0"]
    features = (FLAT - statistics["mean"]) / np.sqrt(np.asarray(statistics["var"], np.float64) + 1e-5)
    np.testing.assert_allclose(prediction.features, features, rtol=1e-4, atol=1e-5)
    classifier = variables["params"]["classifier"]
    expected = features @ np.asarray(classifier["kernel"], np.float64) + np.asarray(classifier["bias"])
    np.testing.assert_allclose(prediction.logits, expected, rtol=1e-4, atol=1e-5)
    assert prediction.aux is variables["model_state"]


def losses_in_numpy(logits, labels):
    """Cross-entropy by its definition, float64."""
    logits = np.asarray(logits, np.float64)
    return np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(labels)), labels]


PREDICTION = Prediction(jnp.asarray(RNG.normal(size=(16, CLASSES)), jnp.float32))


def test_mean_reduction(variables):
    counts = np.array([16, 4, 2])
    correction = inverse_frequency(counts, normalization="none")
    losses = objective(variables, train=True, correction=correction).losses(PREDICTION, BATCH)
    labels = np.asarray(BATCH.labels)
    expected = losses_in_numpy(PREDICTION.logits, labels) / counts[labels]
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


def test_weighted_mean_divides_by_the_weights(variables):
    counts = np.array([16, 4, 2])
    correction = inverse_frequency(counts, normalization="none")
    losses = objective(variables, train=True, correction=correction, reduction="weighted_mean").losses(
        PREDICTION, BATCH
    )
    labels = np.asarray(BATCH.labels)
    weights = 1 / counts[labels]
    expected = np.sum(weights * losses_in_numpy(PREDICTION.logits, labels)) / weights.sum()
    assert losses.shape == (16,)
    np.testing.assert_allclose(np.mean(losses), expected, rtol=1e-5)


def test_corrections_see_the_progress(variables):
    def correct(prediction, labels, progress):
        ones = jnp.ones(labels.shape)
        return Corrected(prediction.logits, ones * progress, ones)

    correction = Correction(correct, lambda logits, progress: logits)
    losses = objective(variables, train=True, correction=correction, progress=0.25).losses(PREDICTION, BATCH)
    expected = 0.25 * losses_in_numpy(PREDICTION.logits, np.asarray(BATCH.labels))
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


def test_refuses_an_unknown_reduction(variables):
    with pytest.raises(InputError, match=r"^reduction: expected 'mean' or 'weighted_mean', got 'sum'$"):
        objective(variables, train=True, reduction="sum").losses(PREDICTION, BATCH)
