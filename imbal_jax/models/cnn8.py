"""The eight-layer network of symmetric cross-entropy."""

from flax import linen as nn

from imbal_jax.models.batch_norm import BatchNorm
from imbal_jax.models.convolution import Convolution3x3
from imbal_jax.models.heads import check_classifier, check_images, classify
from imbal_jax.models.initialisers import bias_uniform
from imbal_jax.models.pooling import max_pool_2x2
from imbal_jax.types import Array

# Channels of the two 3x3 convolutions before each pool.
_STAGES = (64, 128, 196)
_DENSE_UNITS = 256


class CNN8(nn.Module):
    """Six convolutions and two dense layers; see `cnn8`."""

    num_classes: int
    classifier: str

    @nn.compact
    def __call__(self, images: Array, train: bool) -> tuple[Array, Array]:
        """Maps images [batch, height, width, channels] to logits [batch, num_classes] and features [batch, 256]."""
        check_images(images, least_side=8)
        hidden, layer = images, 0
        for channels in _STAGES:
            for _ in range(2):
                layer += 1
                convolution = Convolution3x3(
                    channels, kernel_init=nn.initializers.he_uniform(), name=f"convolution{layer}"
                )
                hidden = nn.relu(BatchNorm(name=f"norm{layer}")(convolution(hidden), train))
            hidden = max_pool_2x2(hidden)
        hidden = hidden.reshape(len(hidden), -1)
        xavier = nn.initializers.glorot_uniform()
        dense = nn.Dense(_DENSE_UNITS, kernel_init=xavier, bias_init=bias_uniform(hidden.shape[-1]), name="dense1")
        features = nn.relu(BatchNorm(name="dense_norm1")(dense(hidden), train))
        logits = classify(features, self.classifier, self.num_classes, kernel_init=xavier)
        return logits, features


def cnn8(num_classes: int, *, classifier: str = "linear") -> nn.Module:
    """The network of the noisy CIFAR-10 studies: 1,639,794 parameters for 32x32 RGB images and ten classes.

    Three stages of two 3x3 convolutions with 64, 128 and 196 channels and a 2x2 max pool, a dense layer of 256 and the
    classifier, with batch normalisation and ReLU after all but the last (Wang et al. 2019, "an 8-layer CNN"; ABSGD,
    5.1, calls it a 4-layer CNN). Convolutions start as U(+-sqrt(6 / fan_in)), dense layers as Glorot's uniform.

    Args:
      num_classes: the number of logits.
      classifier: "linear" or "cosine".

    Returns:
      A module applied as `apply(variables, images, train=...)`, images [batch, height, width, channels] standardised,
      height and width >= 8, that returns (logits [batch, num_classes], features [batch, 256]). In training it updates
      the collection "batch_stats".

    Raises:
      InputError: an argument is out of its range; when applied, the images are not of the shape above.
    """
    check_classifier(num_classes, classifier)
    return CNN8(num_classes, classifier)
