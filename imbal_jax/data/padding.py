"""Splits cut into batches of one shape, for evaluation."""

from typing import NamedTuple

import numpy as np

from imbal_jax.data.dataset import Split


class PaddedSplit(NamedTuple):
    """A split in batches of one shape, the last one filled up with examples that do not count."""

    images: np.ndarray  # [batches, batch, height, width, channels], raw
    labels: np.ndarray  # int32 [batches, batch]
    counted: np.ndarray  # float32 [batches, batch], 1 or 0


def pad_split(split: Split, batch_size: int, *, multiple_of: int = 1) -> PaddedSplit:
    """Cuts a split into equal batches; the last one repeats the first example, uncounted.

    Args:
      split: at least one example.
      batch_size: most examples per batch.
      multiple_of: the batch is rounded up to a multiple of it, for sharing out among devices.
    """
    count = len(split.labels)
    batch_size = -(-min(batch_size, count) // multiple_of) * multiple_of
    batches = -(-count // batch_size)
    rows = np.arange(batches * batch_size)
    real = rows < count
    rows = np.where(real, rows, 0)

    def batched(array: np.ndarray) -> np.ndarray:
        return array.reshape(batches, batch_size, *array.shape[1:])

    return PaddedSplit(batched(split.images[rows]), batched(split.labels[rows]), batched(real.astype(np.float32)))
