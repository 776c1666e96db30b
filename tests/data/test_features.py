"""Frames of clips that are computed once: in memory, on disk, and in the place of the clips."""

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax
import numpy as np
import pytest

from imbal_jax.data import features
from imbal_jax.data.clips import Clips
from imbal_jax.data.dataset import Dataset, Split
from imbal_jax.data.features import feature_set, with_features
from imbal_jax.data.pipeline import ValidationSplit, training_data
from imbal_jax.data.profiles import natural
from imbal_jax.data.speech import ClipSet
from imbal_jax.errors import InputError

WINDOW = 100
LENGTHS = np.random.default_rng(0).integers(500, 5_000, 21)


class Frames(NamedTuple):
    """What the fake encoder gives."""

    frames: np.ndarray
    lengths: np.ndarray


class Means:
    """An encoder whose frames are means over windows, and their doubles; it remembers what it was asked for."""

    count = staticmethod(lambda samples: samples // WINDOW)
    channels, inputs = 2, Frames

    def __init__(self, folder="", dtype=np.float32, identity="means", scale=1.0):
        self.folder, self.dtype, self.identity, self.scale = str(folder), np.dtype(dtype), identity, scale
        self.asked = []

    def encode(self, clips):
        self.asked.append(clips.samples.shape)
        frames = clips.samples.shape[1] // WINDOW
        means = clips.samples[:, : frames * WINDOW].reshape(-1, frames, WINDOW).mean(axis=2, keepdims=True)
        means += (np.arange(frames) >= (clips.lengths // WINDOW)[:, None])[..., None]  # of no meaning
        return Frames(self.scale * means * np.array([1.0, 2.0], np.float32), clips.lengths // WINDOW)


def clip_set(lengths=LENGTHS, seed=0):
    starts = np.concatenate([[0], np.cumsum(lengths)])
    samples = np.random.default_rng(seed).normal(size=starts[-1]).astype(np.float32)
    clips = Clips(samples, starts, np.zeros(len(lengths), np.float32), np.ones(len(lengths), np.float32))
    return ClipSet(clips, np.arange(len(lengths)), num_buckets=3)


def expected(clips, row):
    """The frames of one clip alone, float64."""
    whole = clips.clips.samples[clips.clips.starts[row] : clips.clips.starts[row + 1]].astype(np.float64)
    means = whole[: len(whole) // WINDOW * WINDOW].reshape(-1, WINDOW).mean(axis=1)
    return np.stack([means, 2 * means], axis=1)


@pytest.mark.parametrize("kept", ["memory", "disk"])
def test_batches_are_the_frames_of_each_clip_alone_padded_with_zeros(kept, tmp_path):
    clips = clip_set()
    found = feature_set(clips, Means(tmp_path if kept == "disk" else ""))
    buckets, rows = found.buckets(4), np.array([3, 17, 3, 0])
    batch = found.batch(rows, buckets)
    assert isinstance(batch, Frames)
    assert batch.frames.dtype == np.float32 and batch.lengths.dtype == np.int32
    bucket = min(each for each in buckets if each >= LENGTHS[rows].max())
    assert batch.frames.shape == (4, bucket // WINDOW, 2)
    np.testing.assert_array_equal(batch.lengths, LENGTHS[rows] // WINDOW)
    for frames, length, row in zip(batch.frames, batch.lengths, rows, strict=True):
        np.testing.assert_allclose(frames[:length], expected(clips, row), atol=1e-6)
        assert not frames[length:].any()


def test_nothing_is_computed_before_it_is_needed_and_then_once():
    encoder = Means()
    found = feature_set(clip_set(), encoder)
    some = found[np.array([4, 5, 6])]
    found.example(), found.lengths, found.digest(), some.buckets(2)
    assert encoder.asked == []
    some.batch(np.array([0]), some.buckets(1))
    asked = list(encoder.asked)
    found.batch(np.arange(21), found.buckets(1))
    assert encoder.asked == asked
    # Three batches of eight, the last filled up, and as few lengths as there are buckets.
    assert [count for count, _ in asked] == [8, 8, 8]
    assert {length for _, length in asked} <= set(found.buckets(1))


def test_threads_compute_it_once():
    encoder = Means()
    found = feature_set(clip_set(), encoder)
    with ThreadPoolExecutor(8) as pool:
        batches = list(pool.map(lambda row: found.batch(np.array([row]), found.buckets(1)).frames, [2] * 16))
    assert len(encoder.asked) == 3
    assert all(np.array_equal(batch, batches[0]) for batch in batches)


def test_it_looks_like_the_clips_to_whoever_makes_batches():
    clips = clip_set()
    found = feature_set(clips, Means())
    some = np.array([9, 2, 11])
    assert len(found) == 21 and len(found[some]) == 3
    np.testing.assert_array_equal(found[some].lengths, LENGTHS[some])
    assert found.buckets(5) == clips.buckets(5)
    assert found[some].buckets(1)[-1] == clips.buckets(1)[-1]
    example = found.example()
    assert example.frames == jax.ShapeDtypeStruct((clips.buckets(1)[-1] // WINDOW, 2), np.float32)
    assert example.lengths == jax.ShapeDtypeStruct((), np.int32)
    taken, whole = found[some].batch(np.array([2, 0]), (5_000,)), found.batch(np.array([11, 9]), (5_000,))
    jax.tree.map(np.testing.assert_array_equal, taken, whole)


def test_a_clip_longer_than_every_bucket_is_refused():
    with pytest.raises(InputError, match=r"buckets: expected one of at least \d+ samples, got \[600\]"):
        feature_set(clip_set(), Means()).batch(np.arange(21), (600,))


def test_the_digest_knows_clips_encoder_and_type():
    found = [
        feature_set(clip_set(), Means()),
        feature_set(clip_set(seed=1), Means()),
        feature_set(clip_set(), Means(identity="others")),
        feature_set(clip_set(), Means(dtype=np.float16)),
    ]
    assert len({each.digest() for each in found}) == 4
    assert found[0].digest() == feature_set(clip_set(), Means()).digest()


def test_half_precision_is_rounded(tmp_path):
    clips = clip_set()
    for folder in ("", tmp_path):
        batch = feature_set(clips, Means(folder, np.float16)).batch(np.array([7]), (5_000,))
        assert batch.frames.dtype == np.float16
        np.testing.assert_allclose(batch.frames[0, : batch.lengths[0]], expected(clips, 7), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("dtype", "scale", "message"),
    [
        (np.float16, 1e7, "float16 can hold, got up to [0-9.e+]+"),
        (np.float32, np.nan, "float32 can hold, got up to nan"),
    ],
)
def test_frames_that_do_not_fit_are_refused(dtype, scale, message, tmp_path):
    for folder in ("", tmp_path):
        found = feature_set(clip_set(), Means(folder, dtype, scale=np.float32(scale)))
        with pytest.raises(InputError, match=f"model.cache_dtype: expected frames that {message}"):
            found.batch(np.array([0]), (5_000,))
    assert not list(tmp_path.iterdir())


def test_clips_without_a_frame_are_refused_at_once():
    with pytest.raises(InputError, match="2 clips are too short for the model"):
        feature_set(clip_set(np.array([500, 99, 98])), Means())


def frames_from(folder, clips=None, **options):
    """All frames by way of a folder, and how often its encoder was called."""
    encoder = Means(folder, **options)
    found = feature_set(clip_set() if clips is None else clips, encoder)
    return found.store.frames(), len(encoder.asked)


def test_what_is_on_disk_is_read_and_not_computed(tmp_path):
    folder = tmp_path / "not" / "there"
    first, calls = frames_from(folder)
    assert calls == 3 and isinstance(first, np.memmap)
    again, calls = frames_from(folder)
    assert calls == 0
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(first, frames_from("")[0])
    assert [file.suffix for file in folder.iterdir()] == [".npy"]
    with pytest.raises(ValueError, match="read-only"):
        first[0, 0] = 1.0


def test_other_weights_clips_or_types_are_computed_anew(tmp_path):
    other_clips = [clip_set(seed=1), clip_set()[np.arange(20)], clip_set()[np.arange(21)[::-1]]]
    for options in ({}, {"identity": "others"}, {"dtype": np.float16}, *({"clips": clips} for clips in other_clips)):
        assert frames_from(tmp_path, **options)[1] > 0
        assert frames_from(tmp_path, **options)[1] == 0
    assert len(list(tmp_path.iterdir())) == 6


@pytest.mark.parametrize("damage", ["cut", "empty", "other"])
def test_a_damaged_file_is_written_anew(tmp_path, damage):
    whole = np.array(frames_from(tmp_path)[0])
    (file,) = tmp_path.iterdir()
    if damage == "other":
        np.save(file, np.zeros((3, 2), np.float32))
    else:
        file.write_bytes(file.read_bytes()[: 0 if damage == "empty" else -100])
    found, calls = frames_from(tmp_path)
    assert calls == 3
    np.testing.assert_array_equal(found, whole)


def test_what_a_killed_run_left_is_never_read(tmp_path):
    whole = np.array(frames_from(tmp_path)[0])
    (file,) = tmp_path.iterdir()
    file.rename(file.with_name(f"{file.name}.partial-0"))
    found, calls = frames_from(tmp_path)
    assert calls == 3
    np.testing.assert_array_equal(found, whole)


def test_a_failure_on_the_way_leaves_nothing(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(features.os, "fsync", full)
    with pytest.raises(InputError, match=r"model\.cache_dir: .* cannot be written: No space left on device"):
        frames_from(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"model\.cache_dir: .*file cannot be written"):
        frames_from(tmp_path / "file")


def test_every_split_of_a_run_is_replaced():
    clips, labels = clip_set(), np.arange(21, dtype=np.int32) % 3
    splits = [Split(clips[rows], labels[rows]) for rows in np.split(np.arange(21), [9, 13, 17])]
    dataset = Dataset("c", ("a", "b", "c"), splits[0], splits[2], splits[1], {"test_2": splits[3]})
    data = training_data(dataset, ValidationSplit(), natural())
    encoder = Means()
    found = with_features(data, encoder)
    assert found.fingerprint == data.fingerprint
    pairs = [(data.train, found.train), (data.validation, found.validation), (data.test, found.test)]
    for before, after in [*pairs, (data.more_tests["test_2"], found.more_tests["test_2"])]:
        np.testing.assert_array_equal(after.labels, before.labels)
        batch = after.images.batch(np.array([0]), (5_000,))
        row = before.images.rows[0]
        np.testing.assert_allclose(batch.frames[0, : batch.lengths[0]], expected(clips, row), atol=1e-6)
    assert with_features(data._replace(validation=None), encoder).validation is None
