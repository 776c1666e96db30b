"""What the entries of a table say, in words that every format then escapes and highlights."""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

from experiments.reporting.model import Entry, TableModel
from experiments.reporting.statistics import FORMULA, Difference
from imbal_jax.reports.tables import readable

MISSING, NO_CELL, NOT_A_NUMBER = "missing", "-", "NaN"
NOTED, ALONE = "†", "°"
MARKS = (
    "± is the standard error of the mean over seeds. The best three of a column are marked first, second and third,"
    " ours and the paper's each among themselves. A cell without any result is marked missing, one without all"
    " seeds that are asked for or that another cell has tells how many of them it has, and NaN is the mean of seeds of"
    " which one has no number."
)


class Shown(NamedTuple):
    """The texts of an entry."""

    ours: str
    seeds: str  # "2 of 3 seeds", empty where all are there or none; in a table of the best, first which candidate it is
    paper: str
    difference: str
    interval: str


def shown(entry: Entry, percent: bool) -> Shown:
    """The texts of an entry.

    Args:
      entry: of a table.
      percent: whether its numbers are in %: two digits behind the point rather than three.
    """
    digits = 2 if percent else 3
    ours = {"none": NO_CELL, "missing": MISSING}.get(entry.state) or _mean(entry, digits)
    seeds = entry.chosen
    if entry.missing and entry.state == "partial":
        counted = f"{len(entry.values)} of {len(entry.values) + len(entry.missing)} seeds"
        seeds = ", ".join(filter(None, (seeds, counted)))
    paper = ""
    if entry.published is not None:
        paper = with_error(float(entry.published.value), entry.published.error, digits)
        paper += f" {NOTED}" if entry.published.note else ""
    if entry.difference is None:
        return Shown(ours, seeds, paper, "", "")
    return Shown(ours, seeds, paper, f"{entry.difference.value:+.{digits}f}", _interval(entry.difference, digits))


def with_error(value: float, error: float | None, digits: int) -> str:
    """A mean and what stands behind its ±."""
    if not math.isfinite(value):
        return NOT_A_NUMBER
    return f"{value:.{digits}f}" if error is None else f"{value:.{digits}f} ± {error:.{digits}f}"


def _mean(entry: Entry, digits: int) -> str:
    """Our mean."""
    assert entry.estimate is not None
    return with_error(entry.estimate.mean, entry.estimate.error, digits)


def _interval(found: Difference, digits: int) -> str:
    """The confidence interval; empty where there is none."""
    if found.low is None or found.high is None:
        return ""
    return f"[{found.low:+.{digits}f}, {found.high:+.{digits}f}]{ALONE if found.ours_alone else ''}"


def entry_cells(entry: Entry, table: TableModel, escape: Callable[[str], str], places: Mapping[int, str]) -> list[str]:
    """The cells of an entry: ours, and where the column has it the paper's and the difference.

    Args:
      entry: of the table.
      table: that it belongs to.
      escape: makes text what the format prints as it is.
      places: how the best three are highlighted, with "@" for the number.
    """

    def marked(text: str, rank: int | None) -> str:
        return places[rank].replace("@", escape(text)) if rank else escape(text)

    texts = shown(entry, table.table.percent)
    ours = marked(texts.ours, entry.rank) + (f" ({escape(texts.seeds)})" if texts.seeds else "")
    if not table.columns[entry.column].compared:
        return [ours]
    apart = escape(" ".join(filter(None, (texts.difference, texts.interval))))
    return [ours, marked(texts.paper, entry.published_rank), apart]


def unit(table: TableModel) -> str:
    """What follows the name of a metric."""
    return " (%)" if table.table.percent else ""


def metric_title(table: TableModel, metric: str) -> str:
    """The name of a metric with its unit."""
    return readable(metric) + unit(table)


def condition_lines(table: TableModel) -> list[tuple[str, str]]:
    """The run conditions by name; several values of one are separated by semicolons."""
    if not table.conditions:
        return [("runs", "none has finished")]
    return [(condition.name, "; ".join(condition.values)) for condition in table.conditions]


def footnotes(table: TableModel) -> list[str]:
    """What the marks of a table mean."""
    entries = table.entries()
    notes = [f"{NOTED} {note}" for note in table.notes()]
    if any(entry.difference is not None for entry in entries):
        notes.append(FORMULA)
    return notes


def progress(tables: list[TableModel]) -> str:
    """How many entries of all tables there are, in words."""
    states = [entry.state for table in tables for entry in table.entries()]
    counts = {state: states.count(state) for state in ("complete", "partial", "missing")}
    told = [f"{counts['complete']} complete", f"{counts['partial']} with fewer seeds", f"{counts['missing']} missing"]
    return f"{sum(counts.values())} entries: {', '.join(told)}"
