"""Searches on validation: candidates, winners, and studies that read them."""

import json

import pytest

from experiments.launching.jobs import Paths, outcome_file
from experiments.searching import make_search
from experiments.study import Axis, Study, load_study
from experiments.winners import find_winners, run, winning_options, write_winners
from imbal_jax.errors import InputError
from imbal_jax.main import EXIT_INPUT, guarded
from imbal_jax.reports.records import JsonLines, write_json

SEARCH = make_search(
    "toy_search",
    "configs/digits.py:{method}",
    {"baseline": (("0.1", "0.2"), ()), "ief": (("20",), ("0.01", "1"))},
    {"training.epochs": 3},
    seeds=(0, 1),
)
CELLS = [
    "method=baseline,learning_rate=0.1,damping=none",
    "method=baseline,learning_rate=0.2,damping=none",
    "method=ief,learning_rate=20,damping=0.01",
    "method=ief,learning_rate=20,damping=1",
]


def leave(paths, cell, values):
    """Runs whose second of three epochs was the best, with the metric there by seed."""
    for seed, value in enumerate(values):
        folder = paths.runs / cell / f"seeds_{seed}"
        write_json(folder / "config.json", {})
        write_json(folder / f"seed_{seed}" / "result.json", {"best_step": 20})
        lines = JsonLines(folder / f"seed_{seed}" / "metrics.jsonl")
        for epoch, shown in enumerate((0.0, value, 9.0), start=1):
            lines.append({"step": 10 * epoch, "validation/cross_entropy": shown})


@pytest.fixture
def paths(tmp_path):
    paths = Paths(tmp_path / "toy_search")
    for cell, values in zip(CELLS, [(0.5, 0.7), (0.3, 0.5), (0.2, 0.4), (0.1, 0.8)], strict=True):
        leave(paths, cell, values)
    return paths


def test_the_smallest_mean_of_the_selected_checkpoints_wins(paths):
    baseline, ief = find_winners(SEARCH, paths, (0, 1))
    assert baseline["of"] == {"method": "baseline"}
    assert baseline["options"] == {"schedule.learning_rate": "0.2"}
    assert baseline["mean"] == pytest.approx(0.4)
    assert baseline["standard_error"] == pytest.approx(0.1)
    assert ief["options"] == {"schedule.learning_rate": "20", "direction.damping": "0.01"}
    assert ief["candidates"] == pytest.approx({CELLS[2]: 0.3, CELLS[3]: 0.45})


def test_the_largest_wins_where_more_is_better(paths):
    search = SEARCH._replace(search=SEARCH.search._replace(largest=True))
    assert find_winners(search, paths, (0, 1))[1]["cell"]["damping"] == "1"


def test_what_diverged_cannot_win_and_what_is_missing_is_named(paths):
    (paths.runs / CELLS[2] / "seeds_1" / "seed_1" / "result.json").unlink()
    with pytest.raises(InputError, match=r"ief,learning_rate=20,damping=0\.01, seeds \[1\] are missing"):
        find_winners(SEARCH, paths, (0, 1))
    write_json(outcome_file(paths, CELLS[2], (1,)), {"status": 3})
    winner = find_winners(SEARCH, paths, (0, 1))[1]
    assert winner["cell"]["damping"] == "1"
    assert winner["candidates"][CELLS[2]] == "diverged"


def test_other_studies_read_the_winners_of_their_cells(paths, tmp_path):
    with pytest.raises(InputError, match=r"expected .*winners\.json, found none; first run python"):
        winning_options(tmp_path, "toy_search", {"method": "ief"})
    write_winners(SEARCH, paths, (0, 1))
    told = winning_options(tmp_path, "toy_search", {"method": "baseline", "alpha": "1"})
    assert told == {"schedule.learning_rate": "0.2"}
    with pytest.raises(InputError, match="expected one for method=gdn"):
        winning_options(tmp_path, "toy_search", {"method": "gdn"})
    stored = json.loads((paths.root / "winners.json").read_text())
    assert (stored["metric"], stored["largest"], stored["seeds"]) == ("validation/cross_entropy", False, [0, 1])


def test_the_searches_that_come_with_the_project_are_studies(tmp_path, capsys):
    for name in ("search_digits", "search_vgg11"):
        study = load_study(name)
        for cell in study.cells():
            assert {"schedule.learning_rate"} <= study.options(cell).keys()
            assert ("direction.damping" in study.options(cell)) == (cell["damping"] != "none")
    assert guarded(run, ["search_digits", f"--workdir={tmp_path}"]) == EXIT_INPUT
    assert "seeds [0, 1, 2] are missing" in capsys.readouterr().err
    tuned = load_study("tuned_digits", tmp_path)
    with pytest.raises(InputError, match="winners of search_digits"):
        tuned.options(next(tuned.cells()))


def test_only_a_search_has_winners(paths):
    plain = Study("plain", "configs/digits.py", (Axis("a", ("1",)),), ())
    with pytest.raises(InputError, match="expected a study with a search, plain has none"):
        find_winners(plain, paths, (0,))
