"""Random pictures, for smoke tests and measurements of speed: there is nothing to learn from them."""

import hashlib
from typing import NamedTuple

import numpy as np
import PIL.Image

from imbal_jax.data.dataset import Dataset, Split
from imbal_jax.data.image_set import IMAGENET_MEAN, IMAGENET_STD, ImageSet, View, check_view
from imbal_jax.data.profiles import long_tail
from imbal_jax.errors import InputError


class RandomPictures(NamedTuple):
    """Pictures of independent uniform pixels, made when they are asked for."""

    side: int  # in pixels
    seed: int

    def open(self, row: int) -> PIL.Image.Image:
        """A picture."""
        rng = np.random.default_rng([self.seed, row])
        return PIL.Image.fromarray(rng.integers(0, 256, (self.side, self.side, 3), np.uint8))

    def digest(self, rows: np.ndarray) -> bytes:
        """A hash of all that the pictures are a function of."""
        facts = repr(tuple(self)).encode() + np.ascontiguousarray(rows, np.int64).tobytes()
        return hashlib.blake2b(facts, digest_size=16).digest()


def fake_images(
    *,
    num_classes: int = 10,
    largest: int = 20,
    ratio: float = 10.0,
    held_out: int = 2,
    size: int = 224,
    resize: int = 256,
    seed: int = 0,
    threads: int = 0,
) -> Dataset:
    """Random pictures of long-tailed classes, in the place of a large data set: for smoke tests and speed alone.

    They come from the host batch by batch, as those of `imbal_jax.data.image_list.image_list`, and are squares with
    the side that those have after they are resized. What a decoder would take is not in the time.

    Args:
      num_classes: >= 2.
      largest: training examples of class 0.
      ratio: of the largest to the smallest class; counts fall exponentially, as of `imbal_jax.data.profiles.long_tail`.
      held_out: validation examples of every class, and as many test examples.
      size: height and width of the images.
      resize: side of the pictures that they are cut out of.
      seed: of the pixels.
      threads: that make pictures at a time; 0 for one per core.

    Raises:
      InputError: an option is out of its range.
    """
    for name, value, least in (("num_classes", num_classes, 2), ("largest", largest, 1), ("held_out", held_out, 1)):
        if value < least:
            raise InputError(f"data.{name}: expected a number >= {least}, got {value}")
    if seed < 0:
        raise InputError(f"data.seed: expected a whole number >= 0, got {seed}")
    view = check_view(View(size, resize, IMAGENET_MEAN, IMAGENET_STD, threads))
    equal = np.full(num_classes, held_out)
    counts = {"train": long_tail(ratio=ratio)(np.full(num_classes, largest)), "validation": equal, "test": equal}
    pictures, splits, first = RandomPictures(resize, seed), {}, 0
    for name, of_classes in counts.items():
        labels = np.repeat(np.arange(num_classes), of_classes).astype(np.int32)
        splits[name] = Split(ImageSet(pictures, np.arange(first, first + len(labels)), view), labels)
        first += len(labels)
    names = tuple(map(str, range(num_classes)))
    return Dataset("fake_images", names, splits["train"], splits["test"], splits["validation"])
