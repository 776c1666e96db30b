"""Feature-wise linear modulation by a condition: the block that tells a model the hyper-parameters of its loss."""

from collections.abc import Callable
from typing import Any, NamedTuple

from flax import linen as nn

from imbal_jax.errors import InputError
from imbal_jax.models.heads import check_size
from imbal_jax.models.initialisers import bias_uniform, fan_in_uniform
from imbal_jax.types import Array, Conditioned

POSITIONS = ("convolution", "pooling")
ACTIVATIONS = ("before", "after", "between")


class FilmOptions(NamedTuple):
    """Where a FiLM block stands and what it computes; see `film`."""

    position: str
    activation: str
    around_one: bool
    units: int
    bias: bool


def film(
    *,
    position: str = "convolution",
    activation: str = "before",
    around_one: bool = False,
    units: int = 128,
    bias: bool = True,
) -> FilmOptions:
    """The FiLM block of loss-conditional training: features f become sigma f + mu, channel by channel.

    sigma and mu come from two networks, condition -> units -> channels, with a ReLU in between and PyTorch's default
    initialisation. For k hyper-parameters and c channels that is 2 (k units + units + units c + c) parameters: 17,280
    for k = 2, the 64 channels of ResNet-32 and 128 units, as in the published code. Without biases it is 2 * 8,448; the
    paper gives 8,448, which is one of the two networks (or one with a single input and a bias in its first layer).

    Args:
      position: "convolution", on the map after the last one, as the paper says (its normalisation included, and the
        shortcut of a residual network and the maxima of a pool that follow); or "pooling", on the averages over
        positions, as in the published code for ResNet-32. With the ReLU "before" the two are one function, because
        averaging commutes with the block, and both are computed on the averages, which costs less.
      activation: at "convolution", where the ReLU stands among the two steps: "before" both, which modulates
        activations (the paper's Eq. 34); "between" the scaling and the shift, ReLU(sigma f) + mu (Eq. 36); or "after"
        both, ReLU(sigma f + mu) (as Perez et al. 2018 place the block).
      around_one: scale by 1 + sigma in the place of sigma, so that a small network begins near the identity.
      units: of the hidden layers.
      bias: of all layers of the two networks.

    Raises:
      InputError: an option does not exist, or units < 1.
    """
    for name, value, valid in (("position", position, POSITIONS), ("activation", activation, ACTIVATIONS)):
        if value not in valid:
            raise InputError(f"film.{name}: expected one of {', '.join(valid)}, got {value!r}")
    if position == "pooling" and activation != "before":
        raise InputError(f"film.activation: expected 'before' with position 'pooling', got {activation!r}")
    check_size("film.units", units)
    return FilmOptions(position, activation, around_one, units, bias)


class FiLM(nn.Module):
    """Scales and shifts channels by two networks of the condition; see `film`."""

    options: FilmOptions

    @nn.compact
    def __call__(self, hidden: Array, condition: Array) -> Array:
        """The modulated activations, shaped as what they are made of.

        Args:
          hidden: [batch, ..., channels], after the ReLU where that stands before the block; otherwise before it.
          condition: of every example, [batch, k].
        """
        channels = hidden.shape[-1]
        shape = (len(hidden), *[1] * (hidden.ndim - 2), channels)
        scale = self._network("sigma", condition, channels).reshape(shape)
        shift = self._network("mu", condition, channels).reshape(shape)
        if self.options.around_one:
            scale = 1.0 + scale
        if self.options.activation == "before":
            return scale * hidden + shift
        if self.options.activation == "between":
            return nn.relu(scale * hidden) + shift
        return nn.relu(scale * hidden + shift)

    def _network(self, name: str, condition: Array, channels: int) -> Array:
        """Two dense layers, [batch, channels]."""
        output = condition
        for layer, width in (("hidden", self.options.units), ("output", channels)):
            dense = nn.Dense(
                width,
                use_bias=self.options.bias,
                kernel_init=fan_in_uniform(),
                bias_init=bias_uniform(output.shape[-1]),
                name=f"{name}_{layer}",
            )
            output = dense(output) if layer == "output" else nn.relu(dense(output))
        return output


def split_condition(inputs: Any, options: FilmOptions | None) -> tuple[Any, Array | None]:
    """What a model receives, as its images and the condition of its FiLM block.

    Args:
      inputs: images, or with a block `Conditioned` ones.
      options: of the model's block, None where it has none.

    Raises:
      InputError: the condition is missing or unexpected, or not [batch, k].
    """
    if options is None:
        if isinstance(inputs, Conditioned):
            raise InputError("inputs: a condition was given, but the model has no FiLM block; set its option film")
        return inputs, None
    if not isinstance(inputs, Conditioned):
        raise InputError("inputs: the model's FiLM block needs a condition, expected Conditioned(images, condition)")
    images, condition = inputs
    if condition.ndim != 2 or len(condition) != len(images):
        raise InputError(f"condition: expected [batch, k] with batch {len(images)}, got shape {condition.shape}")
    return images, condition


def activate(
    hidden: Array,
    options: FilmOptions | None,
    condition: Array | None,
    pool: Callable[[Array], Array] = lambda activations: activations,
) -> Array:
    """The ReLU after the last convolution, with the block where it stands there; named "film" in the parameters.

    Args:
      hidden: before the ReLU, [batch, height, width, channels].
      options: of the block, None for none.
      condition: [batch, k], None for none.
      pool: a pool of maxima that follows. The block acts on what it leaves, a quarter of the map: maxima and the ReLU
        commute, so that without the block the order makes no difference.
    """
    if options is None or condition is None or not _on_map(options):
        return pool(nn.relu(hidden))
    return FiLM(options, name="film")(pool(hidden), condition)


def modulate_pooled(features: Array, options: FilmOptions | None, condition: Array | None) -> Array:
    """The features after averaging, with the block where it stands there; named "film" in the parameters."""
    if options is None or condition is None or _on_map(options):
        return features
    return FiLM(options, name="film")(features, condition)


def _on_map(options: FilmOptions) -> bool:
    """Whether the block acts on the map itself: one after the ReLU commutes with the average that follows."""
    return options.position == "convolution" and options.activation != "before"
