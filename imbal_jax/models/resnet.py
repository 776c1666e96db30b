"""ResNet-32 for small images."""

import jax.numpy as jnp
from flax import linen as nn

from imbal_jax.models.batch_norm import BatchNorm
from imbal_jax.models.convolution import Convolution3x3
from imbal_jax.models.film import FilmOptions, activate, modulate_pooled, split_condition
from imbal_jax.models.heads import check_classifier, check_images, check_size, classify
from imbal_jax.models.initialisers import kaiming_normal
from imbal_jax.models.pooling import global_average_pool
from imbal_jax.types import Array, Conditioned

_BLOCKS_PER_STAGE = 5


def _convolution(channels: int, stride: int, name: str) -> Convolution3x3:
    """A 3x3 convolution without bias."""
    return Convolution3x3(channels, stride, use_bias=False, kernel_init=kaiming_normal("fan_in"), name=name)


def shortcut(images: Array, channels: int, stride: int) -> Array:
    """The identity without parameters: every stride-th pixel, and channels of zeros added equally on both sides.

    Option A of He et al. 2016, section 4.2.

    Args:
      images: [batch, height, width, fewer or equal channels].
      channels: wanted; an odd number to add puts one more at the end.
      stride: of the pixels, in both directions, from the first.

    Returns:
      [batch, ceil(height / stride), ceil(width / stride), channels].
    """
    kept = images[:, ::stride, ::stride]
    missing = channels - images.shape[-1]
    return jnp.pad(kept, ((0, 0), (0, 0), (0, 0), (missing // 2, missing - missing // 2)))


class BasicBlock(nn.Module):
    """Two normalised 3x3 convolutions around a shortcut (He et al. 2016, Eq. 1)."""

    channels: int
    stride: int
    activated: bool = True  # whether the last ReLU is applied; the network does it otherwise

    @nn.compact
    def __call__(self, images: Array, train: bool) -> Array:
        """Maps [batch, height, width, fewer or equal channels] to [batch, height/stride, width/stride, channels]."""
        hidden = _convolution(self.channels, self.stride, "convolution1")(images)
        hidden = nn.relu(BatchNorm(name="norm1")(hidden, train))
        hidden = _convolution(self.channels, 1, "convolution2")(hidden)
        hidden = BatchNorm(name="norm2")(hidden, train)
        hidden = hidden + shortcut(images, self.channels, self.stride)
        return nn.relu(hidden) if self.activated else hidden


class ResNet32(nn.Module):
    """A convolution and fifteen basic blocks in three stages; see `resnet32`."""

    num_classes: int
    width: int
    classifier: str
    film: FilmOptions | None = None

    @nn.compact
    def __call__(self, inputs: Array | Conditioned, train: bool) -> tuple[Array, Array]:
        """Maps images [batch, height, width, channels] to logits [batch, num_classes] and features."""
        images, condition = split_condition(inputs, self.film)
        check_images(images)
        hidden = nn.relu(BatchNorm(name="norm")(_convolution(self.width, 1, "convolution")(images), train))
        for stage in (1, 2, 3):
            for block in range(1, _BLOCKS_PER_STAGE + 1):
                stride = 2 if stage > 1 and block == 1 else 1
                channels = self.width * 2 ** (stage - 1)
                last = (stage, block) == (3, _BLOCKS_PER_STAGE)
                hidden = BasicBlock(channels, stride, not last, name=f"stage{stage}_block{block}")(hidden, train)
        hidden = activate(hidden, self.film, condition)
        features = modulate_pooled(global_average_pool(hidden), self.film, condition)
        logits = classify(features, self.classifier, self.num_classes, kernel_init=kaiming_normal("fan_in"))
        return logits, features


def resnet32(
    num_classes: int, *, width: int = 16, classifier: str = "linear", film: FilmOptions | None = None
) -> nn.Module:
    """ResNet-32 of the long-tail literature: 464,154 parameters for RGB, ten classes and width 16.

    Three stages of five basic blocks with width, 2 width and 4 width channels and shortcuts without parameters
    (He et al. 2016, section 4.2). Convolutions and the linear classifier start as N(0, 2 / fan_in), as in the
    published code of LDAM (Cao et al. 2019) and of the work that followed it.

    Args:
      num_classes: the number of logits.
      width: channels of the first layer. Loss-conditional training says "64 channels in the first layer", but its
        block of 64 channels after the last convolution, and its code, mean 16 in the first and 64 in the last.
      classifier: "linear" or "cosine".
      film: a block that takes a condition, for loss-conditional training, 17,280 parameters for two hyper-parameters
        and width 16; none by default. The images are then `Conditioned`.

    Returns:
      A module applied as `apply(variables, images, train=...)`, images [batch, height, width, channels]
      standardised, that returns (logits [batch, num_classes], features [batch, 4 width]). In training it updates
      the collection "batch_stats".

    Raises:
      InputError: an argument is out of its range; when applied, the images are not of the shape above.
    """
    check_classifier(num_classes, classifier)
    check_size("width", width)
    return ResNet32(num_classes, width, classifier, film)
