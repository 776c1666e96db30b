"""A small convolutional network."""

from flax import linen as nn

from imbal_jax.models.batch_norm import BatchNorm
from imbal_jax.models.convolution import Convolution3x3
from imbal_jax.models.film import FilmOptions, activate, modulate_pooled, split_condition
from imbal_jax.models.heads import check_classifier, check_images, check_size, classify
from imbal_jax.models.initialisers import kaiming_normal
from imbal_jax.models.pooling import global_average_pool, max_pool_2x2
from imbal_jax.types import Array, Conditioned


class CNN(nn.Module):
    """Two stages of convolution, batch normalisation, ReLU and pooling; see `cnn`."""

    num_classes: int
    width: int
    classifier: str
    film: FilmOptions | None = None

    @nn.compact
    def __call__(self, inputs: Array | Conditioned, train: bool) -> tuple[Array, Array]:
        """Maps images [batch, height, width, channels] to logits [batch, num_classes] and features."""
        images, condition = split_condition(inputs, self.film)
        check_images(images, least_side=4)
        hidden = images
        for layer, channels in enumerate((self.width, 2 * self.width), start=1):
            convolution = Convolution3x3(
                channels, use_bias=False, kernel_init=kaiming_normal("fan_in"), name=f"convolution{layer}"
            )
            hidden = BatchNorm(name=f"norm{layer}")(convolution(hidden), train)
            if layer == 1:
                hidden = max_pool_2x2(nn.relu(hidden))
        hidden = activate(hidden, self.film, condition, max_pool_2x2)
        features = modulate_pooled(global_average_pool(hidden), self.film, condition)
        return classify(features, self.classifier, self.num_classes), features


def cnn(num_classes: int, *, width: int = 16, classifier: str = "linear", film: FilmOptions | None = None) -> nn.Module:
    """A small convolutional network for quick studies: 5,178 parameters for 8x8 grey digits and width 16.

    Two 3x3 convolutions with width and 2 width channels, each with batch normalisation, ReLU and a 2x2 max pool,
    then the average over positions; a dense layer in its place nearly triples the parameters and did no better on
    the digits.

    Args:
      num_classes: the number of logits.
      width: channels of the first convolution.
      classifier: "linear" or "cosine".
      film: a block that takes a condition, for loss-conditional training; none by default. The images are then
        `Conditioned`.

    Returns:
      A module applied as `apply(variables, images, train=...)`, images [batch, height, width, channels]
      standardised, height and width >= 4, that returns (logits [batch, num_classes], features [batch, 2 width]).
      In training it updates the collection "batch_stats".

    Raises:
      InputError: an argument is out of its range; when applied, the images are not of the shape above.
    """
    check_classifier(num_classes, classifier)
    check_size("width", width)
    return CNN(num_classes, width, classifier, film)
