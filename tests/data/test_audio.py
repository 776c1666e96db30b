"""Decoding sound files, and refusing those that cannot be trusted."""

import os
import struct
import subprocess
import sys

import librosa
import numpy as np
import pytest
import soundfile
import soxr

from imbal_jax.data.audio import MIN_SAMPLES, crop, decode, lengthen, normalise, offset_and_scale, read_recording
from imbal_jax.errors import InputError


def tone(count=8_000, rate=16_000, channels=1, seed=0):
    """A tone with noise, float64 [samples] or [samples, channels], below 0.6 in magnitude."""
    noise = np.random.default_rng(seed).uniform(-0.1, 0.1, (count, channels))
    waves = 0.5 * np.sin(2 * np.pi * 440 * np.arange(count) / rate)[:, None] * np.linspace(1, 0.3, channels) + noise
    return waves[:, 0] if channels == 1 else waves


def write(path, samples, rate=16_000, **options):
    """Writes a sound file, in the format of its ending, and returns its path."""
    soundfile.write(path, samples, rate, **options)
    return path


@pytest.mark.parametrize("count", [1, 399, 8_000, 1_100_001])
@pytest.mark.parametrize("ending", ["wav", "flac"])
def test_16_bit_files_at_the_wanted_rate_are_read_exactly(tmp_path, ending, count):
    whole = np.random.default_rng(0).integers(-32768, 32768, count).astype(np.int16)
    clip = decode(write(tmp_path / f"a.{ending}", whole, subtype="PCM_16"))
    assert clip.dtype == np.float32
    np.testing.assert_array_equal(clip, whole / 32768)


@pytest.mark.parametrize(("subtype", "step"), [("PCM_U8", 2**-7), ("PCM_24", 2**-23), ("FLOAT", 1e-7), ("ULAW", 0.04)])
def test_other_sample_types_are_scaled_to_one(tmp_path, subtype, step):
    clip = decode(write(tmp_path / "a.wav", tone(), subtype=subtype))
    np.testing.assert_allclose(clip, tone(), atol=step)
    assert np.abs(clip).max() > 0.5


@pytest.mark.parametrize("ending", ["mp3", "ogg"])
def test_lossy_files_keep_their_length_and_their_sound(tmp_path, ending):
    clip = decode(write(tmp_path / f"a.{ending}", tone(20_003)))
    assert clip.shape == (20_003,)
    assert np.corrcoef(clip, tone(20_003))[0, 1] > 0.9


def test_an_ogg_file_may_hold_opus(tmp_path):
    clip = decode(write(tmp_path / "a.ogg", tone(), subtype="OPUS"))
    assert np.corrcoef(clip, tone())[0, 1] > 0.9


def test_channels_are_averaged(tmp_path):
    samples = tone(channels=3)
    clip = decode(write(tmp_path / "a.wav", samples, subtype="FLOAT"))
    np.testing.assert_allclose(clip, samples.mean(axis=1), atol=1e-7)


@pytest.mark.parametrize(("rate", "count"), [(8_000, 4_001), (22_050, 10_007), (44_100, 30_000), (48_000, 3)])
def test_other_rates_are_resampled_after_averaging(tmp_path, rate, count):
    samples = tone(count, rate, channels=2).astype(np.float32)
    clip = decode(write(tmp_path / "a.wav", samples, rate, subtype="FLOAT"))
    expected = librosa.resample(samples.mean(axis=1), orig_sr=rate, target_sr=16_000, res_type="soxr_hq")
    assert clip.dtype == np.float32
    np.testing.assert_allclose(clip, np.clip(expected, -1, 1), atol=1e-7)
    assert len(clip) == -(-count * 16_000 // rate)


def test_the_resampler_and_the_rate_are_chosen(tmp_path):
    samples = tone(9_000, 22_050).astype(np.float32)
    path = write(tmp_path / "a.wav", samples, 22_050, subtype="FLOAT")
    for method, quality in (("soxr_vhq", "VHQ"), ("soxr_qq", "QQ")):
        clip = decode(path, sample_rate=8_000, resample=method)
        expected = soxr.resample(samples, 22_050, 8_000, quality=quality)
        np.testing.assert_allclose(clip[: len(expected)], expected[: len(clip)], atol=1e-7)
    assert not np.allclose(clip, decode(path, 8_000), atol=1e-4)
    np.testing.assert_allclose(decode(path, 22_050), samples, atol=1e-7)


def test_overshoot_is_clipped_and_another_scale_refused(tmp_path):
    samples = 1.5 * np.sin(np.arange(2_000) / 9)
    clip = decode(write(tmp_path / "a.wav", samples, subtype="FLOAT"))
    np.testing.assert_allclose(clip, np.clip(samples, -1, 1), atol=1e-6)
    with pytest.raises(InputError, match=r"a\.wav: expected samples in \[-1, 1\], got a largest magnitude of 49\d{3}"):
        decode(write(tmp_path / "a.wav", 32768 * samples, subtype="FLOAT"))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_samples_that_are_not_finite_are_refused(tmp_path, bad):
    samples = tone(channels=2)
    samples[7, 1] = samples[9, 0] = bad
    path = write(tmp_path / "a.wav", samples, subtype="FLOAT")
    with pytest.raises(InputError, match=r"a\.wav holds 2 NaN or infinite samples, first at index 7$"):
        decode(path)


def test_missing_files_folders_and_other_formats_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"^path: expected a sound file, found none at .*none\.wav$"):
        decode(tmp_path / "none.wav")
    (tmp_path / "folder.wav").mkdir()
    with pytest.raises(InputError, match=r"^path: expected a sound file, found none at .*folder\.wav$"):
        decode(tmp_path / "folder.wav")
    (tmp_path / "a.m4a").write_bytes(b"abc")
    with pytest.raises(
        InputError, match=r"^path: expected a file that ends in \.wav, \.flac, \.mp3, \.ogg, got .*m4a$"
    ):
        decode(tmp_path / "a.m4a")


@pytest.mark.parametrize("ending", ["wav", "flac", "mp3", "ogg"])
def test_files_without_sound_are_refused(tmp_path, ending):
    path = tmp_path / f"a.{ending}"
    path.write_bytes(b"")
    with pytest.raises(InputError, match=r"^path: .* is empty$"):
        decode(path)
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    with pytest.raises(InputError, match=r"is a git-lfs pointer, not the recording; fetch it with: git lfs pull$"):
        decode(path)
    path.write_bytes(np.random.default_rng(0).bytes(5_000))
    with pytest.raises(InputError, match=rf"is damaged, truncated or no \.{ending} file$"):
        decode(path)


@pytest.mark.parametrize("ending", ["wav", "ogg"])
def test_zero_samples_are_refused(tmp_path, ending):
    with pytest.raises(InputError, match=r"holds no samples$"):
        decode(write(tmp_path / f"a.{ending}", np.zeros(0)))


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("ending", ["wav", "flac", "mp3", "ogg"])
def test_truncated_files_are_refused(tmp_path, ending, share):
    path = write(tmp_path / f"a.{ending}", tone(24_000))
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(InputError, match=r"is (damaged, |damaged or )?truncated"):
        decode(path)


def test_a_wav_file_of_several_chunks_may_end_with_another(tmp_path):
    path = write(tmp_path / "a.wav", tone(8_001), subtype="PCM_U8")  # an odd number of bytes
    content = bytearray(path.read_bytes())
    extra = b"LIST" + struct.pack("<I", 5) + b"INFOx\0"
    content = content[:36] + extra + content[36:] + extra
    struct.pack_into("<I", content, 4, len(content) - 8)
    path.write_bytes(content)
    assert len(decode(path)) == 8_001
    path.write_bytes(content[: -len(extra) - 2])
    with pytest.raises(InputError, match=r"is truncated: it ends before the end that its contents announce$"):
        decode(path)


def test_a_streamed_wav_file_does_not_know_its_length(tmp_path):
    path = write(tmp_path / "a.wav", tone(), subtype="PCM_16")
    content = bytearray(path.read_bytes())
    for announced in (0xFFFFFFFF, 0x7FFFF000):
        struct.pack_into("<I", content, 4, announced)
        struct.pack_into("<I", content, content.index(b"data") + 4, announced)
        path.write_bytes(content)
        np.testing.assert_allclose(decode(path), tone(), atol=2**-15)


def test_a_streamed_flac_file_is_refused_because_its_end_cannot_be_read(tmp_path):
    path = write(tmp_path / "a.flac", tone())
    content = bytearray(path.read_bytes())
    content[21] &= 0xF0  # the 36 bits of the number of samples
    content[22:26] = bytes(4)
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"does not tell its length, as streams do; expected it encoded as a file$"):
        decode(path)


def test_a_damaged_flac_header_does_not_fill_the_memory(tmp_path):
    path = write(tmp_path / "a.flac", tone())
    content = bytearray(path.read_bytes())
    content[21] |= 0x0F
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"is damaged"):
        decode(path)


def test_damage_within_a_flac_file_is_found(tmp_path):
    path = write(tmp_path / "a.flac", tone(24_000))
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 20] = bytes(20)
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"is damaged, truncated or no \.flac file$"):
        decode(path)


@pytest.mark.parametrize(("contents", "ending"), [("flac", "wav"), ("mp3", "flac"), ("wav", "mp3"), ("wav", "ogg")])
def test_contents_of_another_format_than_the_ending_are_refused(tmp_path, contents, ending):
    path = write(tmp_path / f"a.{contents}", tone()).rename(tmp_path / f"b.{ending}")
    with pytest.raises(InputError, match=rf"holds {contents.upper()} audio, which its ending \.{ending} does not say$"):
        decode(path)


def test_endings_may_be_capital_letters(tmp_path):
    path = write(tmp_path / "a.wav", tone()).rename(tmp_path / "A.WAV")
    assert len(decode(str(path))) == 8_000


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may read every file")
def test_a_file_without_permission_is_refused(tmp_path):
    path = write(tmp_path / "a.wav", tone())
    path.chmod(0)
    with pytest.raises(InputError, match=r"cannot be read: Permission denied$"):
        decode(path)


@pytest.mark.parametrize("ending", ["wav", "flac", "mp3", "ogg"])
def test_damaged_files_raise_nothing_but_one_line(tmp_path, ending):
    content = write(tmp_path / f"a.{ending}", tone(3_000)).read_bytes()
    rng = np.random.default_rng(1)
    path = tmp_path / f"b.{ending}"
    refused = 0
    for _ in range(60):
        damaged = bytearray(content[: rng.integers(1, len(content) + 1)])
        for place in rng.integers(0, min(200, len(damaged)), 4):
            damaged[place] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            clip = decode(path, resample="soxr_qq")
        except InputError as error:
            refused += 1
            assert "\n" not in str(error)
        else:
            assert np.isfinite(clip).all()
            assert len(clip) > 0
    assert refused > 30


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sample_rate": 0}, r"^sample_rate: expected a whole number of hertz >= 1, got 0$"),
        ({"sample_rate": 16e3}, r"^sample_rate: expected a whole number of hertz >= 1, got 16000\.0$"),
        ({"resample": "best"}, r"^resample: expected one of soxr_vhq, soxr_hq, .*, got 'best'$"),
    ],
)
def test_invalid_options_are_refused(tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        decode(write(tmp_path / "a.wav", tone()), **options)


def test_a_recording_keeps_its_rate_and_channels(tmp_path):
    recording = read_recording(write(tmp_path / "a.wav", tone(channels=2), 11_025, subtype="FLOAT"))
    assert recording.sample_rate == 11_025
    np.testing.assert_allclose(recording.samples, tone(channels=2), atol=1e-7)


def test_normalise_gives_mean_zero_and_variance_one():
    clip = (0.2 + 0.01 * np.random.default_rng(0).normal(size=5_000)).astype(np.float32)
    normalised = normalise(clip)
    exact = clip.astype(np.float64)
    expected = (exact - exact.mean()) / np.sqrt(exact.var() + 1e-7)
    assert normalised.dtype == np.float32
    np.testing.assert_allclose(normalised, expected, atol=1e-5)
    assert abs(normalised.std() - 1 / np.sqrt(1 + 1e-3)) < 1e-4  # the variance is 1e-4: the added 1e-7 can be seen
    np.testing.assert_array_equal(normalise(clip, "none"), clip)


@pytest.mark.parametrize("level", [0.0, 0.1, -0.7])
def test_silence_stays_zero(level):
    np.testing.assert_array_equal(normalise(np.full(9_999, level, np.float32)), 0)


def test_normalise_refuses_an_unknown_mode():
    with pytest.raises(InputError, match=r"^normalisation: expected 'clip' or 'none', got 'padded'$"):
        normalise(np.ones(3, np.float32), "padded")
    assert offset_and_scale(np.ones(3, np.float32), "none") == (0, 1)


def test_crop_keeps_the_start_or_the_middle():
    clip = np.arange(10)
    np.testing.assert_array_equal(crop(clip, 4), [0, 1, 2, 3])
    np.testing.assert_array_equal(crop(clip, 4, "center"), [3, 4, 5, 6])
    np.testing.assert_array_equal(crop(clip, 5, "center"), [2, 3, 4, 5, 6])
    for where in ("start", "center"):
        for enough in (10, 11, 100):
            np.testing.assert_array_equal(crop(clip, enough, where), clip)
    with pytest.raises(InputError, match=r"^max_samples: expected a number >= 1, got 0$"):
        crop(clip, 0)
    with pytest.raises(InputError, match=r"^where: expected 'start' or 'center', got 'end'$"):
        crop(clip, 4, "end")


def test_short_clips_are_refused_or_padded():
    clip = np.ones(MIN_SAMPLES - 1, np.float32)
    with pytest.raises(InputError, match=r"^clip: expected at least 400 samples, got 399; short='pad' adds zeros$"):
        lengthen(clip)
    np.testing.assert_array_equal(lengthen(clip, "pad"), [*clip, 0])
    for enough in (MIN_SAMPLES, MIN_SAMPLES + 1):
        assert len(lengthen(np.ones(enough))) == len(lengthen(np.ones(enough), "pad")) == enough
    with pytest.raises(InputError, match=r"^short: expected 'refuse' or 'pad', got 'drop'$"):
        lengthen(clip, "drop")


def test_threads_may_be_the_first_to_need_the_resampler(tmp_path):
    path = write(tmp_path / "a.wav", tone(2_000), 22_050)
    program = (
        "import sys; from concurrent.futures import ThreadPoolExecutor; from imbal_jax.data.audio import decode;"
        "assert not {'librosa', 'soundfile'} & set(sys.modules);"
        "pool = ThreadPoolExecutor(8); print({len(clip) for clip in pool.map(decode, [sys.argv[1]] * 16)})"
    )
    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout == "{1452}\n"


def test_ravdess_is_read_whole(shared_path):
    path = shared_path("data/ravdess/audio/03-01-01-01-01-01-01.flac")
    clip = decode(path)
    assert clip.shape == (52_853,)
    np.testing.assert_array_equal(clip, librosa.load(path, sr=None)[0])
