"""Results as CSV, one number a line, in full precision."""

import csv
import io
from collections.abc import Iterator, Sequence
from typing import Any

from experiments.reporting.collect import Collected
from experiments.reporting.model import Entry, TableModel
from experiments.study import cell_name

HEADS = (
    *("study", "table", "row", "column", "cell", "metric", "unit", "state", "seeds", "seeds_missing"),
    *("mean", "standard_error", "rank", "published_table", "published_row", "published_column", "published"),
    *("published_error", "published_error_is", "published_seeds", "difference", "confidence_low", "confidence_high"),
    *("degrees_of_freedom", "note"),
)
SEED_HEADS = ("study", "cell", "seed", "key", "value")


def table_lines(study: str, tables: Sequence[TableModel]) -> str:
    """Every entry of every table; what there is not is empty. `seeds` is the number of seeds of a mean."""
    lines = [
        [study, table.table.name, label, table.columns[entry.column].label, *_entry_line(entry, table)]
        for table in tables
        for label, entries in table.rows
        for entry in entries
        if entry.cell is not None
    ]
    return _written(HEADS, lines)


def seed_lines(collected: Collected) -> str:
    """Every number in the results of every seed."""
    return _written(SEED_HEADS, _seed_lines(collected))


def _seed_lines(collected: Collected) -> Iterator[list[Any]]:
    for found in collected.cells:
        for seed, result in found.results.items():
            for key, value in result.items():
                if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
                    shown = "nan" if value is None else value
                    yield [collected.study.name, cell_name(found.cell), seed, key, shown]


def _entry_line(entry: Entry, table: TableModel) -> list[Any]:
    """What an entry adds behind its place."""
    assert entry.cell is not None
    ours, paper, apart, source = entry.estimate, entry.published, entry.difference, table.table.published
    missing = " ".join(map(str, entry.missing))
    head = [cell_name(entry.cell), entry.key, "%" if table.table.percent else "", entry.state, len(entry.values)]
    line = [*head, missing, *((ours.mean, ours.error) if ours else (None, None)), entry.rank]
    if paper is None or source is None:
        line += [None] * 7
    else:
        kind = "" if paper.error is None else "standard deviation" if source.deviations else "standard error"
        line += [source.table, paper.row, paper.column, paper.value, paper.error, kind, source.seeds]
    line += [None] * 4 if apart is None else [apart.value, apart.low, apart.high, apart.degrees_of_freedom]
    return [*line, paper.note if paper else None]


def _written(heads: Sequence[str], lines: Any) -> str:
    """Lines as CSV; numbers with all their digits."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(heads)
    writer.writerows(lines)
    return text.getvalue()
