"""3x3 convolutions that are fast on every backend."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.nn.initializers import Initializer

from imbal_jax.types import Array

# XLA's CPU backend convolves 2x2 images with a naive loop: for 512 to 512 channels and batch 32, forward and backward
# took 694 ms on two cores, as a product of patches 10 ms; a step of VGG11-BN went from about 3 s to 0.25 s. At 4x4 the
# two are equal for many channels, and the convolution is faster for few.
_LARGEST_PATCHED_SIDE = 2
# With few input channels it falls back to a slower library as well: forward and kernel gradient of 8x8x1 to 16 channels
# took 117 us, as a product 41 us; of 32x32x3 to 16 channels 1.56 and 1.17 ms. From 8 channels on it is faster.
_MOST_PATCHED_CHANNELS = 4


class Convolution3x3(nn.Module):
    """A 3x3 convolution with zero padding 1 on all sides, as PyTorch's nn.Conv2d(..., 3, stride, padding=1).

    Attributes:
      features: output channels.
      stride: in both directions.
      use_bias: whether to add a bias, initialised to zero.
      kernel_init: initialiser of the kernel [3, 3, channels, features].
    """

    features: int
    stride: int = 1
    use_bias: bool = True
    kernel_init: Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, images: Array) -> Array:
        """Maps [batch, height, width, channels] to [batch, height / stride, width / stride, features], rounded up."""
        kernel = self.param("kernel", self.kernel_init, (3, 3, images.shape[-1], self.features))
        if self.stride == 1 and _patches_are_faster(images):
            result = _convolve_patches(images, kernel)
        else:
            result = jax.lax.conv_general_dilated(
                _stored(images) if jax.default_backend() == "cpu" else images,
                kernel,
                (self.stride, self.stride),
                ((1, 1), (1, 1)),
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )
        if self.use_bias:
            result = result + self.param("bias", nn.initializers.zeros, (self.features,))
        return result


@jax.custom_jvp
def _stored(images: Array) -> Array:
    """The same images, which XLA's CPU backend is made to compute once instead of again for every use.

    The gradient of the kernel reads the images transposed, and the backend fuses that transposition with whatever
    computed them. An operation with one operand, as a ReLU, it repeats in every fusion that reads its result, and so
    in a residual network all blocks back to the first of the stage, with strided reads. A selection, with two
    operands, is not repeated. (XLA removes an optimization_barrier before it fuses.)
    For batch 32 the processor time of a gradient of ResNet-32 fell from 361 to 259 ms, that of a product with its
    Hessian from 740 to 628 ms.
    """
    return jnp.where(jnp.isnan(images), jnp.nan, images)


@_stored.defjvp
def _stored_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    """The identity, without the selection's own derivative."""
    return _stored(*primals), tangents[0]


def _patches_are_faster(images: Array) -> bool:
    """Whether a product of patches beats the backend's convolution, by what was measured."""
    _, height, width, channels = images.shape
    small = max(height, width) <= _LARGEST_PATCHED_SIDE or channels <= _MOST_PATCHED_CHANNELS
    return small and jax.default_backend() == "cpu"


def _convolve_patches(images: Array, kernel: Array) -> Array:
    """The convolution with stride 1 as one product of every pixel's 3x3 neighbourhood and the kernel."""
    batch, height, width, _ = images.shape
    padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    shifted = [padded[:, row : row + height, column : column + width] for row in range(3) for column in range(3)]
    patches = jnp.concatenate(shifted, axis=-1).reshape(batch * height * width, -1)
    return (patches @ kernel.reshape(-1, kernel.shape[-1])).reshape(batch, height, width, -1)
