"""CREMA-D's tables: labels, splits and the published counts."""

import collections
import csv
import random

import numpy as np
import pytest

from imbal_jax.data.corpora import counts, fingerprint
from imbal_jax.data.crema_d import CLASS_NAMES, PUBLISHED_COUNTS, crema_d, lfs_pointers, missing_audio
from imbal_jax.errors import InputError

HEADER = '"","FileName","VoiceVote","VoiceLevel","FaceVote","FaceLevel","MultiModalVote","MultiModalLevel"\n'
FAULTY = ("1040_ITH_SAD_XX", "1006_TIE_NEU_XX", "1013_WSI_DIS_XX", "1017_IWW_FEA_XX", "1076_MTI_SAD_XX")
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 73120\n"
LETTERS = "NHSAFD"


def make_clone(folder, rows, *, nested=True):
    """A clone with a table of (name, voice, face, multimodal) and no audio."""
    place = folder / "processedResults" if nested else folder
    place.mkdir(parents=True, exist_ok=True)
    lines = [f'"{n}","{name}","{v}","60","{f}","61.5","{m}","50"\n' for n, (name, v, f, m) in enumerate(rows, 1)]
    (place / "summaryTable.csv").write_text(HEADER + "".join(lines))
    return str(folder)


def make_rows(num_speakers=10):
    """Every actor plays all six emotions; the three votes are other letters each."""
    rows = []
    for number in range(num_speakers):
        for place, code in enumerate(("NEU", "HAP", "SAD", "ANG", "FEA", "DIS")):
            votes = (LETTERS[(place + shift) % 6] for shift in (1, 2, 3))
            rows.append((f"{1001 + number}_IEO_{code}_XX", *votes))
    return rows


def labels_by_name(corpus):
    return {
        path.stem: corpus.class_names[label]
        for split in corpus.splits.values()
        for path, label in zip(split.paths, split.labels, strict=True)
    }


@pytest.mark.parametrize(("labels", "shift"), [("intended", 0), ("voice", 1), ("face", 2), ("multimodal", 3)])
def test_every_kind_of_label(tmp_path, labels, shift):
    corpus = crema_d(make_clone(tmp_path, make_rows()), labels)
    assert corpus.name == "crema_d"
    assert corpus.class_names == ("neutral", "happy", "sad", "angry", "fear", "disgust")
    codes = dict(zip(("NEU", "HAP", "SAD", "ANG", "FEA", "DIS"), range(6), strict=True))
    found = labels_by_name(corpus)
    assert len(found) == 60
    for name, label in found.items():
        assert label == CLASS_NAMES[(codes[name.split("_")[2]] + shift) % 6]


def test_ties_and_faulty_recordings_are_left_out(tmp_path):
    rows = [*make_rows(), ("1001_DFA_ANG_HI", "A:D:N", "A", "A"), *((name, "S", "S", "S") for name in FAULTY)]
    root = make_clone(tmp_path, rows)
    assert len(labels_by_name(crema_d(root))) == 60
    assert crema_d(root).notes[0] == "left out of 66 recordings: 1 with a tied vote, 5 without usable audio"
    for labels in ("face", "intended"):
        found = labels_by_name(crema_d(root, labels))
        assert len(found) == 61
        assert found["1001_DFA_ANG_HI"] == "angry"
        assert not found.keys() & set(FAULTY)


@pytest.mark.parametrize("num_speakers", [10, 91])
def test_the_splits_are_those_of_a_shuffled_list_of_speakers(tmp_path, num_speakers):
    rows = make_rows(num_speakers)
    random.Random(0).shuffle(rows)
    corpus = crema_d(make_clone(tmp_path, rows))
    order = [str(1001 + number) for number in range(num_speakers)]
    np.random.RandomState(0).shuffle(order)
    first, second = {10: (7, 8), 91: (63, 72)}[num_speakers]
    expected = {"train": order[:first], "validation": order[first:second], "test": order[second:]}
    for split, speakers in expected.items():
        recordings = corpus.splits[split]
        assert set(recordings.speakers) == set(speakers)
        assert list(recordings.paths) == sorted(recordings.paths)
        assert [path.name[:4] for path in recordings.paths] == list(recordings.speakers)


def test_both_places_of_the_table(tmp_path):
    nested = crema_d(make_clone(tmp_path / "nested", make_rows()))
    flat = crema_d(make_clone(tmp_path / "flat", make_rows(), nested=False))
    assert fingerprint(nested) == fingerprint(flat)
    assert nested.splits["train"].paths[0].parent == tmp_path / "nested" / "AudioWAV"
    assert flat.splits["train"].paths[0].parent == tmp_path / "flat" / "AudioWAV"


def test_missing_audio_and_pointers_are_told(tmp_path):
    root = make_clone(tmp_path, make_rows())
    corpus = crema_d(root)
    paths = [path for split in corpus.splits.values() for path in split.paths]
    assert missing_audio(corpus) == tuple(paths)
    assert f"60 of 60 recordings have no file, first {paths[0]}" in corpus.notes
    (tmp_path / "AudioWAV").mkdir()
    for path in paths[:20]:
        path.write_text(POINTER)
    for path in paths[20:50]:
        path.write_bytes(b"RIFF" + bytes(4000))
    for path in paths[50:53]:
        path.write_text("short, but another text")
    paths[53].write_text(POINTER + "x" * 4000)
    assert missing_audio(corpus) == tuple(paths[54:])
    assert lfs_pointers(paths) == tuple(paths[:20])
    notes = crema_d(root).notes
    assert f"6 of 60 recordings have no file, first {paths[54]}" in notes
    assert "20 recordings are git-lfs pointers; run git lfs pull" in notes
    for path in paths:
        path.write_bytes(b"RIFF" + bytes(4000))
    assert missing_audio(corpus) == lfs_pointers(paths) == ()
    assert not any("pointers" in note or "no file" in note for note in crema_d(root).notes)


def test_other_counts_than_published_are_noted(tmp_path):
    root = make_clone(tmp_path, make_rows())
    (note,) = [note for note in crema_d(root).notes if "Table B.2" in note]
    assert "'train': (7, 7, 7, 7, 7, 7)" in note.split("got")[1]
    assert not any("Table B.2" in note for note in crema_d(root, "intended").notes)


def test_refuses_a_folder_without_the_table(tmp_path):
    message = r"^root: expected a clone of CREMA-D, found neither .*processedResults/summaryTable\.csv .*github\.com"
    with pytest.raises(InputError, match=message):
        crema_d(str(tmp_path))


def test_refuses_an_unknown_kind_of_label(tmp_path):
    with pytest.raises(InputError, match=r"^labels: no 'vioce'; did you mean 'voice'"):
        crema_d(make_clone(tmp_path, make_rows()), "vioce")


BAD_ROWS = {
    "1001_IEO_NEU.wav": (("1001_IEO_NEU.wav", "N", "N", "N"), r"names other than .*: 1001_IEO_NEU\.wav \(1\)$"),
    "1001_IEO_JOY_XX": (("1001_IEO_JOY_XX", "N", "N", "N"), r"names other than .*: 1001_IEO_JOY_XX \(1\)$"),
    "repeated": (("1001_IEO_NEU_XX", "N", "N", "N"), r"repeated names: 1001_IEO_NEU_XX \(1\)$"),
    "unknown letter": (("1001_DFA_NEU_XX", "Q", "N", "N"), r"VoiceVote other than letters .*: 'Q' of 1001_DFA_NEU_XX"),
    "no letter": (("1001_DFA_NEU_XX", "", "N", "N"), r"VoiceVote other than letters .*: '' of 1001_DFA_NEU_XX"),
    "letters": (("1001_DFA_NEU_XX", "NA", "N", "N"), r"VoiceVote other than letters .*: 'NA' of 1001_DFA_NEU_XX"),
}


@pytest.mark.parametrize("kind", BAD_ROWS)
def test_refuses_a_faulty_row(tmp_path, kind):
    row, message = BAD_ROWS[kind]
    with pytest.raises(InputError, match=rf"^root: {tmp_path}.*{message}") as caught:
        crema_d(make_clone(tmp_path, [*make_rows(), row]))
    assert "\n" not in str(caught.value)


def test_only_the_vote_that_is_used_must_be_right(tmp_path):
    root = make_clone(tmp_path, [*make_rows(), ("1001_DFA_NEU_XX", "Q", "N", "N")])
    assert len(labels_by_name(crema_d(root, "face"))) == 61


@pytest.mark.parametrize(("column", "labels"), [("FileName", "intended"), ("FaceVote", "face")])
def test_refuses_a_table_without_the_column(tmp_path, column, labels):
    root = make_clone(tmp_path, make_rows(), nested=False)
    table = tmp_path / "summaryTable.csv"
    table.write_text(table.read_text().replace(column, "Something"))
    with pytest.raises(InputError, match=rf"^root: .*summaryTable\.csv: expected one column '{column}', got no"):
        crema_d(root, labels)
    if labels == "face":
        assert len(labels_by_name(crema_d(root, "voice"))) == 60


def test_refuses_a_table_that_git_lfs_holds(tmp_path):
    (tmp_path / "summaryTable.csv").write_text(POINTER)
    with pytest.raises(InputError, match=r"^root: .* git-lfs pointer to one; run git lfs pull$"):
        crema_d(str(tmp_path))


def test_the_published_counts_have_the_published_totals():
    assert [sum(row) for row in PUBLISHED_COUNTS.values()] == [4692, 670, 1431]
    assert [round(max(row) / min(row), 2) for row in PUBLISHED_COUNTS.values()] == [10.65, 8.09, 15.44]


# The real tables


def test_table_b2_class_by_class(shared_path):
    corpus = crema_d(str(shared_path("data/crema_d/summaryTable.csv").parent))
    # Typed from Table B.2 again, in its own order of classes.
    table = {
        "neutral": (2642, 372, 880),
        "happy": (248, 48, 57),
        "sad": (267, 46, 57),
        "angry": (673, 99, 214),
        "fear": (475, 46, 123),
        "disgust": (387, 59, 100),
    }
    found = counts(corpus)
    for place, split in enumerate(("train", "validation", "test")):
        assert dict(zip(corpus.class_names, found[split].tolist(), strict=True)) == {
            name: row[place] for name, row in table.items()
        }
    assert [int(row.sum()) for row in found.values()] == [4692, 670, 1431]
    assert [len(set(split.speakers)) for split in corpus.splits.values()] == [63, 9, 19]
    assert corpus.notes[0] == "left out of 7442 recordings: 644 with a tied vote, 5 without usable audio"
    assert not any("differ" in note or "speakers" in note for note in corpus.notes)


@pytest.mark.parametrize(
    ("labels", "column"), [("voice", "VoiceVote"), ("face", "FaceVote"), ("multimodal", "MultiModalVote")]
)
def test_real_labels_are_the_votes(shared_path, labels, column):
    table = shared_path("data/crema_d/summaryTable.csv")
    with table.open(newline="") as stream:
        votes = {row["FileName"]: row[column] for row in csv.DictReader(stream)}
    letters = dict(zip(CLASS_NAMES, LETTERS, strict=True))
    found = {name: letters[label] for name, label in labels_by_name(crema_d(str(table.parent), labels)).items()}
    assert found == {name: vote for name, vote in votes.items() if len(vote) == 1 and name not in FAULTY}


def test_real_intended_labels(shared_path):
    folder = str(shared_path("data/crema_d/summaryTable.csv").parent)
    intended, heard = labels_by_name(crema_d(folder, "intended")), labels_by_name(crema_d(folder))
    # 1,271 recordings of every emotion but neutral, of which there are 1,087; less the five faulty ones.
    assert collections.Counter(intended.values()) == {
        "neutral": 1086, "happy": 1271, "sad": 1269, "angry": 1271, "fear": 1270, "disgust": 1270
    }  # fmt: skip
    # Of all usable recordings, ties counted as disagreement, actors were understood in 41.6 %.
    assert sum(intended[name] == label for name, label in heard.items()) == 3096
