"""Recordings held compactly in memory or on disk, and cut into padded batches of a few lengths."""

import hashlib
import json
import os
import pathlib
import shutil
import uuid
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from imbal_jax.data.audio import check_decoding, crop, decode, lengthen, offset_and_scale
from imbal_jax.errors import InputError, check_number

_FULL_SCALE = {"int16": 32768, "float32": 1}
_CACHE_VERSION = 1  # of the files that `_write_cache` writes
_DECODED_AHEAD = 256  # clips that may wait to be stored
_SHOWN = 20  # faulty files named in a message
_SAMPLES = "samples.raw"


Stored = tuple[np.ndarray, float, float]  # a clip's samples, its offset and scale


class ClipOptions(NamedTuple):
    """What is made of every recording.

    Attributes:
      sample_rate: in hertz.
      resample: the method for files at another rate, see `audio.decode`.
      max_seconds: what is kept of longer clips; 0 for all.
      where: which part is kept: "start" or "center".
      short: "refuse" clips of fewer than `audio.MIN_SAMPLES`, or "pad" them with zeros.
      normalisation: "clip" for mean 0 and variance 1 of each clip, or "none".
      dtype: "int16", which holds 16-bit recordings at their own rate exactly and others to 1/65536 of full scale, or
        "float32", which takes twice the space.
    """

    sample_rate: int = 16_000
    resample: str = "soxr_hq"
    max_seconds: float = 0.0
    where: str = "start"
    short: str = "refuse"
    normalisation: str = "clip"
    dtype: str = "int16"


class Clips(NamedTuple):
    """Clips one after the other. Clip i has the values (samples / full scale - offsets[i]) * scales[i]."""

    samples: np.ndarray  # all clips' samples: int16 with full scale 32768, or float32 with full scale 1
    starts: np.ndarray  # int64 [n + 1] where each clip begins, and the end of the last
    offsets: np.ndarray  # float32 [n]
    scales: np.ndarray  # float32 [n]

    @property
    def lengths(self) -> np.ndarray:
        """Samples of each clip, int64 [n]."""
        return np.diff(self.starts)


def load_clips(
    paths: Sequence[str | os.PathLike],
    options: ClipOptions | None = None,
    *,
    cache: str | os.PathLike | None = None,
    threads: int = 0,
) -> Clips:
    """Decodes recordings, or opens what an earlier call has decoded.

    Clips are cropped, then lengthened, then normalised; the normalisation is applied when batches are made.

    Args:
      paths: of the files, in the order of the clips.
      options: what is made of them; the defaults unless given.
      cache: a folder for the decoded samples, which are then read from there as they are needed (memory-mapped). What
        it holds counts only for the same options and for files of the same paths, sizes and times of change. Folders
        there whose name holds ".partial" are left by runs that were killed, and are never read.
      threads: that decode at a time; 0 for one per core.

    Raises:
      InputError: an option is invalid, there are no paths, the cache cannot be written, or files are faulty: then all
        are counted and the first twenty named.
    """
    options = options or ClipOptions()
    check_options(options)
    files = [pathlib.Path(path).expanduser().absolute() for path in paths]
    if not files:
        raise InputError("paths: expected at least one recording, got none")
    if cache is None:
        chunks, starts, offsets, scales = [], [0], [], []
        for samples, offset, scale in _decoded(files, options, threads):
            chunks.append(samples)
            starts.append(starts[-1] + len(samples))
            offsets.append(offset)
            scales.append(scale)
        return Clips(np.concatenate(chunks), *_table(starts, offsets, scales))
    home = pathlib.Path(cache).expanduser() / _cache_key(files, options)
    found = _open_cache(home, options.dtype)
    if found is None:
        _write_cache(home, _decoded(files, options, threads), options.dtype)
        found = _open_cache(home, options.dtype)
    if found is None:
        raise InputError(f"cache: what was written to {home} cannot be read back")
    return found


def check_options(options: ClipOptions) -> None:
    """Refuses options that no recording can be loaded with.

    Raises:
      InputError: an option is unknown or out of its range.
    """
    check_decoding(options.sample_rate, options.resample)
    check_number("max_seconds", options.max_seconds, ">= 0")
    if options.dtype not in _FULL_SCALE:
        raise InputError(f"dtype: expected 'int16' or 'float32', got {options.dtype!r}")
    silence = np.zeros(1, np.float32)  # the functions themselves know their options
    crop(silence, 1, options.where)
    lengthen(np.zeros(1 << 10, np.float32), options.short)
    offset_and_scale(silence, options.normalisation)


def _prepare(file: pathlib.Path, options: ClipOptions) -> Stored | InputError:
    """What is stored of one recording, or why it cannot be used."""
    try:
        clip = decode(file, options.sample_rate, options.resample)
        if options.max_seconds:
            clip = crop(clip, max(1, round(options.max_seconds * options.sample_rate)), options.where)
        try:
            clip = lengthen(clip, options.short)
        except InputError as error:
            raise InputError(f"{file}: {error}") from error
    except InputError as error:
        return error
    if options.dtype == "int16":
        full_scale = _FULL_SCALE["int16"]
        stored = np.clip(np.rint(clip * full_scale), -full_scale, full_scale - 1).astype(np.int16)
        return stored, *offset_and_scale(stored.astype(np.float32) / full_scale, options.normalisation)
    return clip, *offset_and_scale(clip, options.normalisation)


def _decoded(files: list[pathlib.Path], options: ClipOptions, threads: int) -> Iterator[Stored]:
    """The recordings in order; after the last, InputError with all that could not be used."""
    failures = []
    with ThreadPoolExecutor(threads or os.cpu_count()) as pool:
        for first in range(0, len(files), _DECODED_AHEAD):
            for result in pool.map(lambda file: _prepare(file, options), files[first : first + _DECODED_AHEAD]):
                if isinstance(result, InputError):
                    failures.append(str(result).removeprefix("path: "))
                elif not failures:
                    yield result
    if failures:
        more = f"; and {len(failures) - _SHOWN} more" if len(failures) > _SHOWN else ""
        raise InputError(
            f"paths: {len(failures)} of {len(files)} recordings cannot be used: {'; '.join(failures[:_SHOWN])}{more}"
        )


def _table(starts: list[int], offsets: list[float], scales: list[float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The small arrays of `Clips`."""
    return np.array(starts, np.int64), np.array(offsets, np.float32), np.array(scales, np.float32)


def _cache_key(files: list[pathlib.Path], options: ClipOptions) -> str:
    """A name that changes with the options and with any file's path, size or time of change."""
    facts: list = [_CACHE_VERSION, options._asdict()]
    for file in files:
        # A missing file has no facts: it is reported when it is decoded.
        status = file.stat() if file.is_file() else None
        facts.append([str(file), status and status.st_size, status and status.st_mtime_ns])
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]


def _write_cache(home: pathlib.Path, decoded: Iterable[Stored], dtype: str) -> None:
    """Writes the clips as they come into a folder of another name, which gets its own once it is complete."""
    partial = home.with_name(f"{home.name}.partial-{uuid.uuid4().hex}")
    starts, offsets, scales = [0], [], []
    try:
        partial.mkdir(parents=True)
        with (partial / _SAMPLES).open("wb") as stream:
            for samples, offset, scale in decoded:
                stream.write(np.ascontiguousarray(samples, dtype).data)
                starts.append(starts[-1] + len(samples))
                offsets.append(offset)
                scales.append(scale)
            stream.flush()
            os.fsync(stream.fileno())
        for name, array in zip(Clips._fields[1:], _table(starts, offsets, scales), strict=True):
            np.save(partial / f"{name}.npy", array)
        if _open_cache(home, dtype) is None:  # else another process was quicker
            shutil.rmtree(home, ignore_errors=True)  # what is there is damaged
            partial.rename(home)
    except OSError as error:
        if _open_cache(home, dtype) is None:
            raise InputError(f"cache: {home.parent} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _open_cache(home: pathlib.Path, dtype: str) -> Clips | None:
    """The clips of a cache, or None if there are none or they are damaged."""
    try:
        starts, offsets, scales = (np.load(home / f"{name}.npy", allow_pickle=False) for name in Clips._fields[1:])
        whole = len(starts) == len(offsets) + 1 == len(scales) + 1
        if not whole or (home / _SAMPLES).stat().st_size != starts[-1] * np.dtype(dtype).itemsize:
            return None
        samples = np.memmap(home / _SAMPLES, dtype, mode="r", shape=(int(starts[-1]),))
    except (OSError, ValueError, EOFError):
        return None
    return Clips(samples, starts, offsets, scales)


def bucket_lengths(
    lengths: np.ndarray, buckets: int, *, batch_size: int = 1, multiple_of: int = 1_600
) -> tuple[int, ...]:
    """Lengths to pad batches to, so that few shapes are compiled and little is padded.

    Random batches fill the buckets about equally often: bucket k of K ends where the longest of batch_size random
    clips is shorter with probability k / K, which is the quantile (k / K)^(1 / batch_size) of the lengths.

    Args:
      lengths: samples of the clips, [n].
      buckets: their number, which is smaller where two fall together.
      batch_size: clips in a batch.
      multiple_of: samples to a multiple of which the buckets are rounded up.

    Returns:
      Ascending numbers of samples; the last holds the longest clip.

    Raises:
      InputError: there are no clips, or another number is < 1.
    """
    for name, value in {"buckets": buckets, "batch_size": batch_size, "multiple_of": multiple_of}.items():
        if value < 1:
            raise InputError(f"{name}: expected a number >= 1, got {value}")
    if len(lengths) == 0:
        raise InputError("lengths: expected at least one clip, got none")
    levels = (np.arange(1, buckets + 1) / buckets) ** (1 / batch_size)
    ends = np.quantile(lengths, levels, method="higher").astype(np.int64)
    return tuple(int(end) for end in np.unique(-(-ends // multiple_of) * multiple_of))


def batch_of(clips: Clips, indices: np.ndarray, buckets: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """The normalised clips of a batch, padded with zeros to the smallest bucket that holds the longest.

    Args:
      clips: to take them from.
      indices: which, whole numbers [batch].
      buckets: numbers of samples, as `bucket_lengths` gives them.

    Returns:
      samples float32 [batch, bucket] and lengths int32 [batch].

    Raises:
      InputError: an index is outside the clips, or a clip is longer than every bucket.
    """
    indices = np.asarray(indices)
    count = len(clips.offsets)
    if indices.size == 0 or indices.min() < 0 or indices.max() >= count:
        raise InputError(f"indices: expected at least one, all in 0..{count - 1}, got {indices.tolist()}")
    lengths = (clips.starts[indices + 1] - clips.starts[indices]).astype(np.int32)
    longest = int(lengths.max())
    fitting = [bucket for bucket in buckets if bucket >= longest]
    if not fitting:
        raise InputError(f"buckets: expected one of at least {longest} samples, got {list(buckets)}")
    factor = np.float32(1 / _FULL_SCALE[clips.samples.dtype.name])
    samples = np.zeros((len(indices), min(fitting)), np.float32)
    for row, index, length in zip(samples, indices, lengths, strict=True):
        start = clips.starts[index]
        part = row[:length]
        np.multiply(clips.samples[start : start + length], factor, out=part)
        part -= clips.offsets[index]
        part *= clips.scales[index]
    return samples, lengths
