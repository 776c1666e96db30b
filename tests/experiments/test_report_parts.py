"""Reports of a study of which only a part is trained, or only a part is asked for."""

import re

import numpy as np
import pytest
from scipy import stats

from experiments import report
from experiments.published_tables import lookup
from experiments.selection import select
from experiments.study import cell_name, load_study
from experiments.thesis import LABELS

from .study_runs import write_run

NEW = ("iEF Raw", "EF Raw")  # rows that the thesis does not have


@pytest.fixture(scope="module")
def scores(tmp_path_factory):
    """Table 4.2 at alpha = 0.1 alone: the folder of all studies, and three seeds' accuracies in % by row."""
    root, rng, found = tmp_path_factory.mktemp("runs"), np.random.default_rng(0), {}
    for cell in select(load_study("thesis_4_2"), {"alpha": ("0.1",)}).cells():
        accuracies = rng.uniform(0.5, 0.8, 3)
        results = {seed: {"test/accuracy": float(accuracy)} for seed, accuracy in enumerate(accuracies)}
        write_run(root / "thesis_4_2", cell_name(cell), results)
        found[LABELS[cell["method"]]] = 100 * accuracies
    return root, found


def written(root, *arguments):
    """The report in Markdown: the heads and the rows of its table, and all of it."""
    assert report.run(["thesis_4_2", f"--workdir={root}", *arguments]) == 0
    text = (root / "thesis_4_2" / "report" / "report.md").read_text()
    heads, _, *rows = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line[:1] == "|"
    ]
    return heads, {row[0]: row[1:] for row in rows}, text


def test_what_is_trained_stands_beside_the_paper_and_the_rest_is_missing(scores):
    root, found = scores
    heads, rows, text = written(root)
    assert "44 entries: 11 complete, 0 with fewer seeds, 33 missing" in text
    assert (len(heads), list(rows)) == (1 + 4 * 3, list(found))
    for name, (ours, paper, difference, *others) in rows.items():
        mean, error = found[name].mean(), stats.sem(found[name])
        assert ours.strip("*").removeprefix("<u>").removesuffix("</u>") == f"{mean:.2f} ± {error:.2f}"
        assert [others[i] for i in (0, 3, 6)] == ["missing"] * 3
        assert [others[i] for i in (2, 5, 8)] == [""] * 3
        if name in NEW:
            assert [paper, difference, others[1]] == ["", "", ""]
            continue
        printed = lookup("thesis_4_2", name, "CIFAR-10 / alpha=0.1 / accuracy")
        b = printed.error
        freedom = (error**2 + b**2) ** 2 / (error**4 / 2 + b**4 / 2)
        apart, half = mean - printed.value, stats.t.ppf(0.975, freedom) * np.hypot(error, b)
        numbers = [float(number) for number in re.findall(r"[+-]\d+\.\d+", difference)]
        np.testing.assert_allclose(numbers, [apart, apart - half, apart + half], atol=0.0051)


def test_the_best_three_of_what_is_there_are_marked(scores):
    root, found = scores
    _, rows, _ = written(root)
    best = sorted(found, key=lambda name: -found[name].mean())
    for name, start in zip(best[:3], ("**", "<u>", "*"), strict=True):
        assert rows[name][0].startswith(start)
    assert [name for name in best[3:] if not rows[name][0][0].isdigit()] == []
    assert rows["Influence Balanced"][4].startswith("**")  # the paper's, in a column without any of ours


def test_a_part_that_is_asked_for_is_all_there_is(scores, capsys):
    root, _ = scores
    heads, rows, text = written(root, "--only=alpha=0.1", "--only=method=baseline,ekfac_raw,ief_raw")
    assert "thesis_4_2, only alpha = 0.1; method = baseline, ekfac_raw, ief_raw: 3 entries" in capsys.readouterr().out
    assert heads == ["method", "alpha = 0.1, test accuracy (%)", "paper", "difference"]
    assert list(rows) == ["Baseline", "EKFAC Raw", "iEF Raw"]
    assert "missing" not in text.split("## Thesis")[1]
    page = (root / "thesis_4_2" / "report" / "report.html").read_text()
    assert "<title>thesis_4_2, only alpha = 0.1; method = baseline, ekfac_raw, ief_raw</title>" in page


def test_tables_without_cells_of_the_part_are_left_out():
    part = select(load_study("lct_3"), {"dataset": ("melanoma_10",)})
    assert [table.name for table in part.tables] == ["lct_3_medical"]
