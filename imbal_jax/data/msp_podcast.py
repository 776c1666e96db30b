"""MSP-Podcast: emotions in real conversations, labelled by listeners."""

import collections
import os
import pathlib
import re
from collections.abc import Sequence

from imbal_jax.data.corpora import Corpus, Row, corpus_of, counts, refuse
from imbal_jax.data.crema_d import missing_note
from imbal_jax.data.tables import read_table
from imbal_jax.errors import InputError

CLASS_NAMES = ("angry", "sad", "happy", "fear", "disgust", "neutral")
# Recordings per class and split in release 1.10, in the order of CLASS_NAMES: thesis, Table B.3.
PUBLISHED_COUNTS = {
    "train": (3555, 2802, 12386, 1403, 1556, 22938),
    "validation": (1180, 331, 1847, 271, 465, 3298),
    "test": (803, 537, 3970, 474, 732, 5469),
    "test_2": (329, 411, 2351, 204, 193, 5722),
}
SOURCE = "https://www.lab-msp.com/MSP/MSP-Podcast.html"
LICENCE = "given out by its authors under an agreement (Lotfian and Busso 2019)"

_CLASS_OF_LETTER = dict(zip("ASHFDN", CLASS_NAMES, strict=True))
_OTHER_LETTERS = {"U": "surprise", "C": "contempt", "O": "other", "X": "no agreement"}
_SPLITS = {
    "Train": "train",
    "Development": "validation",
    "Validation": "validation",  # older releases
    "Test": "test",  # older releases, with one test set
    "Test1": "test",
    "Test2": "test_2",
}
_UNUSED_SPLIT = re.compile(r"(Test[3-9])?")  # of newer releases, whose labels are not given out; or none
_LABEL_FILES = ("labels_consensus.csv", "labels_concensus.csv")  # older releases have the second spelling
_PARTITIONS = "Partitions.txt"


def msp_podcast(root: str) -> Corpus:
    """Reads the tables of a release of MSP-Podcast.

    Six of its ten labels are kept: the classes of the thesis, 4.1.1 and Table B.3. The splits are the release's own;
    "test" and "test_2" are its Test1 and Test2. Recordings are in the order of the table.

    The format assumed, which differs little between releases: Labels/labels_consensus.csv with the columns FileName,
    EmoClass (A angry, S sad, H happy, F fear, D disgust, N neutral, U surprise, C contempt, O other, X no agreement),
    Split_Set (Train, Development, Test1, Test2, Test3) and SpkrID ("Unknown" where it is), others being left alone;
    the audio in Audios/<FileName>. Old releases have no column Split_Set but a file Partitions.txt with lines such as
    "Development; MSP-PODCAST_0001_0008.wav".

    Args:
      root: the release's folder; the tables may also lie in it directly.

    Returns:
      The corpus. Its notes tell what was left out, where the counts differ from the published ones of release 1.10, and
      how much audio is missing, which is no error here.

    Raises:
      InputError: there is no table of labels or of splits, or one lacks a column or has unknown letters, unknown splits
        or repeated names, which are listed.
    """
    folder = pathlib.Path(root).expanduser()
    file = _find(folder, _LABEL_FILES)
    if file is None:
        raise InputError(
            f"root: expected a release of MSP-Podcast, found no {_LABEL_FILES[0]} in {folder.absolute()} or in its"
            f" folder Labels; its source is {SOURCE}, it is {LICENCE}; nothing is downloaded"
        )
    entries = _entries(folder, file)
    _require_regular(file, entries)
    audio = next((each for each in (folder / "Audios", folder / "Audio") if each.is_dir()), folder / "Audios")
    rows = [
        entry._replace(
            path=os.path.join(audio, entry.path),
            label=_CLASS_OF_LETTER[entry.label],
            split=_SPLITS[entry.split],
            speaker="" if entry.speaker == "Unknown" else entry.speaker,
        )
        for entry in entries
        if entry.split in _SPLITS and entry.label in _CLASS_OF_LETTER
    ]
    corpus = corpus_of("msp_podcast", CLASS_NAMES, rows, _left_out(entries))
    return corpus._replace(notes=(*corpus.notes, *_differences(corpus), *missing_note(corpus)))


def _find(folder: pathlib.Path, names: Sequence[str]) -> pathlib.Path | None:
    """The first of some files in the folder's Labels or in the folder itself."""
    candidates = (place / name for place in (folder / "Labels", folder) for name in names)
    return next((file for file in candidates if file.is_file()), None)


def _entries(folder: pathlib.Path, file: pathlib.Path) -> list[Row]:
    """The table's rows with the release's own letters and splits, "" for no split."""
    table = read_table(file, ("FileName", "EmoClass"), "root")
    if "Split_Set" in table.rows[0]:
        splits = [cells["Split_Set"] for cells in table.rows]
    else:
        split_of = _read_partitions(folder, file)
        splits = [split_of.get(cells["FileName"], "") for cells in table.rows]
    return [
        Row(cells["FileName"], cells["EmoClass"], split, cells.get("SpkrID", ""), line)
        for cells, split, line in zip(table.rows, splits, table.lines, strict=True)
    ]


def _read_partitions(folder: pathlib.Path, file: pathlib.Path) -> dict[str, str]:
    """The release's name of the split by recording, from lines such as "Development; MSP-PODCAST_0001_0008.wav"."""
    partitions = _find(folder, (_PARTITIONS,))
    if partitions is None:
        raise InputError(
            f"root: expected a column Split_Set in {file.absolute()} or a file {_PARTITIONS}, found neither"
        )
    lines = partitions.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    parts = [[part.strip() for part in line.split(";") if part.strip()] for line in lines]
    odd = [f"line {number}" for number, part in enumerate(parts, 1) if len(part) not in (0, 2)]
    refuse(f"root: {partitions.absolute()}", {"lines other than 'SPLIT; NAME'": odd})
    return {part[1]: part[0] for part in parts if part}


def _require_regular(file: pathlib.Path, entries: list[Row]) -> None:
    """InputError if splits or letters are unknown, or names are missing or repeated."""
    used = [entry for entry in entries if entry.split in _SPLITS]  # what is not used may be as it likes
    first = {entry.path: entry.line for entry in reversed(used)}
    strange = [entry for entry in entries if entry.split not in _SPLITS and not _UNUSED_SPLIT.fullmatch(entry.split)]
    faults = {
        "rows without FileName": [f"line {entry.line}" for entry in used if not entry.path],
        f"splits other than {', '.join(_SPLITS)}": [f"{entry.split!r} in line {entry.line}" for entry in strange],
        f"EmoClass other than {', '.join((*_CLASS_OF_LETTER, *_OTHER_LETTERS))}": [
            f"{entry.label!r} in line {entry.line}"
            for entry in used
            if entry.label not in _CLASS_OF_LETTER.keys() | _OTHER_LETTERS.keys()
        ],
        "repeated names": [
            f"{entry.path} in lines {first[entry.path]} and {entry.line}"
            for entry in used
            if entry.path and entry.line != first[entry.path]
        ],
    }
    refuse(f"root: {file.absolute()}", faults)


def _left_out(entries: list[Row]) -> list[str]:
    """A note on the rows that are not used."""
    reasons = collections.Counter(
        _OTHER_LETTERS[entry.label] if entry.split in _SPLITS else entry.split or "no split"
        for entry in entries
        if entry.split not in _SPLITS or entry.label in _OTHER_LETTERS
    )
    if not reasons:
        return []
    listed = ", ".join(f"{number} {reason}" for reason, number in sorted(reasons.items()))
    return [f"left out of {len(entries)} recordings: {listed}"]


def _differences(corpus: Corpus) -> list[str]:
    """A note if the counts are not those of release 1.10."""
    found = {split: tuple(row.tolist()) for split, row in counts(corpus).items()}
    if found == PUBLISHED_COUNTS:
        return []
    return [f"recordings per class differ from Table B.3 of the thesis: expected {PUBLISHED_COUNTS}, got {found}"]
