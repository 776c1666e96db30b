"""Files of reports: escaping, self-containment, and a look at the page in a browser."""

import html.parser
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from experiments import report
from experiments.reporting.collect import collect
from experiments.reporting.latex import latex_tables
from experiments.reporting.markdown import markdown_page
from experiments.reporting.model import build_table
from experiments.reporting.page import html_page
from experiments.study import Axis, Study, Table, load_study

from .study_runs import write_run

NASTY = "a|b_&%<script>"
COUNTS = [50, 5]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """Most of the study `quick`, with a missing cell, a partial one and one without a number."""
    root, rng = tmp_path_factory.mktemp("work"), np.random.default_rng(0)
    study = load_study("quick")
    for i, cell in enumerate(list(study.cells())[:-1]):
        scores = rng.uniform(0.4, 0.9, 3).tolist()
        results = {
            seed: {
                **dict.fromkeys(("test/accuracy", "test/balanced_accuracy", "test/macro_f1"), scores[seed]),
                "test/confusion": [[9, 1], [2, 8]],
                "class_counts": COUNTS,
                "seconds_per_epoch": 1.0 + scores[seed],
            }
            for seed in ((0,) if i == 1 else (0, 1, 2))
        }
        if i == 2:
            results[1]["test/macro_f1"] = None
        records = [{"epoch": epoch, "class_gradient_norms": [1 / epoch, 0.1]} for epoch in (1, 2)]
        write_run(
            root / "quick", ",".join(f"{k}={v}" for k, v in cell.items()), results, records=records if i == 0 else None
        )
    (root / "quick" / "pictures").mkdir()
    Image.new("RGB", (20, 10), "red").save(root / "quick" / "pictures" / "toy_boundary.png")
    return root


@pytest.fixture(scope="module")
def written(workdir):
    """The report's folder."""
    assert report.run(["quick", f"--workdir={workdir}"]) == 0
    return workdir / "quick" / "report"


@pytest.fixture(scope="module")
def nasty(tmp_path_factory):
    """A table in whose title, rows and columns is what every format has to escape."""
    root = tmp_path_factory.mktemp("nasty")
    table = Table("t", NASTY, "method", labels={"m": NASTY, "1": NASTY})
    study = Study(NASTY, "none", (Axis("x", ("1",)), Axis("method", ("m",))), (table,))._replace(name="s")
    result = dict.fromkeys(table.metrics, 0.5)
    write_run(
        root / "s", "x=1,method=m", {0: result}, devices=(NASTY,), data={"name": "arrays", "path": f"{NASTY}.npz"}
    )
    return build_table(collect(study, root), table)


class Page(html.parser.HTMLParser):
    """Tags with their attributes, and the text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def test_html_escapes_names(nasty):
    page = Page(html_page(NASTY, [nasty], [], (0,)))
    assert "script" not in {tag for tag, _ in page.tags}
    assert page.text.count(NASTY) >= 7  # title, heading, link, table's heading, row, column, conditions


def test_markdown_escapes_names(nasty):
    text = markdown_page("s", [nasty], [])
    assert "<script" not in text
    assert r"a\|b\_&amp;%&lt;script&gt;" in text
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {5}  # a bar in a name is none of the table


def test_latex_escapes_names(nasty):
    text = latex_tables([nasty])
    title = r"a\textbar{}b\_\&\%\textless{}script\textgreater{}"
    assert rf"\caption[{{{title}}}]{{{title}." in text
    for line in text.split("\\midrule")[1].split("\\bottomrule")[0].strip().splitlines():
        assert len(re.findall(r"(?<!\\)&", line)) == 3
        assert line.endswith(r"\\")
    assert not re.search(r"(?<!\\)[#_]", text.split("\\begin{table}")[1].replace(r"\label{tab:t}", ""))


def test_the_files_tell_what_is_there_and_what_is_not(written):
    assert {path.name for path in written.iterdir()} == {
        *("report.html", "report.md", "report.tex", "report.csv", "seeds.csv", "figures")
    }
    page, markdown, latex = (written / f"report.{kind}" for kind in ("html", "md", "tex"))
    tags = Page(page.read_text())
    for text in (tags.text, markdown.read_text(), latex.read_text()):
        assert "missing" in text
        assert "1 of 3 seeds" in text
        assert "NaN" in text
        assert "2025-03-04" in text
    assert [attributes["class"] for tag, attributes in tags.tags if tag == "td"].count("start missing") == 3
    assert r"\toprule" in latex.read_text()


def test_figures_are_drawn_of_what_was_recorded(written):
    names = {path.stem for path in (written / "figures").glob("*.svg")}
    assert names == {
        *("imbalance", "class_distributions", "training_times", "gradient_norms_alpha_0.2"),
        *(f"confusion_alpha_{alpha}" for alpha in ("0.2", "1", "10")),
    }
    images = [attributes for tag, attributes in Page((written / "report.html").read_text()).tags if tag == "img"]
    assert len(images) == 8
    assert images[-1]["alt"] == "toy boundary"
    for path in re.findall(r"!\[.*\]\((.*)\)", (written / "report.md").read_text()):
        assert (written / path).is_file()


def test_the_page_needs_nothing_beside_itself(written):
    text = (written / "report.html").read_text()
    page = Page(text)
    assert not {"script", "link", "iframe", "object", "embed", "base"} & {tag for tag, _ in page.tags}
    ids = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    for _, attributes in page.tags:
        for name in ("src", "href", "srcset", "data", "action", "background", "poster"):
            value = attributes.get(name, "#")
            assert value.startswith("data:image/") or value == "#" or value[1:] in ids, value
    style = re.search(r"<style>(.*?)</style>", text, re.DOTALL).group(1)
    assert not re.search(r"url\(|@import", style)
    assert "prefers-color-scheme: dark" in style
    assert "@media print" in style


def test_reports_are_the_same_when_written_again(workdir, written):
    before = {path: path.read_bytes() for path in written.rglob("*") if path.is_file() and path.suffix != ".pdf"}
    assert report.run(["quick", f"--workdir={workdir}"]) == 0
    assert {path for path, content in before.items() if path.read_bytes() != content} == set()


def test_reports_import_no_jax():
    code = "import sys, experiments.report as r; r.load_study('thesis_4_2'); print('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["quik"], "STUDY: no 'quik'; did you mean 'quick'?"),
        (["quick", "--seeds=0,0"], "--seeds: expected different whole numbers separated by commas, got '0,0'"),
        (["quick", "--only=alpha"], "--only: expected AXIS=VALUE,VALUE with an axis once, got 'alpha'"),
        (["quick", "--only=alpha=0.3"], "--only=alpha: no '0.3'"),
        (["thesis_b_10", "--only=eta=10.0", "--only=method=gdn_raw"], "none with eta=10.0 method=gdn_raw"),
        (["quick", "--workdir=nowhere"], "--workdir: expected the folder of the study 'quick' in nowhere"),
    ],
)
def test_faulty_arguments_are_told_in_a_line(arguments, message, capsys):
    assert report.guarded(report.run, arguments) == 2
    told = capsys.readouterr().err
    assert message in told
    assert told.count("\n") == 1


def test_the_page_shows_in_a_browser(written, tmp_path):
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        pytest.skip("needs chromium on PATH")
    shot = tmp_path / "page.png"
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"]
    options += ["--no-first-run", f"--user-data-dir={tmp_path / 'profile'}", "--hide-scrollbars"]
    options += ["--window-size=1300,2400", f"--screenshot={shot}"]
    page = (written / "report.html").as_uri()
    subprocess.run([browser, *options, page], capture_output=True, timeout=120, check=True)
    pixels = np.asarray(Image.open(shot).convert("RGB"), np.int16)
    assert pixels.shape == (2400, 1300, 3)
    assert len(np.unique(pixels[::4, ::4].reshape(-1, 3), axis=0)) > 50
    for top in range(0, 1600, 400):  # text or figures all the way down
        assert pixels[top : top + 400].std() > 5
