"""Shorthands for tests of the papers' tables."""

from experiments.published_tables import lookup, names, read_table

ALPHAS = [f"CIFAR-10 / alpha={alpha} / accuracy" for alpha in ("0.1", "1.0", "10.0")]
BALANCED = "CIFAR-10 / balanced / accuracy"
CREMA_D, TS1, TS2 = "CREMA-D", "MSP-Podcast TS1", "MSP-Podcast TS2"
LT10, LT100 = "CIFAR-10 LT", "CIFAR-100 LT"


def at(name, row, column):
    """The number in a cell."""
    value = lookup(name, row, column).value
    assert isinstance(value, float)
    return value


def gain(name, row, over, column):
    return at(name, row, column) - at(name, over, column)


def rows_of(name):
    return list(dict.fromkeys(cell.row for cell in read_table(name)))


def columns_of(name):
    return list(dict.fromkeys(cell.column for cell in read_table(name)))


def as_printed():
    """The cells that the notes say contradict something, as (name, row, column)."""
    noted = [(name, cell) for name in names() for cell in read_table(name) if cell.note.startswith("as printed; ")]
    return {(name, cell.row, cell.column) for name, cell in noted}
