"""A user's own table of recordings."""

import os
import pathlib
from collections.abc import Sequence
from typing import Literal

from imbal_jax.data.corpora import SPLITS, Corpus, Row, corpus_of, refuse, some
from imbal_jax.data.speaker_splits import split_by_label, split_by_speaker
from imbal_jax.data.tables import Table, read_table
from imbal_jax.errors import InputError

_SPELLINGS = {name: name for name in SPLITS} | {"training": "train", "testing": "test"}
_SPELLINGS |= dict.fromkeys(("val", "valid", "dev", "development"), "validation")
_KINDS = ("path", "label", "split", "speaker")  # the columns of a manifest


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
        parts = split_by_label(labels, fractions, seed)
        notes.append(f"the table names neither splits nor speakers: splits made with seed {seed} may share speakers")
    split_of = {index: split for split, indices in zip(SPLITS, parts, strict=False) for index in indices.tolist()}
    return [row._replace(split=split_of[index]) for index, row in enumerate(rows)]
