"""Tables: what is printed, what is bold, and that the two forms agree."""

import io
import re

import pytest
from rich.console import Console

from imbal_jax.errors import InputError
from imbal_jax.reports.tables import format_rows, markdown_table, readable, results_table

ROWS = {
    "CE": {
        "test/accuracy": 0.71234,
        "test/macro_f1": 0.5,
        "standard_error": {"test/accuracy": 0.00456, "test/macro_f1": None},
    },
    "SAM[rho=0.5] | iEF": {"test/accuracy": 0.7, "test/macro_f1": 0.5, "standard_error": {}},
    "failed": {"test/accuracy": None},
}
COLUMNS = ("test/accuracy", "test/macro_f1")


def test_markdown():
    assert markdown_table(ROWS, COLUMNS) == (
        "| method | test accuracy (%) | test macro F1 (%) |\n"
        "| --- | ---: | ---: |\n"
        "| CE | **71.23 ± 0.46** | **50.00** |\n"
        "| SAM[rho=0.5] \\| iEF | 70.00 | **50.00** |\n"
        "| failed | - | - |\n"
    )


def test_a_single_row_has_no_best():
    ((_, cells),) = format_rows({"CE": ROWS["CE"]}, COLUMNS)
    assert [cell.best for cell in cells] == [False, False]


def test_terminal_table_prints_the_same_cells_in_bold():
    file = io.StringIO()
    console = Console(file=file, width=120, force_terminal=True, color_system="standard")
    console.print(results_table(ROWS, COLUMNS, title="digits"))
    printed = file.getvalue()
    for name, cells in format_rows(ROWS, COLUMNS):
        assert name in printed
        (line,) = [line for line in printed.splitlines() if name in line]
        for cell in cells:
            assert bool(re.search(rf"\x1b\[1m *{re.escape(cell.text)}", line)) == cell.best
            assert cell.text in line
    assert "digits" in printed


def test_values_that_are_no_fractions_are_refused():
    message = r"^columns: expected a fraction in \[0, 1\] at 'test/loss' of 'CE', got 1.5$"
    with pytest.raises(InputError, match=message):
        markdown_table({"CE": {"test/loss": 1.5}}, ("test/loss",))


def test_readable():
    assert readable("test/macro_f1") == "test macro F1"
