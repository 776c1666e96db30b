"""ResNet-18 and ResNet-34 for small images, of basic blocks."""

from flax import linen as nn

from imbal_jax.models.batch_norm import BatchNorm
from imbal_jax.models.convolution import Convolution3x3
from imbal_jax.models.heads import check_classifier, check_images, check_size, classify
from imbal_jax.models.initialisers import fan_in_uniform
from imbal_jax.models.pooling import global_average_pool
from imbal_jax.types import Array


class ProjectedBlock(nn.Module):
    """Two normalised 3x3 convolutions around a shortcut, projected where shapes differ (He et al. 2016, Eqs. 1 and 2).

    Attributes:
      channels: of both convolutions.
      stride: of the first one, in both directions.
    """

    channels: int
    stride: int

    @nn.compact
    def __call__(self, images: Array, train: bool) -> Array:
        """Maps [batch, height, width, any] to [batch, height / stride, width / stride, channels], rounded up."""
        hidden = _convolution(self.channels, self.stride, "convolution1")(images)
        hidden = nn.relu(BatchNorm(name="norm1")(hidden, train))
        hidden = _convolution(self.channels, 1, "convolution2")(hidden)
        hidden = BatchNorm(name="norm2")(hidden, train)
        if self.stride > 1 or images.shape[-1] != self.channels:
            projection = nn.Conv(
                self.channels,
                (1, 1),
                self.stride,
                padding=0,
                use_bias=False,
                kernel_init=fan_in_uniform(),
                name="shortcut_convolution",
            )
            images = BatchNorm(name="shortcut_norm")(projection(images), train)
        return nn.relu(hidden + images)


class BasicResNet(nn.Module):
    """A 3x3 convolution and four stages of basic blocks; see `resnet18`."""

    num_classes: int
    blocks: tuple[int, ...]
    width: int
    classifier: str

    @nn.compact
    def __call__(self, images: Array, train: bool) -> tuple[Array, Array]:
        """Maps images [batch, height, width, channels] to logits [batch, num_classes] and features."""
        check_images(images)
        hidden = nn.relu(BatchNorm(name="norm")(_convolution(self.width, 1, "convolution")(images), train))
        for stage, blocks in enumerate(self.blocks, start=1):
            for block in range(1, blocks + 1):
                stride = 2 if stage > 1 and block == 1 else 1
                channels = self.width * 2 ** (stage - 1)
                hidden = ProjectedBlock(channels, stride, name=f"stage{stage}_block{block}")(hidden, train)
        features = global_average_pool(hidden)
        return classify(features, self.classifier, self.num_classes), features


def _convolution(channels: int, stride: int, name: str) -> Convolution3x3:
    """A 3x3 convolution without bias."""
    return Convolution3x3(channels, stride, use_bias=False, kernel_init=fan_in_uniform(), name=name)


def resnet18(num_classes: int, *, width: int = 64, classifier: str = "linear") -> nn.Module:
    """ResNet-18 for small images: 11,220,132 parameters for RGB and 100 classes.

    Table 1 of He et al. 2016 for 32x32 images as in the literature on noisy labels (Wang et al. 2019; ABSGD): the first
    convolution is 3x3 without stride and no pool follows, so that the last stage has 4x4 positions. Weights start as
    in PyTorch by default.

    Args:
      num_classes: the number of logits.
      width: channels of the first stage; each further stage doubles them.
      classifier: "linear" or "cosine".

    Returns:
      A module applied as `apply(variables, images, train=...)`, images [batch, height, width, channels]
      standardised, that returns (logits [batch, num_classes], features [batch, 8 width]). In training it updates
      the collection "batch_stats".

    Raises:
      InputError: an argument is out of its range; when applied, the images are not of the shape above.
    """
    return _basic_resnet(num_classes, (2, 2, 2, 2), width, classifier)


def resnet34(num_classes: int, *, width: int = 64, classifier: str = "linear") -> nn.Module:
    """ResNet-34 for small images: 21,328,292 parameters for RGB and 100 classes; in all else like `resnet18`.

    Args:
      num_classes: see `resnet18`.
      width: see `resnet18`.
      classifier: see `resnet18`.

    Raises:
      InputError: see `resnet18`.
    """
    return _basic_resnet(num_classes, (3, 4, 6, 3), width, classifier)


def _basic_resnet(num_classes: int, blocks: tuple[int, ...], width: int, classifier: str) -> nn.Module:
    """A checked network."""
    check_classifier(num_classes, classifier)
    check_size("width", width)
    return BasicResNet(num_classes, blocks, width, classifier)
