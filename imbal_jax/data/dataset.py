"""A labelled data set in host memory, and the checks that refuse a faulty one."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from imbal_jax.errors import InputError


class Split(NamedTuple):
    """One split of a data set."""

    images: Any  # [n, height, width, channels], uint8 or float32; or what makes batches on the host
    labels: np.ndarray  # int32 [n]


class Dataset(NamedTuple):
    """What a source delivers; `validation` is None where the source has none of its own."""

    name: str
    class_names: tuple[str, ...]
    train: Split
    test: Split
    validation: Split | None = None
    more_tests: Mapping[str, Split] | None = None  # further test sets by name

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.class_names)

    @property
    def splits(self) -> dict[str, Split]:
        """The splits that exist, by name."""
        named = {"train": self.train, "validation": self.validation, "test": self.test, **(self.more_tests or {})}
        return {name: split for name, split in named.items() if split is not None}


def faults(dataset: Dataset) -> list[str]:
    """Every fault of a data set, one line each; empty when it can be trained on."""
    found = []
    for name, split in dataset.splits.items():
        found += _split_faults(name, split, dataset.num_classes)
    arrays = {name: split.images for name, split in dataset.splits.items() if isinstance(split.images, np.ndarray)}
    shapes = {name: images.shape[1:] for name, images in arrays.items()}
    if len(set(shapes.values())) > 1:
        found.append(f"images: the splits differ in shape: {shapes}")
    return found


def _split_faults(name: str, split: Split, num_classes: int) -> list[str]:
    """The faults of one split."""
    images, labels = split
    name = "val" if name == "validation" else name  # as in the arrays of an .npz
    found = []
    is_array = isinstance(images, np.ndarray)  # others are checked when they are decoded
    if is_array and images.ndim != 4:
        found.append(f"x_{name}: expected [examples, height, width, channels], got shape {images.shape}")
    if len(images) != len(labels):
        found.append(f"x_{name} and y_{name}: expected the same length, got {len(images)} and {len(labels)}")
    if len(images) == 0:
        found.append(f"x_{name}: expected at least one example, got none")
    if labels.ndim != 1:
        found.append(f"y_{name}: expected a vector of class indices, got shape {labels.shape}")
        return found
    if not np.issubdtype(labels.dtype, np.integer):
        found.append(f"y_{name}: expected integers, got {labels.dtype}")
        return found
    outside = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if len(outside):
        found.append(
            f"y_{name}: expected labels in 0..{num_classes - 1}, got {int(labels[outside[0]])} at index"
            f" {int(outside[0])} ({len(outside)} such labels)"
        )
    if is_array:
        found += _pixel_faults(name, images)
    return found


def _pixel_faults(name: str, images: np.ndarray) -> list[str]:
    """What is wrong with the pixels of a split."""
    if images.dtype not in (np.uint8, np.float32):
        return [f"x_{name}: expected uint8 or float32 pixels, got {images.dtype}"]
    if np.issubdtype(images.dtype, np.floating):
        bad = np.flatnonzero(~np.isfinite(images).all(axis=tuple(range(1, images.ndim))))
        if len(bad):
            return [f"x_{name}: NaN or infinite pixels in {len(bad)} images, first at index {int(bad[0])}"]
    return []


def require_valid(dataset: Dataset) -> Dataset:
    """Returns the data set, or raises InputError with its faults."""
    found = faults(dataset)
    if found:
        raise InputError("; ".join(found))
    return dataset
