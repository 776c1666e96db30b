"""The first half of a HuBERT, the convolutions on the waveform, and what all its modules share."""

from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.nn.initializers import Initializer

from imbal_jax.models.activations import gelu
from imbal_jax.models.hubert_config import (
    HUBERT_BASE,
    HUBERT_TINY,
    HubertConfig,
    deterministic,
    frame_lengths,
    hf_train,
    least_samples,
)
from imbal_jax.models.hubert_inputs import Features, check_inputs, frame_mask, masked_mean, span_mask
from imbal_jax.models.initialisers import kaiming_normal
from imbal_jax.models.lora import FrozenConv, FrozenDense, FrozenLayerNorm, LoraDense, LoraSpec, frozen_param
from imbal_jax.types import Array, Waveforms

# With the names of config and inputs, which are part of what a HuBERT's layers are made from.
__all__ = [
    "HUBERT_BASE",
    "HUBERT_TINY",
    "PADDINGS",
    "Blueprint",
    "ChannelNorm",
    "ConvLayer",
    "FeatureExtractor",
    "FeatureProjection",
    "Features",
    "HubertConfig",
    "Padding",
    "check_inputs",
    "deterministic",
    "frame_lengths",
    "frame_mask",
    "hf_train",
    "least_samples",
    "masked_mean",
    "span_mask",
]

Padding = Literal["exact", "hf_mask", "hf_nomask"]
PADDINGS = ("exact", "hf_mask", "hf_nomask")

_CONV_NORM_EPSILON = 1e-5  # of the convolutions' norms, whatever layer_norm_eps says
_DENSE_INIT = nn.initializers.normal(0.02)


@dataclass(frozen=True)
class Blueprint:
    """What all modules of one HuBERT have in common.

    Attributes:
      config: the architecture.
      lora: the adaptation of its dense layers, if any.
      padding: how padding is treated.
      frozen: whether the weights are in the collection "frozen" rather than in "params".
      dtype: of the computation; by default that of inputs and weights.
    """

    config: HubertConfig
    lora: LoraSpec | None
    padding: str
    frozen: bool
    dtype: Any

    def weight(self, module: nn.Module, name: str, init: Initializer, shape: tuple[int, ...]) -> Array:
        """A weight of a module itself."""
        return frozen_param(module, name, init, shape) if self.frozen else module.param(name, init, shape)

    def conv(self, features: int, kernel: int, name: str, **options: Any) -> nn.Conv:
        """A convolution over time."""
        kind = FrozenConv if self.frozen else nn.Conv
        init = kaiming_normal("fan_in")
        return kind(features, (kernel,), kernel_init=init, dtype=self.dtype, name=name, **options)

    def dense(self, features: int, name: str) -> nn.Dense:
        """A dense layer."""
        kind = FrozenDense if self.frozen else nn.Dense
        return kind(features, kernel_init=_DENSE_INIT, dtype=self.dtype, name=name)

    def layer_norm(self, name: str | None = None, epsilon: float | None = None) -> nn.Module:
        """A normalisation over channels, with statistics in float32."""
        epsilon = self.config.layer_norm_eps if epsilon is None else epsilon
        if self.frozen:
            return FrozenLayerNorm(epsilon, self.dtype, name=name)
        return nn.LayerNorm(epsilon, use_fast_variance=False, dtype=self.dtype, name=name)

    def adapted(self, target: str, layer: int, features: int, inputs: Array, train: bool) -> Array:
        """Applies a dense layer of a transformer layer, with its low-rank update where it has one."""
        base = self.dense(features, target)
        if self.lora is None or not self.lora.adapts(target, layer):
            return base(inputs)
        return LoraDense(base, self.lora, self.dtype)(inputs, train)


class ChannelNorm(nn.Module):
    """Normalises every channel of every clip by its mean and variance over time (group norm, one channel a group)."""

    blueprint: Blueprint

    @nn.compact
    def __call__(self, frames: Array, mask: Array | None) -> Array:
        """Normalises frames [batch, frames, channels] by the statistics of those in the mask [batch, frames]."""
        scale = self.blueprint.weight(self, "scale", nn.initializers.ones, frames.shape[-1:])
        bias = self.blueprint.weight(self, "bias", nn.initializers.zeros, frames.shape[-1:])
        # In float32 or wider.
        centred = frames - masked_mean(frames, mask)[:, None]
        variance = masked_mean(jnp.square(centred), mask)[:, None]
        normalised = centred * jax.lax.rsqrt(variance + _CONV_NORM_EPSILON) * scale + bias
        return normalised.astype(self.blueprint.dtype or jnp.result_type(frames, scale))


class ConvLayer(nn.Module):
    """One of the convolutions on the waveform, with the norm it has, and GELU."""

    blueprint: Blueprint
    index: int

    @nn.compact
    def __call__(self, frames: Array, mask: Array | None) -> Array:
        """Maps [batch, frames, channels] to fewer frames; `mask` [batch, fewer frames] tells those of the clips."""
        blueprint, config, i = self.blueprint, self.blueprint.config, self.index
        convolution = blueprint.conv(
            config.conv_dim[i],
            config.conv_kernel[i],
            "conv",
            strides=(config.conv_stride[i],),
            padding="VALID",
            use_bias=config.conv_bias,
        )
        hidden = convolution(frames)
        if config.feat_extract_norm == "layer":
            hidden = blueprint.layer_norm("layer_norm", _CONV_NORM_EPSILON)(hidden)
        elif i == 0:
            hidden = ChannelNorm(blueprint, name="layer_norm")(hidden, mask)
        return gelu(hidden)


class FeatureExtractor(nn.Module):
    """The convolutions on the waveform."""

    blueprint: Blueprint

    @nn.compact
    def __call__(self, waveforms: Waveforms) -> Features:
        """Maps clips to frames; with padding "exact" to those of each clip alone, followed by some of no meaning."""
        config = self.blueprint.config
        frames, lengths = waveforms.samples[..., None], waveforms.lengths
        for i, (kernel, stride) in enumerate(zip(config.conv_kernel, config.conv_stride, strict=True)):
            lengths = (lengths - kernel) // stride + 1
            mask = None
            if i == 0 and self.blueprint.padding == "exact":
                mask = frame_mask(lengths, (frames.shape[1] - kernel) // stride + 1)
            frames = ConvLayer(self.blueprint, i, name=f"conv_layers_{i}")(frames, mask)
        if self.blueprint.frozen:
            frames = jax.lax.stop_gradient(frames)
        return Features(frames, jnp.maximum(lengths, 0))


class FeatureProjection(nn.Module):
    """From the convolutions' channels to the transformer's."""

    blueprint: Blueprint

    @nn.compact
    def __call__(self, frames: Array, train: bool) -> Array:
        """Maps [batch, frames, channels] to [batch, frames, hidden_size]."""
        config = self.blueprint.config
        if config.feat_proj_layer_norm:
            frames = self.blueprint.layer_norm("layer_norm")(frames)
        hidden = self.blueprint.dense(config.hidden_size, "projection")(frames)
        return nn.Dropout(config.feat_proj_dropout, deterministic=not train)(hidden)
