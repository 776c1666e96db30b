"""The checks that refuse a faulty data set."""

import numpy as np
import pytest

from imbal_jax.data.dataset import Dataset, Split, faults, require_valid
from imbal_jax.errors import InputError


def split(labels=(0, 1, 2, 1), shape=(4, 5, 1), dtype=np.float32, **changes):
    """A valid split of three classes."""
    members = {"images": np.ones((len(labels), *shape), dtype), "labels": np.array(labels, np.int32)}
    return Split(**(members | changes))


def dataset(**splits):
    """A valid data set of three classes, but for the splits given."""
    return Dataset("test", ("a", "b", "c"), **({"train": split(), "test": split()} | splits))


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_valid_data_passes_unchanged(dtype):
    data = dataset(train=split(dtype=dtype), validation=split((2,)))
    assert faults(data) == []
    assert require_valid(data) is data


def test_names_what_there_is():
    assert dataset().num_classes == 3
    assert list(dataset().splits) == ["train", "test"]
    assert list(dataset(validation=split()).splits) == ["train", "validation", "test"]


def with_pixel(value, index):
    """A split with one pixel of one image replaced."""
    images = np.ones((4, 4, 5, 1), np.float32)
    images[index, 0, 0, 0] = value
    return split(images=images)


FAULTS = {
    "no channels": (
        {"train": split(images=np.ones((4, 4, 5), np.float32))},
        [
            "x_train: expected [examples, height, width, channels], got shape (4, 4, 5)",
            "images: the splits differ in shape: {'train': (4, 5), 'test': (4, 5, 1)}",
        ],
    ),
    "lengths": (
        {"test": split(labels=(0, 1), images=np.ones((3, 4, 5, 1), np.float32))},
        ["x_test and y_test: expected the same length, got 3 and 2"],
    ),
    "empty": (
        {"validation": split(labels=(), dtype=np.uint8)},
        ["x_val: expected at least one example, got none"],
    ),
    "one-hot labels": (
        {"train": split(labels=np.eye(3)[[0, 1, 2]])},
        ["y_train: expected a vector of class indices, got shape (3, 3)"],
    ),
    "float labels": (
        {"train": Split(np.ones((2, 4, 5, 1)), np.array([0.0, 1.0]))},
        ["y_train: expected integers, got float64"],
    ),
    "label too large": (
        {"train": split(labels=(0, 1, 3, 4))},
        ["y_train: expected labels in 0..2, got 3 at index 2 (2 such labels)"],
    ),
    "label negative": (
        {"test": split(labels=(0, -1))},
        ["y_test: expected labels in 0..2, got -1 at index 1 (1 such labels)"],
    ),
    "objects": (
        {"train": split(images=np.full((4, 4, 5, 1), None))},
        ["x_train: expected uint8 or float32 pixels, got object"],
    ),
    "text": (
        {"train": split(images=np.full((4, 4, 5, 1), "a"))},
        ["x_train: expected uint8 or float32 pixels, got <U1"],
    ),
    "float64": ({"train": split(dtype=np.float64)}, ["x_train: expected uint8 or float32 pixels, got float64"]),
    "NaN": (
        {"train": with_pixel(np.nan, 2)},
        ["x_train: NaN or infinite pixels in 1 images, first at index 2"],
    ),
    "infinity": (
        {"validation": with_pixel(-np.inf, 3)},
        ["x_val: NaN or infinite pixels in 1 images, first at index 3"],
    ),
    "shapes differ": (
        {"test": split(shape=(4, 4, 1))},
        ["images: the splits differ in shape: {'train': (4, 5, 1), 'test': (4, 4, 1)}"],
    ),
    "two at once": (
        {"train": split(labels=(0, 7)), "test": with_pixel(np.inf, 0)},
        [
            "y_train: expected labels in 0..2, got 7 at index 1 (1 such labels)",
            "x_test: NaN or infinite pixels in 1 images, first at index 0",
        ],
    ),
}


@pytest.mark.parametrize("case", FAULTS)
def test_every_fault_is_named(case):
    splits, found = FAULTS[case]
    data = dataset(**splits)
    assert faults(data) == found
    with pytest.raises(InputError) as error:
        require_valid(data)
    assert str(error.value) == "; ".join(found)


def test_an_empty_floating_point_split_is_a_fault():
    found = faults(dataset(train=split(labels=())))
    assert found == ["x_train: expected at least one example, got none"]
