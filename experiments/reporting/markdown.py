"""Tables in Markdown."""

import re
from collections.abc import Sequence

from experiments.reporting.model import TableModel
from experiments.reporting.text import MARKS, condition_lines, entry_cells, footnotes, metric_title, progress

_PUNCTUATION = re.compile(r"([\\`*_{}\[\]#|~^$])")
PLACES = {1: "**@**", 2: "<u>@</u>", 3: "*@*"}


def escape(text: str) -> str:
    """Text that Markdown shows as it is, in tables too."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _PUNCTUATION.sub(r"\\\1", " ".join(text.split()))


def markdown_page(name: str, tables: Sequence[TableModel], pictures: Sequence[tuple[str, str]]) -> str:
    """The whole report.

    Args:
      name: of the study.
      tables: to write.
      pictures: caption and path, relative to the page, of each figure.
    """
    parts = [f"# {escape(name)}\n", f"{escape(progress(list(tables)))}\n", f"{escape(MARKS)} In bold: the first;"]
    parts[-1] += " underlined: the second; in italics: the third.\n"
    parts += [markdown_table(table) for table in tables]
    if pictures:
        parts.append("## Figures\n")
        parts += [f"![{escape(caption)}]({path})\n\n{escape(caption)}\n" for caption, path in pictures]
    return "\n".join(parts)


def markdown_table(table: TableModel) -> str:
    """A table with its title, its notes and the conditions of its runs."""
    heads, rule = [escape(table.table.rows)], ["---"]
    for column in table.columns:
        title = escape(", ".join((*column.groups, metric_title(table, column.metric))))
        heads += [title, *(("paper", "difference") if column.compared else ())]
        rule += ["---:"] * (3 if column.compared else 1)
    lines = [heads, rule]
    for label, entries in table.rows:
        lines.append([escape(label)])
        for entry in entries:
            lines[-1] += entry_cells(entry, table, escape, PLACES)
    text = f"## {escape(table.table.title)}\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)
    text += "".join(f"\n{escape(note)}\n" for note in footnotes(table))
    conditions = "".join(f"- {escape(name)}: {escape(value)}\n" for name, value in condition_lines(table))
    return f"{text}\nRun conditions:\n\n{conditions}"
