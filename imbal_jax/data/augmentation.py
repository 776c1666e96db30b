"""Random changes of training images, on the device."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from imbal_jax.errors import check_number
from imbal_jax.types import Array

Augmentation = Callable[[Array, Array], Array]  # (key, raw images [batch, height, width, channels]) -> the same


def none() -> Augmentation:
    """Images as they are."""
    return lambda key, images: images


def crop_flip(*, padding: int = 4, flip: bool = True) -> Augmentation:
    """Random crop of the zero-padded image and random horizontal flip, as usual on CIFAR.

    Acts on raw pixels, before standardisation: the padding is black.

    Args:
      padding: pixels on every side, >= 0.
      flip: mirror left and right with probability one half.

    Raises:
      InputError: padding < 0.
    """
    check_number("padding", padding, ">= 0")

    def augment(key: Array, images: Array) -> Array:
        crop_key, flip_key = jax.random.split(key)
        count, height, width, _ = images.shape
        if padding:
            padded = jnp.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
            offsets = jax.random.randint(crop_key, (count, 2), 0, 2 * padding + 1)
            rows = offsets[:, :1] + jnp.arange(height)
            columns = offsets[:, 1:] + jnp.arange(width)
            images = padded[jnp.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]
        if flip:
            mirrored = jax.random.bernoulli(flip_key, 0.5, (count, 1, 1, 1))
            images = jnp.where(mirrored, images[:, :, ::-1], images)
        return images

    return augment
