"""Samplers: what an epoch's batches hold, and how often."""

import jax
import numpy as np
import pytest
from scipy import stats

from imbal_jax.class_counts import class_counts
from imbal_jax.data import samplers
from imbal_jax.errors import InputError

COUNTS = np.array([180, 61, 12, 6])
LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(4), COUNTS)).astype(np.int32)
BATCH = 32
STEPS = 8  # 259 // 32
EPOCHS = 60
KEYS = jax.random.split(jax.random.key(0), EPOCHS)


def epochs(sampler):
    """Indices of many epochs, [epochs, steps, batch]; drawn under jit, as in training."""
    return np.asarray(jax.jit(jax.vmap(sampler))(KEYS))


@pytest.fixture(scope="module")
def uniform():
    return epochs(samplers.uniform(LABELS, class_counts(COUNTS), BATCH))


@pytest.fixture(scope="module")
def class_balanced():
    return epochs(samplers.class_balanced(LABELS, class_counts(COUNTS), BATCH))


def quota(at_least):
    return epochs(samplers.minority_in_every_batch(LABELS, class_counts(COUNTS), BATCH, at_least=at_least))


@pytest.fixture(scope="module", params=[1, 2, 5, 6])
def with_quota(request):
    return request.param, quota(request.param)


def assert_frequencies(indices, probabilities):
    """Chi-square: classes by their probabilities, and within a class every example alike."""
    times = np.bincount(indices.ravel(), minlength=len(LABELS))
    by_class = np.bincount(LABELS, times)
    assert stats.chisquare(by_class, probabilities * indices.size).pvalue > 1e-3, by_class
    for c in range(4):
        assert stats.chisquare(times[c == LABELS]).pvalue > 1e-3, c


def test_steps_per_epoch_leaves_out_the_last_incomplete_batch():
    assert [samplers.steps_per_epoch(n, 10) for n in (10, 19, 20, 21)] == [1, 1, 2, 2]


def test_uniform_takes_no_example_twice_in_an_epoch(uniform):
    assert uniform.shape == (EPOCHS, STEPS, BATCH)
    assert uniform.dtype == np.int32
    for indices in uniform:
        assert len(np.unique(indices)) == STEPS * BATCH
    assert uniform.min() >= 0
    assert uniform.max() < len(LABELS)


def test_uniform_leaves_every_example_out_equally_often(uniform):
    # Three of the 259 examples are left out of each epoch.
    left_out = np.stack([np.setdiff1d(np.arange(len(LABELS)), indices) for indices in uniform])
    assert left_out.shape == (EPOCHS, 3)
    assert stats.kstest(left_out.ravel(), stats.uniform(0, len(LABELS)).cdf).pvalue > 1e-3


@pytest.mark.parametrize(
    "build", [samplers.uniform, samplers.class_balanced, samplers.effective_number, samplers.minority_in_every_batch]
)
def test_the_key_decides_the_epoch(build):
    sampler = jax.jit(build(LABELS, class_counts(COUNTS), BATCH))
    first, again, second = (np.asarray(sampler(jax.random.key(seed))) for seed in (1, 1, 2))
    assert first.shape == (STEPS, BATCH)
    assert first.dtype == np.int32
    np.testing.assert_array_equal(first, again)
    assert np.mean(first != second) > 0.9


def test_class_balanced_gives_classes_equal_frequencies(class_balanced):
    assert class_balanced.shape == (EPOCHS, STEPS, BATCH)
    assert_frequencies(class_balanced, np.full(4, 0.25))


def test_class_balanced_is_mixed_within_an_epoch(class_balanced):
    # Every position of a batch sees every class; drawn with replacement, unlike uniform.
    assert all(len(set(column)) == 4 for column in LABELS[class_balanced].reshape(-1, BATCH).T)
    assert any(len(np.unique(indices)) < STEPS * BATCH for indices in class_balanced)


@pytest.mark.parametrize("beta", [0.0, 0.9, 0.99, 0.9999])
def test_effective_number_draws_classes_by_its_formula(beta):
    effective = np.array([sum(beta**power for power in range(n)) for n in COUNTS])  # (1 - beta^n) / (1 - beta)
    probabilities = COUNTS / effective / np.sum(COUNTS / effective)
    if beta == 0:
        np.testing.assert_allclose(probabilities, COUNTS / COUNTS.sum())
    assert_frequencies(epochs(samplers.effective_number(LABELS, class_counts(COUNTS), BATCH, beta=beta)), probabilities)


@pytest.mark.parametrize("build", [samplers.class_balanced, samplers.effective_number])
def test_masked_classes_are_never_drawn(build):
    # Class 0, class 2 and class 4 are empty: the first, one in the middle and the last.
    labels = np.repeat([1, 3], [40, 8]).astype(np.int32)
    counts = class_counts([0, 40, 0, 8, 0], empty_classes="mask")
    indices = epochs(build(labels, counts, 16))
    assert set(labels[indices].ravel()) == {1, 3}
    if build is samplers.class_balanced:
        share = np.mean(labels[indices] == 3)
        assert abs(share - 0.5) < 5 * np.sqrt(0.25 / indices.size)


def test_every_batch_has_the_quota_of_every_class(with_quota):
    at_least, indices = with_quota
    assert indices.shape == (EPOCHS, STEPS, BATCH)
    per_batch = (LABELS[indices][..., None] == np.arange(4)).sum(axis=2)
    assert per_batch.min() >= at_least


def test_the_rest_of_the_batch_repeats_nothing_over_the_epoch(with_quota):
    at_least, indices = with_quota
    filler = indices[:, :, 4 * at_least :].reshape(EPOCHS, -1)
    assert filler.shape[1] == STEPS * (BATCH - 4 * at_least)
    for epoch in filler:
        assert len(np.unique(epoch)) == len(epoch)
    times = np.bincount(filler.ravel(), minlength=len(LABELS))
    by_class = np.bincount(LABELS, times)
    assert stats.chisquare(by_class, COUNTS / COUNTS.sum() * filler.size).pvalue > 1e-3


def test_the_quota_runs_through_each_class_evenly(with_quota):
    at_least, indices = with_quota
    quota = indices[:, :, : 4 * at_least].reshape(EPOCHS, STEPS, 4, at_least)
    assert (LABELS[quota] == np.arange(4)[:, None]).all()
    for epoch in quota:
        for c in range(4):
            times = np.bincount(epoch[:, c].ravel(), minlength=len(LABELS))[c == LABELS]
            assert times.max() - times.min() <= 1  # starts anew only when all are used up
        for step in epoch.reshape(STEPS, -1):
            assert len(set(step)) == 4 * at_least
    for c in range(4):  # in a new order every epoch
        times = np.bincount(quota[:, 0, c].ravel(), minlength=len(LABELS))[c == LABELS]
        assert (times > 0).mean() > 0.2
        assert stats.chisquare(times).pvalue > 1e-3


def test_the_quota_may_fill_the_batch():
    labels = np.repeat(np.arange(2), 6).astype(np.int32)
    filled = epochs(samplers.minority_in_every_batch(labels, class_counts([6, 6]), 4, at_least=2))
    assert filled.shape == (EPOCHS, 3, 4)
    assert (np.sort(labels[filled], axis=2) == [0, 0, 1, 1]).all()
    assert all(len(np.unique(epoch)) == 12 for epoch in filled)


def test_the_quota_leaves_masked_classes_out():
    labels = np.repeat([1, 3], [40, 8]).astype(np.int32)
    counts = class_counts([0, 40, 0, 8, 0], empty_classes="mask")
    indices = epochs(samplers.minority_in_every_batch(labels, counts, 8, at_least=3))
    assert ((labels[indices] == 3).sum(axis=2) >= 3).all()
    assert ((labels[indices] == 1).sum(axis=2) >= 3).all()


@pytest.mark.parametrize(
    "build", [samplers.uniform, samplers.class_balanced, samplers.effective_number, samplers.minority_in_every_batch]
)
@pytest.mark.parametrize(
    ("batch_size", "message"),
    [
        (260, r"^training\.batch_size: 260 is larger than the training set of 259 examples$"),
        (0, r"^training\.batch_size: expected a number >= 1, got 0$"),
    ],
)
def test_refuses_a_batch_that_cannot_be_filled(build, batch_size, message):
    with pytest.raises(InputError, match=message):
        build(LABELS, class_counts(COUNTS), batch_size)


@pytest.mark.parametrize("beta", [-0.1, 1.0, float("nan")])
def test_refuses_beta_out_of_range(beta):
    with pytest.raises(InputError, match=rf"^beta: expected a number in \[0, 1\), got {beta}$"):
        samplers.effective_number(LABELS, class_counts(COUNTS), BATCH, beta=beta)


@pytest.mark.parametrize(
    ("at_least", "batch_size", "message"),
    [
        (0, 32, r"^at_least: expected a number >= 1, got 0$"),
        (9, 32, r"^at_least: 9 examples of 4 classes make 36, more than the batch of 32$"),
        (1, 3, r"^at_least: 1 examples of 4 classes make 4, more than the batch of 3$"),
        (7, 32, r"^at_least: 7 is more than the 6 examples of the smallest class$"),
    ],
)
def test_refuses_a_quota_that_cannot_be_met(at_least, batch_size, message):
    with pytest.raises(InputError, match=message):
        samplers.minority_in_every_batch(LABELS, class_counts(COUNTS), batch_size, at_least=at_least)
