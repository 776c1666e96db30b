"""Tables of the best of several candidates: by validation, and by the test set at every condition, as LCT's paper."""

import json

import pytest

from experiments import report
from experiments.reporting.collect import collect
from experiments.reporting.model import build_table
from experiments.reporting.panels import by_setting
from experiments.reporting.text import shown
from experiments.study import Axis, Choice, Search, Study, Table, cell_config, check_study, load_study
from experiments.validation_scores import validation_score
from experiments.winners import find_winners
from imbal_jax.errors import InputError
from imbal_jax.reports.records import write_json

from .study_runs import write_run

AUC = "test/auc"
# By model: AUC on validation and on the test set, of two seeds.
PLAIN = {"0": ((0.7, 0.7), (0.9, 0.9)), "1": ((0.9, 0.9), (0.6, 0.8)), "2": ((0.8, 0.9), (0.8, 0.8))}
CONDITIONS = [[0.0, 1.0], [0.5, 2.0]]


def study(split, *, searched=True):
    """Two methods of three models each."""
    best = Choice("model", split)
    table = Table("t", "T", "method", (AUC,), key=lambda cell, metric: KEYS[cell["method"]], percent=False, best=best)
    axes = (Axis("method", tuple(KEYS)), Axis("model", ("0", "1", "2")))
    search = Search(("model",), "validation/auc", largest=True) if searched else None
    return Study("s", "none", axes, (table,), seeds=(0, 1), search=search)


KEYS = {"plain": AUC, "lct": "tuned/auc"}


@pytest.fixture
def folder(tmp_path):
    """The fixed method's models, and of the conditional method model 2 alone, whose grid has two conditions."""
    for model, (validation, test) in PLAIN.items():
        results = {seed: {AUC: value, "best_step": 20} for seed, value in enumerate(test)}
        run = write_run(tmp_path / "s", f"method=plain,model={model}", results)
        for seed, value in enumerate(validation):
            lines = [{"step": 10, "validation/auc": 1.0}, {"step": 20, "validation/auc": value}]
            (run / f"seed_{seed}" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    results = {seed: {AUC: 0.1, "tuned/auc": 0.5 + seed / 10, "best_step": 20} for seed in (0, 1)}
    run = write_run(tmp_path / "s", "method=lct,model=2", results)
    for seed, values in enumerate(((0.3, 0.9), (0.8, 0.4))):
        found = {"names": ["alpha", "phi"], "conditions": CONDITIONS, "test": {"auc": values}}
        found["best"] = {"auc": {"condition": CONDITIONS[0], "validation": 0.95, "test": 0.5}}
        write_json(run / f"seed_{seed}" / "conditions.json", found)
    return tmp_path


def entries(root, split, seeds=None):
    """The two entries of the table."""
    made = study(split)
    model = build_table(collect(made, root, seeds), made.tables[0])
    assert len(model.columns) == 1  # the models have none
    return {label: entries[0] for label, entries in model.rows}


def test_on_validation_the_best_model_there_tells_its_test_results(folder):
    found = entries(folder, "validation")
    assert found["plain"].cell == {"method": "plain", "model": "1"}
    assert found["plain"].estimate.mean == pytest.approx(0.7)
    assert shown(found["plain"], False).seeds == "model 1"
    assert found["lct"].estimate.mean == pytest.approx(0.55)  # at the conditions that validation has chosen
    assert shown(found["lct"], False).seeds == "model 2, 1 of 3 trained"
    assert [found[name].state for name in ("plain", "lct")] == ["complete", "partial"]
    assert [found[name].rank for name in ("plain", "lct")] == [1, 2]


def test_on_the_test_set_every_condition_is_a_candidate(folder):
    found = entries(folder, "test")
    assert (found["plain"].cell["model"], found["plain"].estimate.mean) == ("0", pytest.approx(0.9))
    # The mean over seeds decides: 0.65 at the second condition, 0.55 at the first.
    assert found["lct"].values == {0: 0.9, 1: 0.4}
    assert shown(found["lct"], False).seeds == "model 2 at alpha 0.5, phi 2, 1 of 3 trained"


def test_a_model_without_all_seeds_is_no_candidate(folder):
    (folder / "s" / "runs" / "method=plain,model=1" / "seeds_0_1" / "seed_1" / "result.json").unlink()
    found = entries(folder, "validation")["plain"]
    assert (found.cell["model"], shown(found, False).seeds) == ("2", "model 2, 2 of 3 trained")
    assert entries(folder, "validation", (0,))["plain"].cell["model"] == "1"
    missing = entries(folder, "test", (7,))["lct"]
    assert (missing.state, missing.missing, shown(missing, False).ours) == ("missing", (7,), "missing")


def test_figures_of_a_search_are_of_the_best_so_far(folder):
    cells = by_setting(collect(study("test"), folder))
    assert {method: cell.cell["model"] for method, cell in cells[""].items()} == {"plain": "1", "lct": "2"}
    assert len(by_setting(collect(study("test", searched=False), folder))) == 3


def test_winners_of_conditional_models_are_chosen_at_their_best_condition(folder):
    run = folder / "s" / "runs" / "method=lct,model=2" / "seeds_0_1" / "seed_0"
    assert validation_score(run, "validation/auc") == 0.95
    assert validation_score(run, "validation/max_f1") is None
    with pytest.raises(InputError, match=r"expected results of method=lct,model=0, seeds \[0, 1\] are missing"):
        from experiments.launching.jobs import Paths

        find_winners(study("test"), Paths(folder / "s"), (0, 1))


@pytest.mark.parametrize(("name", "cells", "tables"), [("search_lct_3", 54 * 16, 4), ("search_lct_4", 9 * 16, 2)])
def test_the_papers_protocol_has_sixteen_models_a_method(name, cells, tables):
    found = load_study(name)
    assert (len(list(found.cells())), len(found.tables)) == (cells, tables)
    last = list(found.cells())[-1]
    assert last["model"] == "15"
    assert cell_config(found, last, (0,)).correction.name.startswith("conditional")


def test_a_report_of_the_papers_protocol_stands_beside_its_numbers(tmp_path):
    cell = "dataset=auto_truck,method=vs,model=2"
    run = write_run(tmp_path / "search_lct_3", cell, {seed: {AUC: 0.9, "best_step": 1} for seed in (0, 1, 2)})
    for seed in (0, 1, 2):
        (run / f"seed_{seed}" / "metrics.jsonl").write_text('{"step": 1, "validation/auc": 0.8}\n')
    assert report.run(["search_lct_3", f"--workdir={tmp_path}", "--only=dataset=auto_truck"]) == 0
    text = (tmp_path / "search_lct_3" / "report" / "report.md").read_text()
    assert text.count("| VS | 0.900 ± 0.000 (model 2, 1 of 16 trained) | 0.918 ± ") == 2
    assert text.count("| VS + LCT | missing |") == 2


def test_a_choice_along_no_axis_is_refused():
    table = study("test").tables[0]
    for axis in ("method", "modle"):
        wrong = study("test")._replace(tables=(table._replace(best=Choice(axis)),))
        with pytest.raises(InputError, match=f"table t: best: no '{axis}'"):
            check_study(wrong)
