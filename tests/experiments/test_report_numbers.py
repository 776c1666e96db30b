"""The numbers of reports: means, differences, places, what is missing, and the conditions of runs."""

import csv
import io
import math

import numpy as np
import pytest
from scipy import stats

from experiments.published_tables import lookup
from experiments.reporting.collect import collect
from experiments.reporting.curves import curve_points
from experiments.reporting.long_form import seed_lines, table_lines
from experiments.reporting.model import build_table
from experiments.reporting.statistics import Estimate, difference, ranks
from experiments.study import Axis, Curve, Published, Study, Table
from imbal_jax.errors import InputError

from .study_runs import write_run

ACCURACY = "test/accuracy"
SCORES = {
    ("0.1", "a"): {0: 0.61, 1: 0.64, 2: 0.66},
    ("0.1", "b"): {0: 0.7, 2: 0.5},
    ("1", "a"): {0: 0.8, 1: None, 2: 0.7},
    ("1", "c"): {0: 0.9, 1: 0.8, 2: 0.7, 5: 0.6},
}
ROWS = {"a": "Baseline", "b": "Focal Loss", "c": "LDAM"}


def make_study(**changes) -> Study:
    """Two alphas and three methods beside Table 4.2."""
    published = Published(
        "thesis_4_2",
        lambda cell, metric: ROWS[cell["method"]],
        lambda cell, _: f"CIFAR-10 / alpha={ALPHAS[cell['alpha']]} / accuracy",
    )
    table = Table("t", "Title", "method", (ACCURACY,), published)
    return Study("s", "none", (Axis("alpha", ("0.1", "1")), Axis("method", ("a", "b", "c"))), (table,), **changes)


ALPHAS = {"0.1": "0.1", "1": "1.0"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The results of SCORES; 1,b and 0.1,c are missing."""
    root = tmp_path_factory.mktemp("runs")
    for (alpha, method), scores in SCORES.items():
        results = {
            seed: {ACCURACY: score, "class_counts": [10, 2 + seed], "text": "x"} for seed, score in scores.items()
        }
        write_run(root / "s", f"alpha={alpha},method={method}", results, epochs=5 if method == "c" else 10)
    return root


@pytest.fixture(scope="module")
def table(folder):
    study = make_study()
    return build_table(collect(study, folder), study.tables[0])


def entry(table, row, column):
    return table.rows["abc".index(row)][1][column]


def test_means_and_standard_errors_are_numpys(table):
    found, scores = entry(table, "a", 0).estimate, 100 * np.array([0.61, 0.64, 0.66])
    assert found.mean == pytest.approx(scores.mean())
    assert found.error == pytest.approx(scores.std(ddof=1) / np.sqrt(3))
    assert entry(table, "c", 1).estimate.seeds == 4  # a seed more than the study asks for counts too


def test_the_difference_is_welchs(table):
    rng = np.random.default_rng(0)
    ours, paper = rng.normal(60, 2, 4), rng.normal(63, 1, 3)
    estimates = [Estimate(x.mean(), stats.sem(x), len(x)) for x in (ours, paper)]
    found, reference = difference(*estimates), stats.ttest_ind(ours, paper, equal_var=False)
    interval = reference.confidence_interval(0.95)
    np.testing.assert_allclose([found.low, found.high], [interval.low, interval.high])
    assert found.degrees_of_freedom == pytest.approx(reference.df)
    printed = lookup("thesis_4_2", "Baseline", "CIFAR-10 / alpha=0.1 / accuracy")
    shown = entry(table, "a", 0)
    assert shown.published == printed
    assert shown.difference == difference(shown.estimate, Estimate(printed.value, printed.error, 3))


def test_without_the_papers_error_the_interval_is_ours_alone():
    values = np.array([1.0, 2.0, 4.0])
    found = difference(Estimate(values.mean(), stats.sem(values), 3), Estimate(2.0, None, 3))
    low, high = stats.t.interval(0.95, 2, loc=values.mean() - 2, scale=stats.sem(values))
    assert found.ours_alone
    np.testing.assert_allclose([found.low, found.high], [low, high])


def test_deviations_of_a_paper_become_standard_errors(folder):
    study = make_study()
    plain = study.tables[0]
    changed = plain._replace(published=plain.published._replace(deviations=True, seeds=4))
    found = entry(build_table(collect(study, folder), changed), "a", 0)
    expected = difference(found.estimate, Estimate(found.published.value, found.published.error / 2, 4))
    assert found.difference == expected


@pytest.mark.parametrize(
    ("ours", "interval"),
    [(Estimate(1.0, None, 1), False), (Estimate(1.0, 0.0, 3), True), (Estimate(math.nan, None, 1), None)],
)
def test_edges_of_the_difference(ours, interval):
    found = difference(ours, Estimate(2.0, 0.0, 3))
    if interval is None:
        assert found is None
    else:
        assert (found.value, found.low, found.high) == ((-1, -1, -1) if interval else (-1, None, None))


def test_what_is_missing_is_told(table):
    states = [[each.state for each in entries] for _, entries in table.rows]
    # Seed 5, which one cell has and the study does not ask for, is missing in all the others.
    assert states == [["partial", "partial"], ["partial", "missing"], ["missing", "complete"]]
    assert [entry(table, row, 0).missing for row in "ab"] == [(5,), (1, 5)]
    assert entry(table, "b", 1).estimate is None
    nan = entry(table, "a", 1)  # seed 1 has no number, which must not vanish from the mean
    assert math.isnan(nan.estimate.mean)
    assert nan.difference is None
    assert [each.rank for each in (nan, entry(table, "c", 1))] == [None, None]


def test_only_the_seeds_asked_for_count(folder):
    study = make_study()
    found = build_table(collect(study, folder, (0, 2)), study.tables[0])
    assert entry(found, "b", 0).state == "complete"
    assert entry(found, "a", 1).estimate.mean == pytest.approx(75)


@pytest.mark.parametrize(
    ("values", "less", "expected"),
    [
        ([1, 4, 3, 2, 5], False, [None, 2, 3, None, 1]),
        ([1, 4, 3, 2, 5], True, [1, None, 3, 2, None]),
        ([4, 4, 3, 2], False, [1, 1, 3, None]),
        ([4, None, math.nan], False, [None, None, None]),
        ([4, None, math.nan, 5], False, [2, None, None, 1]),
    ],
)
def test_the_best_three(values, less, expected):
    assert ranks(values, less_is_better=less) == expected


def test_conditions_tell_where_runs_differ(folder, table):
    told = {condition.name: condition.values for condition in table.conditions}
    assert told["epochs"] == ("10 (alpha=0.1,method=a, alpha=0.1,method=b, alpha=1,method=a)", "5 (alpha=1,method=c)")
    assert told["data"] == ("digits",)
    assert told["hardware"] == ("1 x cpu (cpu; Linux)",)
    assert told["versions"] == ("python 3.11.7, jax 0.10",)
    assert (told["commit"], told["date"]) == (("abc123",), ("2025-03-04",))
    assert told["training time"] == ("6.0 min in all, 4 runs",)
    study = make_study()
    named = build_table(collect(study, folder), study.tables[0], "CIFAR-10, JPEG copy").conditions
    assert dict(named)["data"] == ("CIFAR-10, JPEG copy",)


def test_csv_has_all_digits_and_the_number_of_seeds(folder, table):
    lines = list(csv.DictReader(io.StringIO(table_lines("s", [table]))))
    assert len(lines) == 6
    by_cell = {line["cell"]: line for line in lines}
    assert float(by_cell["alpha=0.1,method=a"]["mean"]) == entry(table, "a", 0).estimate.mean
    assert float(by_cell["alpha=0.1,method=a"]["confidence_low"]) == entry(table, "a", 0).difference.low
    partial, missing = by_cell["alpha=0.1,method=b"], by_cell["alpha=1,method=b"]
    assert (partial["state"], partial["seeds"], partial["seeds_missing"]) == ("partial", "2", "1 5")
    assert (missing["state"], missing["seeds"], missing["mean"]) == ("missing", "0", "")
    assert missing["published"] == "66.45"
    seeds = list(csv.DictReader(io.StringIO(seed_lines(collect(make_study(), folder)))))
    assert [line["value"] for line in seeds if line["cell"] == "alpha=1,method=a"] == ["0.8", "nan", "0.7"]


def test_curves_are_over_the_axis_or_the_imbalance(folder):
    cells = collect(make_study(), folder).cells
    over = curve_points(Curve("c", "C", "alpha", "method", (ACCURACY,)), cells)[ACCURACY]
    np.testing.assert_allclose(over["b"], [[0.1, 0.6, 0.1]])
    against = curve_points(Curve("c", "C", "imbalance", "method", (ACCURACY,)), cells)[ACCURACY]
    np.testing.assert_allclose(against["b"], [[np.mean([10 / 2, 10 / 4]), 0.6, 0.1]])


def test_faulty_folders_are_told(tmp_path):
    study = make_study()
    with pytest.raises(InputError, match=r"--workdir: expected the folder of the study 's' .* experiments.launch s"):
        collect(study, tmp_path)
    run = write_run(tmp_path / "s", "alpha=0.1,method=a", {0: {ACCURACY: 0.5}})
    (run / "seed_0" / "result.json").write_text("{")
    with pytest.raises(InputError, match=r"cannot read .*seed_0/result\.json"):
        collect(study, tmp_path)
