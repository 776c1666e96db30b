"""Log-mel spectrograms against librosa, and padding that changes nothing."""

import functools

import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest

from imbal_jax.errors import InputError
from imbal_jax.models.log_mel import frame_counts, log_mel

OPTION_NAMES = ("sample_rate", "n_fft", "hop", "n_mels", "lowest", "highest", "logarithm", "standardise")
jitted = jax.jit(log_mel, static_argnames=OPTION_NAMES)

OPTIONS = [
    {},
    {"n_fft": 512, "hop": 200, "n_mels": 80},
    {"sample_rate": 8_000, "n_fft": 200, "hop": 80, "n_mels": 23, "lowest": 60.0, "highest": 3_800.0},
    {"n_fft": 401, "hop": 401, "n_mels": 40},
]


def speech_like(count=4_000, clips=2, seed=0):
    """Noise with a falling spectrum and a changing level, float64 [clips, count]."""
    noise = np.random.default_rng(seed).normal(size=(clips, count))
    smooth = np.stack([np.convolve(row, 0.6 ** np.arange(10), "same") for row in noise])
    return smooth * np.linspace(0.02, 0.5, count)


def reference(clip, *, sample_rate=16_000, n_fft=400, hop=160, n_mels=64, lowest=0.0, highest=None):
    """librosa's power in mel bands, [frames, n_mels]."""
    power = librosa.feature.melspectrogram(
        y=clip,
        sr=sample_rate,
        n_fft=n_fft,
        hop_length=hop,
        n_mels=n_mels,
        fmin=lowest,
        fmax=highest,
        center=False,
        dtype=np.float64,
    )
    return power.T


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_power_is_librosas(options):
    clips = speech_like()
    lengths = np.full(2, 4_000, np.int32)
    expected = np.stack([reference(clip, **options) for clip in clips])
    apply = functools.partial(jitted, **options)
    frames, counts = apply(jnp.asarray(clips, jnp.float32), lengths)
    assert frames.dtype == jnp.float32
    assert counts.dtype == jnp.int32
    assert frames.shape == expected.shape
    np.testing.assert_array_equal(counts, expected.shape[1])
    np.testing.assert_allclose(np.exp(frames), expected, rtol=1e-4)
    with jax.enable_x64(True):
        frames, counts = apply(jnp.asarray(clips), lengths)
        assert frames.dtype == jnp.float64
        assert counts.dtype == jnp.int32
        np.testing.assert_allclose(np.exp(frames), expected, rtol=1e-8)


def test_decibels_are_librosas():
    clips = speech_like()
    clips[1, :2_000] = 0  # some frames fall to the floor
    frames, _ = jitted(jnp.asarray(clips, jnp.float32), np.full(2, 4_000), logarithm="decibel")
    expected = np.stack([librosa.power_to_db(reference(clip), ref=1.0, amin=1e-10, top_db=None) for clip in clips])
    np.testing.assert_allclose(frames, expected, atol=1e-3)
    assert expected.min() == pytest.approx(-100)


def test_speech_is_as_librosa_has_it(shared_path):
    clip, _ = librosa.load(shared_path("data/ravdess/audio/03-01-05-01-01-01-03.flac"), sr=None)
    frames, _ = jitted(jnp.asarray(clip)[None], np.array([len(clip)]))
    np.testing.assert_allclose(frames[0], np.log(np.maximum(reference(clip), 1e-10)), atol=2e-3)


@pytest.mark.parametrize(
    ("length", "frames"), [(0, 0), (399, 0), (400, 1), (559, 1), (560, 2), (4_000, 23), (4_001, 23), (4_080, 24)]
)
def test_only_whole_frames_count(length, frames):
    assert int(frame_counts(jnp.array([length]), 400, 160)[0]) == frames
    _, counts = jitted(jnp.zeros((1, 4_080)), jnp.array([length]))
    assert int(counts[0]) == frames
    if length >= 400:
        assert reference(np.zeros(length)).shape == (frames, 64)


@pytest.mark.parametrize("standardise", ["none", "clip", "band"])
def test_a_padded_clip_is_as_alone(standardise):
    clips = speech_like(clips=4).astype(np.float32)
    lengths = np.array([4_000, 2_345, 400, 399], np.int32)
    padded = np.where(np.arange(4_000) < lengths[:, None], clips, 0)
    apply = functools.partial(jitted, standardise=standardise)
    frames, counts = apply(jnp.asarray(padded), lengths)
    assert counts.tolist() == [23, 13, 1, 0]
    for row, count, clip, length in zip(frames, counts, clips, lengths, strict=True):
        np.testing.assert_array_equal(row[count:], 0)
        if count:
            alone, _ = apply(jnp.asarray(clip[None, :length]), np.array([length]))
            np.testing.assert_allclose(row[:count], alone[0], atol=2e-5)
    # What lies in the padding must not matter either.
    disturbed, _ = apply(jnp.asarray(clips), lengths)
    np.testing.assert_array_equal(frames[1, :13], disturbed[1, :13])


def test_standardisation_is_over_the_frames_that_count():
    clips = speech_like(clips=3).astype(np.float32)
    lengths = np.array([4_000, 3_000, 1_000], np.int32)
    plain, counts = jitted(jnp.asarray(clips), lengths)
    for name, axes in (("clip", (0, 1)), ("band", (0,))):
        standard, _ = jitted(jnp.asarray(clips), lengths, standardise=name)
        for row, before, count in zip(standard, plain, counts, strict=True):
            exact = np.asarray(before[:count], np.float64)
            variance = exact.var(axis=axes, keepdims=True)
            expected = (exact - exact.mean(axis=axes, keepdims=True)) / np.sqrt(variance + 1e-5)
            np.testing.assert_allclose(row[:count], expected, atol=1e-4)


@pytest.mark.parametrize("standardise", ["clip", "band"])
def test_silence_becomes_zeros_with_a_finite_gradient(standardise):
    samples, lengths = jnp.zeros((2, 2_000)), jnp.array([2_000, 100])

    def total(samples):
        return (jitted(samples, lengths, standardise=standardise)[0] ** 2).sum()

    frames, _ = jitted(samples, lengths, standardise=standardise)
    np.testing.assert_allclose(frames, 0, atol=0.02)
    assert np.isfinite(jax.grad(total)(samples)).all()
    np.testing.assert_allclose(jitted(samples, lengths)[0][0], np.log(1e-10), rtol=1e-6)


def test_vmap_over_batches_is_the_batches_one_by_one():
    clips = jnp.asarray(speech_like(clips=6).reshape(3, 2, 4_000), jnp.float32)
    lengths = jnp.array([[4_000, 3_000], [2_000, 4_000], [400, 500]])
    apply = functools.partial(jitted, standardise="band")
    frames, counts = jax.vmap(apply)(clips, lengths)
    for each in range(3):
        alone, alone_counts = apply(clips[each], lengths[each])
        np.testing.assert_allclose(frames[each], alone, atol=2e-5)
        np.testing.assert_array_equal(counts[each], alone_counts)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sample_rate": 0}, r"^sample_rate: expected a whole number >= 1, got 0$"),
        ({"n_fft": 400.0}, r"^n_fft: expected a whole number >= 1, got 400\.0$"),
        ({"hop": 0}, r"^hop: expected a whole number >= 1, got 0$"),
        ({"n_mels": True}, r"^n_mels: expected a whole number >= 1, got True$"),
        (
            {"n_mels": 200},
            r"^n_mels: \d+ of 200 bands from 0\.0 to 8000\.0 Hz hold none of the frequencies 40 Hz apart",
        ),
        ({"lowest": -1.0}, r"^lowest: expected a number >= 0, got -1\.0$"),
        (
            {"highest": 9_000.0},
            r"^highest: expected a frequency above lowest = 0\.0 Hz and up to .* 8000\.0 Hz, got 9000",
        ),
        ({"lowest": 500.0, "highest": 500.0}, r"^highest: expected a frequency above lowest = 500\.0 Hz"),
        ({"logarithm": "bel"}, r"^logarithm: expected one of natural, decibel, got 'bel'$"),
        ({"standardise": "batch"}, r"^standardise: expected one of none, clip, band, got 'batch'$"),
    ],
)
def test_invalid_options_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        log_mel(jnp.zeros((1, 500)), jnp.array([500]), **options)


@pytest.mark.parametrize(
    ("samples", "lengths", "message"),
    [
        (
            np.zeros(500, np.float32),
            [500],
            r"^samples: expected \[batch, samples\], samples >= 400, got shape \(500,\)$",
        ),
        (np.zeros((1, 399), np.float32), [399], r"^samples: expected .* >= 400, got shape \(1, 399\)$"),
        (np.zeros((1, 500), np.int16), [500], r"^samples: expected floating-point numbers, got int16$"),
        (np.zeros((2, 500), np.float32), [500], r"^lengths: expected whole numbers of shape \(2,\), got int.* \(1,\)$"),
        (np.zeros((1, 500), np.float32), [500.0], r"^lengths: expected whole numbers of shape \(1,\), got float"),
    ],
)
def test_invalid_arrays_are_refused(samples, lengths, message):
    with pytest.raises(InputError, match=message):
        log_mel(jnp.asarray(samples), jnp.asarray(lengths))
