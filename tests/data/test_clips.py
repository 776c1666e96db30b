"""Clips in memory and on disk, and their batches."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import soundfile

from imbal_jax.data import clips as clips_module
from imbal_jax.data.audio import crop, decode, normalise
from imbal_jax.data.clips import ClipOptions, Clips, batch_of, bucket_lengths, load_clips
from imbal_jax.errors import InputError

SECONDS = (0.5, 0.1, 0.3, 0.05, 0.2)
FLOAT = ClipOptions(dtype="float32")


@pytest.fixture
def paths(tmp_path):
    """Five recordings of different lengths, levels and offsets, one of them at another rate with two channels."""
    rng = np.random.default_rng(0)
    files = []
    for index, seconds in enumerate(SECONDS):
        rate, channels = (22_050, 2) if index == 2 else (16_000, 1)
        samples = 0.01 * index + rng.normal(size=(round(seconds * rate), channels)) * 0.02 * (index + 1)
        files.append(tmp_path / f"{index}.wav")
        soundfile.write(files[-1], samples, rate, subtype="PCM_16")
    return files


def alone(clips, index):
    """The values of one clip."""
    samples, lengths = batch_of(clips, [index], [10**6])
    return samples[0, : lengths[0]]


def silence(count, length=1_000):
    """Clips of ones."""
    starts = np.arange(count + 1) * length
    return Clips(np.ones(count * length, np.float32), starts, np.zeros(count, np.float32), np.ones(count, np.float32))


@pytest.mark.parametrize("dtype", ["int16", "float32"])
def test_clips_hold_what_is_decoded_and_normalised(paths, dtype):
    clips = load_clips(paths, ClipOptions(dtype=dtype))
    assert clips.samples.dtype == dtype
    assert clips.starts.dtype == np.int64
    np.testing.assert_array_equal(clips.lengths, [8_000, 1_600, 4_800, 800, 3_200])
    for index, path in enumerate(paths):
        # Only the resampled clip has values between those of 16 bits; its standard deviation is 0.04.
        tolerance = 2**-15 / 0.02 if dtype == "int16" and index == 2 else 2e-6
        np.testing.assert_allclose(alone(clips, index), normalise(decode(path)), atol=tolerance)


def test_clips_may_stay_as_they_are(paths):
    clips = load_clips(paths, ClipOptions(normalisation="none"))
    np.testing.assert_array_equal(alone(clips, 4), decode(paths[4]))


def test_long_clips_are_cropped_before_they_are_normalised(paths):
    for where in ("start", "center"):
        clips = load_clips(paths, FLOAT._replace(max_seconds=0.15, where=where))
        np.testing.assert_array_equal(clips.lengths, [2_400, 1_600, 2_400, 800, 2_400])
        expected = normalise(crop(decode(paths[0]), 2_400, where))
        np.testing.assert_allclose(alone(clips, 0), expected, atol=2e-6)


def test_short_clips_are_refused_or_padded_before_they_are_normalised(tmp_path, paths):
    short = tmp_path / "short.wav"
    soundfile.write(short, np.full(300, 0.5), 16_000)
    with pytest.raises(InputError, match=r"short\.wav: clip: expected at least 400 samples, got 300"):
        load_clips([*paths, short])
    clips = load_clips([*paths, short], FLOAT._replace(short="pad"))
    padded = np.concatenate([np.full(300, 0.5, np.float32), np.zeros(100, np.float32)])
    np.testing.assert_allclose(alone(clips, 5), normalise(padded), atol=2e-6)


def test_full_scale_fits_into_16_bits(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.tile([1.0, -1.0], 400), 16_000, subtype="FLOAT")
    clips = load_clips([tmp_path / "a.wav"], ClipOptions(normalisation="none"))
    np.testing.assert_array_equal(np.unique(clips.samples), [-32768, 32767])


def test_all_faulty_recordings_are_told_at_once(tmp_path, paths):
    (tmp_path / "empty.wav").write_bytes(b"")
    faulty = [paths[0], tmp_path / "none.wav", paths[1], tmp_path / "empty.wav"]
    with pytest.raises(
        InputError, match=r"^paths: 2 of 4 recordings cannot be used: expected .*none\.wav; .* is empty$"
    ):
        load_clips(faulty)
    with pytest.raises(InputError, match=r"^paths: 30 of 30 recordings .*; and 10 more$") as caught:
        load_clips([tmp_path / f"{index}.flac" for index in range(30)])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sample_rate": 0}, r"^sample_rate: "),
        ({"resample": "linear"}, r"^resample: "),
        ({"max_seconds": -1.0}, r"^max_seconds: expected a number >= 0, got -1\.0$"),
        ({"where": "end"}, r"^where: "),
        ({"short": "drop"}, r"^short: "),
        ({"normalisation": "batch"}, r"^normalisation: "),
        ({"dtype": "float16"}, r"^dtype: expected 'int16' or 'float32', got 'float16'$"),
    ],
)
def test_invalid_options_are_refused_before_anything_is_decoded(options, message):
    with pytest.raises(InputError, match=message):
        load_clips(["none.wav"], ClipOptions(**options))


def test_no_paths_are_refused():
    with pytest.raises(InputError, match=r"^paths: expected at least one recording, got none$"):
        load_clips([])


def test_the_result_does_not_depend_on_the_threads(paths, monkeypatch):
    monkeypatch.setattr(clips_module, "_DECODED_AHEAD", 2)
    one, many = (load_clips(paths, threads=threads) for threads in (1, 7))
    for first, second in zip(one, many, strict=True):
        np.testing.assert_array_equal(first, second)


def assert_equal_clips(first, second):
    for one, two in zip(first, second, strict=True):
        assert one.dtype == two.dtype
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("dtype", ["int16", "float32"])
def test_the_cache_holds_the_same_and_is_not_decoded_again(tmp_path, paths, dtype, monkeypatch):
    options, cache = ClipOptions(dtype=dtype), tmp_path / "new" / "cache"
    expected = load_clips(paths, options)
    assert_equal_clips(load_clips(paths, options, cache=cache), expected)
    monkeypatch.setattr(clips_module, "decode", None)
    again = load_clips(paths, options, cache=cache)
    assert isinstance(again.samples, np.memmap)
    assert_equal_clips(again, expected)
    (folder,) = cache.iterdir()
    assert ".partial" not in folder.name


def test_the_cache_is_left_for_other_options_files_and_times(tmp_path, paths):
    cache = tmp_path / "cache"

    def entries():
        return len(list(cache.iterdir()))

    load_clips(paths, cache=cache)
    load_clips(paths, ClipOptions(max_seconds=0.1), cache=cache)
    load_clips(paths[:-1], cache=cache)
    load_clips(paths[::-1], cache=cache)
    assert entries() == 4
    soundfile.write(paths[0], np.ones(500), 16_000)
    np.testing.assert_array_equal(load_clips(paths, cache=cache).lengths[:2], [500, 1_600])
    assert entries() == 5
    status = paths[0].stat()
    os.utime(paths[0], ns=(status.st_atime_ns, status.st_mtime_ns + 1_000_000_000))
    load_clips(paths, cache=cache)
    assert entries() == 6


def test_damaged_caches_are_written_again(tmp_path, paths):
    cache = tmp_path / "cache"
    expected = load_clips(paths)
    load_clips(paths, cache=cache)
    (folder,) = cache.iterdir()
    samples = (folder / "samples.raw").read_bytes()
    (folder / "samples.raw").write_bytes(samples[:-2])
    assert_equal_clips(load_clips(paths, cache=cache), expected)
    (folder / "scales.npy").write_bytes(b"")
    assert_equal_clips(load_clips(paths, cache=cache), expected)
    (folder / "starts.npy").unlink()
    assert_equal_clips(load_clips(paths, cache=cache), expected)
    assert list(cache.iterdir()) == [folder]


def test_a_killed_writer_leaves_no_cache(tmp_path, paths):
    program = (
        "import os, sys; import imbal_jax.data.clips as clips\n"
        "real = clips.decode\n"
        "def decode(path, *rest):\n"
        "    return os._exit(9) if path.name == '4.wav' else real(path, *rest)\n"
        "clips.decode = decode; clips._DECODED_AHEAD = 1\n"
        "clips.load_clips(sys.argv[2:], cache=sys.argv[1], threads=1)"
    )
    cache = tmp_path / "cache"
    done = subprocess.run([sys.executable, "-c", program, str(cache), *map(str, paths)], check=False)
    assert done.returncode == 9
    (left,) = cache.iterdir()
    assert ".partial" in left.name
    assert_equal_clips(load_clips(paths, cache=cache), load_clips(paths))
    assert len(list(cache.iterdir())) == 2


def test_faults_leave_nothing_in_the_cache(tmp_path, paths):
    with pytest.raises(InputError, match=r"^paths: 1 of 6 recordings cannot be used"):
        load_clips([*paths, "none.wav"], cache=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_cache_that_cannot_be_written_is_told(tmp_path, paths):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match=r"^cache: .*file cannot be written: Not a directory$"):
        load_clips(paths, cache=tmp_path / "file")


def test_another_process_may_be_quicker(tmp_path, paths, monkeypatch):
    cache = tmp_path / "cache"
    real = clips_module._decoded

    def decoded(*arguments):
        yield from real(*arguments)
        monkeypatch.setattr(clips_module, "_decoded", real)
        load_clips(paths, cache=cache)  # the other one

    monkeypatch.setattr(clips_module, "_decoded", decoded)
    assert_equal_clips(load_clips(paths, cache=cache), load_clips(paths))
    assert len(list(cache.iterdir())) == 1


def test_batches_are_padded_with_zeros_to_the_smallest_bucket(paths):
    clips = load_clips(paths)
    samples, lengths = batch_of(clips, np.array([3, 1, 1]), (4_800, 1_600, 8_000))
    assert samples.dtype == np.float32
    assert lengths.dtype == np.int32
    assert samples.shape == (3, 1_600)
    np.testing.assert_array_equal(lengths, [800, 1_600, 1_600])
    np.testing.assert_array_equal(samples[0, 800:], 0)
    np.testing.assert_allclose(samples[0, :800], normalise(decode(paths[3])), atol=2e-6)
    assert abs(samples[0, :800].std() - 1) < 1e-3
    np.testing.assert_array_equal(samples[1], samples[2])
    assert batch_of(clips, [4], (4_800, 1_600, 8_000))[0].shape == (1, 4_800)


def test_batches_refuse_what_does_not_exist_or_fit(paths):
    clips = load_clips(paths)
    for indices in ([5], [-1], []):
        with pytest.raises(InputError, match=r"^indices: expected at least one, all in 0\.\.4, got \["):
            batch_of(clips, indices, [8_000])
    with pytest.raises(InputError, match=r"^buckets: expected one of at least 8000 samples, got \[1600, 7999\]$"):
        batch_of(clips, [1, 0], [1_600, 7_999])


def test_buckets_are_quantiles_rounded_up():
    lengths = np.arange(1, 101) * 100
    assert bucket_lengths(lengths, 1) == (11_200,)  # 10,000 rounded up to a multiple of 1,600
    assert bucket_lengths(lengths, 4, multiple_of=1) == (2_600, 5_100, 7_600, 10_000)
    assert bucket_lengths(np.full(9, 48_000), 4) == (48_000,)
    assert bucket_lengths([5], 3, multiple_of=4) == (8,)


def test_random_batches_fill_the_buckets_equally():
    rng = np.random.default_rng(0)
    lengths = rng.gamma(9, 5_000, 2_000).astype(int)
    buckets = bucket_lengths(lengths, 4, batch_size=16, multiple_of=1)
    longest = lengths[rng.integers(0, 2_000, (4_000, 16))].max(axis=1)
    shares = np.bincount(np.searchsorted(buckets, longest), minlength=4) / 4_000
    assert len(shares) == 4
    np.testing.assert_allclose(shares, 0.25, atol=0.05)


def test_buckets_need_clips_and_positive_numbers():
    with pytest.raises(InputError, match=r"^lengths: expected at least one clip, got none$"):
        bucket_lengths([], 2)
    for name in ("buckets", "batch_size", "multiple_of"):
        with pytest.raises(InputError, match=rf"^{name}: expected a number >= 1, got 0$"):
            bucket_lengths([1], **{"buckets": 2, name: 0})


def test_ravdess_round_trip(shared_path, tmp_path):
    files = sorted(pathlib.Path(shared_path("data/ravdess/audio")).glob("*-01.flac"))[:8]
    options = ClipOptions(max_seconds=3.0, where="center")
    clips = load_clips(files, options, cache=tmp_path)
    buckets = bucket_lengths(clips.lengths, 2, batch_size=4)
    samples, lengths = batch_of(clips, np.arange(8), buckets)
    assert samples.shape == (8, 48_000)
    for row, length, file in zip(samples, lengths, files, strict=True):
        expected = normalise(crop(decode(file), 48_000, "center"))
        np.testing.assert_allclose(row[:length], expected, atol=1e-5)
