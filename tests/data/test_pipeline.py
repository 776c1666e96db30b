"""From a source to training data: what goes where, the pixel statistics, the fingerprint."""

import numpy as np
import pytest

from imbal_jax.data import label_noise, profiles
from imbal_jax.data.dataset import Dataset, Split
from imbal_jax.data.pipeline import ValidationSplit, profile_counts, training_data
from imbal_jax.errors import InputError

COUNTS = np.array([60, 40, 50])


def source(*, counts=COUNTS, validation=None, images=None):
    """Three classes in random order; pixel 0 of every training image is its index, so that it can be traced."""
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.repeat(np.arange(3), counts))
    if images is None:
        images = rng.normal(size=(len(labels), 2, 3, 2)).astype(np.float32)
    images[:, 0, 0, 0] = np.arange(len(labels))
    test = Split(np.zeros((6, *images.shape[1:]), images.dtype), np.arange(6, dtype=np.int32) % 3)
    return Dataset("test", ("a", "b", "c"), Split(images, labels), test, validation)


def origins(split):
    """The indices in the source of a split's examples."""
    return split.images[:, 0, 0, 0].astype(int)


@pytest.mark.parametrize(
    ("profile", "train_counts"),
    [
        (profiles.natural(), [56, 36, 46]),  # 0.1 of the smallest class leaves each class 4 fewer
        (profiles.long_tail(ratio=9), [36, 12, 4]),
        (profiles.counts(counts=(56, 2, 7)), [56, 2, 7]),
    ],
)
def test_validation_is_taken_first_and_balanced(profile, train_counts):
    dataset = source()
    data = training_data(dataset, ValidationSplit(0.1), profile)
    assert np.bincount(data.validation.labels).tolist() == [4, 4, 4]
    assert np.bincount(data.train.labels).tolist() == train_counts
    assert data.counts.counts.tolist() == train_counts
    assert data.counts.present.all()
    assert not set(origins(data.train)) & set(origins(data.validation))
    assert len(set(origins(data.train))) == sum(train_counts)
    for split in (data.train, data.validation):
        np.testing.assert_array_equal(split.images, dataset.train.images[origins(split)])
        np.testing.assert_array_equal(split.labels, dataset.train.labels[origins(split)])
        assert split.labels.dtype == np.int32
    np.testing.assert_array_equal(data.test.images, dataset.test.images)
    assert (data.name, data.class_names) == ("test", ("a", "b", "c"))


def test_validation_does_not_depend_on_the_profile():
    some, other = (
        training_data(source(), ValidationSplit(0.2), profile)
        for profile in (profiles.natural(), profiles.long_tail(ratio=10))
    )
    np.testing.assert_array_equal(origins(some.validation), origins(other.validation))


def test_validation_may_keep_the_class_proportions():
    data = training_data(source(), ValidationSplit(0.1, balanced=False), profiles.natural())
    assert np.bincount(data.validation.labels).tolist() == [6, 4, 5]
    assert np.bincount(data.train.labels).tolist() == [54, 36, 45]


def test_no_validation():
    data = training_data(source(), ValidationSplit(0.0), profiles.natural())
    assert data.validation is None
    np.testing.assert_array_equal(origins(data.train), np.arange(150))


def test_a_validation_set_of_the_source_is_kept():
    own = Split(np.full((5, 2, 3, 2), 7, np.float32), np.zeros(5, np.int32))
    data = training_data(source(validation=own), ValidationSplit(0.5), profiles.natural())
    assert data.counts.counts.tolist() == COUNTS.tolist()
    np.testing.assert_array_equal(data.validation.images, own.images)


def test_profile_counts_are_what_training_data_uses():
    for has_validation, left in ((False, COUNTS - 8), (True, COUNTS)):
        wanted, held_out = profile_counts(COUNTS, has_validation, ValidationSplit(0.2), profiles.natural())
        np.testing.assert_array_equal(wanted, left)
        np.testing.assert_array_equal(wanted + held_out, COUNTS)


def test_seed_decides_the_split_and_the_subset():
    def draw(seed):
        data = training_data(source(), ValidationSplit(0.1, seed=seed), profiles.long_tail(ratio=9))
        return origins(data.train).tolist(), origins(data.validation).tolist()

    one, same, other = draw(1), draw(1), draw(2)
    assert one == same
    assert one[0] != other[0]
    assert one[1] != other[1]


def test_pixel_statistics_are_those_of_the_imbalanced_training_set():
    rng = np.random.default_rng(1)
    dataset = source(images=rng.integers(0, 256, (150, 8, 8, 3), dtype=np.uint8))
    data = training_data(dataset, ValidationSplit(0.1), profiles.long_tail(ratio=9))
    pixels = dataset.train.images[origins(data.train)].astype(np.float64).reshape(-1, 3)
    np.testing.assert_allclose(data.mean, pixels.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(data.std, np.sqrt(np.mean((pixels - pixels.mean(axis=0)) ** 2, axis=0)), rtol=1e-6)
    assert data.mean.dtype == data.std.dtype == np.float32
    whole = dataset.train.images.reshape(-1, 3).mean(axis=0)
    assert (np.abs(data.mean - whole) > 1e-3).all()  # not those of the source


def test_pixel_statistics_are_summed_in_float64():
    # In float32 the sum of a million pixels of about 4096 has lost everything below the first decimal.
    images = (4096 + 0.01 * np.random.default_rng(0).normal(size=(150, 80, 80, 1))).astype(np.float32)
    dataset = source(images=images)
    data = training_data(dataset, ValidationSplit(0.0), profiles.natural())
    exact = dataset.train.images.astype(np.float64)
    np.testing.assert_allclose(data.mean, [exact.mean()], rtol=1e-7)
    np.testing.assert_allclose(data.std, [exact.std()], rtol=1e-6)


def test_a_constant_channel_is_divided_by_one():
    images = np.random.default_rng(0).normal(size=(150, 2, 3, 2)).astype(np.float32)
    images[..., 1] = 0.1
    data = training_data(source(images=images), ValidationSplit(0.0), profiles.natural())
    assert data.std[1] == 1
    assert data.mean[1] == np.float32(0.1)


def test_fingerprint_changes_with_a_pixel_or_a_label_of_any_split():
    own = Split(np.full((5, 2, 3, 2), 7, np.float32), np.zeros(5, np.int32))
    dataset = source(validation=own)

    def fingerprint(dataset):
        return training_data(dataset, ValidationSplit(), profiles.natural()).fingerprint

    def changed(name, field):
        array = getattr(dataset.splits[name], field).copy()
        array.flat[-1] = (array.flat[-1] + 1) % 3
        return dataset._replace(**{name: dataset.splits[name]._replace(**{field: array})})

    unchanged = fingerprint(dataset)
    assert fingerprint(source(validation=own)) == unchanged
    others = [fingerprint(changed(name, field)) for name in dataset.splits for field in ("images", "labels")]
    assert len({unchanged, *others}) == 7


def test_fingerprint_changes_with_the_split_and_the_profile():
    prints = {
        training_data(source(), validation, profile).fingerprint
        for validation in (ValidationSplit(0.1), ValidationSplit(0.1, seed=1), ValidationSplit(0.0))
        for profile in (profiles.natural(), profiles.long_tail(ratio=9))
    }
    assert len(prints) == 6


def test_an_empty_class_is_refused_or_masked():
    profile = profiles.counts(counts=(5, 0, 5))
    with pytest.raises(InputError, match=r"^class counts: classes \[1\] have no training example in \[5, 0, 5\]"):
        training_data(source(), ValidationSplit(0.1), profile)
    data = training_data(source(), ValidationSplit(0.1), profile, empty_classes="mask")
    assert data.counts.present.tolist() == [True, False, True]
    assert np.bincount(data.train.labels, minlength=3).tolist() == [5, 0, 5]
    assert np.bincount(data.validation.labels).tolist() == [4, 4, 4]


def test_faulty_data_is_refused():
    dataset = source()
    dataset.train.labels[3] = 9
    with pytest.raises(InputError, match=r"^y_train: expected labels in 0\.\.2, got 9 at index 3 \(1 such labels\)$"):
        training_data(dataset, ValidationSplit(), profiles.natural())


def test_what_the_validation_split_takes_is_gone():
    # 40 examples of class 1, 4 of them held out: 37 are too many.
    with pytest.raises(InputError, match=r"^counts: class 1 should get 37 examples, but only 36 are left$"):
        training_data(source(), ValidationSplit(0.1), profiles.counts(counts=(5, 37, 5)))


def test_label_noise_comes_last_and_the_counts_are_those_of_the_noisy_labels():
    profile = profiles.counts(counts=(50, 30, 20))
    noise = label_noise.asymmetric(rate=0.2, pairs=((0, 1), (2, 1)))
    clean = training_data(source(), ValidationSplit(0.1), profile)
    noisy = training_data(source(), ValidationSplit(0.1), profile, noise=noise)
    np.testing.assert_array_equal(origins(noisy.train), origins(clean.train))
    np.testing.assert_array_equal(noisy.clean_labels, clean.train.labels)
    np.testing.assert_array_equal(noisy.train.labels, noise.corrupt(clean.train.labels, 3))
    assert noisy.counts.counts.tolist() == [40, 44, 16]
    np.testing.assert_array_equal(np.bincount(noisy.train.labels), noisy.counts.counts)
    for split in ("validation", "test"):
        np.testing.assert_array_equal(getattr(noisy, split).labels, getattr(clean, split).labels)
    assert clean.clean_labels is None
    assert noisy.fingerprint != clean.fingerprint


def test_label_noise_may_reach_the_validation_set():
    noise = label_noise.symmetric(rate=0.5, validation=True)
    clean = training_data(source(), ValidationSplit(0.1), profiles.natural())
    noisy = training_data(source(), ValidationSplit(0.1), profiles.natural(), noise=noise)
    assert (noisy.validation.labels != clean.validation.labels).sum() == 6
    np.testing.assert_array_equal(noisy.test.labels, clean.test.labels)


def test_noise_can_fill_and_empty_a_class():
    profile = profiles.counts(counts=(5, 0, 5))
    noise = label_noise.asymmetric(rate=0.4, pairs=((0, 1),))
    with pytest.raises(InputError, match=r"^class counts: classes \[1\] have no training example"):
        training_data(source(), ValidationSplit(0.1), profile, noise=noise)
    data = training_data(source(), ValidationSplit(0.1), profile, empty_classes="mask", noise=noise)
    assert data.counts.counts.tolist() == [3, 2, 5]
