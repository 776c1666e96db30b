"""VGG11 with batch normalisation."""

from flax import linen as nn

from imbal_jax.models.batch_norm import BatchNorm
from imbal_jax.models.convolution import Convolution3x3
from imbal_jax.models.film import FilmOptions, activate, modulate_pooled, split_condition
from imbal_jax.models.heads import check_classifier, check_dropout, check_images, classify
from imbal_jax.models.initialisers import kaiming_normal
from imbal_jax.models.pooling import global_average_pool, max_pool_2x2
from imbal_jax.types import Array, Conditioned

# Channels of the 3x3 convolutions between two pools: configuration A, Table 1 of Simonyan and Zisserman 2015.
_STAGES = ((64,), (128,), (256, 256), (512, 512), (512, 512))
_CONVOLUTIONS = sum(map(len, _STAGES))
_DENSE_UNITS = 4096


class VGG11(nn.Module):
    """Eight convolutions and three dense layers; see `vgg11_bn`."""

    num_classes: int
    classifier: str
    dropout: float
    film: FilmOptions | None = None

    @nn.compact
    def __call__(self, inputs: Array | Conditioned, train: bool) -> tuple[Array, Array]:
        """Maps images [batch, height, width, channels] to logits [batch, num_classes] and features [batch, 4096]."""
        images, condition = split_condition(inputs, self.film)
        check_images(images, least_side=32)
        hidden, layer = images, 0
        for stage in _STAGES:
            for channels in stage:
                layer += 1
                convolution = Convolution3x3(
                    channels, kernel_init=kaiming_normal("fan_out"), name=f"convolution{layer}"
                )
                hidden = BatchNorm(name=f"norm{layer}")(convolution(hidden), train)
                hidden = nn.relu(hidden) if layer < _CONVOLUTIONS else hidden
            hidden = max_pool_2x2(hidden) if layer < _CONVOLUTIONS else hidden
        hidden = activate(hidden, self.film, condition, max_pool_2x2)
        features = modulate_pooled(global_average_pool(hidden), self.film, condition)
        small_normal = nn.initializers.normal(0.01)
        for layer in (1, 2):
            dense = nn.Dense(_DENSE_UNITS, kernel_init=small_normal, name=f"dense{layer}")
            features = nn.Dropout(self.dropout, deterministic=not train)(nn.relu(dense(features)))
        logits = classify(
            features,
            self.classifier,
            self.num_classes,
            kernel_init=small_normal,
            bias_init=nn.initializers.zeros,
        )
        return logits, features


def vgg11_bn(
    num_classes: int, *, classifier: str = "linear", dropout: float = 0.5, film: FilmOptions | None = None
) -> nn.Module:
    """VGG11 with batch normalisation for small images: 28,149,514 parameters for RGB and ten classes.

    Configuration A of Simonyan and Zisserman 2015 with a batch normalisation after every convolution and dense
    layers 512-4096-4096-num_classes, initialised as in torchvision: convolutions N(0, 2 / fan_out), dense layers
    N(0, 0.01^2), biases 0. Images larger than 32x32 leave more than one position after the five pools; these are
    averaged, where torchvision, made for 224x224, keeps 7x7 of them.

    Args:
      num_classes: the number of logits.
      classifier: "linear" or "cosine".
      dropout: the share of each dense layer's 4096 units set to zero in training.
      film: a block that takes a condition, for loss-conditional training; none by default. The images are then
        `Conditioned`.

    Returns:
      A module applied as `apply(variables, images, train=...)`, images [batch, height, width, channels]
      standardised, height and width >= 32, that returns (logits [batch, num_classes], features [batch, 4096]).
      In training it updates the collection "batch_stats" and draws from the rng "dropout".

    Raises:
      InputError: an argument is out of its range; when applied, the images are not of the shape above.
    """
    check_classifier(num_classes, classifier)
    check_dropout(dropout)
    return VGG11(num_classes, classifier, dropout, film)
