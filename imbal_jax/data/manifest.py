"""Corpora of labelled recordings, and the tables they are read from."""

import collections
import csv
import hashlib
import io
import json
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import numpy as np

from imbal_jax.class_counts import count_labels
from imbal_jax.data.splits import split_off
from imbal_jax.errors import InputError, not_found

LFS_HEADER = "version https://git-lfs"  # how the small text begins that stands for a file kept in git-lfs
SPLITS = ("train", "validation", "test", "test_2")
_SPELLINGS = {name: name for name in SPLITS} | {"training": "train", "testing": "test"}
_SPELLINGS |= dict.fromkeys(("val", "valid", "dev", "development"), "validation")
_BYTE_ORDER_MARKS = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))
_SHOWN = 10  # offending rows named in a message
_STARTS = 256  # random ways of sharing out the speakers that are improved, and of which the best is taken
_WORK = 20_000  # speakers in all starts together; with many speakers, few starts do
_ABSENT = 1e6  # what it costs there that a class is absent from a split; a wrong share costs far less
_KINDS = ("path", "label", "split", "speaker")  # the columns of a manifest


class Recordings(NamedTuple):
    """The labelled recordings of one split; the audio stays on disk."""

    paths: tuple[pathlib.Path, ...]
    labels: np.ndarray  # int32 [n] class indices
    speakers: tuple[str, ...] | None = None  # "" where one is unknown, None where all are


class Corpus(NamedTuple):
    """What a table of recordings delivers."""

    name: str
    class_names: tuple[str, ...]  # in the order of the labels
    splits: dict[str, Recordings]  # those of `SPLITS` that exist, in that order
    notes: tuple[str, ...] = ()  # what was left out, made up or is suspicious, one line each

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.class_names)


class Table(NamedTuple):
    """The rows of a csv file."""

    rows: list[dict[str, str]]  # by column, without surrounding blanks; cells missing at a row's end are ""
    lines: list[int]  # the line of the file on which each row ends, from 1
    notes: tuple[str, ...]


class Row(NamedTuple):
    """One recording; "" stands for what is unknown."""

    path: str
    label: str  # the class's name
    split: str  # one of `SPLITS`
    speaker: str = ""
    line: int = 0  # of the table


def corpus_of(name: str, class_names: Sequence[str], rows: Sequence[Row], notes: Iterable[str] = ()) -> Corpus:
    """Groups recordings by split, in their order; notes classes absent from a split and speakers in several splits.

    Args:
      name: of the corpus.
      class_names: in the order of the labels; every row's label is one of them.
      rows: the recordings.
      notes: what is to be said already.

    Raises:
      InputError: there are no recordings.
    """
    if not rows:
        raise InputError(f"{name}: expected at least one recording, got none that is used")
    notes, splits = list(notes), {}
    index = {label: number for number, label in enumerate(class_names)}
    known = any(row.speaker for row in rows)
    for split in SPLITS:
        chosen = [row for row in rows if row.split == split]
        if chosen:
            labels = np.array([index[row.label] for row in chosen], np.int32)
            speakers = tuple(row.speaker for row in chosen) if known else None
            splits[split] = Recordings(tuple(pathlib.Path(row.path) for row in chosen), labels, speakers)
            empty = [label for label in class_names if index[label] not in labels]
            notes += [f"no recording in {split} of {some(empty)}"] if empty else []
    places: dict[str, set[str]] = collections.defaultdict(set)
    for row in rows:
        places[row.speaker].add(row.split)
    shared = sorted(speaker for speaker, where in places.items() if speaker and len(where) > 1)
    notes += [f"speakers in more than one split: {some(shared)}"] if shared else []
    return Corpus(name, tuple(class_names), splits, tuple(notes))


def counts(corpus: Corpus) -> dict[str, np.ndarray]:
    """Recordings per class, int64 [num_classes], by split."""
    return {name: count_labels(split.labels, corpus.num_classes) for name, split in corpus.splits.items()}


def fingerprint(corpus: Corpus) -> str:
    """SHA-256, in hexadecimal, of the class names and of every recording's split, path, label and speaker, in order.

    Paths count from the folder that holds them all, so a corpus that was moved keeps its fingerprint. The name, the
    notes and the audio itself do not count.
    """
    folders = {os.path.abspath(path.parent) for split in corpus.splits.values() for path in split.paths}
    common = os.path.commonpath(folders)
    listed = []
    for name, split in corpus.splits.items():
        paths = [pathlib.Path(os.path.relpath(path, common)).as_posix() for path in split.paths]
        listed.append((name, paths, split.labels.tolist(), split.speakers))
    return hashlib.sha256(json.dumps([corpus.class_names, listed]).encode()).hexdigest()


def some(items: Sequence[str]) -> str:
    """The first ten of a list, for a message, and how many there are."""
    return f"{', '.join(items[:_SHOWN])}{', ...' if len(items) > _SHOWN else ''} ({len(items)})"


def refuse(where: str, faults: dict[str, list[str]]) -> None:
    """Raises InputError with the first places of every kind of fault, if there are any."""
    told = [f"{kind}: {some(places)}" for kind, places in faults.items() if places]
    if told:
        raise InputError(f"{where}: {'; '.join(told)}")


def read_table(file: pathlib.Path, columns: Sequence[str], argument: str = "path") -> Table:
    """Reads a csv file with a header.

    The delimiter (comma, semicolon or tab) is the one under which the header holds most of the wanted columns. The
    text is UTF-8, or UTF-16 with a byte order mark; other bytes are read as Windows-1252, with a note. Blank lines are
    skipped.

    Args:
      file: the table.
      columns: names that the header must hold, exactly so; others may be there too.
      argument: what messages call the option that led to the file.

    Raises:
      InputError: the file is missing, no text or a git-lfs pointer, lacks a column or has it twice, is wrongly quoted,
        has no rows, or rows longer than its header.
    """
    where = f"{argument}: {file.absolute()}"
    text, notes = _decode(file, where)
    first = next((line for line in text.splitlines() if line.strip()), "")
    names = {each: [cell.strip(' "') for cell in first.split(each)] for each in ",;\t"}
    delimiter = max(names, key=lambda each: (len(set(columns) & set(names[each])), len(names[each])))
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        read = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader]
    except csv.Error as error:
        raise InputError(f"{where}: wrongly quoted near line {reader.line_num}: {error}") from error
    filled = [(line, cells) for line, cells in read if any(cells)]
    if len(filled) < 2:
        raise InputError(f"{where}: expected a header and at least one row, got {len(filled)} lines with content")
    header = filled.pop(0)[1]
    for name in columns:
        if header.count(name) != 1:
            found = f"{header.count(name)} of them" if name in header else not_found(name, filter(None, header))
            raise InputError(f"{where}: expected one column {name!r}, got {found}")
    longer = [f"line {line}" for line, cells in filled if any(cells[len(header) :])]
    if longer:
        raise InputError(f"{where}: expected rows of {len(header)} cells, got more in {some(longer)}")
    rows = [dict(zip(header, cells + [""] * len(header), strict=False)) for _, cells in filled]
    return Table(rows, [line for line, _ in filled], notes)


def _decode(file: pathlib.Path, where: str) -> tuple[str, tuple[str, ...]]:
    """The file's text, and a note if its encoding had to be guessed."""
    if not file.is_file():
        raise InputError(f"{where}: expected a csv file, found none")
    content = file.read_bytes()
    encoding = next((name for mark, name in _BYTE_ORDER_MARKS if content.startswith(mark)), "utf-8")
    notes: tuple[str, ...] = ()
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError:
        text = content.decode("cp1252", errors="replace")
        notes = (f"{file.name} is not valid UTF-8; it was read as Windows-1252",)
    if "\0" in text or (notes and "\ufffd" in text):
        raise InputError(f"{where}: expected a csv file in UTF-8, got no such text")
    if text.startswith(LFS_HEADER):
        raise InputError(f"{where}: expected a csv file, got a git-lfs pointer to one; run git lfs pull")
    return text, notes


def read_manifest(
    path: str,
    *,
    root: str = "",
    path_column: str = "path",
    label_column: str = "label",
    split_column: str = "split",
    speaker_column: str = "speaker",
    classes: Sequence[str] = (),
    drop_other_labels: bool = False,
    missing_files: Literal["refuse", "drop", "ignore"] = "refuse",
    fractions: Sequence[float] = (0.7, 0.1, 0.2),
    seed: int = 0,
    name: str = "",
) -> Corpus:
    """Reads a user's own table of recordings, one row each.

    Splits are train and test, and optionally validation and test_2; "dev", "val" and the like are understood. A table
    without splits is split by speaker, or, without speakers, by recording within every class; a note says so.

    Args:
      path: the csv file, as `read_table` takes it.
      root: the folder that relative paths start from, itself relative to the csv's folder.
      path_column: the column of the recordings' paths.
      label_column: the column of the classes' names.
      split_column: the column of the splits; the default may be absent from the table, "" ignores it.
      speaker_column: the column of the speakers, likewise.
      classes: the classes in order; by default all labels, sorted (as numbers if they all are).
      drop_other_labels: leave out rows whose label is none of `classes`, with a note, instead of refusing them.
      missing_files: "refuse" recordings that are not on disk, "drop" their rows with a note, or "ignore" the matter.
      fractions: shares of train, validation and test where the table has no splits.
      seed: which recordings go where, then.
      name: of the corpus, by default the file's name without its ending.

    Raises:
      InputError: an option or the table is faulty. All faulty rows are told at once, by kind: without path, label or
        speaker, of an unknown label or split, of a missing file, or repeating a path.
    """
    if missing_files not in ("refuse", "drop", "ignore"):
        raise InputError(f"missing_files: expected 'refuse', 'drop' or 'ignore', got {missing_files!r}")
    if isinstance(classes, str) or len(set(classes)) != len(classes) or len(classes) < (2 if drop_other_labels else 0):
        raise InputError(f"classes: expected different names, two or more with drop_other_labels, got {classes!r}")
    file = pathlib.Path(path).expanduser()
    optional = [column for column in (split_column, speaker_column) if column not in ("", "split", "speaker")]
    table = read_table(file, (path_column, label_column, *optional))
    named = zip(_KINDS, (path_column, label_column, split_column, speaker_column), strict=True)
    columns = {kind: column for kind, column in named if column and column in table.rows[0]}
    rows, notes = _rows(table, file.parent / pathlib.Path(root).expanduser(), columns), list(table.notes)
    rows = _without(rows, "label", {row.label for row in rows} - {*classes, ""} if drop_other_labels else set(), notes)
    missing = set() if missing_files == "ignore" else {row.path for row in rows if not os.path.isfile(row.path)} - {""}
    rows = _without(rows, "path", missing if missing_files == "drop" else set(), notes)
    refuse(f"path: {file.absolute()}", _faults(rows, columns, classes, missing))
    found = {row.label for row in rows}
    if len(found) < 2:
        raise InputError(f"path: expected recordings of two classes in {file.absolute()}, got {sorted(found)}")
    if "split" not in columns:
        rows = _with_splits(rows, fractions, seed, notes)
    splits = {row.split for row in rows}
    if not {"train", "test"} <= splits:
        raise InputError(f"path: expected rows of train and of test in {file.absolute()}, got only {sorted(splits)}")
    notes += [] if "validation" in splits else ["there is no validation split"]
    class_names = classes or sorted(sorted(found), key=int if all(label.isdecimal() for label in found) else None)
    return corpus_of(name or file.stem, class_names, rows, notes)


def _rows(table: Table, folder: pathlib.Path, columns: dict[str, str]) -> list[Row]:
    """The table's recordings; known spellings of splits become the split's name."""
    rows = []
    for line, cells in zip(table.lines, table.rows, strict=True):
        path, label, split, speaker = (cells[columns[kind]] if kind in columns else "" for kind in _KINDS)
        path = os.path.normpath(folder / path) if path else ""
        rows.append(Row(path, label, _SPELLINGS.get(split.lower(), split), speaker, line))
    return rows


def _without(rows: list[Row], kind: str, values: set[str], notes: list[str]) -> list[Row]:
    """The rows but for those with one of some labels or paths; adds a note on these."""
    kept = [row for row in rows if getattr(row, kind) not in values]
    if values:
        why = "another label" if kind == "label" else "a missing file"
        notes.append(f"{len(rows) - len(kept)} rows with {why} left out: {some(sorted(values))}")
    return kept


def _faults(rows: list[Row], columns: dict[str, str], classes: Sequence[str], missing: set) -> dict[str, list[str]]:
    """The faulty places of a manifest by kind of fault."""
    first = {row.path: row.line for row in reversed(rows)}
    again = [row for row in rows if row.path and row.line != first[row.path]]
    strange = [row for row in rows if classes and row.label not in (*classes, "")]
    nowhere = [row for row in rows if "split" in columns and row.split not in SPLITS]
    unsaid = {
        f"no {columns[kind]}": [f"line {row.line}" for row in rows if not getattr(row, kind)]
        for kind in ("path", "label", "speaker")
        if kind in columns
    }
    return unsaid | {
        f"labels other than {', '.join(classes)}": [f"{row.label!r} in line {row.line}" for row in strange],
        f"splits other than {', '.join(SPLITS)}": [f"{row.split!r} in line {row.line}" for row in nowhere],
        "missing files": [f"{row.path} in line {row.line}" for row in rows if row.path in missing],
        "recordings listed twice": [f"{row.path} in lines {first[row.path]} and {row.line}" for row in again],
    }


def _with_splits(rows: list[Row], fractions: Sequence[float], seed: int, notes: list[str]) -> list[Row]:
    """The rows of a table that names no splits, with splits; adds a note."""
    labels = [row.label for row in rows]
    if rows[0].speaker:
        parts = split_by_speaker([row.speaker for row in rows], labels, fractions, seed)
        notes.append(f"the table names no splits: they were made with seed {seed} and share no speaker")
    else:
        parts = _split_by_label(labels, fractions, seed)
        notes.append(f"the table names neither splits nor speakers: splits made with seed {seed} may share speakers")
    split_of = {index: split for split, indices in zip(SPLITS, parts, strict=False) for index in indices.tolist()}
    return [row._replace(split=split_of[index]) for index, row in enumerate(rows)]


def split_by_speaker(
    speakers: Sequence[str], labels: Sequence, fractions: Sequence[float] = (0.7, 0.1, 0.2), seed: int = 0
) -> tuple[np.ndarray, ...]:
    """Shares speakers out among train, validation and test, with every class in every split.

    Of several ways found from random starts, the one is taken in which the shares of every class are closest to the
    fractions. The order of the examples has no influence on which speaker goes where.

    Args:
      speakers: of every example, [n].
      labels: of every example, [n].
      fractions: wanted shares of the examples; a split of fraction 0 stays empty.
      seed: of the random starts; of few speakers, all seeds may find the same way.

    Returns:
      Indices of the examples of train, validation and test, ascending.

    Raises:
      InputError: the fractions are no shares of 1, the seed is negative, some class has fewer speakers than there are
        splits, or no way was found to have every class in every split.
    """
    shares = _checked_shares(fractions, seed)
    used = np.flatnonzero(shares)
    names, speaker_of = np.unique(np.asarray(speakers), return_inverse=True)
    classes, label_of = np.unique(np.asarray(labels), return_inverse=True)
    table = np.zeros((len(names), len(classes)), np.int64)
    np.add.at(table, (speaker_of, label_of), 1)
    few = [f"{c} of {n}" for c, n in zip(classes, (table > 0).sum(axis=0), strict=True) if n < len(used)]
    if len(names) < len(used) or few:
        got = "one speaker only" if len(names) == 1 else f"{len(names)} speakers, classes with too few: {some(few)}"
        raise InputError(f"speakers: expected {len(used)} or more in every class, one for each split, got {got}")
    rng = np.random.default_rng(seed)
    start = np.searchsorted(np.cumsum(shares[used]), (np.arange(len(names)) + 0.5) / len(names)).clip(max=len(used) - 1)
    starts = min(_STARTS, max(8, _WORK // len(names)))
    found = [_improved(rng.permutation(start), table, shares[used]) for _ in range(starts)]
    places, cost = min(found, key=lambda each: each[1])
    if cost >= _ABSENT:
        raise InputError("speakers: expected a way to have every class in every split, found none; give the splits")
    return tuple(np.flatnonzero(used[places][speaker_of] == split) for split in range(len(shares)))


def _improved(places: np.ndarray, table: np.ndarray, shares: np.ndarray) -> tuple[np.ndarray, float]:
    """Moves speakers, one by one, as long as that lowers the cost; the splits' numbers [speakers] and the cost."""

    def cost(held: np.ndarray) -> np.ndarray:
        """Of a split's examples [..., splits, classes] by split, [..., splits]."""
        distance = np.square(held / table.sum(axis=0) - shares[:, None]) / shares[:, None]
        return np.where(held > 0, distance, distance + _ABSENT).sum(axis=-1)

    places, everyone = places.copy(), np.arange(len(table))
    while True:
        held = np.stack([table[places == split].sum(axis=0) for split in range(len(shares))])
        now = cost(held)
        loss = (cost(held - table[:, None]) - now)[everyone, places]
        change = cost(held + table[:, None]) - now + loss[:, None]
        change[everyone, places] = 0
        speaker, split = np.unravel_index(change.argmin(), change.shape)
        if change[speaker, split] > -1e-9:
            return places, float(now.sum())
        places[speaker] = split


def _split_by_label(labels: Sequence, fractions: Sequence[float], seed: int) -> tuple[np.ndarray, ...]:
    """As `split_by_speaker`, but by example: every class is shared out, at least one example to every split."""
    shares = _checked_shares(fractions, seed)
    classes, label_of, sizes = np.unique(np.asarray(labels), return_inverse=True, return_counts=True)
    few = [f"{c} has {n}" for c, n in zip(classes, sizes, strict=True) if n < (shares > 0).sum()]
    if few:
        raise InputError(f"labels: expected an example of every class for every split, got too few: {some(few)}")
    validation = np.rint(shares[1] * sizes).clip(shares[1] > 0, sizes - 2).astype(np.int64)
    rng = np.random.default_rng(seed)
    rest, test = split_off(rng, label_of, np.rint(shares[2] * sizes).clip(1, sizes - validation - 1).astype(np.int64))
    train, held_out = split_off(rng, label_of[rest], validation)
    return rest[train], rest[held_out], test


def _checked_shares(fractions: Sequence[float], seed: int) -> np.ndarray:
    """The shares of train, validation and test, float64 [3]."""
    if seed < 0:
        raise InputError(f"seed: expected a whole number >= 0, got {seed}")
    shares = np.asarray(fractions, np.float64)
    if shares.shape != (3,) or not (shares >= 0).all() or abs(shares.sum() - 1) > 1e-6 or min(shares[[0, 2]]) == 0:
        raise InputError(f"fractions: expected three shares of 1, of train and test not 0, got {tuple(fractions)}")
    return shares
