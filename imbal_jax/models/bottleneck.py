"""ResNet-50 and ResNet-152 for large images, of bottleneck blocks."""

from collections.abc import Iterator
from typing import Any

import jax
from flax import linen as nn

from imbal_jax.errors import InputError, not_found
from imbal_jax.models.batch_norm import BatchNorm
from imbal_jax.models.convolution import Convolution3x3
from imbal_jax.models.heads import check_classifier, check_images, check_size, classify
from imbal_jax.models.initialisers import kaiming_normal
from imbal_jax.models.pooling import global_average_pool, max_pool_3x3
from imbal_jax.types import Array

TRAINED = ("all", "last_block", "classifier")
_EXPANSION = 4  # output channels of a block for each channel of its middle
# Blocks of the four stages: Table 1 of He et al. 2016.
BLOCKS = {"resnet50": (3, 4, 6, 3), "resnet152": (3, 8, 36, 3)}


def _pointwise(channels: int, stride: int, name: str) -> nn.Conv:
    """A 1x1 convolution without bias."""
    kernel_init = kaiming_normal("fan_out")
    return nn.Conv(channels, (1, 1), stride, padding=0, use_bias=False, kernel_init=kernel_init, name=name)


class BottleneckBlock(nn.Module):
    """Three normalised convolutions, 1x1, 3x3 and 1x1, around a shortcut (He et al. 2016, Fig. 5, right).

    The stride is that of the 3x3 convolution, as in torchvision; in the paper it is that of the first 1x1.

    Attributes:
      channels: of the two inner feature maps; the output has four times as many.
      stride: in both directions.
      zero_last_scale: start as the shortcut alone.
    """

    channels: int
    stride: int
    zero_last_scale: bool

    @nn.compact
    def __call__(self, images: Array, train: bool) -> Array:
        """Maps [batch, height, width, any] to [batch, height / stride, width / stride, 4 channels], rounded up."""
        outputs = _EXPANSION * self.channels
        middle = Convolution3x3(
            self.channels, self.stride, use_bias=False, kernel_init=kaiming_normal("fan_out"), name="convolution2"
        )
        hidden = _pointwise(self.channels, 1, "convolution1")(images)
        hidden = middle(nn.relu(BatchNorm(name="norm1")(hidden, train)))
        hidden = _pointwise(outputs, 1, "convolution3")(nn.relu(BatchNorm(name="norm2")(hidden, train)))
        scale_init = nn.initializers.zeros if self.zero_last_scale else nn.initializers.ones
        hidden = BatchNorm(scale_init=scale_init, name="norm3")(hidden, train)
        if self.stride > 1 or images.shape[-1] != outputs:
            images = _pointwise(outputs, self.stride, "shortcut_convolution")(images)
            images = BatchNorm(name="shortcut_norm")(images, train)
        return nn.relu(hidden + images)


class BottleneckResNet(nn.Module):
    """A strided 7x7 convolution, a pool and four stages of bottleneck blocks; see `resnet50`."""

    num_classes: int
    blocks: tuple[int, ...]
    width: int
    classifier: str
    zero_last_scale: bool
    trained: str

    @property
    def num_frozen(self) -> int:
        """How many of the parts, the stem and then the blocks, are not trained."""
        blocks = sum(self.blocks)
        return {"all": 0, "last_block": blocks, "classifier": blocks + 1}[self.trained]

    @nn.compact
    def __call__(self, images: Array, train: bool) -> tuple[Array, Array]:
        """Maps images [batch, height, width, channels] to logits [batch, num_classes] and features."""
        check_images(images)
        frozen = self.num_frozen
        stem = nn.Conv(
            self.width, (7, 7), 2, padding=3, use_bias=False, kernel_init=kaiming_normal("fan_out"), name="convolution"
        )
        hidden = max_pool_3x3(nn.relu(BatchNorm(name="norm")(stem(images), train and frozen < 1)))
        for part, (name, channels, stride) in enumerate(self._parts(), start=1):
            if part == frozen:
                hidden = jax.lax.stop_gradient(hidden)
            hidden = BottleneckBlock(channels, stride, self.zero_last_scale, name=name)(
                hidden, train and part >= frozen
            )
        if frozen > sum(self.blocks):
            hidden = jax.lax.stop_gradient(hidden)
        features = global_average_pool(hidden)
        return classify(features, self.classifier, self.num_classes), features

    def _parts(self) -> Iterator[tuple[str, int, int]]:
        """Name, channels and stride of every block."""
        for stage, blocks in enumerate(self.blocks, start=1):
            for block in range(1, blocks + 1):
                stride = 2 if stage > 1 and block == 1 else 1
                yield f"stage{stage}_block{block}", self.width * 2 ** (stage - 1), stride

    def frozen_layers(self) -> frozenset[str]:
        """The names of the layers and blocks whose parameters training leaves as they are."""
        names = [("convolution", "norm"), *((name,) for name, _, _ in self._parts())]
        return frozenset(name for part in names[: self.num_frozen] for name in part)


def resnet50(
    num_classes: int,
    *,
    width: int = 64,
    classifier: str = "linear",
    zero_last_scale: bool = False,
    trained: str = "all",
    weights: str = "",
    weights_classifier: bool = False,
) -> nn.Module:
    """ResNet-50 for large images: 25,557,032 parameters for RGB, a thousand classes and width 64.

    The layout of torchvision's model, that of most published results since 2017: stages of 3, 4, 6 and 3 bottleneck
    blocks (He et al. 2016, Table 1) with their stride in the 3x3 convolution, and shortcuts with a 1x1 convolution
    where the shape changes. Convolutions start as N(0, 2 / fan_out), the linear classifier with PyTorch's default.

    Args:
      num_classes: the number of logits.
      width: channels of the first layer; the features are 32 times as many.
      classifier: "linear" or "cosine".
      zero_last_scale: start every block as its shortcut, with a scale of 0 in its last normalisation (Goyal et al.
        2017, 5.1); torchvision's zero_init_residual.
      trained: "all"; "last_block" for the last block and the classifier, or "classifier" alone. The rest keeps its
        weights and its running statistics, by which it normalises in training as well.
      weights: a safetensors file with pretrained weights under torchvision's names, from which training starts, see
        `imbal_jax.models.bottleneck_weights`; empty for random ones.
      weights_classifier: also take the classifier from that file, which must have as many classes.

    Returns:
      A module applied as `apply(variables, images, train=...)`, images [batch, height, width, channels]
      standardised, that returns (logits [batch, num_classes], features [batch, 32 width]). In training it updates
      the collection "batch_stats".

    Raises:
      InputError: an argument is out of its range; when applied, the images are not of the shape above.
    """
    del weights, weights_classifier  # of `bottleneck_weights.pretrained`
    return _resnet("resnet50", num_classes, width, classifier, zero_last_scale, trained)


def resnet152(
    num_classes: int,
    *,
    width: int = 64,
    classifier: str = "linear",
    zero_last_scale: bool = False,
    trained: str = "all",
    weights: str = "",
    weights_classifier: bool = False,
) -> nn.Module:
    """ResNet-152 for large images: 60,192,808 parameters for RGB, a thousand classes and width 64.

    As `resnet50`, with stages of 3, 8, 36 and 3 blocks.

    Args:
      num_classes: the number of logits.
      width: see `resnet50`, as all others.
      classifier: "linear" or "cosine".
      zero_last_scale: start every block as its shortcut.
      trained: "all", "last_block" or "classifier".
      weights: a file of pretrained weights; empty for random ones.
      weights_classifier: also take the classifier from that file.

    Raises:
      InputError: an argument is out of its range; when applied, the images are not of the shape above.
    """
    del weights, weights_classifier
    return _resnet("resnet152", num_classes, width, classifier, zero_last_scale, trained)


def frozen_layers(model: BottleneckResNet, **options: Any) -> frozenset[str]:
    """The names of a model's layers and blocks that are not trained; `options` are those of its builder."""
    del options
    return model.frozen_layers()


def _resnet(
    name: str, num_classes: int, width: int, classifier: str, zero_last_scale: bool, trained: str
) -> BottleneckResNet:
    """A model, once its arguments are checked."""
    check_classifier(num_classes, classifier)
    check_size("width", width)
    if trained not in TRAINED:
        raise InputError(f"model.trained: {not_found(trained, TRAINED)}")
    return BottleneckResNet(num_classes, BLOCKS[name], width, classifier, zero_last_scale, trained)
