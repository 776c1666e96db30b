r"""Tables in LaTeX with the rules of booktabs, a `table` environment each, for \input in a document."""

from collections.abc import Sequence

from experiments.reporting.model import Entry, TableModel
from experiments.reporting.text import MARKS, condition_lines, entry_cells, footnotes, metric_title

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "†": r"$\dagger$",
    "°": r"$^\circ$",
    "²": r"\textsuperscript{2}",
    "⁴": r"\textsuperscript{4}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}
PLACES = {1: r"\textbf{@}", 2: r"\underline{@}", 3: r"\textit{@}"}
HEAD = r"""% Needs \usepackage{booktabs,graphicx}. Bold: the first of a column; underlined: second; italic: third.
"""


def escape(text: str) -> str:
    """Text that LaTeX prints as it is."""
    return "".join(_SPECIAL.get(character, character) for character in " ".join(text.split()))


def latex_tables(tables: Sequence[TableModel]) -> str:
    """All tables of a report."""
    return HEAD + "".join(f"\n{latex_table(table)}" for table in tables)


def latex_table(table: TableModel) -> str:
    """A table whose caption tells the conditions of its runs."""
    widths = [3 if column.compared else 1 for column in table.columns]
    heads, rules, place = [""], [], 2
    for column, width in zip(table.columns, widths, strict=True):
        title = escape(", ".join((*column.groups, metric_title(table, column.metric))))
        heads.append(rf"\multicolumn{{{width}}}{{c}}{{{title}}}")
        rules.append(rf"\cmidrule(lr){{{place}-{place + width - 1}}}")
        place += width
    second = [escape(table.table.rows)]
    for column in table.columns:
        second += ["ours", "paper", "difference"] if column.compared else ["ours"]
    heads[0] = "" if max(widths) > 1 else second[0]
    lines = [" & ".join(heads) + r" \\"]
    if max(widths) > 1:
        lines += [" ".join(rules), " & ".join(second) + r" \\"]
    lines.append(r"\midrule")
    for label, entries in table.rows:
        cells = [text for entry in entries for text in _cells(entry, table)]
        lines.append(" & ".join([escape(label), *cells]) + r" \\")
    conditions = " ".join(f"{escape(name)}: {escape(value)}." for name, value in condition_lines(table))
    notes = " ".join(map(escape, (MARKS, *footnotes(table))))
    return "\n".join(
        (
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{escape(table.table.title)}. {notes} Run conditions: {conditions}}}",
            rf"\label{{tab:{label_of(table.table.name)}}}",
            r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
            rf"\begin{{tabular}}{{l{'r' * sum(widths)}}}",
            r"\toprule",
            *lines,
            r"\bottomrule",
            r"\end{tabular}}",
            r"\end{table}",
            "",
        )
    )


def label_of(name: str) -> str:
    r"""A name as \label takes it."""
    return "".join(character if character.isascii() and character.isalnum() else "-" for character in name)


def _cells(entry: Entry, table: TableModel) -> list[str]:
    """The cells of an entry; the difference, which may begin with a bracket, in braces."""
    ours, *compared = entry_cells(entry, table, escape, PLACES)
    return [ours, *compared[:1], *(f"{{{apart}}}" for apart in compared[1:])]
