"""Tables of recordings: reading, refusing, splitting."""

import csv
import pathlib

import numpy as np
import pytest

from imbal_jax.data.corpora import counts, fingerprint
from imbal_jax.data.manifest import read_manifest
from imbal_jax.data.speaker_splits import split_by_speaker
from imbal_jax.data.tables import read_table
from imbal_jax.errors import InputError
from tests.data.test_speaker_splits import draw_speakers

SPLIT_TEXT = """path,label,split,speaker
a.wav,sad,train,s1
b.wav,happy,train,s2
c.wav,sad,dev,s3
d.wav,happy,Validation,s3
e.wav,sad,test,s4
f.wav,happy,TEST,s5
"""
SPLITS = ("train", "validation", "test")


def write(folder, text, encoding="utf-8"):
    """Writes a table, and an empty file for every cell ending in .wav; returns the table's path as text."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "mine.csv").write_bytes(text.encode(encoding))
    for cell in text.replace(";", ",").replace("\t", ",").replace("\n", ",").split(","):
        if cell.strip(' "').endswith(".wav"):
            (folder / cell.strip(' "')).write_bytes(b"")
    return str(folder / "mine.csv")


def table_of(**columns):
    """A table of the given columns; the paths count up from 0.wav."""
    rows = [",".join(map(str, cells)) for cells in zip(*columns.values(), strict=True)]
    return f"path,{','.join(columns)}\n" + "".join(f"{number}.wav,{row}\n" for number, row in enumerate(rows))


def names(recordings):
    return [path.name for path in recordings.paths]


def test_reads_splits_labels_speakers_and_paths(tmp_path):
    corpus = read_manifest(write(tmp_path, SPLIT_TEXT))
    assert (corpus.name, corpus.class_names, corpus.num_classes) == ("mine", ("happy", "sad"), 2)
    assert tuple(corpus.splits) == SPLITS
    assert names(corpus.splits["validation"]) == ["c.wav", "d.wav"]
    assert corpus.splits["train"].paths == (tmp_path / "a.wav", tmp_path / "b.wav")
    assert corpus.splits["test"].speakers == ("s4", "s5")
    for split in corpus.splits.values():
        np.testing.assert_array_equal(split.labels, np.array([1, 0], np.int32), strict=True)
    for found in counts(corpus).values():
        np.testing.assert_array_equal(found, np.array([1, 1], np.int64), strict=True)
    assert corpus.notes == ()
    text = SPLIT_TEXT.replace("dev", "test_2").replace("Validation", "test_2")
    other = read_manifest(write(tmp_path, text), name="other")
    assert (other.name, list(other.splits)) == ("other", ["train", "test", "test_2"])
    assert other.notes == ("there is no validation split",)


VARIANTS = {
    "semicolons": SPLIT_TEXT.replace(",", ";"),
    "tabs": SPLIT_TEXT.replace(",", "\t"),
    "carriage returns": SPLIT_TEXT.replace("\n", "\r\n"),
    "blank lines": "\n\n" + SPLIT_TEXT.replace("\n", "\n , ,\n\n"),
    "spaces": SPLIT_TEXT.replace(",", " , "),
    "quotes": '"path","label","split","speaker"' + SPLIT_TEXT[24:],
    "trailing delimiters": SPLIT_TEXT.replace("\n", ",,\n"),
    "an unnamed first column": "".join(f"7,{line}\n" for line in SPLIT_TEXT.splitlines()).replace("7,p", ",p"),
    "utf-8-sig": SPLIT_TEXT,
    "utf-16": SPLIT_TEXT,
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_form_of_the_csv_does_not_matter(tmp_path, variant):
    plain = read_manifest(write(tmp_path, SPLIT_TEXT))
    path = tmp_path / "variant.csv"
    path.write_bytes(VARIANTS[variant].encode(variant if variant.startswith("utf") else "utf-8"))
    assert fingerprint(read_manifest(str(path))) == fingerprint(plain)
    assert read_manifest(str(path)).notes == ()


def test_text_in_another_encoding_is_read_with_a_note(tmp_path):
    text = SPLIT_TEXT.replace("happy", "fröhlich")
    corpus = read_manifest(write(tmp_path, text, encoding="cp1252"))
    assert corpus.class_names == ("fröhlich", "sad")
    assert corpus.notes == ("mine.csv is not valid UTF-8; it was read as Windows-1252",)
    assert read_manifest(write(tmp_path, text)).class_names == ("fröhlich", "sad")


def test_cells_with_delimiters_and_line_breaks_and_cells_missing_at_the_end(tmp_path):
    text = ';path;label;"a,b,c,d,e";split\n1;a.wav;sad;"well, a, b, c";train\n2;b.wav;happy;"x; ""y""\nz";test\n'
    test = read_manifest(write(tmp_path, text)).splits["test"]
    assert (names(test), test.speakers) == (["b.wav"], None)
    table = read_table(pathlib.Path(write(tmp_path, "path,label,text\na.wav,sad\n\nb.wav,happy,hello\n")), ("path",))
    assert [list(row.values()) for row in table.rows] == [["a.wav", "sad", ""], ["b.wav", "happy", "hello"]]
    assert table.lines == [2, 4]


def test_root_is_relative_to_the_table(tmp_path, monkeypatch):
    write(tmp_path / "audio", SPLIT_TEXT)
    path = write(tmp_path / "tables", SPLIT_TEXT.replace("a.wav", str(tmp_path / "elsewhere.wav")))
    for file in (tmp_path / "tables").glob("*.wav"):
        file.unlink()
    corpus = read_manifest(path, root="../audio")
    assert corpus.splits["train"].paths == (tmp_path / "elsewhere.wav", tmp_path / "audio" / "b.wav")
    assert fingerprint(read_manifest(path, root=str(tmp_path / "audio"))) == fingerprint(corpus)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert fingerprint(read_manifest("~/tables/mine.csv", root="~/audio")) == fingerprint(corpus)


def test_columns_by_option(tmp_path):
    options = {"path_column": "file", "label_column": "emotion", "split_column": "part", "speaker_column": "actor"}
    plain = read_manifest(write(tmp_path, SPLIT_TEXT))
    renamed = write(tmp_path, SPLIT_TEXT.replace("path,label,split,speaker", "file,emotion,part,actor"))
    assert fingerprint(read_manifest(renamed, **options)) == fingerprint(plain)


def test_the_columns_of_splits_and_speakers_can_be_ignored(tmp_path):
    path = write(tmp_path, SPLIT_TEXT.replace("test", "what").replace("TEST", "ever"))
    by_speaker = read_manifest(path, split_column="")
    assert {name for split in by_speaker.splits.values() for name in split.speakers} == {"s1", "s2", "s3", "s4", "s5"}
    assert read_manifest(path, split_column="", speaker_column="").splits["train"].speakers is None


@pytest.mark.parametrize("order", [("9", "10", "100"), ("10", "9", "b")])
def test_classes_are_sorted_as_numbers_if_they_are(tmp_path, order):
    text = table_of(label=[label for label in order[::-1] for _ in range(3)], speaker=[1, 2, 3] * 3)
    assert read_manifest(write(tmp_path, text)).class_names == order


def test_classes_in_a_given_order(tmp_path):
    corpus = read_manifest(write(tmp_path, SPLIT_TEXT), classes=("sad", "happy", "afraid"))
    assert corpus.class_names == ("sad", "happy", "afraid")
    assert corpus.splits["train"].labels.tolist() == [0, 1]
    assert corpus.notes == tuple(f"no recording in {split} of afraid (1)" for split in SPLITS)


def test_other_labels_are_refused_or_dropped(tmp_path):
    path = write(tmp_path, SPLIT_TEXT + "g.wav,bored,train,s1\nh.wav,calm,train,s1\ni.wav,bored,test,s4\n")
    with pytest.raises(InputError, match=r"labels other than sad, happy: 'bored' in line 8, 'calm' .* \(3\)$"):
        read_manifest(path, classes=("sad", "happy"))
    corpus = read_manifest(path, classes=("sad", "happy"), drop_other_labels=True)
    assert corpus.notes == ("3 rows with another label left out: bored, calm (2)",)
    assert [len(split.labels) for split in corpus.splits.values()] == [2, 2, 2]


def test_missing_files_are_refused_dropped_or_ignored(tmp_path):
    path = write(tmp_path, SPLIT_TEXT)
    (tmp_path / "a.wav").unlink()
    (tmp_path / "f.wav").unlink()
    (tmp_path / "f.wav").mkdir()  # a folder is no recording
    message = rf"missing files: {tmp_path}/a.wav in line 2, {tmp_path}/f.wav in line 7 \(2\)$"
    with pytest.raises(InputError, match=message):
        read_manifest(path)
    assert len(read_manifest(path, missing_files="ignore").splits["train"].paths) == 2
    corpus = read_manifest(path, missing_files="drop")
    assert names(corpus.splits["train"]) == ["b.wav"]
    assert corpus.notes[0] == f"2 rows with a missing file left out: {tmp_path}/a.wav, {tmp_path}/f.wav (2)"


def test_all_faults_are_told_at_once(tmp_path):
    text = (
        "path,label,split,speaker\na.wav,sad,train,s1\n,sad,train,s1\nb.wav,,train,s2\nc.wav,happy,,s1\n"
        "./a.wav,sad,test,s2\nd.wav,happy,trian,\nnone,happy,test,s1\n"
    )
    path = write(tmp_path, text)
    with pytest.raises(InputError) as caught:
        read_manifest(path)
    assert str(caught.value) == (
        f"path: {path}: no path: line 3 (1); no label: line 4 (1); no speaker: line 7 (1);"
        " splits other than train, validation, test, test_2: '' in line 5, 'trian' in line 7 (2);"
        f" missing files: {tmp_path}/none in line 8 (1);"
        f" recordings listed twice: {tmp_path}/a.wav in lines 2 and 6 (1)"
    )


@pytest.mark.parametrize(("number", "shown"), [(10, r"line 11 \(10\)$"), (30, r"line 11, \.\.\. \(30\)$")])
def test_of_many_faults_ten_are_shown(tmp_path, number, shown):
    with pytest.raises(InputError, match=rf"no label: line 2, (line \d+, ){{8}}{shown}"):
        read_manifest(write(tmp_path, table_of(label=[""] * number, split=["train"] * number)))


BAD_TABLES = {
    "": r"expected a header and at least one row, got 0 lines",
    "path,label\n": r"expected a header and at least one row, got 1 lines",
    "path,lable\na.wav,sad\n": r"one column 'label', got no 'label'; did you mean 'lable'\? \(valid: path, lable\)",
    "path,label,label\na.wav,sad,x\n": r"expected one column 'label', got 2 of them",
    "path,label\na.wav,sad,x\nb.wav,happy\n": r"expected rows of 2 cells, got more in line 2 \(1\)",
    'path,label\n"a.wav,sad\n': r"wrongly quoted near line 2: unexpected end of data",
    "path\0,label\n1,sad\n": r"expected a csv file in UTF-8, got no such text",
    "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n": r"got a git-lfs pointer to one; run git lfs",
    "path,label,split\na.wav,sad,train\nb.wav,sad,test\n": r"expected recordings of two classes in .*, got \['sad'\]",
    "path,label,split\na.wav,sad,train\nb.wav,happy,dev\n": r"expected rows of train and of test in .*, got only \['tr",
}


@pytest.mark.parametrize("text", BAD_TABLES)
def test_refuses_a_bad_table(tmp_path, text):
    with pytest.raises(InputError, match=BAD_TABLES[text]) as caught:
        read_manifest(write(tmp_path, text))
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("path: ")


def test_refuses_what_is_no_file_or_no_text(tmp_path):
    with pytest.raises(InputError, match=r"mine\.csv: expected a csv file, found none$"):
        read_manifest(str(tmp_path / "mine.csv"))
    for content in (bytes(range(256)), b"path,label\n\x81,sad\n", "path,label\n".encode("utf-16-le")):
        (tmp_path / "mine.csv").write_bytes(content)
        with pytest.raises(InputError, match=r"expected a csv file in UTF-8, got no such text$"):
            read_manifest(str(tmp_path / "mine.csv"))


BAD_OPTIONS = [
    ({"missing_files": "skip"}, r"^missing_files: expected 'refuse', 'drop' or 'ignore', got 'skip'$"),
    ({"classes": "sad"}, r"^classes: expected different names, .* got 'sad'$"),
    ({"classes": ("sad", "sad")}, r"^classes: expected different names"),
    ({"drop_other_labels": True}, r"^classes: .* two or more with drop_other_labels, got \(\)$"),
    ({"split_column": "part"}, r"expected one column 'part', got no 'part'; did you mean 'path'"),
    ({"speaker_column": "speakers"}, r"expected one column 'speakers', got no 'speakers'; did you mean 'speaker'"),
    ({"classes": ("a", "b"), "drop_other_labels": True}, r"expected recordings of two classes in .*, got \[\]$"),
    ({"split_column": "", "seed": -1}, r"^seed: expected a whole number >= 0, got -1$"),
]


@pytest.mark.parametrize(("options", "message"), BAD_OPTIONS)
def test_refuses_bad_options(tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        read_manifest(write(tmp_path, SPLIT_TEXT), **options)


def test_a_table_without_splits_is_split_by_speaker(tmp_path):
    speakers, labels = draw_speakers(0, examples=300)
    corpus = read_manifest(write(tmp_path, table_of(label=labels, speaker=speakers)), seed=3)
    assert corpus.notes == ("the table names no splits: they were made with seed 3 and share no speaker",)
    for split, indices in zip(SPLITS, split_by_speaker(speakers, labels, seed=3), strict=True):
        assert names(corpus.splits[split]) == [f"{index}.wav" for index in indices]
        assert corpus.splits[split].labels.tolist() == labels[indices].tolist()


def test_a_table_without_splits_and_speakers_is_split_by_recording(tmp_path):
    path = write(tmp_path, table_of(label=["a"] * 100 + ["b"] * 50 + ["c"] * 4 + ["d"] * 3))
    corpus = read_manifest(path)
    assert corpus.notes == ("the table names neither splits nor speakers: splits made with seed 0 may share speakers",)
    assert [row.tolist() for row in counts(corpus).values()] == [[70, 35, 2, 1], [10, 5, 1, 1], [20, 10, 1, 1]]
    assert fingerprint(read_manifest(path)) == fingerprint(corpus) != fingerprint(read_manifest(path, seed=1))
    assert len({path for split in corpus.splits.values() for path in split.paths}) == 157
    lopsided = counts(read_manifest(path, fractions=(0.02, 0.49, 0.49)))
    assert [row.tolist() for row in lopsided.values()] == [[2, 2, 1, 1], [49, 24, 2, 1], [49, 24, 1, 1]]
    with pytest.raises(InputError, match=r"^labels: expected an example of every class .* too few: c has 2 \(1\)$"):
        read_manifest(write(tmp_path, table_of(label="aaaccbbb")))


def test_ravdess(shared_path):
    path = str(shared_path("data/ravdess/labels.csv"))
    corpus = read_manifest(path, root="audio", path_column="file", label_column="emotion", speaker_column="actor")
    neutral = corpus.class_names.index("neutral")
    assert sum(counts(corpus).values()).tolist() == [96 if c == neutral else 192 for c in range(8)]
    assert sorted(len(set(split.speakers)) for split in corpus.splits.values()) == [2, 5, 17]
    for split in corpus.splits.values():  # the files' names are an independent way to the speakers and labels
        for file, label, speaker in zip(split.paths, split.labels, split.speakers, strict=True):
            parts = [int(part) for part in file.stem.split("-")]
            assert (parts[6], parts[2] == 1) == (int(speaker), label == neutral)


def test_emodb(shared_path):
    path = shared_path("data/emodb/labels.csv")
    options = {"root": "audio", "path_column": "file", "label_column": "emotion"}
    corpus = read_manifest(str(path), **options)
    assert corpus.class_names == ("anger", "boredom", "disgust", "fear", "happiness", "neutral", "sadness")
    assert sum(counts(corpus).values()).tolist() == [127, 81, 46, 69, 71, 79, 62]
    assert all((found > 0).all() for found in counts(corpus).values())
    assert sum(len(set(split.speakers)) for split in corpus.splits.values()) == 10
    with path.open(newline="") as stream:
        emotion_of = {row["file"]: row["emotion"] for row in csv.DictReader(stream)}
    for split in corpus.splits.values():
        assert [corpus.class_names[c] for c in split.labels] == [emotion_of[file.name] for file in split.paths]
    four = ("neutral", "happiness", "sadness", "anger")
    corpus = read_manifest(str(path), classes=four, drop_other_labels=True, **options)
    assert sum(counts(corpus).values()).tolist() == [79, 71, 62, 127]
    assert corpus.notes[0] == "196 rows with another label left out: boredom, disgust, fear (3)"
