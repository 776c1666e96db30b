"""What a frozen encoder makes of clips, computed once and kept, in the place of the clips."""

import contextlib
import hashlib
import json
import os
import pathlib
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import jax
import numpy as np

from imbal_jax.data.dataset import Split
from imbal_jax.data.pipeline import TrainingData
from imbal_jax.data.speech import ClipSet
from imbal_jax.errors import InputError
from imbal_jax.types import PyTree, Waveforms

_VERSION = 1  # of the files
_CLIPS_AT_ONCE = 8  # that are encoded together: HuBERT Base's first convolution makes 40 MB of a clip of 6 s

Write = Callable[[int, np.ndarray], object]  # (index of the first frame, frames [n, channels])


class Encoder(Protocol):
    """A part of a model that makes frames of clips and never changes, and how these are to be kept.

    The frames of a clip must be those that it has alone, whatever its batch.
    """

    encode: Callable[[Waveforms], tuple[Any, Any]]  # -> frames [batch, frames, channels], and how many are each clip's
    count: Callable[[Any], Any]  # how many frames clips of so many samples have
    channels: int
    inputs: Callable[[Any, Any], PyTree]  # from padded frames and their numbers to a model's inputs
    identity: str  # a hash of everything that the frames depend on beside the clips
    dtype: np.dtype  # that they are kept in
    folder: str  # that they are kept in; empty for memory


class FeatureStore:
    """The frames of clips one after the other, computed when they are first asked for."""

    def __init__(self, clips: ClipSet, encoder: Encoder):
        """Computes nothing yet.

        Args:
          clips: to encode.
          encoder: of these.

        Raises:
          InputError: a clip is too short to have a frame.
        """
        self._clips, self._encoder = clips, encoder
        counts = np.asarray(encoder.count(clips.lengths), np.int64)
        if counts.min() < 1:
            raise InputError(f"data: {(counts < 1).sum()} clips are too short for the model, whose frames are longer")
        self.starts = np.concatenate([[0], np.cumsum(counts)])  # int64 [n + 1], where the frames of each clip begin
        self._frames: np.ndarray | None = None
        self._lock = threading.Lock()

    def frames(self) -> np.ndarray:
        """All frames, [n, channels].

        Raises:
          InputError: frames do not fit into their type, or cannot be kept where they should.
        """
        with self._lock:  # batches are made by several threads
            if self._frames is None:
                self._frames = self._kept() if self._encoder.folder else self._computed()
        return self._frames

    @property
    def _shape(self) -> tuple[int, int]:
        """Of all frames."""
        return int(self.starts[-1]), self._encoder.channels

    def _computed(self) -> np.ndarray:
        """The frames in memory."""
        frames = np.empty(self._shape, self._encoder.dtype)

        def write(first: int, values: np.ndarray) -> None:
            frames[first : first + len(values)] = values

        self._encode_all(write)
        return frames

    def _kept(self) -> np.ndarray:
        """The frames in a file, which is written if there is none."""
        encoder = self._encoder
        facts = [_VERSION, encoder.identity, self._clips.digest().hex(), encoder.dtype.name]
        name = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]
        file = pathlib.Path(encoder.folder).expanduser() / f"{name}.npy"
        found = _open(file, self._shape, encoder.dtype)
        if found is None:
            self._write(file)
            found = _open(file, self._shape, encoder.dtype)
        if found is None:
            raise InputError(f"model.cache_dir: what was written to {file} cannot be read back")
        return found

    def _write(self, file: pathlib.Path) -> None:
        """Writes the file under another name, which becomes its own once it is complete."""
        partial = file.with_name(f"{file.name}.partial-{uuid.uuid4().hex}")
        dtype = self._encoder.dtype
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": self._shape}
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as stream:
                np.lib.format.write_array_header_1_0(stream, header)
                begin, row = stream.tell(), self._encoder.channels * dtype.itemsize

                def write(first: int, values: np.ndarray) -> None:
                    stream.seek(begin + first * row)
                    stream.write(np.ascontiguousarray(values).data)

                self._encode_all(write)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(partial, file)
        except OSError as error:
            raise InputError(f"model.cache_dir: {file.parent} cannot be written: {error.strerror or error}") from error
        finally:
            with contextlib.suppress(OSError):  # there may be none, nor a folder
                partial.unlink()

    def _encode_all(self, write: Write) -> None:
        """Encodes the clips, those of like length together, and hands on the frames of each."""
        order = np.argsort(self._clips.lengths, kind="stable")
        buckets, size = self._clips.buckets(1), min(_CLIPS_AT_ONCE, len(order))
        for first in range(0, len(order), size):
            rows = order[first : first + size]
            # The last batch is filled up, so that every bucket is compiled once.
            encoded, _ = self._encoder.encode(self._clips.batch(np.resize(rows, size), buckets))
            for row, values in zip(rows, np.asarray(encoded), strict=False):
                start, end = self.starts[row], self.starts[row + 1]
                write(int(start), self._converted(values[: end - start]))

    def _converted(self, values: np.ndarray) -> np.ndarray:
        """Frames in the type that they are kept in."""
        with np.errstate(over="ignore"):
            kept = values.astype(self._encoder.dtype)
        if not np.isfinite(kept).all():
            raise InputError(
                f"model.cache_dtype: expected frames that {self._encoder.dtype.name} can hold, got up to"
                f" {np.abs(values).max():g}"
            )
        return kept


@dataclass(frozen=True)
class FeatureSet:
    """Frames of some clips, in the place of a `ClipSet`: lengths and buckets are still those of the clips, in samples.

    Attributes:
      clips: that the frames are of.
      encoder: that made them.
      store: of these clips and maybe others.
      rows: which of the store's, int64 [n].
    """

    clips: ClipSet
    encoder: Encoder
    store: FeatureStore
    rows: np.ndarray

    def __len__(self) -> int:
        """The number of clips."""
        return len(self.rows)

    def __getitem__(self, indices: Any) -> "FeatureSet":
        """Some of these clips."""
        return replace(self, clips=self.clips[indices], rows=self.rows[indices])

    @property
    def lengths(self) -> np.ndarray:
        """Samples of each clip, int64 [n]."""
        return self.clips.lengths

    def buckets(self, batch_size: int) -> tuple[int, ...]:
        """The lengths that batches of the clips would be padded to, in samples."""
        return self.clips.buckets(batch_size)

    def batch(self, indices: np.ndarray, buckets: tuple[int, ...]) -> PyTree:
        """The frames of a batch, padded with zeros to as many as the clips would have, in host memory.

        Raises:
          InputError: a clip is longer than every bucket.
        """
        rows, longest = self.rows[indices], int(self.lengths[indices].max())
        fitting = [bucket for bucket in buckets if bucket >= longest]
        if not fitting:
            raise InputError(f"buckets: expected one of at least {longest} samples, got {list(buckets)}")
        frames, starts = self.store.frames(), self.store.starts
        counts = (starts[rows + 1] - starts[rows]).astype(np.int32)
        padded = np.zeros((len(rows), int(self.encoder.count(min(fitting))), self.encoder.channels), frames.dtype)
        for row, count, start in zip(padded, counts, starts[rows], strict=True):
            row[:count] = frames[start : start + count]
        return self.encoder.inputs(padded, counts)

    def example(self) -> PyTree:
        """The shapes of the frames of one clip, of the greatest length."""
        frames = int(self.encoder.count(self.buckets(1)[-1]))
        shape = (frames, self.encoder.channels)
        return self.encoder.inputs(
            jax.ShapeDtypeStruct(shape, self.encoder.dtype), jax.ShapeDtypeStruct((), np.dtype(np.int32))
        )

    def digest(self) -> bytes:
        """A hash of the clips and of what is made of them."""
        facts = self.clips.digest() + self.encoder.identity.encode() + self.encoder.dtype.name.encode()
        return hashlib.blake2b(facts, digest_size=16).digest()


def feature_set(clips: ClipSet, encoder: Encoder) -> FeatureSet:
    """The frames of all of these clips, computed when a batch of them is first asked for.

    Args:
      clips: to encode.
      encoder: of these, for instance of `imbal_jax.models.hubert_builder.frozen_encoder`.

    Raises:
      InputError: a clip is too short to have a frame.
    """
    return FeatureSet(clips, encoder, FeatureStore(clips, encoder), np.arange(len(clips)))


def with_features(data: TrainingData, encoder: Encoder) -> TrainingData:
    """What a run trains on with frames in the place of clips; every split is computed when it is first needed.

    Args:
      data: of clips.
      encoder: of these.

    Raises:
      InputError: a clip is too short to have a frame.
    """

    def encoded(split: Split) -> Split:
        return split._replace(images=feature_set(split.images, encoder))

    return data._replace(
        train=encoded(data.train),
        validation=None if data.validation is None else encoded(data.validation),
        test=encoded(data.test),
        more_tests={name: encoded(split) for name, split in data.more_tests.items()},
    )


def _open(file: pathlib.Path, shape: tuple[int, int], dtype: np.dtype) -> np.ndarray | None:
    """The frames in a file, read as they are needed; None if there are none or they are damaged."""
    try:
        found = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return found if found.shape == shape and found.dtype == dtype else None
