"""MSP-Podcast's tables, in the documented form; the data themselves are given out under an agreement."""

import numpy as np
import pytest

from imbal_jax.data.corpora import counts, fingerprint
from imbal_jax.data.msp_podcast import CLASS_NAMES, PUBLISHED_COUNTS, msp_podcast
from imbal_jax.errors import InputError

COLUMNS = "FileName,EmoClass,EmoAct,EmoVal,EmoDom,SpkrID,Gender,Split_Set"
# A recording of every kept class in every split, in a mixed order: (number, letter, speaker, split).
ROWS = [
    (f"MSP-PODCAST_{place:04d}_{number:04d}.wav", letter, f"{10 * place + number % 2}", split)
    for number, letter in enumerate("NHASFD")
    for place, split in enumerate(("Test2", "Train", "Development", "Test1"))
]


def make_release(folder, rows=ROWS, *, place="Labels", name="labels_consensus.csv", columns=COLUMNS):
    """A release's folder with a table of labels and no audio."""
    (folder / place).mkdir(parents=True, exist_ok=True)
    kept = columns.split(",")
    lines = []
    for file, letter, speaker, split in rows:
        cells = dict(
            zip(COLUMNS.split(","), (file, letter, "3.8", "4.0", "5.25", speaker, "Female", split), strict=True)
        )
        lines.append(",".join(cells[column] for column in kept) + "\n")
    (folder / place / name).write_text(columns + "\n" + "".join(lines))
    return str(folder)


def found_rows(corpus):
    """(file's name, class, speaker, split) of every recording."""
    return {
        (path.name, corpus.class_names[label], speaker, split)
        for split, recordings in corpus.splits.items()
        for path, label, speaker in zip(recordings.paths, recordings.labels, recordings.speakers, strict=True)
    }


EXPECTED = {
    (
        file,
        {"N": "neutral", "H": "happy", "A": "angry", "S": "sad", "F": "fear", "D": "disgust"}[letter],
        speaker,
        {"Train": "train", "Development": "validation", "Test1": "test", "Test2": "test_2"}[split],
    )
    for file, letter, speaker, split in ROWS
}


def test_reads_classes_splits_and_speakers(tmp_path):
    corpus = msp_podcast(make_release(tmp_path))
    assert corpus.name == "msp_podcast"
    assert corpus.class_names == ("angry", "sad", "happy", "fear", "disgust", "neutral")
    assert list(corpus.splits) == ["train", "validation", "test", "test_2"]
    assert found_rows(corpus) == EXPECTED
    train = corpus.splits["train"]
    assert [path.name for path in train.paths] == [row[0] for row in ROWS if row[3] == "Train"]  # the table's order
    assert train.paths[0].parent == tmp_path / "Audios"
    np.testing.assert_array_equal(train.labels, np.array([5, 2, 0, 1, 3, 4], np.int32), strict=True)


@pytest.mark.parametrize("name", ["labels_consensus.csv", "labels_concensus.csv"])
@pytest.mark.parametrize("place", ["Labels", "."])
def test_places_and_spellings_of_the_table(tmp_path, place, name):
    assert found_rows(msp_podcast(make_release(tmp_path, place=place, name=name))) == EXPECTED


def test_only_two_columns_and_the_partitions_are_needed(tmp_path):
    root = make_release(tmp_path, columns="FileName,EmoClass,SpkrID")
    lines = [f"{split}; {file}\n" for file, _, _, split in reversed(ROWS)]
    (tmp_path / "Partitions.txt").write_text("\n" + "".join(lines) + " \nTrain; MSP-PODCAST_9999_0001.wav\n")
    corpus = msp_podcast(root)
    assert found_rows(corpus) == EXPECTED
    assert fingerprint(corpus) == fingerprint(msp_podcast(make_release(tmp_path / "new")))
    bare = msp_podcast(make_release(tmp_path, columns="FileName,EmoClass"))
    assert all(split.speakers is None for split in bare.splits.values())


def test_the_column_goes_before_the_partitions(tmp_path):
    (tmp_path / "Partitions.txt").write_text("nonsense")
    assert found_rows(msp_podcast(make_release(tmp_path))) == EXPECTED


def test_old_names_of_splits(tmp_path):
    old = {"Development": "Validation", "Test1": "Test"}
    rows = [(*row[:3], old.get(row[3], row[3])) for row in ROWS]
    assert found_rows(msp_podcast(make_release(tmp_path, rows))) == EXPECTED


def test_what_is_not_used_is_left_out_and_told(tmp_path):
    others = [(f"u{number}.wav", letter, "1", "Train") for number, letter in enumerate("UUCOXXX")]
    hidden = [("MSP-PODCAST_xxxx_xxxx.wav", "", "Unknown", "Test3")] * 4 + [("w.wav", "N", "1", "")]
    corpus = msp_podcast(make_release(tmp_path, [*others, *ROWS, *hidden]))
    assert found_rows(corpus) == EXPECTED
    told = "left out of 36 recordings: 4 Test3, 1 contempt, 3 no agreement, 1 no split, 1 other, 2 surprise"
    assert corpus.notes[0] == told


def test_recordings_outside_of_the_partitions_are_left_out(tmp_path):
    root = make_release(tmp_path, columns="FileName,EmoClass,SpkrID")
    (tmp_path / "Partitions.txt").write_text("".join(f"{split}; {file}\n" for file, _, _, split in ROWS[4:]))
    corpus = msp_podcast(root)
    assert sum(len(split.labels) for split in corpus.splits.values()) == 20
    assert corpus.notes[0] == "left out of 24 recordings: 4 no split"


def test_unknown_speakers_are_no_speaker(tmp_path):
    rows = [(file, letter, "Unknown" if letter in "NH" else speaker, split) for file, letter, speaker, split in ROWS]
    corpus = msp_podcast(make_release(tmp_path, rows))
    assert corpus.splits["train"].speakers == ("", "", "10", "11", "10", "11")
    assert not any("more than one split" in note for note in corpus.notes)
    rows = [(file, letter, "77", split) for file, letter, _, split in ROWS]
    assert "speakers in more than one split: 77 (1)" in msp_podcast(make_release(tmp_path, rows)).notes


def test_missing_audio_is_told(tmp_path):
    root = make_release(tmp_path)
    assert msp_podcast(root).notes[-1].startswith(f"24 of 24 recordings have no file, first {tmp_path}/Audios/MSP-")
    (tmp_path / "Audio").mkdir()  # as some copies call it
    for file, *_ in ROWS:
        (tmp_path / "Audio" / file).write_bytes(b"RIFF")
    assert not any("no file" in note for note in msp_podcast(root).notes)


def published_rows():
    """As many rows as Table B.3 has, each class and split."""
    names = {"train": "Train", "validation": "Development", "test": "Test1", "test_2": "Test2"}
    return [
        (f"{split}_{letter}_{number}.wav", letter, f"{split}", names[split])
        for split, row in PUBLISHED_COUNTS.items()
        for letter, size in zip("ASHFDN", row, strict=True)
        for number in range(size)
    ]


def test_the_published_counts_pass_without_a_note_and_others_do_not(tmp_path):
    corpus = msp_podcast(make_release(tmp_path / "published", published_rows()))
    assert {split: tuple(row.tolist()) for split, row in counts(corpus).items()} == PUBLISHED_COUNTS
    assert not any("Table B.3" in note for note in corpus.notes)
    (note,) = [note for note in msp_podcast(make_release(tmp_path, ROWS[1:])).notes if "Table B.3" in note]
    assert "'test_2': (1, 1, 1, 1, 1, 0)" in note.split("got")[1]


def test_the_published_counts_have_the_published_totals():
    assert [sum(row) for row in PUBLISHED_COUNTS.values()] == [44640, 7392, 11985, 9210]
    assert [round(max(row) / min(row), 2) for row in PUBLISHED_COUNTS.values()] == [16.35, 12.17, 11.54, 29.65]
    # Table B.3's second test set, typed again.
    second = {"angry": 329, "sad": 411, "happy": 2351, "fear": 204, "disgust": 193, "neutral": 5722}
    assert dict(zip(CLASS_NAMES, PUBLISHED_COUNTS["test_2"], strict=True)) == second


def test_refuses_a_folder_without_tables(tmp_path):
    with pytest.raises(
        InputError, match=r"^root: expected a release of MSP-Podcast, found no labels_consensus\.csv in"
    ):
        msp_podcast(str(tmp_path))
    message = r"^root: expected a column Split_Set in .*labels_consensus\.csv or a file Partitions\.txt, found neither$"
    with pytest.raises(InputError, match=message):
        msp_podcast(make_release(tmp_path, columns="FileName,EmoClass,SpkrID"))
    with pytest.raises(InputError, match=r"^root: .*: expected one column 'EmoClass', got no 'EmoClass'"):
        msp_podcast(make_release(tmp_path, columns="FileName,SpkrID,Split_Set"))


def test_all_faulty_rows_are_told_at_once(tmp_path):
    rows = [*ROWS, ("a.wav", "Q", "1", "Train"), ("b.wav", "N", "1", "Trian"), ("", "N", "1", "Test1"), ROWS[0]]
    with pytest.raises(InputError) as caught:
        msp_podcast(make_release(tmp_path, rows))
    assert str(caught.value) == (
        f"root: {tmp_path}/Labels/labels_consensus.csv: rows without FileName: line 28 (1);"
        " splits other than Train, Development, Validation, Test, Test1, Test2: 'Trian' in line 27 (1);"
        " EmoClass other than A, S, H, F, D, N, U, C, O, X: 'Q' in line 26 (1);"
        f" repeated names: {ROWS[0][0]} in lines 2 and 29 (1)"
    )


def test_refuses_a_faulty_file_of_partitions(tmp_path):
    root = make_release(tmp_path, columns="FileName,EmoClass,SpkrID")
    (tmp_path / "Partitions.txt").write_text("Train; a.wav\nTest1 b.wav\nTest1; c.wav; d\n")
    with pytest.raises(
        InputError, match=r"^root: .*Partitions\.txt: lines other than 'SPLIT; NAME': line 2, line 3 \(2\)$"
    ):
        msp_podcast(root)
    (tmp_path / "Partitions.txt").write_text(f"Trian; {ROWS[0][0]}\n")
    with pytest.raises(InputError, match=r"splits other than Train, .*: 'Trian' in line 2 \(1\)$"):
        msp_podcast(root)


def test_refuses_a_release_of_which_nothing_is_used(tmp_path):
    with pytest.raises(InputError, match=r"^msp_podcast: expected at least one recording, got none that is used$"):
        msp_podcast(make_release(tmp_path, [("a.wav", "X", "1", "Train")]))
