"""Corpora of recordings as data sets."""

import csv
import shutil

import jax
import numpy as np
import pytest
import soundfile

from imbal_jax.data.clips import ClipOptions
from imbal_jax.data.corpora import Corpus, Recordings
from imbal_jax.data.pipeline import ValidationSplit, training_data
from imbal_jax.data.profiles import counts, natural
from imbal_jax.data.speech import ClipSet, SpeechSource, crema_d, manifest, msp_podcast
from imbal_jax.errors import InputError
from imbal_jax.types import Waveforms
from tests.recordings import COUNTS, write_corpus

NONE = ValidationSplit(0.0)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"), COUNTS | {"test_2": (1, 2, 1)})


@pytest.fixture(scope="module")
def dataset(table):
    return manifest(path=str(table)).load()


def rows_of(table):
    with table.open() as stream:
        return list(csv.DictReader(stream))


def test_splits_hold_the_recordings_of_the_table(table, dataset):
    rows = rows_of(table)
    assert dataset.class_names == ("high", "low", "middle")  # sorted
    assert set(dataset.splits) == {"train", "validation", "test", "test_2"}
    assert set(dataset.more_tests) == {"test_2"}
    for name, split in dataset.splits.items():
        listed = [row for row in rows if row["split"] == name]
        assert len(split.images) == len(split.labels) == len(listed)
        for i, row in enumerate(listed):
            assert dataset.class_names[split.labels[i]] == row["label"]
            samples, rate = soundfile.read(table.parent / row["path"])
            assert rate == 16_000
            clip, lengths = split.images.batch(np.array([i]), split.images.buckets(1))
            assert lengths.tolist() == [len(samples)] == [split.images.lengths[i]]
            expected = (samples - samples.mean()) / np.sqrt(samples.var() + 1e-7)
            np.testing.assert_allclose(clip[0, : len(samples)], expected, atol=1e-5)
            assert not clip[0, len(samples) :].any()


def test_batches_are_padded_to_the_smallest_bucket_that_holds_them(dataset):
    clips = dataset.train.images
    buckets = clips.buckets(1)
    assert len(buckets) > 2 and list(buckets) == sorted(set(buckets))
    assert all(bucket % 1600 == 0 for bucket in buckets)
    order = np.argsort(clips.lengths)
    for chosen in (order[:4], order[-4:]):
        longest = clips.lengths[chosen].max()
        batch = clips.batch(chosen, buckets)
        assert isinstance(batch, Waveforms)
        assert batch.samples.dtype == np.float32 and batch.lengths.dtype == np.int32
        assert batch.samples.shape == (4, min(bucket for bucket in buckets if bucket >= longest))


def test_the_buckets_of_every_split_end_with_the_longest_clip_of_the_corpus(dataset):
    ends = {split.images.buckets(batch)[-1] for split in dataset.splits.values() for batch in (1, 8)}
    longest = max(split.images.lengths.max() for split in dataset.splits.values())
    assert len(ends) == 1 and longest <= ends.pop() < longest + 1600
    assert len({split.images.example().samples.shape for split in dataset.splits.values()}) == 1


def test_one_bucket_is_the_longest(table):
    clips = manifest(path=str(table), buckets=1).load().train.images
    assert len(clips.buckets(8)) == 1
    assert clips.buckets(8) == clips.buckets(1)


def test_an_example_is_a_clip_of_the_greatest_length_and_nothing_is_decoded_for_the_source_s(table, monkeypatch):
    monkeypatch.setattr("imbal_jax.data.speech.load_clips", None)
    source = manifest(path=str(table), max_seconds=0.5)
    example = source.example()
    assert isinstance(example.samples, jax.ShapeDtypeStruct)
    assert example.samples.shape == (8_000,) and example.lengths.shape == ()
    assert manifest(path=str(table), max_seconds=0.0).example().samples.shape == (160_000,)


def test_longer_clips_are_cut_and_short_ones_lengthened(table, tmp_path):
    cut = manifest(path=str(table), max_seconds=0.4).load()
    assert max(split.images.lengths.max() for split in cut.splits.values()) == 6_400
    table = write_corpus(tmp_path, seconds=(0.01, 0.02))
    assert manifest(path=str(table)).load().train.images.lengths.min() == 400


def test_taking_some_clips(dataset):
    clips = dataset.train.images
    some = clips[np.array([5, 2])][np.array([1])]
    assert isinstance(some, ClipSet) and len(some) == 1
    np.testing.assert_array_equal(some.batch(np.array([0]), (32_000,))[0], clips.batch(np.array([2]), (32_000,))[0])
    assert some.buckets(1)[-1] == clips.buckets(1)[-1]


def test_a_profile_draws_from_the_clips(dataset):
    data = training_data(dataset, NONE, counts(counts=(2, 4, 3)))
    assert data.counts.counts.tolist() == [2, 4, 3]
    assert data.mean is None and data.std is None
    assert set(data.more_tests) == {"test_2"}
    originals = {dataset.train.images.batch(np.array([i]), (32_000,))[0].tobytes(): i for i in range(24)}
    for i in range(9):
        found = originals[data.train.images.batch(np.array([i]), (32_000,))[0].tobytes()]
        assert dataset.train.labels[found] == data.train.labels[i]


def test_validation_clips_are_split_off_where_the_source_has_none(dataset):
    data = training_data(dataset._replace(validation=None), ValidationSplit(0.25, balanced=True), natural())
    assert len(data.train.labels) + len(data.validation.labels) == 24
    assert not set(data.train.images.rows) & set(data.validation.images.rows)


def test_the_fingerprint_knows_every_sample(table, tmp_path):
    """Also without normalisation, where lengths alone would say nothing of what is heard."""

    def fingerprint(path):
        return training_data(manifest(path=str(path), normalisation="none").load(), NONE, natural()).fingerprint

    copy = tmp_path / "copy"
    shutil.copytree(table.parent, copy)
    assert fingerprint(copy / table.name) == fingerprint(table)
    file = copy / rows_of(table)[3]["path"]
    samples, rate = soundfile.read(file, dtype="int16")
    samples[7] ^= 1
    soundfile.write(file, samples, rate, subtype="PCM_16")
    assert fingerprint(copy / table.name) != fingerprint(table)


def test_the_digest_is_of_the_clips_in_their_order(dataset):
    clips = dataset.train.images
    assert clips.digest() == clips[np.arange(24)].digest()
    assert len({clips.digest(), clips[np.arange(24)[::-1]].digest(), clips[np.arange(23)].digest()}) == 3


def test_clips_can_be_kept_on_disk(table, tmp_path, dataset):
    kept = manifest(path=str(table), cache=str(tmp_path / "kept")).load()
    assert isinstance(kept.train.images.clips.samples, np.memmap)
    assert kept.train.images.digest() == dataset.train.images.digest()
    assert list((tmp_path / "kept").iterdir())


def test_faulty_recordings_are_refused_all_at_once(table, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(table.parent, copy)
    names = [row["path"] for row in rows_of(table)]
    (copy / names[1]).write_bytes(b"RIFF")
    (copy / names[9]).write_text("version https://git-lfs.github.com/spec/v1\n")
    soundfile.write(copy / names[17], np.full(8_000, np.nan), 16_000, subtype="FLOAT")
    with pytest.raises(InputError, match="3 of 44 recordings cannot be used") as raised:
        manifest(path=str(copy / table.name)).load()
    for name in (names[1], names[9], names[17]):
        assert name in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_corpus_without_training_recordings_is_refused(tmp_path):
    only = Corpus("c", ("a", "b"), {"test": Recordings((tmp_path / "x.wav",), np.array([0], np.int32))})
    with pytest.raises(InputError, match=r"expected recordings of train in c, got only \['test'\]"):
        SpeechSource(only, ClipOptions(), 1, "").load()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"buckets": 0}, "data.buckets: expected a number >= 1, got 0"),
        ({"max_seconds": -1.0}, "max_seconds: expected a number >= 0, got -1.0"),
        ({"normalisation": "peak"}, "normalisation: expected 'clip' or 'none', got 'peak'"),
        ({"missing_files": "maybe"}, "missing_files: expected 'refuse', 'drop' or 'ignore'"),
        ({"label_column": "emotion"}, "expected one column 'emotion'"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_decoded(table, options, message, monkeypatch):
    monkeypatch.setattr("imbal_jax.data.speech.load_clips", None)
    with pytest.raises(InputError, match=message):
        manifest(path=str(table), **options)


def test_missing_corpora_are_told(tmp_path):
    with pytest.raises(InputError, match=r"data\.labels: expected voice, face, multimodal or intended, got 'sound'"):
        crema_d(root=str(tmp_path), labels="sound")
    with pytest.raises(InputError, match="expected a clone of CREMA-D"):
        crema_d(root=str(tmp_path))
    with pytest.raises(InputError, match="expected a release of MSP-Podcast"):
        msp_podcast(root=str(tmp_path))


def test_crema_d_of_a_clone(tmp_path):
    """A clone with four actors' neutral and sad recordings."""
    folder = tmp_path / "processedResults"
    folder.mkdir()
    (tmp_path / "AudioWAV").mkdir()
    lines = ["FileName,VoiceVote,FaceVote,MultiModalVote"]
    rng = np.random.default_rng(0)
    for actor in range(1001, 1011):
        for code, vote in (("NEU", "N"), ("SAD", "S")):
            name = f"{actor}_IEO_{code}_XX"
            lines.append(f"{name},{vote},{vote},{vote}")
            soundfile.write(tmp_path / "AudioWAV" / f"{name}.wav", rng.normal(size=5_000) * 0.1, 16_000)
    (folder / "summaryTable.csv").write_text("\n".join(lines))
    dataset = crema_d(root=str(tmp_path), max_seconds=0.2).load()
    assert dataset.name == "crema_d"
    assert {name: len(split.labels) for name, split in dataset.splits.items()} == {
        "train": 14,
        "validation": 2,
        "test": 4,
    }
    assert dataset.train.images.lengths.tolist() == [3_200] * 14
    assert sorted(set(dataset.train.labels.tolist())) == [0, 2]
