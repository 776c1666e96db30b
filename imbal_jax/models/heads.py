"""The classifier layers, and the checks of what all image models take."""

from numbers import Integral, Real

import jax.numpy as jnp
from flax import linen as nn
from jax.nn.initializers import Initializer

from imbal_jax.errors import InputError
from imbal_jax.models.initialisers import bias_uniform, fan_in_uniform, unit_columns
from imbal_jax.types import Array

CLASSIFIERS = ("linear", "cosine")

# As in PyTorch's F.normalize.
_SMALLEST_NORM = 1e-12


def normalise(vectors: Array, axis: int) -> Array:
    """Scales vectors along `axis` to unit Euclidean norm; those shorter than 1e-12 are divided by 1e-12.

    The gradient is finite everywhere: at a zero vector it is that of the division by 1e-12, as in PyTorch.
    """
    squared = jnp.square(vectors).sum(axis, keepdims=True)
    long_enough = squared > _SMALLEST_NORM**2
    # The inner where keeps the infinite slope of the square root at 0 out of the gradient.
    norm = jnp.where(long_enough, jnp.sqrt(jnp.where(long_enough, squared, 1.0)), _SMALLEST_NORM)
    return vectors / norm


class CosineClassifier(nn.Module):
    """Logits that are the cosines of the angles between the features and each class's weight column, in [-1, 1].

    There is no bias and no scale: the losses made for it, LDAM first, bring their own (Cao et al. 2019).
    """

    num_classes: int

    @nn.compact
    def __call__(self, features: Array) -> Array:
        """The cosines [batch, num_classes] of `features` [batch, num_features]."""
        kernel = self.param("kernel", unit_columns, (features.shape[-1], self.num_classes), jnp.float32)
        return normalise(features, axis=-1) @ normalise(kernel, axis=0)


def classify(
    features: Array,
    classifier: str,
    num_classes: int,
    *,
    kernel_init: Initializer | None = None,
    bias_init: Initializer | None = None,
) -> Array:
    """Applies the last layer, named "classifier" in the parameters of the compact module that calls this.

    Args:
      features: [batch, num_features].
      classifier: "linear" or "cosine".
      num_classes: the number of logits.
      kernel_init: the linear layer's initial weights; PyTorch's default U(+-1/sqrt(num_features)) unless given.
      bias_init: the linear layer's initial bias; PyTorch's default unless given.

    Returns:
      Logits [batch, num_classes].
    """
    if classifier == "cosine":
        return CosineClassifier(num_classes, name="classifier")(features)
    return nn.Dense(
        num_classes,
        kernel_init=kernel_init or fan_in_uniform(),
        bias_init=bias_init or bias_uniform(features.shape[-1]),
        name="classifier",
    )(features)


def check_classifier(num_classes: int, classifier: str) -> None:
    """Refuses a last layer that cannot be built.

    Raises:
      InputError: num_classes is not a whole number >= 2, or the classifier is unknown.
    """
    check_size("num_classes", num_classes, least=2)
    if classifier not in CLASSIFIERS:
        raise InputError(f"classifier: expected one of {', '.join(CLASSIFIERS)}, got {classifier!r}")


def check_size(name: str, value: int, *, least: int = 1) -> None:
    """Refuses a number of units.

    Raises:
      InputError: value is not a whole number >= least.
    """
    if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
        raise InputError(f"{name}: expected a whole number >= {least}, got {value!r}")


def check_dropout(rate: float) -> None:
    """Refuses a dropout rate.

    Raises:
      InputError: rate is not a number in [0, 1).
    """
    if not isinstance(rate, Real) or not 0 <= rate < 1:
        raise InputError(f"dropout: expected a rate in [0, 1), got {rate!r}")


def check_images(images: Array, *, least_side: int = 1) -> None:
    """Refuses a model's input.

    Raises:
      InputError: the images are not floating [batch, height, width, channels] or are smaller than least_side.
    """
    if images.ndim != 4 or min(images.shape[1:3]) < least_side:
        raise InputError(
            f"images: expected [batch, height, width, channels] with height and width >= {least_side}, got shape"
            f" {images.shape}"
        )
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise InputError(f"images: expected standardised floating-point numbers, got {images.dtype}")
