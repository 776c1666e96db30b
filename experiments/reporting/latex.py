r"""Tables in LaTeX with the rules of booktabs, a `table` environment each, for \input in a document."""

import re
import unicodedata
from collections.abc import Sequence

from experiments.reporting.model import Entry, TableModel
from experiments.reporting.text import MARKS, condition_lines, entry_cells, footnotes, metric_title


def _greek(name: str) -> str:
    """The letter of a command."""
    kind = "CAPITAL" if name[0].isupper() else "SMALL"
    return unicodedata.lookup(f"GREEK {kind} LETTER {name.upper().replace('LAMBDA', 'LAMDA')}")


# Letters without a command of their own, such as omicron, look like Latin ones.
_GREEK = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma tau upsilon phi chi psi"
    " omega Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega"
)
# What pdflatex does not print as it is: commands, and characters that its fonts lack.
_SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "`": r"\textasciigrave{}",
    "±": r"$\pm$",
    "†": r"$\dagger$",
    "°": r"$^\circ$",
    "²": r"\textsuperscript{2}",
    "⁴": r"\textsuperscript{4}",
    "\N{MINUS SIGN}": "$-$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "∞": r"$\infty$",
    **{_greek(name): rf"$\{name}$" for name in _GREEK.split()},
    **{character: f"\\{character}" for character in "&%$#_{}"},
}
PLACES = {1: r"\textbf{@}", 2: r"\underline{@}", 3: r"\textit{@}"}
HEAD = r"""% Needs \usepackage{booktabs,graphicx}. pdflatex prints Latin and Greek letters; other scripts need lualatex.
% Bold: the first of a column; underlined: second; italic: third.
"""
_NUMBERS_SIGN = re.compile(r"(?<![\w.-])-(?=\d)")


def escape(text: str) -> str:
    """Text that LaTeX prints as it is."""
    text = "".join(_SPECIAL.get(character, character) for character in " ".join(text.split()))
    return re.sub("-(?=-)", "-{}", text)  # two hyphens would be drawn as a dash


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
        # Braces, because \\ before it would read a [ or * that a label begins with.
        lines.append(" & ".join([f"{{{escape(label)}}}", *cells]) + r" \\")
    conditions = " ".join(f"{escape(name)}: {escape(value)}." for name, value in condition_lines(table))
    notes = " ".join(escape(note if note.endswith(".") else f"{note}.") for note in (MARKS, *footnotes(table)))
    title = escape(table.table.title)
    return "\n".join(
        (
            r"\begin{table}",
            r"\centering",
            # The title alone for the list of tables.
            rf"\caption[{{{title}}}]{{{title}. {notes} Run conditions: {conditions}}}",
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
    """The cells of an entry, with minus signs where names have hyphens."""
    return [_NUMBERS_SIGN.sub("$-$", text) for text in entry_cells(entry, table, escape, PLACES)]
