"""A small convolutional network for speech, trained from scratch."""

import jax.numpy as jnp
from flax import linen as nn

from imbal_jax.errors import InputError
from imbal_jax.models.heads import check_classifier, check_dropout, check_size, classify
from imbal_jax.models.initialisers import kaiming_normal
from imbal_jax.models.log_mel import check_options, log_mel
from imbal_jax.types import Array, Waveforms

_FRAME_SECONDS, _HOP_SECONDS = 0.025, 0.01
_KERNEL = 5
_STRIDE = 2
_SMALLEST_VARIANCE = 1e-5
# About the mean and twice the standard deviation of the natural logarithms of speech's power.
_TYPICAL_LOGARITHM, _TYPICAL_RANGE = -8.0, 4.0


class SpeechCNN(nn.Module):
    """Convolutions over the frames of a log-mel spectrogram, and statistics over time; see `speech_cnn`."""

    num_classes: int
    channels: tuple[int, ...]
    n_mels: int
    sample_rate: int
    standardise: str
    classifier: str
    dropout: float

    @nn.compact
    def __call__(self, inputs: Waveforms, train: bool) -> tuple[Array, Array]:
        """Maps clips to logits [batch, num_classes] and features [batch, 2 * the last of the channels]."""
        _check_inputs(inputs)
        frames, counts = log_mel(
            inputs.samples,
            inputs.lengths,
            sample_rate=self.sample_rate,
            n_fft=round(_FRAME_SECONDS * self.sample_rate),
            hop=round(_HOP_SECONDS * self.sample_rate),
            n_mels=self.n_mels,
            standardise=self.standardise,
        )
        counts = jnp.maximum(counts, 1)  # a clip shorter than a frame has one of zeros, and no mean divides by zero
        if self.standardise == "none":
            frames = _zero_padding((frames - _TYPICAL_LOGARITHM) / _TYPICAL_RANGE, counts)
        for layer, channels in enumerate(self.channels, start=1):
            frames, counts = self._block(layer, channels, frames, counts)
        features = nn.Dropout(self.dropout, deterministic=not train)(mean_and_deviation(frames, counts))
        return classify(features, self.classifier, self.num_classes), features

    def _block(self, layer: int, channels: int, frames: Array, counts: Array) -> tuple[Array, Array]:
        """Convolution, normalisation and ReLU of frames [batch, time, inputs], zero where they do not count."""
        convolution = nn.Conv(
            channels,
            (_KERNEL,),
            strides=(_STRIDE,),
            padding=((_KERNEL // 2, _KERNEL // 2),),
            use_bias=False,
            kernel_init=kaiming_normal("fan_in"),
            name=f"convolution{layer}",
        )
        # Batch statistics would let padding and the other clips in; these are of a clip's own frames that count.
        norm = nn.GroupNorm(
            num_groups=None,
            group_size=1,
            epsilon=_SMALLEST_VARIANCE,
            use_fast_variance=False,
            name=f"norm{layer}",
        )
        hidden = convolution(frames)
        counts = -(-counts // _STRIDE)
        mask = jnp.broadcast_to(valid_frames(hidden, counts), hidden.shape)
        return _zero_padding(nn.relu(norm(hidden, mask=mask)), counts), counts


def valid_frames(frames: Array, counts: Array) -> Array:
    """Which of frames [batch, time, channels] count, [batch, time, 1]: the first `counts` [batch] of each clip."""
    return (jnp.arange(frames.shape[1]) < counts[:, None])[..., None]


def mean_and_deviation(frames: Array, counts: Array) -> Array:
    """Mean and standard deviation over the frames that count, side by side.

    Args:
      frames: [batch, time, channels], zero where they do not count.
      counts: frames of each clip that count, >= 1, [batch].

    Returns:
      [batch, 2 channels]; the deviation is sqrt(variance + 1e-5), whose gradient is finite where nothing varies.
    """
    number = counts[:, None].astype(frames.dtype)
    mean = frames.sum(axis=1) / number
    variance = jnp.square(_zero_padding(frames - mean[:, None], counts)).sum(axis=1) / number
    return jnp.concatenate([mean, jnp.sqrt(variance + _SMALLEST_VARIANCE)], axis=-1)


def speech_cnn(
    num_classes: int,
    *,
    channels: tuple[int, ...] = (96, 128, 128, 128),
    n_mels: int = 64,
    sample_rate: int = 16_000,
    standardise: str = "clip",
    classifier: str = "linear",
    dropout: float = 0.5,
) -> nn.Module:
    """A small convolutional network on log-mel spectrograms: 259,016 parameters for eight classes.

    Frames of 25 ms every 10 ms; blocks of a convolution over time (kernel 5, stride 2, the mel bands being channels),
    normalisation of each channel over the clip's frames, and ReLU; then the mean and standard deviation over time. Only
    frames that lie within a clip count anywhere, so a clip in a padded batch is what it is alone.

    Args:
      num_classes: the number of logits.
      channels: of the blocks, in order.
      n_mels: bands of the spectrogram.
      sample_rate: of the clips, in hertz.
      standardise: the spectrogram of each clip "clip" as a whole, by "band", or "none", which keeps the loudness if the
        clips are not normalised.
      classifier: "linear" or "cosine".
      dropout: the share of the features set to zero in training.

    Returns:
      A module applied as `apply(variables, Waveforms(samples, lengths), train=...)`, samples [batch, samples] of at
      least 25 ms, zeros after each clip's end, that returns (logits [batch, num_classes], features [batch, 2
      channels[-1]]). In training it draws from the rng "dropout".

    Raises:
      InputError: an argument is out of its range; when applied, the clips are not of the shapes and types above.
    """
    check_classifier(num_classes, classifier)
    check_dropout(dropout)
    if not isinstance(channels, tuple | list) or not channels:
        raise InputError(f"channels: expected a tuple of at least one number of channels, got {channels!r}")
    for each in channels:
        check_size("channels", each)
    check_size("sample_rate", sample_rate, least=round(1 / _HOP_SECONDS))
    n_fft, hop = round(_FRAME_SECONDS * sample_rate), round(_HOP_SECONDS * sample_rate)
    check_options(sample_rate, n_fft, hop, n_mels, 0.0, None, "natural", standardise)
    return SpeechCNN(num_classes, tuple(channels), n_mels, sample_rate, standardise, classifier, dropout)


def _zero_padding(frames: Array, counts: Array) -> Array:
    """Frames [batch, time, channels] with zeros where they do not count."""
    return jnp.where(valid_frames(frames, counts), frames, 0)


def _check_inputs(inputs: Waveforms) -> None:
    """Refuses anything but clips; their shapes are checked where they are used."""
    if not isinstance(inputs, Waveforms):
        raise InputError(f"inputs: expected Waveforms, got {type(inputs).__name__}")
