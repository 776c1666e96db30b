"""The report as one HTML file that holds its style and its figures and asks no network for anything."""

import base64
import html
import itertools
from collections.abc import Sequence
from typing import NamedTuple

from experiments.reporting.latex import label_of
from experiments.reporting.model import Entry, TableModel
from experiments.reporting.style import STYLE
from experiments.reporting.text import MARKS, NOT_A_NUMBER, condition_lines, footnotes, metric_title, progress, shown

PLACES = {1: "first", 2: "second", 3: "third"}
# Nothing is fetched and nothing runs, whatever a name or a note may hold.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


class Drawn(NamedTuple):
    """A figure ready for the page."""

    name: str
    caption: str
    kind: str  # "image/svg+xml" or "image/png"
    content: bytes


def escape(text: str) -> str:
    """Text that HTML shows as it is, in attributes too."""
    return html.escape(text, quote=True)


def html_page(name: str, tables: Sequence[TableModel], pictures: Sequence[Drawn], seeds: Sequence[int]) -> str:
    """The whole report.

    Args:
      name: of the study.
      tables: to write.
      pictures: to show below them.
      seeds: that every cell should have.
    """
    states = [entry.state for table in tables for entry in table.entries() if entry.state != "none"]
    share = 100 * states.count("complete") / max(len(states), 1)
    links = [(f"table-{label_of(table.table.name)}", table.table.title) for table in tables]
    links += [("figures", "Figures")] if pictures else []
    listed = "".join(f'<li><a href="#{anchor}">{escape(title)}</a></li>' for anchor, title in links)
    places = "".join(f'<span class="key {place}">{place}</span>' for place in PLACES.values())
    head = (
        f"<header>\n<h1>{escape(name)}</h1>\n"
        f'<p class="quiet">{escape(progress(list(tables)))}; seeds {escape(", ".join(map(str, seeds)))}</p>\n'
        f'<div class="bar"><span style="width: {share:.0f}%"></span></div>\n'
        f'<p class="quiet">{places}{escape(MARKS)}</p>\n<nav><ul>{listed}</ul></nav>\n</header>\n'
    )
    body = head + "".join(map(_table_section, tables)) + _figures_section(pictures)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(name)}</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n<main>\n{body}</main>\n</body>\n</html>\n"
    )


def _table_section(table: TableModel) -> str:
    """A table, its notes and the conditions of its runs."""
    notes = "".join(f"<p>{escape(note)}</p>" for note in footnotes(table))
    conditions = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in condition_lines(table))
    metrics = ", ".join(metric_title(table, metric) for metric in table.table.metrics)
    rows = "".join(_row(label, entries, table) for label, entries in table.rows)
    return (
        f'<section id="table-{label_of(table.table.name)}">\n<h2>{escape(table.table.title)}</h2>\n'
        f'<p class="quiet">{escape(metrics)}</p>\n'
        f'<div class="wide"><table>\n<thead>\n{_heads(table)}</thead>\n<tbody>\n{rows}</tbody>\n</table></div>\n'
        f'<div class="notes">{notes}</div>\n'
        f"<details open><summary>Run conditions</summary><dl>{conditions}</dl></details>\n</section>\n"
    )


def _heads(table: TableModel) -> str:
    """The head of a table: the other axes' values, the metrics, and ours beside the paper's."""
    widths = [3 if column.compared else 1 for column in table.columns]
    lines = []
    if any(column.groups for column in table.columns):
        spans = []
        for groups, members in itertools.groupby(range(len(widths)), key=lambda i: table.columns[i].groups):
            spans.append((", ".join(groups), sum(widths[i] for i in members)))
        lines.append("".join(_head(text, width) for text, width in spans))
    if not lines or len(table.table.metrics) > 1:
        titles = [metric_title(table, column.metric) for column in table.columns]
        lines.append("".join(_head(text, width) for text, width in zip(titles, widths, strict=True)))
    if any(column.compared for column in table.columns):
        parts = [("ours", "paper", "difference") if column.compared else ("ours",) for column in table.columns]
        lines.append(
            "".join(
                f'<th scope="col" class="sub{" start" if i == 0 else ""}">{part}</th>'
                for each in parts
                for i, part in enumerate(each)
            )
        )
    corner = f'<th class="corner" scope="col" rowspan="{len(lines)}">{escape(table.table.rows)}</th>'
    return "".join(f"<tr>{corner if i == 0 else ''}{line}</tr>\n" for i, line in enumerate(lines))


def _head(text: str, width: int) -> str:
    """A head over some columns."""
    return f'<th scope="colgroup" class="start" colspan="{width}">{escape(text)}</th>'


def _row(label: str, entries: Sequence[Entry], table: TableModel) -> str:
    """A line of a table."""
    cells = "".join(_cells(entry, table) for entry in entries)
    return f'<tr><th scope="row">{escape(label)}</th>{cells}</tr>\n'


def _cells(entry: Entry, table: TableModel) -> str:
    """Ours, and where the column has it the paper's and the difference."""
    texts = shown(entry, table.table.percent)
    few = (
        f'<small class="{"seeds" if entry.state == "partial" else "interval"}">{escape(texts.seeds)}</small>'
        if texts.seeds
        else ""
    )
    state = f" {entry.state}" if entry.state in ("missing", "partial") else ""
    state += " nan" if texts.ours == NOT_A_NUMBER else ""
    ours = f'<td class="start{state}{_place(entry.rank)}">{_numbered(texts.ours, entry.rank)}{few}</td>'
    if not table.columns[entry.column].compared:
        return ours
    interval = f'<small class="interval">{escape(texts.interval)}</small>' if texts.interval else ""
    paper = f'<td class="paper{_place(entry.published_rank)}">{_numbered(texts.paper, entry.published_rank)}</td>'
    return f'{ours}{paper}<td class="difference">{escape(texts.difference)}{interval}</td>'


def _place(rank: int | None) -> str:
    """The class of one of the best three."""
    return f" {PLACES[rank]}" if rank else ""


def _numbered(text: str, rank: int | None) -> str:
    """A number with its place, for those who do not see the colour."""
    return escape(text) + (f"<sup>{rank}</sup>" if rank else "")


def _figures_section(pictures: Sequence[Drawn]) -> str:
    """The figures."""
    if not pictures:
        return ""
    shown_pictures = "".join(
        f'<figure id="figure-{label_of(picture.name)}"><img alt="{escape(picture.caption)}" src="data:{picture.kind};'
        f'base64,{base64.b64encode(picture.content).decode()}"><figcaption>{escape(picture.caption)}</figcaption>'
        "</figure>\n"
        for picture in pictures
    )
    return f'<section id="figures">\n<h2>Figures</h2>\n{shown_pictures}</section>\n'
