"""Speech corpora as data sets: clips stand where images stand."""

import hashlib
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import numpy as np

from imbal_jax.data.clips import ClipOptions, Clips, batch_of, bucket_lengths, check_options, load_clips
from imbal_jax.data.corpora import Corpus
from imbal_jax.data.crema_d import crema_d as crema_d_corpus
from imbal_jax.data.dataset import Dataset, Split
from imbal_jax.data.manifest import read_manifest
from imbal_jax.data.msp_podcast import msp_podcast as msp_podcast_corpus
from imbal_jax.errors import InputError
from imbal_jax.types import Waveforms


def _waveforms(samples: Any, lengths: Any) -> Waveforms:
    """Waveforms in host memory, or their shapes."""
    return Waveforms(samples, lengths)


def _one_clip(samples: int) -> Waveforms:
    """The shapes of one clip."""
    return _waveforms(jax.ShapeDtypeStruct((samples,), np.float32), jax.ShapeDtypeStruct((), np.int32))


@dataclass(frozen=True)
class ClipSet:
    """Some of the clips of a corpus; what a split holds where others hold images.

    Attributes:
      clips: of all splits.
      rows: which of them, int64 [n].
      num_buckets: of lengths that batches are padded to.
    """

    clips: Clips
    rows: np.ndarray
    num_buckets: int = 4

    def __len__(self) -> int:
        """The number of clips."""
        return len(self.rows)

    def __getitem__(self, indices: Any) -> "ClipSet":
        """Some of these clips."""
        return replace(self, rows=self.rows[indices])

    @property
    def lengths(self) -> np.ndarray:
        """Samples of each clip, int64 [n]."""
        return self.clips.lengths[self.rows]

    def buckets(self, batch_size: int) -> tuple[int, ...]:
        """The lengths that batches are padded to; the last holds every clip of the corpus, of whatever split."""
        ends = bucket_lengths(self.lengths, self.num_buckets, batch_size=batch_size)
        longest = bucket_lengths(self.clips.lengths, 1)
        return tuple(sorted({*(end for end in ends if end < longest[0]), *longest}))

    def batch(self, indices: np.ndarray, buckets: tuple[int, ...]) -> Waveforms:
        """The normalised clips of a batch, padded, in host memory."""
        samples, lengths = batch_of(self.clips, self.rows[indices], buckets)
        return _waveforms(samples, lengths)

    def example(self) -> Waveforms:
        """The shapes of one clip, of the greatest length."""
        longest = self.buckets(1)[-1]
        return _one_clip(longest)

    def digest(self) -> bytes:
        """A hash of the clips: their lengths, normalisation and every sample."""
        found = hashlib.blake2b(digest_size=16)
        for array in (self.lengths, self.clips.offsets[self.rows], self.clips.scales[self.rows]):
            found.update(np.ascontiguousarray(array).data)
        for row in self.rows:  # of the whole corpus there may be too many to join
            found.update(self.clips.samples[self.clips.starts[row] : self.clips.starts[row + 1]].data)
        return found.digest()


class SpeechSource(NamedTuple):
    """A corpus, and what is made of its recordings."""

    corpus: Corpus
    options: ClipOptions
    num_buckets: int
    cache: str  # a folder for decoded samples; empty for none

    def example(self) -> Waveforms:
        """The shapes of one clip of the greatest length kept; nothing is decoded."""
        return _one_clip(round((self.options.max_seconds or 10.0) * self.options.sample_rate))

    def load(self) -> Dataset:
        """Decodes every recording.

        Raises:
          InputError: there is no recording to train on or none to test on; or recordings are missing or faulty: all are
            counted and the first twenty named.
        """
        splits = self.corpus.splits
        for name in ("train", "test"):
            if name not in splits:
                raise InputError(f"data: expected recordings of {name} in {self.corpus.name}, got only {list(splits)}")
        paths = [path for split in splits.values() for path in split.paths]
        clips = load_clips(paths, self.options, cache=self.cache or None)
        loaded, first = {}, 0
        for name, split in splits.items():
            rows = np.arange(first, first + len(split.paths))
            loaded[name] = Split(ClipSet(clips, rows, self.num_buckets), np.asarray(split.labels, np.int32))
            first += len(rows)
        more = {name: split for name, split in loaded.items() if name not in ("train", "validation", "test")}
        return Dataset(
            self.corpus.name, self.corpus.class_names, loaded["train"], loaded["test"], loaded.get("validation"), more
        )


def crema_d(
    *,
    root: str,
    labels: str = "voice",
    max_seconds: float = 6.0,
    normalisation: str = "clip",
    buckets: int = 4,
    cache: str = "",
) -> SpeechSource:
    """CREMA-D (Cao et al. 2014) with the labels and splits of the thesis, Table B.2.

    Args:
      root: the folder of the official repository, with AudioWAV and processedResults/summaryTable.csv.
      labels: "voice" (what listeners heard in the voice alone, as in the thesis), "face", "multimodal" or "intended".
      max_seconds: what is kept of longer clips; 0 for all.
      normalisation: "clip" for mean 0 and variance 1 of each clip, or "none".
      buckets: of lengths that batches are padded to.
      cache: a folder for decoded samples, read from there when they are needed; empty to hold them in memory.

    Raises:
      InputError: the tables are missing or faulty, or an option does not exist.
    """
    if labels not in ("voice", "face", "multimodal", "intended"):
        raise InputError(f"data.labels: expected voice, face, multimodal or intended, got {labels!r}")
    return _source(crema_d_corpus(root, labels), max_seconds, normalisation, buckets, cache)  # type: ignore[arg-type]


def msp_podcast(
    *, root: str, max_seconds: float = 6.0, normalisation: str = "clip", buckets: int = 4, cache: str = ""
) -> SpeechSource:
    """MSP-Podcast (Lotfian and Busso 2019) with six emotions and two test sets, as in the thesis, Table B.3.

    Args:
      root: the folder of a release.
      max_seconds: see `crema_d`, as all others.
      normalisation: "clip" or "none".
      buckets: of lengths that batches are padded to.
      cache: a folder for decoded samples.

    Raises:
      InputError: the tables are missing or faulty.
    """
    return _source(msp_podcast_corpus(root), max_seconds, normalisation, buckets, cache)


def manifest(
    *,
    path: str,
    root: str = "",
    path_column: str = "path",
    label_column: str = "label",
    split_column: str = "split",
    speaker_column: str = "speaker",
    classes: tuple[str, ...] = (),
    drop_other_labels: bool = False,
    missing_files: str = "refuse",
    fractions: tuple[float, ...] = (0.7, 0.1, 0.2),
    split_seed: int = 0,
    max_seconds: float = 6.0,
    normalisation: str = "clip",
    buckets: int = 4,
    cache: str = "",
) -> SpeechSource:
    """Recordings listed in a csv file; see `imbal_jax.data.manifest.read_manifest`.

    Args:
      path: of the csv file.
      root: the folder that relative paths start from.
      path_column: the column of the recordings' paths.
      label_column: the column of the classes' names.
      split_column: the column of the splits; splits by speaker are made where it is absent.
      speaker_column: the column of the speakers.
      classes: the classes in order; all labels, sorted, by default.
      drop_other_labels: leave out rows of other labels instead of refusing them.
      missing_files: "refuse", "drop" or "ignore".
      fractions: shares of train, validation and test where the table has no splits.
      split_seed: of those splits.
      max_seconds: what is kept of longer clips; 0 for all.
      normalisation: "clip" or "none".
      buckets: of lengths that batches are padded to.
      cache: a folder for decoded samples; empty to hold them in memory.

    Raises:
      InputError: an option or the table is faulty.
    """
    corpus = read_manifest(
        path,
        root=root,
        path_column=path_column,
        label_column=label_column,
        split_column=split_column,
        speaker_column=speaker_column,
        classes=classes,
        drop_other_labels=drop_other_labels,
        missing_files=missing_files,  # type: ignore[arg-type]
        fractions=fractions,
        seed=split_seed,
    )
    return _source(corpus, max_seconds, normalisation, buckets, cache)


def _source(corpus: Corpus, max_seconds: float, normalisation: str, buckets: int, cache: str) -> SpeechSource:
    """A corpus with its options."""
    if buckets < 1:
        raise InputError(f"data.buckets: expected a number >= 1, got {buckets}")
    options = ClipOptions(max_seconds=max_seconds, normalisation=normalisation, short="pad")
    check_options(options)
    return SpeechSource(corpus, options, buckets, cache)
