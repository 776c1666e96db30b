"""The multilayer perceptron."""

from flax import linen as nn

from imbal_jax.errors import InputError
from imbal_jax.models.heads import check_classifier, check_dropout, check_images, check_size, classify
from imbal_jax.models.initialisers import bias_uniform, fan_in_uniform
from imbal_jax.types import Array


class MLP(nn.Module):
    """Dense layers with ReLU and dropout on the flattened image; see `mlp`."""

    num_classes: int
    hidden: tuple[int, ...]
    classifier: str
    dropout: float

    @nn.compact
    def __call__(self, images: Array, train: bool) -> tuple[Array, Array]:
        """Maps images [batch, height, width, channels] to logits [batch, num_classes] and features."""
        check_images(images)
        features = images.reshape(len(images), -1)
        for layer, width in enumerate(self.hidden, start=1):
            dense = nn.Dense(
                width,
                kernel_init=fan_in_uniform(),
                bias_init=bias_uniform(features.shape[-1]),
                name=f"dense{layer}",
            )
            features = nn.Dropout(self.dropout, deterministic=not train)(nn.relu(dense(features)))
        return classify(features, self.classifier, self.num_classes), features


def mlp(
    num_classes: int,
    *,
    hidden: tuple[int, ...] = (64, 64),
    classifier: str = "linear",
    dropout: float = 0.0,
) -> nn.Module:
    """A multilayer perceptron with ReLU, in PyTorch's default initialisation.

    Args:
      num_classes: the number of logits.
      hidden: units of each hidden layer; the last is the number of features. Empty gives softmax regression, whose
        features are the pixels.
      classifier: "linear" or "cosine".
      dropout: the share of each hidden layer's units set to zero in training.

    Returns:
      A module applied as `apply(variables, images, train=...)`, images [batch, height, width, channels]
      standardised, that returns (logits [batch, num_classes], features [batch, num_features]).

    Raises:
      InputError: an argument is out of its range; when applied, the images are not of the shape above.
    """
    check_classifier(num_classes, classifier)
    if not isinstance(hidden, tuple | list):
        raise InputError(f"hidden: expected a tuple of layer sizes, got {hidden!r}")
    for width in hidden:
        check_size("hidden", width)
    check_dropout(dropout)
    return MLP(num_classes, tuple(hidden), classifier, dropout)
