"""Recordings decoded to what speech models take: mono, one sample rate, float32."""

import os
import pathlib
import struct
import threading
from collections.abc import Callable
from numbers import Integral
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from imbal_jax.errors import InputError

MIN_SAMPLES = 400  # 25 ms at 16 kHz: one frame of HuBERT's convolutions, and of a log-mel spectrogram
# Ending of a file -> what libsndfile calls the contents.
FORMATS = {".wav": ("WAV", "WAVEX", "RF64"), ".flac": ("FLAC",), ".mp3": ("MP3",), ".ogg": ("OGG",)}
RESAMPLERS = ("soxr_vhq", "soxr_hq", "soxr_mq", "soxr_lq", "soxr_qq")

_BLOCK = 1 << 20  # samples per channel read at a time: a damaged header may announce more than fits in memory
_UNKNOWN_LENGTH = 1 << 62  # above is libsndfile's count for a flac stream of unknown length, whose end it cannot read
_STREAMED_LENGTH = 0x7FFF0000  # writers that could not go back leave a length from here up in a wav header
_LARGEST_PAGE = 65_307  # bytes of an Ogg page
# Lossy codecs overshoot full scale a little; beyond 6 dB the samples have another scale.
_LARGEST_PEAK = 2.0
_SMALLEST_VARIANCE = 1e-7
_IMPORTING = threading.Lock()  # librosa imports its parts when they are first used, which threads must not do at once


class Recording(NamedTuple):
    """The contents of a sound file."""

    samples: np.ndarray  # float32 [samples, channels], full scale is 1
    sample_rate: int  # in hertz


def decode(path: str | os.PathLike, sample_rate: int = 16_000, resample: str = "soxr_hq") -> np.ndarray:
    """Reads a wav, flac, mp3 or ogg file as one channel at one sample rate.

    Channels are averaged before resampling. What lossy codecs and resampling push beyond full scale is clipped.

    Args:
      path: of the file.
      sample_rate: wanted, in hertz.
      resample: the method, one of librosa's from "soxr_qq" (quick) to "soxr_vhq" (very high quality); it affects the
        samples. Files that have the wanted rate are left alone.

    Returns:
      Samples in [-1, 1], float32 [samples].

    Raises:
      InputError: an option is invalid; or the file is missing, a git-lfs pointer, empty, damaged, truncated, of another
        format or other than its ending says, or holds no samples, NaN, infinite ones or ones of another scale.
    """
    check_decoding(sample_rate, resample)
    recording = read_recording(path)
    return mono(check_samples(path, recording), sample_rate, resample)


def check_decoding(sample_rate: int, resample: str) -> None:
    """Refuses options of `decode`.

    Raises:
      InputError: the sample rate is not a whole number >= 1, or the method is unknown.
    """
    if not isinstance(sample_rate, Integral) or isinstance(sample_rate, bool) or sample_rate < 1:
        raise InputError(f"sample_rate: expected a whole number of hertz >= 1, got {sample_rate!r}")
    if resample not in RESAMPLERS:
        raise InputError(f"resample: expected one of {', '.join(RESAMPLERS)}, got {resample!r}")


def read_recording(path: str | os.PathLike) -> Recording:
    """Reads a sound file as it is, whatever its channels, rate and values.

    A wav file that ends before its header says, an ogg file without its last page, and flac and mp3 files that decode
    to fewer samples than announced are truncated; an mp3 file need not announce any number.

    Args:
      path: of a wav, flac, mp3 or ogg file.

    Raises:
      InputError: as `decode`, but for the values of the samples.
    """
    file = pathlib.Path(path)
    _check_file(file)
    # Imported here because it loads a shared library.
    import soundfile

    try:
        with soundfile.SoundFile(file) as stream:
            _check_format(file, stream)
            blocks = [np.zeros((0, stream.channels), np.float32)]
            while len(block := stream.read(_BLOCK, dtype="float32", always_2d=True)):
                blocks.append(block)
            announced, rate = stream.frames, stream.samplerate
    except InputError:
        raise
    except (soundfile.SoundFileError, OSError, ValueError, TypeError, MemoryError) as error:
        raise InputError(f"path: {file.absolute()} is damaged, truncated or no {file.suffix} file") from error
    samples = np.concatenate(blocks)
    if len(samples) < announced:
        raise InputError(
            f"path: {file.absolute()} is damaged or truncated: {len(samples)} of {announced} samples can be decoded"
        )
    if len(samples) == 0:
        raise InputError(f"path: {file.absolute()} holds no samples")
    return Recording(samples, rate)


def check_samples(path: str | os.PathLike, recording: Recording) -> Recording:
    """Returns a recording whose samples are finite and have full scale 1.

    Args:
      path: of the file, for the message.
      recording: to check.

    Raises:
      InputError: samples are NaN or infinite, or the largest is more than twice full scale.
    """
    file = pathlib.Path(path).absolute()
    bad = np.flatnonzero(~np.isfinite(recording.samples).all(axis=1))
    if len(bad):
        raise InputError(f"path: {file} holds {len(bad)} NaN or infinite samples, first at index {int(bad[0])}")
    peak = float(np.abs(recording.samples).max())
    if peak > _LARGEST_PEAK:
        raise InputError(f"path: {file}: expected samples in [-1, 1], got a largest magnitude of {peak:g}")
    return recording


def mono(recording: Recording, sample_rate: int, resample: str) -> np.ndarray:
    """The mean of the channels at another sample rate, in [-1, 1], float32 [samples].

    Args:
      recording: with finite samples.
      sample_rate: wanted, in hertz.
      resample: one of `RESAMPLERS`.
    """
    samples = recording.samples[:, 0] if recording.samples.shape[1] == 1 else recording.samples.mean(axis=1)
    if recording.sample_rate != sample_rate:
        # Imported here because it is slow and only files at another rate need it.
        with _IMPORTING:
            from librosa import resample as resampled
        samples = resampled(samples, orig_sr=recording.sample_rate, target_sr=sample_rate, res_type=resample)
    return np.clip(samples, -1.0, 1.0).astype(np.float32, copy=False)


def offset_and_scale(clip: np.ndarray, normalisation: str) -> tuple[float, float]:
    """What `normalise` subtracts from a clip and then multiplies it by.

    Args:
      clip: [samples], at least one.
      normalisation: "clip" or "none".

    Raises:
      InputError: the normalisation is unknown.
    """
    if normalisation == "none":
        return 0.0, 1.0
    if normalisation != "clip":
        raise InputError(f"normalisation: expected 'clip' or 'none', got {normalisation!r}")
    # In float64, so that the mean of a constant is that constant and silence with an offset becomes zeros.
    mean = clip.mean(dtype=np.float64)
    variance = np.square(clip - mean).mean()
    return float(mean), float(1 / np.sqrt(variance + _SMALLEST_VARIANCE))


def normalise(clip: np.ndarray, mode: str = "clip") -> np.ndarray:
    """Subtracts a clip's mean and divides by sqrt(variance + 1e-7), as HuBERT's feature extractor does.

    It belongs before any padding: zeros that are padding would enter the mean and the variance. Silence stays 0.

    Args:
      clip: samples in [-1, 1], float32 [samples]; the scale matters only for clips that are nearly silent.
      mode: "clip"; "none" returns the clip as it is.

    Raises:
      InputError: the mode is unknown.
    """
    mean, scale = offset_and_scale(clip, mode)
    return (clip - np.float32(mean)) * np.float32(scale)


def crop(clip: np.ndarray, max_samples: int, where: str = "start") -> np.ndarray:
    """The first or the middle `max_samples` of a clip; a shorter clip as it is.

    Args:
      clip: [samples].
      max_samples: to keep, >= 1.
      where: "start" or "center"; of an odd surplus the center leaves out one more at the end.

    Raises:
      InputError: max_samples < 1 or where is unknown.
    """
    if max_samples < 1:
        raise InputError(f"max_samples: expected a number >= 1, got {max_samples}")
    if where not in ("start", "center"):
        raise InputError(f"where: expected 'start' or 'center', got {where!r}")
    first = max(0, len(clip) - max_samples) // 2 if where == "center" else 0
    return clip[first : first + max_samples]


def lengthen(clip: np.ndarray, short: str = "refuse") -> np.ndarray:
    """Returns a clip of at least `MIN_SAMPLES`.

    Args:
      clip: [samples], before it is normalised.
      short: what becomes of a shorter clip: "refuse", or "pad" with zeros at its end.

    Raises:
      InputError: the clip is too short and refused, or `short` is unknown.
    """
    if short not in ("refuse", "pad"):
        raise InputError(f"short: expected 'refuse' or 'pad', got {short!r}")
    missing = MIN_SAMPLES - len(clip)
    if missing <= 0:
        return clip
    if short == "refuse":
        raise InputError(f"clip: expected at least {MIN_SAMPLES} samples, got {len(clip)}; short='pad' adds zeros")
    return np.pad(clip, (0, missing))


def _check_file(file: pathlib.Path) -> None:
    """Refuses what can be told to be no whole recording without decoding it."""
    where = file.absolute()
    if not file.is_file():
        raise InputError(f"path: expected a sound file, found none at {where}")
    if file.suffix.lower() not in FORMATS:
        raise InputError(f"path: expected a file that ends in {', '.join(FORMATS)}, got {where}")
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            head = stream.read(40)
            cut = _is_cut(head, stream, size)
    except OSError as error:
        raise InputError(f"path: {where} cannot be read: {error.strerror or error}") from error
    if size == 0:
        raise InputError(f"path: {where} is empty")
    if head.startswith(b"version https://git-lfs"):
        raise InputError(f"path: {where} is a git-lfs pointer, not the recording; fetch it with: git lfs pull")
    if cut:
        raise InputError(f"path: {where} is truncated: it ends before the end that its contents announce")


def _is_cut(head: bytes, stream: BinaryIO, size: int) -> bool:
    """Whether a file ends early, for the formats of which libsndfile decodes a part without complaint."""
    checks: dict[bytes, Callable[[Any, int], bool]] = {b"RIFF": _wav_is_cut, b"OggS": _ogg_is_cut}
    check = checks.get(head[:4])
    return check is not None and check(stream, size)


def _wav_is_cut(stream: BinaryIO, size: int) -> bool:
    """Whether the data of a RIFF file are shorter than announced."""
    stream.seek(12)
    while len(header := stream.read(8)) == 8:
        name, length = struct.unpack("<4sI", header)
        if name == b"data":
            return length < _STREAMED_LENGTH and stream.tell() + length > size
        stream.seek(length + length % 2, os.SEEK_CUR)
    return True


def _ogg_is_cut(stream: BinaryIO, size: int) -> bool:
    """Whether the last page of an Ogg file is not marked as the last, or incomplete."""
    stream.seek(max(0, size - _LARGEST_PAGE))
    tail = stream.read()
    page = tail[tail.rfind(b"OggS") :]
    if len(page) < 27 or len(page) < 27 + page[26]:
        return True
    is_last = page[5] & 4
    return not is_last or len(page) < 27 + page[26] + sum(page[27 : 27 + page[26]])


def _check_format(file: pathlib.Path, stream: Any) -> None:
    """Refuses contents that the file's ending does not name, or of unknown length."""
    where, found = file.absolute(), stream.format
    if found not in FORMATS[file.suffix.lower()]:
        raise InputError(f"path: {where} holds {found} audio, which its ending {file.suffix} does not say")
    if stream.frames > _UNKNOWN_LENGTH:
        raise InputError(f"path: {where} does not tell its length, as streams do; expected it encoded as a file")
