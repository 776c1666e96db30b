"""Tables in csv files, of any delimiter and encoding that users have."""

import csv
import io
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

from imbal_jax.data.corpora import some
from imbal_jax.errors import InputError, not_found

LFS_HEADER = "version https://git-lfs"  # how the small text begins that stands for a file kept in git-lfs
_BYTE_ORDER_MARKS = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))


class Table(NamedTuple):
    """The rows of a csv file."""

    rows: list[dict[str, str]]  # by column, without surrounding blanks; cells missing at a row's end are ""
    lines: list[int]  # the line of the file on which each row ends, from 1
    notes: tuple[str, ...]


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
