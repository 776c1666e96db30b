"""Images that are decoded when a batch of them is needed, because a whole data set would not fit into memory."""

import functools
import io
import os
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import numpy as np
import PIL.Image

from imbal_jax.data.pictures import PictureAugmentation, crop_center, resize_shorter_side
from imbal_jax.errors import InputError

# Of the pixels of ImageNet's training images, red, green and blue, in units of full scale.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
PICTURE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp")  # of files to predict in a folder
_FULL_SCALE = 255
# What Pillow raises on what is no picture, or a damaged one.
_DAMAGE = (
    OSError,
    ValueError,
    SyntaxError,
    LookupError,
    TypeError,
    EOFError,
    struct.error,
    PIL.Image.DecompressionBombError,
)


class Pictures(Protocol):
    """Pictures of any size, by number."""

    def open(self, row: int) -> PIL.Image.Image:
        """A picture in RGB; InputError, naming it, if it cannot be decoded."""

    def digest(self, rows: np.ndarray) -> bytes:
        """A hash of some of the pictures that is quick to compute."""


class View(NamedTuple):
    """What is made of pictures.

    Attributes:
      size: height and width of the images, in pixels.
      resize: of the shorter side, before the square in its middle is cut out for evaluation; >= size.
      mean: of each channel, in units of full scale, for standardisation.
      std: likewise.
      threads: that decode at a time; 0 for one per core.
    """

    size: int = 224
    resize: int = 256
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    threads: int = 0


def check_view(view: View) -> View:
    """Returns a view, or raises InputError where an option is out of its range."""
    if not 1 <= view.size <= view.resize:
        raise InputError(f"data.size: expected 1 to data.resize ({view.resize}) pixels, got {view.size}")
    if view.threads < 0:
        raise InputError(f"data.threads: expected a number >= 0, got {view.threads}")
    for name, values in (("mean", view.mean), ("std", view.std)):
        if len(values) != 3 or not np.isfinite(values).all() or (name == "std" and min(values) <= 0):
            raise InputError(f"data.{name}: expected three numbers, a standard deviation > 0, got {values}")
    return view


@dataclass(frozen=True)
class ImageSet:
    """Some of the pictures of a source; what a split holds where others hold arrays.

    Attributes:
      pictures: of all splits.
      rows: which of them, int64 [n].
      view: what is made of them.
      augment: how training batches are drawn; None for the view of evaluation.
    """

    pictures: Pictures
    rows: np.ndarray
    view: View
    augment: PictureAugmentation | None = None

    dtype = np.dtype(np.uint8)

    def __len__(self) -> int:
        """The number of pictures."""
        return len(self.rows)

    def __getitem__(self, indices: Any) -> "ImageSet":
        """Some of these pictures."""
        return replace(self, rows=self.rows[indices])

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of all of them as an array [n, height, width, channels]."""
        return len(self.rows), *self.example()

    @property
    def lengths(self) -> np.ndarray:
        """They are of one size: int64 [n], all 0."""
        return np.zeros(len(self.rows), np.int64)

    def buckets(self, batch_size: int) -> tuple[int, ...]:
        """They are not padded: ()."""
        del batch_size
        return ()

    def example(self) -> tuple[int, int, int]:
        """The shape of one image, [height, width, channels]."""
        return self.view.size, self.view.size, 3

    def pixel_statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation per channel for standardisation, float32 [3] each, in raw units."""
        mean, std = (
            np.asarray(values, np.float32) * np.float32(_FULL_SCALE) for values in (self.view.mean, self.view.std)
        )
        return mean, std

    def batch(self, indices: np.ndarray, buckets: tuple[int, ...] = ()) -> np.ndarray:
        """The squares in the middle of the resized pictures, uint8 [batch, height, width, 3], in host memory.

        Raises:
          InputError: a picture cannot be decoded.
        """
        del buckets
        return self._made(indices, lambda place, picture: self._centre(picture))

    def training_batch(self, indices: np.ndarray, entropy: tuple[int, ...]) -> np.ndarray:
        """Augmented images, uint8 [batch, height, width, 3], in host memory.

        Args:
          indices: which, [batch].
          entropy: whole numbers >= 0 that chance is a function of, with the place in the batch: not the order in which
            threads come to decode.

        Raises:
          InputError: a picture cannot be decoded.
        """
        augment, view = self.augment, self.view
        if augment is None:
            return self.batch(indices)

        def draw(place: int, picture: PIL.Image.Image) -> PIL.Image.Image:
            return augment.draw(np.random.default_rng([*entropy, place]), picture, view.size, view.resize)

        return self._made(indices, draw)

    def digest(self) -> bytes:
        """A hash of the pictures and of what is made of them."""
        return self.pictures.digest(self.rows) + repr(self.view._replace(threads=0)).encode()

    def faults(self) -> list[str]:
        """Every picture that cannot be decoded, one line each; decodes all of them."""

        def fault(row: int) -> str | None:
            try:
                self.pictures.open(row)
            except InputError as error:
                return str(error)
            return None

        return [found for found in _pool(self.view.threads).map(fault, self.rows.tolist()) if found is not None]

    def _centre(self, picture: PIL.Image.Image) -> PIL.Image.Image:
        """The square in the middle of the resized picture."""
        return crop_center(resize_shorter_side(picture, self.view.resize), self.view.size)

    def _made(self, indices: np.ndarray, make: Callable[[int, PIL.Image.Image], PIL.Image.Image]) -> np.ndarray:
        """What is made of pictures by their places in a batch, several at a time."""
        rows = self.rows[np.asarray(indices)].tolist()
        images = np.empty((len(rows), *self.example()), np.uint8)

        def fill(place: int) -> None:
            images[place] = np.asarray(make(place, self.pictures.open(rows[place])))

        for _ in _pool(self.view.threads).map(fill, range(len(rows))):
            pass
        return images


def decoded(source: str | os.PathLike | bytes, name: str) -> PIL.Image.Image:
    """A picture in RGB, wholly decoded.

    Args:
      source: its file, or the file's content.
      name: for the error message.

    Raises:
      InputError: it cannot be decoded.
    """
    try:
        with PIL.Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as picture:
            return picture.convert("RGB")  # which decodes
    except _DAMAGE as error:
        raise InputError(f"data: cannot decode the picture {name}: {' '.join(str(error).split())}") from error


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """The threads that decode, shared by all sets that ask for as many."""
    return ThreadPoolExecutor(threads or os.cpu_count(), thread_name_prefix="decoder")
