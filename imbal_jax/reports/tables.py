"""Methods against metrics, on a terminal and in Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rich.table import Table
from rich.text import Text

from imbal_jax.errors import InputError

COLUMNS = ("test/accuracy", "test/balanced_accuracy", "test/macro_f1")
BINARY_COLUMNS = ("test/auc", "test/average_precision")  # beside them, where there are two classes
NO_VALUE = "-"


class Cell(NamedTuple):
    """One entry of a table."""

    text: str
    best: bool


def readable(key: str) -> str:
    """A record's key as words: "test/macro_f1" is "test macro F1"."""
    words = key.replace("/", " ").replace("_", " ")
    return words.replace("f1", "F1").replace("auc", "AUC")


def format_rows(
    rows: Mapping[str, Mapping[str, Any]], columns: Sequence[str] = COLUMNS
) -> list[tuple[str, list[Cell]]]:
    """Formats summaries as percentages, "71.23 ± 0.45": mean and standard error over seeds.

    Args:
      rows: summaries of `summarise` by the name of the method.
      columns: keys of fractions of which more is better.

    Returns:
      The name and the cells of each row, in the order given. The best means of a column are marked, ties included,
      where there are at least two to compare. A value that a summary lacks is a dash.

    Raises:
      InputError: a value is no fraction in [0, 1].
    """
    best = {}
    for column in columns:
        means = [_mean(summary, name, column) for name, summary in rows.items()]
        known = [mean for mean in means if mean is not None]
        best[column] = max(known) if len(known) > 1 else None
    return [
        (name, [_cell(summary, _mean(summary, name, column), column, best[column]) for column in columns])
        for name, summary in rows.items()
    ]


def results_table(
    rows: Mapping[str, Mapping[str, Any]], columns: Sequence[str] = COLUMNS, *, title: str | None = None
) -> Table:
    """A table for the terminal, the best of each column in bold.

    Args:
      rows: summaries of `summarise` by the name of the method.
      columns: keys of fractions of which more is better.
      title: printed above.

    Raises:
      InputError: a value is no fraction in [0, 1].
    """
    table = Table(title=title, caption="percent, mean ± standard error over seeds")
    table.add_column("method", overflow="fold")
    for column in columns:
        table.add_column(readable(column), justify="right")
    for name, cells in format_rows(rows, columns):
        # Text, because a method's name in plain str would have its square brackets read as markup.
        table.add_row(Text(name), *(Text(cell.text, style="bold" if cell.best else "") for cell in cells))
    return table


def markdown_table(rows: Mapping[str, Mapping[str, Any]], columns: Sequence[str] = COLUMNS) -> str:
    """The same table in Markdown, ending in a newline.

    Args:
      rows: summaries of `summarise` by the name of the method.
      columns: keys of fractions of which more is better.

    Raises:
      InputError: a value is no fraction in [0, 1].
    """
    lines = [["method", *(f"{readable(column)} (%)" for column in columns)], ["---", *["---:"] * len(columns)]]
    for name, cells in format_rows(rows, columns):
        lines.append([name.replace("|", "\\|"), *(f"**{cell.text}**" if cell.best else cell.text for cell in cells)])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def conditions_table(names: Sequence[str], best: Mapping[str, Mapping[str, Any]]) -> str:
    """The best condition of a conditional model by metric, in Markdown, ending in a newline.

    Args:
      names: of the hyper-parameters.
      best: by metric, its "condition" (a number for each name) and the metric on "validation" and on "test".
    """
    lines = [["metric", *names, "validation", "test"], ["---", *["---:"] * (len(names) + 2)]]
    for metric, found in best.items():
        condition = [f"{value:g}" for value in found["condition"]]
        lines.append([readable(metric), *condition, f"{found['validation']:.4f}", f"{found['test']:.4f}"])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _mean(summary: Mapping[str, Any], name: str, column: str) -> float | None:
    """The mean of a column, checked."""
    mean = summary.get(column)
    if mean is not None and not (isinstance(mean, int | float) and 0 <= mean <= 1):
        raise InputError(f"columns: expected a fraction in [0, 1] at {column!r} of {name!r}, got {mean!r}")
    return mean


def _cell(summary: Mapping[str, Any], mean: float | None, column: str, best: float | None) -> Cell:
    """One mean and its standard error in percent."""
    if mean is None:
        return Cell(NO_VALUE, best=False)
    error = summary.get("standard_error", {}).get(column)
    text = f"{100 * mean:.2f}" if error is None else f"{100 * mean:.2f} ± {100 * error:.2f}"
    return Cell(text, best=mean == best)


def prediction_lines(paths: Sequence[Any], probabilities: Any, class_names: Sequence[str]) -> list[str]:
    """A line for every file: its likeliest class, and the probabilities of the ten likeliest, in that order.

    Args:
      paths: n of them.
      probabilities: [n, C].
      class_names: C of them.
    """
    lines = []
    for path, row in zip(paths, probabilities, strict=True):
        ranked = sorted(zip(class_names, map(float, row), strict=True), key=lambda pair: -pair[1])[:10]
        lines.append(f"{path}: {ranked[0][0]} ({', '.join(f'{name} {value:.3f}' for name, value in ranked)})")
    return lines
