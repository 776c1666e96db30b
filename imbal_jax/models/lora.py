"""Low-rank adaptation of dense layers, and Flax's layers with weights that are not trained."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from imbal_jax.errors import InputError, not_found
from imbal_jax.models.activations import normalise_channels
from imbal_jax.models.heads import check_size
from imbal_jax.models.initialisers import fan_in_uniform
from imbal_jax.types import Array

ATTENTION_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj")
FEED_FORWARD_TARGETS = ("intermediate_dense", "output_dense")
TARGETS = ATTENTION_TARGETS + FEED_FORWARD_TARGETS


@dataclass(frozen=True)
class LoraSpec:
    """Which dense layers of a transformer are adapted, and how (Hu et al. 2022).

    Attributes:
      rank: r, of the update.
      alpha: the update is multiplied by alpha / r.
      dropout: share of a layer's inputs that its update does not see in training.
      targets: names out of `TARGETS`.
      layers: indices of the transformer layers, from 0; None for all.
      rank_stabilised: multiply by alpha / sqrt(r) instead (Kalajdzievski 2023; "use_rslora" in peft).

    Raises:
      InputError: a value is out of its range.
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    targets: tuple[str, ...] = ("q_proj", "v_proj")
    layers: tuple[int, ...] | None = None
    rank_stabilised: bool = False

    def __post_init__(self) -> None:
        check_size("rank", self.rank)
        if not isinstance(self.alpha, Real) or not (math.isfinite(self.alpha) and self.alpha > 0):
            raise InputError(f"alpha: expected a number > 0, got {self.alpha!r}")
        if not isinstance(self.dropout, Real) or not 0 <= self.dropout < 1:
            raise InputError(f"dropout: expected a rate in [0, 1), got {self.dropout!r}")
        self._check_names("targets", self.targets, str)
        for name in self.targets:
            if name not in TARGETS:
                raise InputError(f"targets: {not_found(name, TARGETS)}")
        if self.layers is not None:
            self._check_names("layers", self.layers, Integral)
            if min(self.layers) < 0:
                raise InputError(f"layers: expected indices >= 0, got {self.layers!r}")

    @property
    def scale(self) -> float:
        """What the update is multiplied by."""
        return self.alpha / (math.sqrt(self.rank) if self.rank_stabilised else self.rank)

    def adapts(self, target: str, layer: int) -> bool:
        """Whether a dense layer of a transformer layer is adapted."""
        return target in self.targets and (self.layers is None or layer in self.layers)

    def _check_names(self, name: str, value: Any, kind: type) -> None:
        """Refuses what is no tuple of different entries of a kind."""
        entries = value if isinstance(value, tuple) else ()
        if not entries or not all(isinstance(entry, kind) for entry in entries) or len(set(entries)) < len(entries):
            raise InputError(f"{name}: expected a tuple of different entries, at least one, got {value!r}")


def check_layers(lora: LoraSpec, num_layers: int) -> None:
    """Refuses layers that a transformer does not have.

    Raises:
      InputError: an index is too large.
    """
    if lora.layers is not None and max(lora.layers) >= num_layers:
        raise InputError(f"layers: expected indices below {num_layers}, the number of layers, got {lora.layers!r}")


def frozen_param(module: nn.Module, name: str, init_fn: Callable, *init_args: Any, **init_kwargs: Any) -> Array:
    """`module.param` for a weight in the collection "frozen", which is neither differentiated nor updated."""
    return module.variable("frozen", name, lambda: init_fn(module.make_rng("params"), *init_args, **init_kwargs)).value


class FrozenWeights:
    """Mixed into a Flax layer, puts its weights into the collection "frozen" instead of "params".

    The layer's own code asks for its weights by `param`, which is all that changes.
    """

    def param(self, name: str, init_fn: Callable, *init_args: Any, unbox: bool = True, **init_kwargs: Any) -> Any:
        """The weight of that name, initialised as it would be among the parameters."""
        del unbox
        module: Any = self
        return frozen_param(module, name, init_fn, *init_args, **init_kwargs)


class FrozenDense(FrozenWeights, nn.Dense):
    """`flax.linen.Dense` whose weights are in the collection "frozen"."""


class FrozenConv(FrozenWeights, nn.Conv):
    """`flax.linen.Conv` whose weights are in the collection "frozen"."""


class FrozenLayerNorm(nn.Module):
    """`flax.linen.LayerNorm(use_fast_variance=False)` whose weights are in the collection "frozen".

    Attributes:
      epsilon: added to the variance; the default is Flax's.
      dtype: of the result; by default that of inputs and weights.
    """

    epsilon: float = 1e-6
    dtype: Any = None

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        """Normalises [..., channels] over the channels, with statistics in float32 or wider."""
        scale = frozen_param(self, "scale", nn.initializers.ones, inputs.shape[-1:])
        bias = frozen_param(self, "bias", nn.initializers.zeros, inputs.shape[-1:])
        wide = inputs.astype(jnp.promote_types(inputs.dtype, jnp.float32))
        result = normalise_channels(wide, self.epsilon) * scale + bias
        return result.astype(self.dtype or jnp.result_type(inputs, scale, bias))


class LoraDense(nn.Module):
    """A dense layer with a low-rank update, W x + b + scale B A dropout(x) (Hu et al. 2022, Eq. 3).

    A starts as U(+-1 / sqrt(inputs)) and B as zero. They are dense layers "lora_A" and "lora_B" beside the weights of
    the layer they adapt.

    Attributes:
      base: the layer to adapt; it gives its name and place to this module.
      spec: of the update.
      dtype: of the computation; by default that of inputs and weights.
    """

    base: nn.Dense
    spec: LoraSpec
    dtype: Any = None

    def setup(self) -> None:
        """Takes the place of the layer."""
        nn.share_scope(self, self.base)

    @nn.compact
    def __call__(self, inputs: Array, train: bool) -> Array:
        """Maps [batch, ..., inputs] to [batch, ..., outputs]."""
        seen = nn.Dropout(self.spec.dropout, deterministic=not train, name="lora_dropout")(inputs)
        down = nn.Dense(self.spec.rank, use_bias=False, dtype=self.dtype, kernel_init=fan_in_uniform(), name="lora_A")
        up = nn.Dense(
            self.base.features, use_bias=False, dtype=self.dtype, kernel_init=nn.initializers.zeros, name="lora_B"
        )
        return self.base(inputs) + self.spec.scale * up(down(seen))
