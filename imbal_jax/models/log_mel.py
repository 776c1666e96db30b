"""Log-mel spectrograms of waveforms in batches, on the device."""

import functools

import jax.numpy as jnp
import numpy as np

from imbal_jax.errors import InputError, check_number
from imbal_jax.types import Array

LOGARITHMS = ("natural", "decibel")
STANDARDISATIONS = ("none", "clip", "band")

_SMALLEST_POWER = 1e-10  # as in librosa.power_to_db
# Added to the variance: a clip of digital silence has none, and rounding must not be blown up to unit variance.
_SMALLEST_VARIANCE = 1e-5


def log_mel(
    samples: Array,
    lengths: Array,
    *,
    sample_rate: int = 16_000,
    n_fft: int = 400,
    hop: int = 160,
    n_mels: int = 64,
    lowest: float = 0.0,
    highest: float | None = None,
    logarithm: str = "natural",
    standardise: str = "none",
) -> tuple[Array, Array]:
    """The logarithm of the power in mel bands, as librosa.feature.melspectrogram(center=False) gives the power.

    Frame t covers the samples from t hop to t hop + n_fft, weighted by a periodic Hann window; only frames that lie
    wholly within a clip count, so padding changes nothing. Bands are Slaney's: triangles on a scale that is linear
    below 1 kHz, each divided by its width in hertz. Powers below 1e-10 become 1e-10 before the logarithm.

    Args:
      samples: [batch, samples] floating, at least n_fft samples.
      lengths: whole numbers [batch], samples of each clip before padding.
      sample_rate: in hertz.
      n_fft: samples of a frame, and the length of its Fourier transform.
      hop: samples from one frame to the next.
      n_mels: bands.
      lowest: lower end of the first band, in hertz.
      highest: upper end of the last band, in hertz; half the sample rate unless given.
      logarithm: "natural", or "decibel" for ten times the decimal logarithm.
      standardise: "none"; "clip" subtracts the mean and divides by the standard deviation of a clip's frames and bands
        together; "band" does so in each band, which also takes away the clip's average spectrum.

    Returns:
      frames [batch, 1 + (samples - n_fft) // hop, n_mels], zero where they do not count, and their number of each
      clip, int32 [batch], 0 for a clip shorter than n_fft.

    Raises:
      InputError: an option is out of its range, a band holds no frequency of the transform, or the arrays are not of
        the shapes and types above.
    """
    check_options(sample_rate, n_fft, hop, n_mels, lowest, highest, logarithm, standardise)
    check_waveforms(samples, lengths, least_samples=n_fft)
    filters = _mel_filters(sample_rate, n_fft, n_mels, float(lowest), highest)
    power = _band_power(samples, n_fft, hop, jnp.asarray(filters, samples.dtype))
    frames = jnp.log(jnp.maximum(power, _SMALLEST_POWER))
    if logarithm == "decibel":
        frames = frames * (10 / np.log(10))
    counts = frame_counts(lengths, n_fft, hop)
    valid = (jnp.arange(frames.shape[1]) < counts[:, None])[..., None]
    if standardise != "none":
        frames = _standardised(frames, valid, axes=(1, 2) if standardise == "clip" else (1,))
    return jnp.where(valid, frames, 0), counts


def frame_counts(lengths: Array, n_fft: int, hop: int) -> Array:
    """The number of frames that lie wholly within clips of `lengths` samples, int32 [batch]."""
    return jnp.where(lengths >= n_fft, 1 + (lengths - n_fft) // hop, 0).astype(jnp.int32)


def check_options(
    sample_rate: int,
    n_fft: int,
    hop: int,
    n_mels: int,
    lowest: float,
    highest: float | None,
    logarithm: str,
    standardise: str,
) -> None:
    """Refuses options of `log_mel`.

    Raises:
      InputError: an option is out of its range, or a band holds no frequency of the transform.
    """
    sizes = {"sample_rate": sample_rate, "n_fft": n_fft, "hop": hop, "n_mels": n_mels}
    for name, value in sizes.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise InputError(f"{name}: expected a whole number >= 1, got {value!r}")
    if logarithm not in LOGARITHMS:
        raise InputError(f"logarithm: expected one of {', '.join(LOGARITHMS)}, got {logarithm!r}")
    if standardise not in STANDARDISATIONS:
        raise InputError(f"standardise: expected one of {', '.join(STANDARDISATIONS)}, got {standardise!r}")
    check_number("lowest", lowest, ">= 0")
    top = sample_rate / 2 if highest is None else highest
    if not lowest < top <= sample_rate / 2:
        raise InputError(
            f"highest: expected a frequency above lowest = {lowest} Hz and up to half the sample rate,"
            f" {sample_rate / 2} Hz, got {top}"
        )
    empty = int((_mel_filters(sample_rate, n_fft, n_mels, float(lowest), highest).max(axis=0) == 0).sum())
    if empty:
        raise InputError(
            f"n_mels: {empty} of {n_mels} bands from {lowest} to {top} Hz hold none of the frequencies"
            f" {sample_rate / n_fft:g} Hz apart; expected fewer bands or a larger n_fft"
        )


def check_waveforms(samples: Array, lengths: Array, *, least_samples: int = 1) -> None:
    """Refuses a batch of clips.

    Raises:
      InputError: the samples are not floating [batch, >= least_samples], or the lengths not whole numbers [batch].
    """
    if samples.ndim != 2 or samples.shape[1] < least_samples:
        raise InputError(f"samples: expected [batch, samples], samples >= {least_samples}, got shape {samples.shape}")
    if not jnp.issubdtype(samples.dtype, jnp.floating):
        raise InputError(f"samples: expected floating-point numbers, got {samples.dtype}")
    if lengths.shape != samples.shape[:1] or not jnp.issubdtype(lengths.dtype, jnp.integer):
        raise InputError(
            f"lengths: expected whole numbers of shape {samples.shape[:1]}, got {lengths.dtype} of shape"
            f" {lengths.shape}"
        )


@functools.lru_cache(maxsize=16)
def _mel_filters(sample_rate: int, n_fft: int, n_mels: int, lowest: float, highest: float | None) -> np.ndarray:
    """Weights of the frequencies in each band, float64 [1 + n_fft // 2, n_mels]; librosa's defaults."""
    # Imported here because it is slow; it warns of empty bands, which check_options refuses.
    import warnings

    import librosa.filters

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Empty filters", category=UserWarning)
        filters = librosa.filters.mel(
            sr=sample_rate, n_fft=n_fft, n_mels=n_mels, fmin=lowest, fmax=highest, dtype=np.float64
        )
    return np.ascontiguousarray(filters.T)


def _band_power(samples: Array, n_fft: int, hop: int, filters: Array) -> Array:
    """The power of every frame in every band, [batch, frames, n_mels]."""
    count = 1 + (samples.shape[1] - n_fft) // hop
    # Gathering the frames and the fast transform took 5 ms for 32 clips of 3 s on two CPU cores; multiplying by the
    # matrix of the transform took 24 ms, and 15 ms with its symmetry used.
    frames = samples[:, np.arange(count)[:, None] * hop + np.arange(n_fft)]
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n_fft) / n_fft)
    spectrum = jnp.fft.rfft(frames * jnp.asarray(window, samples.dtype), axis=-1)
    return jnp.matmul(jnp.square(spectrum.real) + jnp.square(spectrum.imag), filters, precision="highest")


def _standardised(frames: Array, valid: Array, axes: tuple[int, ...]) -> Array:
    """Frames with mean 0 and variance 1 over `axes` among the valid ones of each clip."""
    per_frame = np.prod([frames.shape[axis] for axis in axes[1:]], initial=1)
    count = jnp.maximum(valid.sum(axis=1, keepdims=True), 1) * per_frame
    mean = jnp.where(valid, frames, 0).sum(axes, keepdims=True) / count
    centred = jnp.where(valid, frames - mean, 0)
    variance = jnp.square(centred).sum(axes, keepdims=True) / count
    return centred / jnp.sqrt(variance + _SMALLEST_VARIANCE)
