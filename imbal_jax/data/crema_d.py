"""CREMA-D: acted emotions, labelled by those who heard or saw them."""

import collections
import os
import pathlib
import re
from collections.abc import Iterable
from typing import Literal

import numpy as np

from imbal_jax.data.corpora import Corpus, Row, corpus_of, counts, refuse
from imbal_jax.data.tables import LFS_HEADER, read_table
from imbal_jax.errors import InputError, not_found

CLASS_NAMES = ("neutral", "happy", "sad", "angry", "fear", "disgust")
# Recordings per class and split under the voice vote, in the order of CLASS_NAMES: thesis, Table B.2.
PUBLISHED_COUNTS = {
    "train": (2642, 248, 267, 673, 475, 387),
    "validation": (372, 48, 46, 99, 46, 59),
    "test": (880, 57, 57, 214, 123, 100),
}
SOURCE = "https://github.com/CheyneyComputerScience/CREMA-D"
LICENCE = "Open Database License 1.0, its contents Database Contents License 1.0 (Cao et al. 2014)"

_CLASS_OF_LETTER = dict(zip("NHSAFD", CLASS_NAMES, strict=True))
_CLASS_OF_CODE = dict(zip(("NEU", "HAP", "SAD", "ANG", "FEA", "DIS"), CLASS_NAMES, strict=True))
_COLUMNS = {"voice": "VoiceVote", "face": "FaceVote", "multimodal": "MultiModalVote"}
_FILE_NAME = re.compile(rf"\d{{4}}_[A-Z]{{3}}_({'|'.join(_CLASS_OF_CODE)})_(XX|LO|MD|HI)")
_VOTE = re.compile(r"[ADFHNS](:[ADFHNS])*")  # several letters where most raters were divided
# Without a usable wav file of that name: four that tensorflow-datasets leaves out too, and one that is silent.
_FAULTY = {"1040_ITH_SAD_XX", "1006_TIE_NEU_XX", "1013_WSI_DIS_XX", "1017_IWW_FEA_XX", "1076_MTI_SAD_XX"}
_POINTER_BYTES = 1024  # git-lfs pointers are smaller, recordings larger


def crema_d(root: str, labels: Literal["voice", "face", "multimodal", "intended"] = "voice") -> Corpus:
    """Reads the tables of a clone of CREMA-D's repository.

    The label is the emotion that most raters chose; recordings where several emotions tie are left out, and so are
    five without usable audio. The splits share no speaker: the sorted actors are shuffled by NumPy's RandomState(0) and
    cut at 70 % and 80 % of their number, as tensorflow-datasets does. With "voice" these are the data of the thesis,
    4.1.1 and Table B.2. Recordings are sorted by name.

    Args:
      root: the clone, with AudioWAV/<name>.wav and processedResults/summaryTable.csv; the table may also lie in the
        folder itself.
      labels: the vote of those who only heard the recording ("voice"), only saw it ("face"), or both ("multimodal");
        "intended" takes the emotion the actor was to play from the recording's name.

    Returns:
      The corpus. Its notes tell what was left out, where the counts differ from the published ones, and how much audio
      is missing, which is no error here.

    Raises:
      InputError: there is no table, it lacks a column, or it has repeated names or names or votes of another form,
        which are listed.
    """
    if labels not in (*_COLUMNS, "intended"):
        raise InputError(f"labels: {not_found(labels, (*_COLUMNS, 'intended'))}")
    folder = pathlib.Path(root).expanduser()
    votes = _read_votes(_find_table(folder), _COLUMNS.get(labels))
    tied = {name for name, vote in votes.items() if ":" in vote} - _FAULTY
    split_of = _splits_of_speakers({_speaker(name) for name in votes})
    audio, rows = folder / "AudioWAV", []
    for name in sorted(votes.keys() - tied - _FAULTY):
        label = _CLASS_OF_LETTER[votes[name]] if votes[name] else _CLASS_OF_CODE[name.split("_")[2]]
        rows.append(Row(os.path.join(audio, f"{name}.wav"), label, split_of[_speaker(name)], _speaker(name)))
    faulty = len(votes.keys() & _FAULTY)
    left_out = f"left out of {len(votes)} recordings: {len(tied)} with a tied vote, {faulty} without usable audio"
    corpus = corpus_of("crema_d", CLASS_NAMES, rows, [left_out])
    notes = (*corpus.notes, *_differences(corpus, labels), *missing_note(corpus), *_pointer_note(corpus))
    return corpus._replace(notes=notes)


def _find_table(folder: pathlib.Path) -> pathlib.Path:
    """The summary table, or InputError with what to do."""
    candidates = [folder / "processedResults" / "summaryTable.csv", folder / "summaryTable.csv"]
    for file in candidates:
        if file.is_file():
            return file
    raise InputError(
        f"root: expected a clone of CREMA-D, found neither {candidates[0].absolute()} nor {candidates[1].name} in the"
        f" folder itself; its source is {SOURCE}, its licence: {LICENCE}; nothing is downloaded"
    )


def _read_votes(file: pathlib.Path, column: str | None) -> dict[str, str]:
    """The votes in a column by recording, "" without a column."""
    table = read_table(file, ["FileName", column] if column else ["FileName"], "root")
    names = [row["FileName"] for row in table.rows]
    votes = [row[column] if column else "" for row in table.rows]
    faults = {
        "names other than ACTOR_SENTENCE_EMOTION_LEVEL": [name for name in names if not _FILE_NAME.fullmatch(name)],
        "repeated names": [name for name, number in collections.Counter(names).items() if number > 1],
        f"{column} other than letters of ADFHNS with colons between": [
            f"{vote!r} of {name}"
            for name, vote in zip(names, votes, strict=True)
            if column and not _VOTE.fullmatch(vote)
        ],
    }
    refuse(f"root: {file.absolute()}", faults)
    return dict(zip(names, votes, strict=True))


def _speaker(name: str) -> str:
    """The actor's number in a recording's name."""
    return name.split("_")[0]


def _splits_of_speakers(speakers: set[str]) -> dict[str, str]:
    """The split of every speaker."""
    order = sorted(speakers)
    # The legacy generator, whose shuffle of a list never changes: it made the published split.
    np.random.RandomState(0).shuffle(order)
    cuts = int(0.7 * len(order)), int(0.8 * len(order))
    places = np.searchsorted(cuts, np.arange(len(order)), side="right")
    return {speaker: ("train", "validation", "test")[place] for speaker, place in zip(order, places, strict=True)}


def _differences(corpus: Corpus, labels: str) -> list[str]:
    """A note if the voice vote's counts are not the published ones."""
    found = {split: tuple(row.tolist()) for split, row in counts(corpus).items()}
    if labels != "voice" or found == PUBLISHED_COUNTS:
        return []
    return [f"recordings per class differ from Table B.2 of the thesis: expected {PUBLISHED_COUNTS}, got {found}"]


def missing_audio(corpus: Corpus) -> tuple[pathlib.Path, ...]:
    """The recordings that are not on disk. Every folder is listed once, which is quick on a network drive too."""
    held: dict[str, set[str]] = {}
    missing = []
    for path in (path for split in corpus.splits.values() for path in split.paths):
        folder, name = os.path.split(path)
        if folder not in held:
            held[folder] = set(os.listdir(folder or ".")) if os.path.isdir(folder or ".") else set()
        if name not in held[folder]:
            missing.append(path)
    return tuple(missing)


def missing_note(corpus: Corpus) -> list[str]:
    """A note if recordings are not on disk."""
    missing = missing_audio(corpus)
    total = sum(len(split.paths) for split in corpus.splits.values())
    return [f"{len(missing)} of {total} recordings have no file, first {missing[0]}"] if missing else []


def lfs_pointers(paths: Iterable[pathlib.Path]) -> tuple[pathlib.Path, ...]:
    """Those files that are only git-lfs pointers, as a clone without git-lfs has them; missing files are none."""
    return tuple(path for path in paths if _is_pointer(path))


def _is_pointer(path: pathlib.Path) -> bool:
    """Whether the file is a small text that stands for another one."""
    if not path.is_file() or path.stat().st_size > _POINTER_BYTES:
        return False
    with path.open("rb") as stream:
        return stream.read(len(LFS_HEADER)) == LFS_HEADER.encode()


def _pointer_note(corpus: Corpus) -> list[str]:
    """A note if recordings are git-lfs pointers."""
    pointers = [path for split in corpus.splits.values() for path in lfs_pointers(split.paths)]
    return [f"{len(pointers)} recordings are git-lfs pointers; run git lfs pull"] if pointers else []
