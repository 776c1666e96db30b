"""All faults of a set of recordings in one report."""

import csv

import numpy as np
import pytest
import soundfile

from imbal_jax.data.audio_faults import Durations, report_lines, scan
from imbal_jax.errors import InputError


def noise(seconds, rate=16_000, channels=1, seed=0, level=0.2):
    """Uniform noise of 16-bit values, float64 [samples, channels]."""
    count = round(seconds * rate)
    whole = np.random.default_rng(seed).integers(-level * 32768, level * 32768, (count, channels))
    return whole / 32768


@pytest.fixture
def folder(tmp_path):
    """Two good recordings, and one or more of every fault."""
    files = {
        "good.wav": (noise(1.5), 16_000),
        "stereo.flac": (noise(0.5, 44_100, 2, seed=1), 44_100),
        "short.wav": (noise(0.0249, seed=2), 16_000),
        "silent.wav": (0.25 + noise(1, seed=3, level=5e-4), 16_000),
        "zeros.wav": (np.zeros(8_000), 8_000),
        "loud.wav": (np.clip(8 * noise(1, seed=4), -1, 1), 16_000),
        "copy.flac": (noise(1.5), 16_000),
    }
    for name, (samples, rate) in files.items():
        soundfile.write(tmp_path / name, samples, rate)
    samples = noise(1, seed=5)
    samples[3] = np.nan
    soundfile.write(tmp_path / "nan.wav", samples, 16_000, subtype="FLOAT")
    soundfile.write(tmp_path / "scale.wav", 32768 * noise(1, seed=6), 16_000, subtype="FLOAT")
    content = (tmp_path / "good.wav").read_bytes()
    (tmp_path / "cut.wav").write_bytes(content[: len(content) // 2])
    return tmp_path


NAMES = [
    "good.wav",
    "stereo.flac",
    "missing.wav",
    "short.wav",
    "silent.wav",
    "zeros.wav",
    "loud.wav",
    "copy.flac",
    "nan.wav",
    "scale.wav",
    "cut.wav",
]


def test_every_fault_is_reported_at_once(folder):
    report = scan([folder / name for name in NAMES])
    found = [(fault.path.name, fault.kind) for fault in report.faults]
    assert found == [
        ("missing.wav", "unreadable"),
        ("short.wav", "too short"),
        ("silent.wav", "silent"),
        ("zeros.wav", "silent"),
        ("loud.wav", "clipped"),
        ("copy.flac", "duplicate"),
        ("nan.wav", "bad samples"),
        ("scale.wav", "bad samples"),
        ("cut.wav", "unreadable"),
    ]
    details = {fault.path.name: fault.detail for fault in report.faults}
    assert details["missing.wav"].startswith("expected a sound file, found none at ")
    assert details["short.wav"] == "24.9 ms, expected at least 0.025 s"
    assert details["silent.wav"] == "no sample lies further than 0.00048 from the mean"
    assert details["loud.wav"].endswith("% of the samples lie at full scale")
    assert details["copy.flac"] == f"the same samples as {folder / 'good.wav'}"
    assert "NaN or infinite samples, first at index 3" in details["nan.wav"]
    assert "expected samples in [-1, 1]" in details["scale.wav"]
    assert "is truncated" in details["cut.wav"]
    assert report.faulty == 9


def test_durations_and_formats_are_of_what_can_be_decoded(folder):
    report = scan([folder / name for name in NAMES])
    seconds = np.array([1.5, 0.5, 398 / 16_000, 1, 1, 1, 1.5, 1, 1])
    assert report.durations.recordings == 9
    np.testing.assert_allclose(
        report.durations[1:], [seconds.sum(), seconds.min(), np.median(seconds), seconds.mean(), seconds.max()]
    )
    assert report.formats == {(8_000, 1): 1, (16_000, 1): 7, (44_100, 2): 1}
    assert report.by_label == {}


def test_durations_by_label(folder):
    report = scan([folder / name for name in NAMES], ["b", "a", *"bbbbbbbbb"])
    assert list(report.by_label) == ["a", "b"]
    assert report.by_label["a"] == Durations(1, 0.5, 0.5, 0.5, 0.5, 0.5)
    assert report.by_label["b"].recordings == 8


def test_duplicates_whose_labels_differ_are_told_apart(folder):
    files = [folder / name for name in ("good.wav", "stereo.flac", "copy.flac")]
    (fault,) = scan(files, np.array([0, 1, 2])).faults
    assert fault.path.name == "copy.flac"
    assert fault.detail == f"the same samples as {files[0]}, but the labels 0 and 2 differ"
    (fault,) = scan(files, np.array([1, 0, 1])).faults
    assert fault.detail == f"the same samples as {files[0]}"


def test_the_same_samples_at_another_rate_are_no_duplicate(tmp_path):
    for rate in (16_000, 8_000):
        soundfile.write(tmp_path / f"{rate}.wav", noise(1), rate)
    soundfile.write(tmp_path / "stereo.wav", noise(1).reshape(-1, 2), 16_000)
    assert scan(sorted(tmp_path.iterdir())).faults == ()


def test_thresholds_are_chosen(tmp_path):
    samples = noise(1)
    samples[:160] = 1  # 1 % at full scale
    soundfile.write(tmp_path / "a.wav", samples, 16_000)

    def kinds(**options):
        return [fault.kind for fault in scan([tmp_path / "a.wav"], **options).faults]

    assert kinds() == ["clipped"]
    assert kinds(clipped_above=0.0101) == []
    assert kinds(clipped_above=0.0099, silent_below=1.0) == ["silent", "clipped"]


@pytest.mark.parametrize("subtype", ["PCM_U8", "ULAW", "ALAW"])
def test_full_scale_is_found_in_8_bits(tmp_path, subtype):
    soundfile.write(tmp_path / "a.wav", np.clip(8 * noise(1), -1, 1), 16_000, subtype=subtype)
    assert [fault.kind for fault in scan([tmp_path / "a.wav"]).faults] == ["clipped"]


def test_the_report_does_not_depend_on_the_threads(folder):
    files = [folder / name for name in NAMES] * 3
    one, many, again = (scan(files, list(range(33)), threads=threads) for threads in (1, 8, 8))
    assert one == many == again
    assert sum(fault.kind == "duplicate" for fault in one.faults) == 1 + 2 * 7


def test_the_lines_tell_all(folder):
    files = [folder / name for name in NAMES]
    lines = report_lines(scan(files, [name[0] for name in NAMES]))
    assert lines[0].startswith("9 recordings decoded: 0.00 h, shortest 0.02 s, median 1.00 s, mean 0.95 s, longest 1.5")
    assert "label m: 0 recordings, no duration" in lines
    assert "1 recordings at 44100 Hz with 2 channels" in lines
    counted = "faults in 9 recordings: 2 unreadable, 2 bad samples, 1 too short, 2 silent, 1 clipped, 1 duplicate"
    assert lines[-10] == counted
    assert lines[-1].startswith(f"unreadable: {folder / 'cut.wav'}: ")
    assert not any("\n" in line for line in lines)


def test_good_recordings_have_no_faults(folder):
    report = scan([folder / "good.wav", folder / "stereo.flac"])
    assert report.faults == ()
    assert report.faulty == 0
    assert report_lines(report)[-1] == "no faults"


def test_nothing_is_reported_of_nothing():
    report = scan([])
    assert report.durations == Durations(0, 0.0, 0.0, 0.0, 0.0, 0.0)
    assert report_lines(report) == ["0 recordings decoded: no duration", "no faults"]


def test_invalid_arguments_are_refused(folder):
    with pytest.raises(InputError, match=r"^labels: expected one for each of 1 paths, got 2$"):
        scan([folder / "good.wav"], [1, 2])
    with pytest.raises(InputError, match=r"^clipped_above: expected a number in \[0, 1\], got 2$"):
        scan([], clipped_above=2)
    with pytest.raises(InputError, match=r"^silent_below: expected a number >= 0, got nan$"):
        scan([], silent_below=float("nan"))


def test_the_duplicate_of_ravdess_is_found(shared_path):
    root = shared_path("data/ravdess")
    with (root / "labels.csv").open() as stream:
        rows = [row for row in csv.DictReader(stream) if row["actor"] == "7"]
    report = scan([root / "audio" / row["file"] for row in rows], [row["emotion"] for row in rows])
    (fault,) = report.faults
    assert fault.path.stem == "03-01-03-01-02-02-07"
    assert fault.detail.endswith("03-01-03-01-02-01-07.flac")
    assert report.durations.total == pytest.approx(sum(int(row["n_samples16k"]) for row in rows) / 16_000)
    assert len(report.by_label) == 8
