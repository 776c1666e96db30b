"""The tables in LaTeX go through LaTeX."""

import shutil
import subprocess

import pytest

from experiments import report
from experiments.reporting.collect import collect
from experiments.reporting.latex import escape, latex_tables
from experiments.reporting.model import build_table
from experiments.study import Axis, Study, Table, cell_name, load_study

from .study_runs import write_run

DOCUMENT = r"""\documentclass{article}
\usepackage{booktabs,graphicx}
\begin{document}
\listoftables
\input{report}
\end{document}
"""
NASTY = r"[a|b_c &%$#{}~^\ <script> \"--` ± † ° ² ⁴ ≤ ≥ ∞ λ Ω]*"


@pytest.fixture
def compiled(tmp_path):
    """A function from tables in LaTeX to the log of compiling them in a document, which must succeed."""
    if shutil.which("pdflatex") is None or shutil.which("kpsewhich") is None:
        pytest.skip("needs pdflatex on PATH")
    for package in ("booktabs", "graphicx"):
        if subprocess.run(["kpsewhich", f"{package}.sty"], capture_output=True).returncode:
            pytest.skip(f"needs the LaTeX package {package}")

    def compile_tables(text):
        (tmp_path / "report.tex").write_text(text, encoding="utf-8")
        (tmp_path / "document.tex").write_text(DOCUMENT)
        command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "document.tex"]
        for _ in range(2):  # the second one reads the list of tables
            done = subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=120)
            log = (tmp_path / "document.log").read_text(errors="replace")
            assert done.returncode == 0, log
        return log

    return compile_tables


def made_up(root, name):
    """Results of a study for all cells but the last; the second has a single seed, the third lacks a number."""
    study = load_study(name, root)
    for i, cell in enumerate(list(study.cells())[:-1]):
        keys = {table.key(cell, metric) if table.key else metric for table in study.tables for metric in table.metrics}
        results = {seed: dict.fromkeys(keys, 0.5 + 0.1 * seed - 0.01 * i) for seed in ((0,) if i == 1 else (0, 1, 2))}
        if i == 2:
            results[1] = dict.fromkeys(keys)
        write_run(root / name, cell_name(cell), results)


@pytest.mark.parametrize("name", ["quick", "thesis_4_2"])  # without published columns and with
def test_a_reports_tables_compile(compiled, tmp_path, name):
    made_up(tmp_path, name)
    assert report.run([name, f"--workdir={tmp_path}"]) == 0
    log = compiled((tmp_path / name / "report" / "report.tex").read_text(encoding="utf-8"))
    assert "Missing character" not in log


def nasty_table(root):
    """A table in whose title, rows, columns and conditions is what LaTeX would take for commands."""
    table = Table("t_1%", NASTY, "method", labels={"m": NASTY, "n": f"*{NASTY}", "1": NASTY})
    study = Study("s", "none", (Axis("x", ("1",)), Axis("method", ("m", "n"))), (table,))
    for method in ("m", "n"):
        result = dict.fromkeys(table.metrics, 0.5)
        data = {"name": "arrays", "path": f"{NASTY}.npz"}
        write_run(root / "s", f"x=1,method={method}", {0: result}, devices=(NASTY,), data=data)
    return build_table(collect(study, root), table)


def test_what_latex_would_take_for_commands_is_printed(compiled, tmp_path):
    log = compiled(latex_tables([nasty_table(tmp_path)]))
    assert "Missing character" not in log


def test_hyphens_are_no_dashes():
    assert escape("--- a-b") == "-{}-{}- a-b"


def test_greek_letters_and_signs_are_commands():
    assert escape("\N{MINUS SIGN} λ Ω ≤ 1_0 %") == r"$-$ $\lambda$ $\Omega$ $\leq$ 1\_0 \%"


def test_differences_have_minus_signs_and_names_hyphens(tmp_path):
    made_up(tmp_path, "thesis_4_2")
    study = load_study("thesis_4_2", tmp_path)
    text = latex_tables([build_table(collect(study, tmp_path), table) for table in study.tables])
    body = text.split(r"\midrule")[1].split(r"\bottomrule")[0]
    assert "$-$" in body
    assert "-1" not in body.replace("$-$", "")
    assert "Re-Weighting" in body


def test_the_packages_that_are_needed_are_told(tmp_path):
    assert r"\usepackage{booktabs,graphicx}" in latex_tables([nasty_table(tmp_path)]).splitlines()[0]
