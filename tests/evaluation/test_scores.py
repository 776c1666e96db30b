"""The scores of single examples, beside the sums."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from imbal_jax.corrections.margins import ldam
from imbal_jax.data.dataset import Split
from imbal_jax.data.padding import pad_split
from imbal_jax.evaluation.binary_metrics import BINARY_METRICS, binary_metrics
from imbal_jax.evaluation.evaluate import (
    Scores,
    make_batch_sums,
    make_evaluate,
    make_scored_sums,
    read_scores,
    read_sums,
    score_metrics,
)

SIZE, SEEDS = 23, 2
RNG = np.random.default_rng(0)
SPLIT = Split(RNG.normal(size=(SIZE, 2, 2, 1)).astype(np.float32), (np.arange(SIZE) % 3 == 0).astype(np.int32))
CORRECTION = ldam((30, 5), scale=7.0)  # its predictive logits are scaled


class Linear(nn.Module):
    @nn.compact
    def __call__(self, inputs, *, train):
        del train
        features = inputs.reshape(len(inputs), -1)
        return nn.Dense(2, name="classifier")(features), features


def params_of(seed):
    rng = np.random.default_rng(seed)
    return {"classifier": {"kernel": jnp.asarray(rng.normal(size=(4, 2)), jnp.float32), "bias": jnp.zeros(2)}}


def expected(params):
    kernel = np.asarray(params["classifier"]["kernel"], np.float64)
    return 7.0 * SPLIT.images.reshape(SIZE, 4).astype(np.float64) @ (kernel[:, 1] - kernel[:, 0])


def test_scores_are_log_odds_of_the_predictive_distribution_in_the_order_of_the_split():
    evaluate = make_evaluate(make_scored_sums(Linear(), CORRECTION, lambda images: images), stacked=False)
    plain = make_evaluate(make_batch_sums(Linear(), CORRECTION, lambda images: images, 2), stacked=False)
    padded = pad_split(SPLIT, 5)
    batches = evaluate(params_of(0), {}, 0.5, padded)
    scores = read_scores(batches)
    np.testing.assert_allclose(scores.log_odds, expected(params_of(0)), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(scores.labels, SPLIT.labels)  # padding is left out
    jax.tree.map(np.testing.assert_array_equal, read_sums(batches), read_sums(plain(params_of(0), {}, 0.5, padded)))
    assert read_scores(plain(params_of(0), {}, 0.5, padded)) is None


def test_scores_of_several_seeds():
    evaluate = make_evaluate(make_scored_sums(Linear(), CORRECTION, lambda images: images), stacked=True)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[params_of(seed) for seed in range(SEEDS)])
    scores = read_scores(evaluate(stacked, {}, jnp.full(SEEDS, 0.5), pad_split(SPLIT, 10)))
    assert scores.log_odds.shape == (SEEDS, SIZE)
    for seed in range(SEEDS):
        np.testing.assert_allclose(scores.log_odds[seed], expected(params_of(seed)), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(scores.labels, SPLIT.labels)


def test_metrics_of_scores():
    log_odds = expected(params_of(0))
    assert score_metrics(Scores(log_odds, SPLIT.labels, np.ones(SIZE))) == binary_metrics(SPLIT.labels, log_odds)


@pytest.mark.parametrize(
    ("log_odds", "labels"), [(np.full(SIZE, np.nan), SPLIT.labels), (np.zeros(SIZE), np.zeros(SIZE, int))]
)
def test_diverged_models_and_splits_of_one_class_have_no_such_metrics(log_odds, labels):
    assert score_metrics(Scores(log_odds, labels, np.ones(SIZE))) == dict.fromkeys(BINARY_METRICS)
