"""The handwritten digits that come with scikit-learn: real data without a download."""

import numpy as np

from imbal_jax.data.dataset import Dataset, Split
from imbal_jax.errors import InputError


def digits(*, test_fraction: float = 0.2, seed: int = 0) -> Dataset:
    """The 1,797 8x8 digits bundled with scikit-learn, split into train and test.

    Every class gives the same number of test examples, floor(test_fraction * smallest class), so that plain and
    balanced accuracy agree on the test set. Both splits keep the original order of the examples.

    Args:
      test_fraction: test examples per class as a share of the smallest class (174 examples), in (0, 1).
      seed: which examples are the test examples, >= 0.

    Returns:
      Images float32 [n, 8, 8, 1] with pixels 0..16, and ten classes "0" to "9".

    Raises:
      InputError: test_fraction is outside (0, 1) or leaves no test example; seed is negative.
    """
    if not 0 < test_fraction < 1:
        raise InputError(f"test_fraction: expected a number in (0, 1), got {test_fraction}")
    if seed < 0:
        raise InputError(f"seed: expected a whole number >= 0, got {seed}")
    # Imported here because scikit-learn's data sets take half a second to import.
    from sklearn.datasets import load_digits

    bundled = load_digits()
    images = bundled.images.astype(np.float32)[..., None]
    labels = bundled.target.astype(np.int32)
    smallest = int(np.bincount(labels).min())
    per_class = int(test_fraction * smallest)
    if per_class == 0:
        raise InputError(
            f"test_fraction: expected at least one test example per class, got {test_fraction} of {smallest} examples"
        )
    generator = np.random.default_rng(seed)
    is_test = np.zeros(len(labels), bool)
    for label in range(10):
        is_test[generator.permutation(np.flatnonzero(labels == label))[:per_class]] = True
    return Dataset(
        name="digits",
        class_names=tuple(str(name) for name in bundled.target_names),
        train=Split(images[~is_test], labels[~is_test]),
        test=Split(images[is_test], labels[is_test]),
    )
