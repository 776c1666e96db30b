"""What a HuBERT is: its architecture and the noise of its training."""

import dataclasses
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from imbal_jax.errors import InputError
from imbal_jax.models.heads import check_size
from imbal_jax.types import Array

_RATES = ("hidden_dropout", "activation_dropout", "attention_dropout", "feat_proj_dropout", "layerdrop")
_SIZES = (
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "num_conv_pos_embeddings"),
    *("num_conv_pos_embedding_groups", "mask_time_length", "mask_feature_length"),
)
_SPAN_COUNTS = ("mask_time_min_masks", "mask_feature_min_masks")
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

    @property
    def has_early_noise(self) -> bool:
        """Whether training is noisy before the positional convolution, so that its input differs from step to step."""
        return self.feat_proj_dropout > 0 or (self.apply_spec_augment and self.has_mask_embedding)


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
