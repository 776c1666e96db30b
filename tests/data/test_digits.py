"""The bundled digits."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

from imbal_jax.data.dataset import faults
from imbal_jax.data.digits import digits
from imbal_jax.errors import InputError


def test_is_valid_float32_with_ten_named_classes():
    dataset = digits()
    assert faults(dataset) == []
    assert dataset.name == "digits"
    assert dataset.class_names == tuple("0123456789")
    assert dataset.validation is None
    assert dataset.train.images.shape[1:] == dataset.test.images.shape[1:] == (8, 8, 1)
    assert dataset.train.images.dtype == dataset.test.images.dtype == np.float32
    assert dataset.train.labels.dtype == dataset.test.labels.dtype == np.int32


def test_splits_share_out_every_example_of_scikit_learn_once():
    dataset = digits()
    bundled = load_digits()
    both = np.concatenate([split.images[..., 0].reshape(-1, 64) for split in (dataset.train, dataset.test)])
    labels = np.concatenate([dataset.train.labels, dataset.test.labels])
    got = np.column_stack([labels, both])
    wanted = np.column_stack([bundled.target, bundled.data])
    np.testing.assert_array_equal(got[np.lexsort(got.T)], wanted[np.lexsort(wanted.T)])


@pytest.mark.parametrize(("fraction", "per_class"), [(0.2, 34), (0.5, 87), (0.999, 173), (0.006, 1)])
def test_test_set_is_balanced_and_floors_the_fraction_of_the_smallest_class(fraction, per_class):
    dataset = digits(test_fraction=fraction)
    assert np.bincount(dataset.test.labels).tolist() == [per_class] * 10  # the smallest class, 8, has 174 examples
    assert np.bincount(dataset.train.labels).min() == 174 - per_class


def test_seed_decides_the_split():
    one, same, other = digits(seed=3), digits(seed=3), digits(seed=4)
    np.testing.assert_array_equal(one.test.images, same.test.images)
    np.testing.assert_array_equal(one.train.labels, same.train.labels)
    assert (one.test.images != other.test.images).any()


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_refuses_a_fraction_outside_the_open_interval(fraction):
    with pytest.raises(InputError, match=r"test_fraction: expected a number in \(0, 1\), got"):
        digits(test_fraction=fraction)


def test_refuses_a_fraction_that_leaves_no_test_example():
    with pytest.raises(InputError, match=r"at least one test example per class, got 0\.005 of 174"):
        digits(test_fraction=0.005)


def test_refuses_a_negative_seed():
    with pytest.raises(InputError, match=r"seed: expected a whole number >= 0, got -1"):
        digits(seed=-1)
