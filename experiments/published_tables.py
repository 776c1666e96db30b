"""Reads the numbers that the papers print: the tables in experiments/published, see its README.md.

`lookup("thesis_5_4", "EKFAC DRW", "CIFAR-10 / alpha=0.1 / accuracy").value` is 66.03.
"""

import csv
import functools
import pathlib
from typing import NamedTuple

from imbal_jax.errors import InputError, not_found

FOLDER = pathlib.Path(__file__).parent / "published"


class PublishedValue(NamedTuple):
    """A cell of a table."""

    table: str  # as the paper numbers it: "thesis 5.4"
    row: str  # the method or class as printed
    column: str  # data set, setting and metric
    value: float | str  # accuracies and F1 in %, unless the column says otherwise; text where it is no number
    error: float | None  # after the ±; None where nothing is printed
    note: str  # "as printed; ..." where the paper contradicts itself


def names() -> list[str]:
    """The tables that can be read: "absgd_1" and so on."""
    return sorted((path.stem for path in FOLDER.glob("*.csv")), key=_in_order)


def read_table(name: str) -> list[PublishedValue]:
    """All printed cells of a table, row by row.

    Raises:
      InputError: there is no such table.
    """
    return list(_cells(name).values())


def lookup(name: str, row: str, column: str) -> PublishedValue:
    """One cell of a table.

    Raises:
      InputError: there is no such table, row or column, or nothing is printed in this cell.
    """
    cells = _cells(name)
    rows, columns = (list(dict.fromkeys(keys)) for keys in zip(*cells, strict=True))
    if row not in rows:
        raise InputError(f"row: {name} has {not_found(row, rows)}")
    if column not in columns:
        raise InputError(f"column: {name} has {not_found(column, columns)}")
    if (row, column) not in cells:
        printed = [other for other in columns if (row, other) in cells]
        raise InputError(f"column: {name} prints nothing for {row!r} at {column!r} (printed: {', '.join(printed)})")
    return cells[row, column]


@functools.cache
def _cells(name: str) -> dict[tuple[str, str], PublishedValue]:
    if name not in names():
        raise InputError(f"name: {not_found(name, names())}")
    with (FOLDER / f"{name}.csv").open(newline="", encoding="utf-8") as file:
        cells = [_cell(**line) for line in csv.DictReader(file)]
    return {(cell.row, cell.column): cell for cell in cells}


def _cell(table: str, row: str, column: str, value: str, error: str, note: str) -> PublishedValue:
    return PublishedValue(table, row, column, _number_or_text(value), float(error) if error else None, note)


def _number_or_text(value: str) -> float | str:
    try:
        return float(value)
    except ValueError:
        return value


def _in_order(name: str) -> list[tuple[bool, str]]:
    """Sorts lct_3 before lct_12, and a thesis's chapters before its appendix."""
    return [(not part.isdigit(), part.zfill(2)) for part in name.split("_")]
