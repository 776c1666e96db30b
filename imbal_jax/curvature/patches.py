"""The rows that a convolution multiplies with its kernel."""

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from imbal_jax.types import Array

Padding = str | Sequence[tuple[int, int]]


def extract_patches(
    images: Array,
    kernel_size: Sequence[int],
    strides: Sequence[int],
    padding: Padding,
    dilation: Sequence[int],
) -> Array:
    """The receptive field of every output position as a row.

    The entries of a row are ordered as in ``kernel.reshape(-1, features)`` of a kernel [*kernel_size, channels,
    features], so that ``patches @ kernel.reshape(-1, features)`` is the convolution. Slices instead of XLA's own patch
    extraction, which is a convolution with an identity kernel.

    Args:
      images: [batch, *spatial, channels], any number of spatial axes.
      kernel_size: per spatial axis.
      strides: likewise.
      padding: "SAME", "VALID", or (before, after) per spatial axis.
      dilation: of the kernel, per spatial axis.

    Returns:
      [batch, positions, prod(kernel_size) * channels], positions in row-major order.
    """
    spatial = images.shape[1:-1]
    extent = [(size - 1) * step + 1 for size, step in zip(kernel_size, dilation, strict=True)]
    pads = jax.lax.padtype_to_pads(spatial, extent, strides, padding) if isinstance(padding, str) else padding
    padded = jnp.pad(images, ((0, 0), *((int(before), int(after)) for before, after in pads), (0, 0)))
    counts = [
        (size - reach) // stride + 1 for size, reach, stride in zip(padded.shape[1:-1], extent, strides, strict=True)
    ]
    shifted = []
    for offset in itertools.product(*(range(size) for size in kernel_size)):
        window = tuple(
            slice(place * step, place * step + (count - 1) * stride + 1, stride)
            for place, step, count, stride in zip(offset, dilation, counts, strides, strict=True)
        )
        shifted.append(padded[(slice(None), *window)])
    patches = jnp.concatenate(shifted, axis=-1)
    return patches.reshape(len(images), -1, patches.shape[-1])
