"""From a source to what a run trains on: validation split, imbalance, label noise, standardisation."""

import hashlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from imbal_jax.class_counts import ClassCounts, EmptyClasses, class_counts, count_labels
from imbal_jax.data.dataset import Dataset, Split, require_valid
from imbal_jax.data.image_set import ImageSet
from imbal_jax.data.label_noise import LabelNoise, none
from imbal_jax.data.profiles import Profile
from imbal_jax.data.splits import draw_per_class, split_off, validation_counts
from imbal_jax.errors import check_number


class ValidationSplit(NamedTuple):
    """How the validation set is taken from the training examples, before they are imbalanced.

    Attributes:
      fraction: share of the training examples, in [0, 1); 0 for none. Ignored where the source has a validation set.
      balanced: the same number in every class.
      seed: of this split and of the draw of the imbalanced training subset, apart from the seeds of training.
    """

    fraction: float = 0.1
    balanced: bool = True
    seed: int = 0


class TrainingData(NamedTuple):
    """What a run trains on."""

    name: str
    class_names: tuple[str, ...]
    train: Split  # imbalanced by the profile, with the labels that are trained on
    validation: Split | None
    test: Split
    counts: ClassCounts  # of the training set, by the labels that are trained on
    mean: np.ndarray | None  # float32 [channels], what images are standardised by; None for clips
    std: np.ndarray | None  # float32 [channels]
    fingerprint: str  # of all arrays above
    more_tests: Mapping[str, Split] = MappingProxyType({})  # further test sets by name
    clean_labels: np.ndarray | None = None  # int32 [n], of the training set before label noise; for evaluation only


def profile_counts(available: np.ndarray, has_validation: bool, validation: ValidationSplit, profile: Profile):
    """Class counts that the profile asks for and those of the validation split, each int64 [num_classes].

    Args:
      available: training examples per class of the source.
      has_validation: whether the source has a validation set of its own.
      validation: the validation split.
      profile: the profile.

    Raises:
      InputError: the split or the profile is impossible on this data.
    """
    held_out = np.zeros_like(available)
    if not has_validation:
        held_out = validation_counts(available, fraction=validation.fraction, balanced=validation.balanced)
    return profile(available - held_out), held_out


def training_data(
    dataset: Dataset,
    validation: ValidationSplit,
    profile: Profile,
    empty_classes: EmptyClasses = "refuse",
    noise: LabelNoise | None = None,
) -> TrainingData:
    """Splits off the validation set, imbalances the rest, makes labels wrong, and measures the training pixels.

    Noise comes last: samplers, corrections and whatever else knows the class counts see those of the noisy labels, as
    they would in a set whose labels are wrong to begin with.

    Args:
      dataset: of a source.
      validation: how the validation set is taken, if the source has none.
      profile: how many examples of each class are kept.
      empty_classes: "refuse" or "mask" classes without training examples.
      noise: none by default.

    Raises:
      InputError: the data set has faults, the split, the profile or the noise is impossible, or a class is empty under
        "refuse".
    """
    require_valid(dataset)
    check_number("validation.seed", validation.seed, ">= 0")
    labels = dataset.train.labels
    available = count_labels(labels, dataset.num_classes)
    wanted, held_out = profile_counts(available, dataset.validation is not None, validation, profile)
    class_counts(wanted, empty_classes=empty_classes)
    rng = np.random.default_rng(validation.seed)
    pool, away = split_off(rng, labels, held_out)
    chosen = pool[draw_per_class(rng, labels[pool], wanted)]
    held = dataset.validation
    if held is None and len(away):
        held = _take(dataset.train, away)
    clean = _take(dataset.train, chosen)
    noise = none() if noise is None else noise
    train = _with_noise(clean, noise, dataset.num_classes)
    if held is not None and noise.validation:
        held = _with_noise(held, noise, dataset.num_classes)
    counts = class_counts(count_labels(train.labels, dataset.num_classes), empty_classes=empty_classes)
    mean, std = _statistics(train.images)
    more = dataset.more_tests or {}
    fingerprint = _fingerprint([train, held, dataset.test, *more.values()])
    is_noisy = (train.labels != clean.labels).any()
    return TrainingData(
        name=dataset.name,
        class_names=dataset.class_names,
        train=train,
        validation=held,
        test=dataset.test,
        counts=counts,
        mean=mean,
        std=std,
        fingerprint=fingerprint,
        more_tests=more,
        clean_labels=clean.labels if is_noisy else None,
    )


def _with_noise(split: Split, noise: LabelNoise, num_classes: int) -> Split:
    """A split with labels as the noise leaves them."""
    return split._replace(labels=noise.corrupt(split.labels, num_classes))


def _take(split: Split, indices: np.ndarray) -> Split:
    """The examples of a split at the indices."""
    return Split(split.images[indices], split.labels[indices].astype(np.int32))


def _statistics(images: Any) -> tuple[np.ndarray | None, np.ndarray | None]:
    """What images are standardised by: measured, or given where they are too many to look at; None for clips."""
    if isinstance(images, ImageSet):
        return images.pixel_statistics()
    return _pixel_statistics(images) if isinstance(images, np.ndarray) else (None, None)


def _pixel_statistics(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation per channel in raw units; a constant channel gets a standard deviation of 1."""
    mean = images.mean(axis=(0, 1, 2), dtype=np.float64).astype(np.float32)
    std = images.std(axis=(0, 1, 2), dtype=np.float64).astype(np.float32)
    return mean, np.where(std > 0, std, np.float32(1))


def _fingerprint(splits: list[Split | None]) -> str:
    """A short hash of everything the run sees."""
    digest = hashlib.blake2b(digest_size=16)
    for split in splits:
        for array in split or ():
            if not isinstance(array, np.ndarray):
                digest.update(array.digest())
                continue
            digest.update(f"{array.dtype}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
