"""Tables of results beside published ones, independent of the format they are written in."""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

from experiments.published_tables import PublishedValue, read_table
from experiments.reporting.choice import Chosen, choose, condition_files
from experiments.reporting.collect import CellResults, Collected
from experiments.reporting.conditions import Condition, conditions_of
from experiments.reporting.statistics import Difference, Estimate, difference, ranks
from experiments.study import Cell, Published, Table
from imbal_jax.errors import InputError, not_found
from imbal_jax.reports.summaries import mean_and_standard_error
from imbal_jax.reports.tables import readable

LESS_IS_BETTER = ("loss", "cross_entropy", "brier_score", "seconds_per_epoch", "calibration_error")


class Entry(NamedTuple):
    """One place of a table."""

    cell: Cell | None  # None where the study has no such cell
    key: str  # of the result
    column: int  # its place in `TableModel.columns`
    values: dict[int, float]  # by seed, in the table's unit; NaN where a seed has none
    missing: tuple[int, ...]  # seeds that it should have, see `Collected.seeds`, and that have no result
    estimate: Estimate | None
    published: PublishedValue | None
    difference: Difference | None
    rank: int | None = None  # 1, 2 or 3 for the best of its column
    published_rank: int | None = None  # likewise among the paper's
    chosen: str = ""  # which of several candidates it is, in a table of the best
    untrained: int = 0  # candidates that there are no results of

    @property
    def state(self) -> str:
        """How much of it there is: "none" (no such cell), "missing", "partial" or "complete"."""
        if self.cell is None:
            return "none"
        if not self.values:
            return "missing"
        return "partial" if self.missing or self.untrained else "complete"


class Column(NamedTuple):
    """One column of results."""

    groups: tuple[str, ...]  # the values of the other axes, as written
    metric: str  # a key
    compared: bool  # whether the paper has a number in it

    @property
    def label(self) -> str:
        """The column in words."""
        return ", ".join((*self.groups, readable(self.metric)))


class TableModel(NamedTuple):
    """A table."""

    table: Table
    columns: list[Column]
    rows: list[tuple[str, list[Entry]]]  # label and entries
    conditions: list[Condition]

    def entries(self) -> list[Entry]:
        """All entries, row by row."""
        return [entry for _, entries in self.rows for entry in entries]

    def notes(self) -> list[str]:
        """What the published numbers' notes say, each once."""
        found = [entry.published.note for entry in self.entries() if entry.published is not None]
        return list(dict.fromkeys(note for note in found if note))


def build_table(collected: Collected, table: Table, data: str | None = None) -> TableModel:
    """Fills a table of a study.

    Args:
      collected: the study's results.
      table: one of its tables.
      data: what the data are to be called, see `conditions_of`.

    Raises:
      InputError: the table names a published one that does not exist, or a metric that no result has; what a result
        has for a metric is no number.
    """
    shown = [cell for cell in collected.cells if table.where is None or table.where(cell.cell)]
    _check_metrics(table, shown)
    hidden = {table.rows} | (set() if table.best is None else {table.best.axis})
    others = [axis.name for axis in collected.study.axes if axis.name not in hidden]
    row_values = list(dict.fromkeys(cell.cell[table.rows] for cell in shown))
    groups = list(dict.fromkeys(tuple(cell.cell[name] for name in others) for cell in shown))
    by_place: dict[tuple[str, tuple[str, ...]], list[CellResults]] = {}
    for cell in shown:
        by_place.setdefault((cell.cell[table.rows], tuple(cell.cell[name] for name in others)), []).append(cell)
    places = list(itertools.product(groups, table.metrics))
    rows = [
        [_entry(collected, table, by_place.get((row, group)), metric, i) for i, (group, metric) in enumerate(places)]
        for row in row_values
    ]
    rows = _ranked(rows, places)
    columns = [
        Column(
            tuple(written(table, name, value) for name, value in zip(others, group, strict=True)),
            metric,
            any(row[i].published is not None for row in rows),
        )
        for i, (group, metric) in enumerate(places)
    ]
    labels = [table.labels.get(value, value) for value in row_values]
    return TableModel(table, columns, list(zip(labels, rows, strict=True)), conditions_of(shown, data))


def written(table: Table, axis: str, value: str) -> str:
    """The value of an axis above a column: its label, or with the axis' name."""
    return table.labels.get(value, f"{axis} = {value}")


def published_value(published: Published, cell: Cell, metric: str) -> PublishedValue | None:
    """What a paper prints for a cell, None where it prints nothing or no number.

    Raises:
      InputError: there is no such table.
    """
    place = published.row(cell, metric), published.column(cell, metric)
    found = {(each.row, each.column): each for each in read_table(published.table)}.get(place)
    return None if found is None or isinstance(found.value, str) else found


def _check_metrics(table: Table, shown: Sequence[CellResults]) -> None:
    """Refuses a metric that no result has: every entry of it would seem to be missing.

    Some results may lack a metric that others have, such as those of conditional models without a validation set.
    """
    finished = [cell for cell in shown if cell.results]
    for metric in table.metrics if finished else ():
        keys = [_key(table, cell, metric) for cell in finished]
        if not any(_has(table, cell, key) for cell, key in zip(finished, keys, strict=True)):
            known = dict.fromkeys(key for cell in finished for result in cell.results.values() for key in result)
            raise InputError(f"table {table.name}: metrics: in the results there is {not_found(keys[0], known)}")


def _key(table: Table, cell: CellResults, metric: str) -> str:
    """The key of a cell's results that holds a metric."""
    return metric if table.key is None else table.key(cell.cell, metric)


def _has(table: Table, cell: CellResults, key: str) -> bool:
    """Whether some result of a cell has a key, or the table looks elsewhere for it."""
    on_test = table.best is not None and table.best.split == "test"
    return any(key in result for result in cell.results.values()) or (on_test and bool(condition_files(cell)))


def _entry(collected: Collected, table: Table, cells: list[CellResults] | None, metric: str, column: int) -> Entry:
    """One entry, not yet ranked."""
    if cells is None:
        return Entry(None, metric, column, {}, (), None, None, None)
    keys = [_key(table, cell, metric) for cell in cells]
    if table.best is None:
        (found,), (key,) = cells, keys
        chosen = Chosen(found, found.numbers(key), "")
    else:
        less = metric.endswith(LESS_IS_BETTER)
        chosen = choose(cells, table.best, collected.asked, metric, keys, less=less)
        found, key = chosen.found, keys[cells.index(chosen.found)]
    scale = 100.0 if table.percent else 1.0
    values = {seed: scale * value for seed, value in chosen.values.items()}
    missing = tuple(seed for seed in collected.seeds if seed not in values)
    ours = _estimate(list(values.values()))
    printed = None if table.published is None else published_value(table.published, found.cell, metric)
    compared = None
    if ours is not None and printed is not None and table.published is not None:
        compared = difference(ours, _paper(table.published, printed))
    return Entry(
        found.cell, key, column, values, missing, ours, printed, compared, None, None, chosen.told, chosen.untrained
    )


def _estimate(values: Sequence[float]) -> Estimate | None:
    """Mean and standard error over seeds; None without a seed."""
    if not values:
        return None
    mean, error = mean_and_standard_error(values)
    return Estimate(float(mean), None if error is None else float(error), len(values))


def _paper(published: Published, value: PublishedValue) -> Estimate:
    """What a paper prints, with a standard error."""
    error = value.error
    if error is not None and published.deviations:
        error /= math.sqrt(published.seeds)
    assert isinstance(value.value, float)
    return Estimate(value.value, error, published.seeds)


def _ranked(rows: list[list[Entry]], places: Sequence[tuple[tuple[str, ...], str]]) -> list[list[Entry]]:
    """The entries with the places of the best three of every column."""
    ranked = [list(row) for row in rows]
    for i, (_, metric) in enumerate(places):
        less = metric.endswith(LESS_IS_BETTER)
        ours = ranks([_our_mean(row[i]) for row in rows], less_is_better=less)
        theirs = ranks([_printed_mean(row[i]) for row in rows], less_is_better=less)
        for row, rank, published_rank in zip(ranked, ours, theirs, strict=True):
            row[i] = row[i]._replace(rank=rank, published_rank=published_rank)
    return ranked


def _our_mean(entry: Entry) -> float | None:
    """Our mean, if there is one."""
    return None if entry.estimate is None else entry.estimate.mean


def _printed_mean(entry: Entry) -> float | None:
    """The paper's number, if it prints one."""
    return None if entry.published is None else float(entry.published.value)
