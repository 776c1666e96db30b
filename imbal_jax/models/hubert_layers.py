"""What a HuBERT is, what it receives, and its first half, the convolutions on the waveform."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.nn.initializers import Initializer

from imbal_jax.errors import InputError
from imbal_jax.models.activations import gelu
from imbal_jax.models.heads import check_size
from imbal_jax.models.initialisers import kaiming_normal
from imbal_jax.models.lora import FrozenConv, FrozenDense, FrozenLayerNorm, LoraDense, LoraSpec, frozen_param
from imbal_jax.types import Array, Waveforms

Padding = Literal["exact", "hf_mask", "hf_nomask"]
PADDINGS = ("exact", "hf_mask", "hf_nomask")

_CONV_NORM_EPSILON = 1e-5  # of the convolutions' norms, whatever layer_norm_eps says
_RATES = ("hidden_dropout", "activation_dropout", "attention_dropout", "feat_proj_dropout", "layerdrop")
_SIZES = (
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "num_conv_pos_embeddings"),
    *("num_conv_pos_embedding_groups", "mask_time_length", "mask_feature_length"),
)
_SPAN_COUNTS = ("mask_time_min_masks", "mask_feature_min_masks")
_DENSE_INIT = nn.initializers.normal(0.02)
_Lengths = TypeVar("_Lengths", int, np.ndarray, Array)


@dataclass(frozen=True)
class HubertConfig:
    """The architecture of a HuBERT and the noise of its training, under Hugging Face's names and defaults.

    The defaults are HuBERT Base (Hsu et al. 2021, Table 1). Activations are the exact GELU throughout.

    Attributes:
      conv_dim: channels of the convolutions on the waveform, one entry each.
      conv_kernel: their kernel sizes.
      conv_stride: their strides.
      conv_bias: whether they have biases.
      feat_extract_norm: "group": the first is normalised per channel over time; "layer": each over its channels.
      feat_proj_layer_norm: whether their output is normalised before it is projected.
      hidden_size: of the transformer.
      num_hidden_layers: of the transformer.
      num_attention_heads: divides hidden_size.
      intermediate_size: of the feed-forward networks.
      num_conv_pos_embeddings: kernel size of the positional convolution.
      num_conv_pos_embedding_groups: of the positional convolution.
      layer_norm_eps: added to variances in the transformer.
      do_stable_layer_norm: normalise before attention and feed-forward network rather than after.
      hidden_dropout: rate after attention, feed-forward network and positional convolution.
      activation_dropout: rate within the feed-forward network.
      attention_dropout: rate of attention weights.
      feat_proj_dropout: rate after the projection of the convolutions' output.
      layerdrop: probability that a transformer layer is skipped for a whole batch.
      apply_spec_augment: whether frames and channels are masked in training (Park et al. 2019).
      mask_time_prob: upper bound of the share of frames that is masked.
      mask_time_length: frames of one masked span.
      mask_time_min_masks: least number of spans, which wins over mask_time_prob.
      mask_feature_prob: as for frames, for channels.
      mask_feature_length: likewise.
      mask_feature_min_masks: likewise.

    Raises:
      InputError: a value is out of its range, or two do not go together.
    """

    conv_dim: tuple[int, ...] = (512,) * 7
    conv_kernel: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
    conv_stride: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
    conv_bias: bool = False
    feat_extract_norm: str = "group"
    feat_proj_layer_norm: bool = True
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    num_conv_pos_embeddings: int = 128
    num_conv_pos_embedding_groups: int = 16
    layer_norm_eps: float = 1e-5
    do_stable_layer_norm: bool = False
    hidden_dropout: float = 0.1
    activation_dropout: float = 0.1
    attention_dropout: float = 0.1
    feat_proj_dropout: float = 0.0
    layerdrop: float = 0.1
    apply_spec_augment: bool = True
    mask_time_prob: float = 0.05
    mask_time_length: int = 10
    mask_time_min_masks: int = 2
    mask_feature_prob: float = 0.0
    mask_feature_length: int = 10
    mask_feature_min_masks: int = 0

    def __post_init__(self) -> None:
        for name in (*_SIZES, *_SPAN_COUNTS):
            check_size(name, getattr(self, name), least=0 if name in _SPAN_COUNTS else 1)
        for name in (*_RATES, "layer_norm_eps", "mask_time_prob", "mask_feature_prob"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not (0 <= value < 1 or (value == 1 and name.endswith("prob"))):
                raise InputError(f"{name}: expected a number in [0, 1), got {value!r}")
        for name in ("conv_bias", "feat_proj_layer_norm", "do_stable_layer_norm", "apply_spec_augment"):
            if not isinstance(getattr(self, name), bool):
                raise InputError(f"{name}: expected true or false, got {getattr(self, name)!r}")
        for name in ("conv_dim", "conv_kernel", "conv_stride"):
            value = getattr(self, name)
            if not isinstance(value, tuple) or not value or len(value) != len(self.conv_dim):
                raise InputError(f"{name}: expected a tuple with one entry per convolution, got {value!r}")
            for entry in value:
                check_size(name, entry)
        if self.feat_extract_norm not in ("group", "layer"):
            raise InputError(f"feat_extract_norm: expected 'group' or 'layer', got {self.feat_extract_norm!r}")
        for name in ("num_attention_heads", "num_conv_pos_embedding_groups"):
            if self.hidden_size % getattr(self, name):
                raise InputError(f"{name}: expected a divisor of {self.hidden_size}, got {getattr(self, name)}")

    @property
    def has_mask_embedding(self) -> bool:
        """Whether there is a vector that takes the place of masked frames."""
        return self.mask_time_prob > 0 or self.mask_feature_prob > 0


HUBERT_BASE = HubertConfig()
HUBERT_TINY = HubertConfig(
    conv_dim=(16,) * 7,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=64,
    num_conv_pos_embeddings=16,
    num_conv_pos_embedding_groups=4,
)


def hf_train(config: HubertConfig) -> HubertConfig:
    """The configuration with the noise that Hugging Face's defaults have in training.

    Dropout of 0.1 on hidden states, activations and attention, layers dropped with probability 0.1, and SpecAugment
    with two spans of ten frames or more. The dropout after the projection is left as it is: it is off by default, and
    on in some checkpoints. A checkpoint's own config.json, as read, is what Hugging Face trains it with.

    Raises:
      InputError: the configuration has no vector to mask frames with.
    """
    if not config.has_mask_embedding:
        raise InputError(
            "config: expected masked_spec_embed for SpecAugment, but mask_time_prob and mask_feature_prob are 0"
        )
    names = [name for name in _RATES if name != "feat_proj_dropout"] + ["apply_spec_augment"]
    names += [f"mask_{axis}_{name}" for axis in ("time", "feature") for name in ("prob", "length", "min_masks")]
    return dataclasses.replace(config, **{name: getattr(HUBERT_BASE, name) for name in names})


def deterministic(config: HubertConfig) -> HubertConfig:
    """The configuration without noise in training: no dropout, no dropped layers, no SpecAugment."""
    return dataclasses.replace(config, apply_spec_augment=False, **dict.fromkeys(_RATES, 0.0))  # type: ignore[arg-type]


class Features(NamedTuple):
    """What the convolutions make of clips."""

    frames: Array  # [batch, frames, channels] floating
    lengths: Array  # [batch] int32, frames of each clip


def frame_lengths(config: HubertConfig, lengths: _Lengths) -> _Lengths:
    """How many frames the convolutions make of clips of so many samples; 0 for clips that are too short.

    Args:
      config: of the convolutions.
      lengths: a number or an array of numbers, in samples.
    """
    for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
        lengths = (lengths - kernel) // stride + 1
    return lengths * (lengths > 0)


def least_samples(config: HubertConfig) -> int:
    """The number of samples that make one frame: 400 for HuBERT Base, 25 ms at 16 kHz."""
    needed = 1
    for kernel, stride in zip(reversed(config.conv_kernel), reversed(config.conv_stride), strict=True):
        needed = (needed - 1) * stride + kernel
    return needed


def check_inputs(config: HubertConfig, inputs: Waveforms | Features) -> None:
    """Refuses inputs that have no frames, or are no batch of clips; lengths are looked at where they are known.

    Raises:
      InputError: the shapes, types or lengths are wrong.
    """
    if isinstance(inputs, Waveforms):
        name, array, rank, least = "samples", inputs.samples, 2, least_samples(config)
    elif isinstance(inputs, Features):
        name, array, rank, least = "frames", inputs.frames, 3, 1
    else:
        raise InputError(f"inputs: expected Waveforms or Features, got {type(inputs).__name__}")
    if array.ndim != rank or array.shape[1] < least or not jnp.issubdtype(array.dtype, jnp.floating):
        expected = "[batch, length]" if rank == 2 else "[batch, frames, channels]"
        raise InputError(
            f"{name}: expected floating {expected} with at least {least} {name}, got {array.dtype} {array.shape}"
        )
    if inputs.lengths.shape != array.shape[:1] or not jnp.issubdtype(inputs.lengths.dtype, jnp.integer):
        raise InputError(
            f"lengths: expected {len(array)} whole numbers, got {inputs.lengths.dtype} {inputs.lengths.shape}"
        )
    if not isinstance(inputs.lengths, jax.core.Tracer):
        for clip, length in enumerate(np.asarray(inputs.lengths).tolist()):
            if not least <= length <= array.shape[1]:
                raise InputError(
                    f"lengths: expected {least} to {array.shape[1]} {name} in every clip, got {length} in clip {clip}"
                )


def frame_mask(lengths: Array, frames: int) -> Array:
    """Which of so many frames belong to the clips, [batch, frames]."""
    return jnp.arange(frames) < lengths[:, None]


def masked_mean(frames: Array, mask: Array | None) -> Array:
    """The mean over frames [batch, frames, channels] in float32 or wider; 0 where a clip has none.

    Args:
      frames: to average.
      mask: [batch, frames], which count; None for all.
    """
    wide = frames.astype(jnp.promote_types(frames.dtype, jnp.float32))
    if mask is None:
        return wide.mean(axis=1)
    count = jnp.maximum(mask.sum(axis=1), 1).astype(wide.dtype)
    return jnp.where(mask[..., None], wide, 0).sum(axis=1) / count[:, None]


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

    def layer_norm(self, name: str, epsilon: float | None = None) -> nn.Module:
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


def span_mask(key: Array, lengths: Array, frames: int, *, share: float, span: int, least: int) -> Array:
    """Random spans to mask, [batch, frames], as Hugging Face draws them for SpecAugment.

    Every clip has share * length / span spans, rounded up or down at random but alike for all clips, and no fewer than
    `least`, as far as they fit; they start anywhere, may overlap, and no two start at the same place.

    Args:
      key: of the random numbers.
      lengths: [batch], the spans lie within the first so many frames.
      frames: the length of the mask.
      share: upper bound of the share that is masked, but for `least`.
      span: frames of one span.
      least: number of spans.
    """
    rounding, order = jax.random.split(key)
    count = jnp.floor(share * lengths / span + jax.random.uniform(rounding)).astype(jnp.int32)
    starts = jnp.maximum(lengths - span + 1, 0)
    count = jnp.minimum(jnp.minimum(jnp.maximum(count, least), lengths // span), starts)
    possible = frame_mask(starts, frames)
    drawn = jnp.where(possible, jax.random.uniform(order, possible.shape), jnp.inf)
    # The indices of the possible places come first, as a random permutation of them.
    begins = (drawn.argsort(axis=1) < count[:, None]) & possible
    begun = jnp.cumsum(begins, axis=1)
    ended = jnp.pad(begun, ((0, 0), (span, 0)))[:, :frames]
    return begun > ended
