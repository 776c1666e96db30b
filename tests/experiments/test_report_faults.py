"""What a report says of seeds that nobody asked for, of seeds without a number, and of damaged files."""

import json
import math
import shlex

import pytest

from experiments import report
from experiments.reporting import collect as collecting
from experiments.reporting.collect import collect
from experiments.reporting.curves import curve_points
from experiments.reporting.model import build_table
from experiments.reporting.pictures import draw_pictures
from experiments.reporting.text import shown
from experiments.study import CLASSES, Axis, Choice, Curve, Study, Table
from imbal_jax.errors import InputError

from .study_runs import write_run

ACCURACY = "test/accuracy"
FOUND = {"a": (0, 1, 2), "b": (0,), "c": (0, 1)}  # the finished seeds of each method


def make_study(**changes):
    """One number x and three methods, with a table and a curve."""
    axes = (Axis("x", ("1",)), Axis("method", tuple(FOUND)))
    study = Study("s", "none", axes, (Table("t", "T", "method", (ACCURACY,)),), curves=(make_curve(),))
    return study._replace(**changes)


def make_curve(**changes):
    return Curve("c", "C", "x", "method", (ACCURACY,))._replace(**changes)


def write_method(root, method, results, **options):
    """The run folder of a method."""
    return write_run(root / "s", f"x=1,method={method}", results, **options)


def write_found(root):
    for method, seeds in FOUND.items():
        write_method(root, method, {seed: {ACCURACY: 0.5 + seed / 10} for seed in seeds})


def entries(root, study, seeds=None):
    """The entries of the first table by row."""
    model = build_table(collect(study, root, seeds), study.tables[0])
    return {label: found for label, (found,) in model.rows}


@pytest.mark.parametrize(
    ("asked", "given", "expected"),
    [
        ((5, 6, 7), None, ["3 of 6 seeds", "1 of 6 seeds", "2 of 6 seeds"]),
        ((0,), None, ["", "1 of 3 seeds", "2 of 3 seeds"]),
        ((5, 6, 7), (0, 1), ["", "1 of 2 seeds", ""]),
    ],
)
def test_all_cells_are_counted_against_the_same_seeds(tmp_path, asked, given, expected):
    write_found(tmp_path)
    found = entries(tmp_path, make_study(seeds=asked), given)
    assert [shown(entry, True).seeds for entry in found.values()] == expected
    if given is None:
        assert found["a"].estimate.mean == pytest.approx(60)  # of all seeds found


def test_a_further_seed_of_one_candidate_does_not_disqualify_the_others(tmp_path):
    write_found(tmp_path)
    table = Table("t", "T", "x", (ACCURACY,), best=Choice("method", "test"))
    entry = entries(tmp_path, make_study(tables=(table,), seeds=(0, 1)))["1"]
    assert shown(entry, True).seeds == "method a, 2 of 3 trained"
    write_method(tmp_path / "more", "a", {0: {ACCURACY: 0.9}, 1: {ACCURACY: 0.9}})
    write_method(tmp_path / "more", "b", {0: {ACCURACY: 0.5}, 1: {ACCURACY: 0.5}, 2: {ACCURACY: 0.5}})
    entry = entries(tmp_path / "more", make_study(tables=(table,), seeds=(0, 1)))["1"]
    assert shown(entry, True).seeds == "method a, 2 of 3 trained, 2 of 3 seeds"


@pytest.mark.parametrize("value", [None, math.nan])
def test_a_seed_without_a_number_does_not_vanish_from_figures(tmp_path, value):
    for method, scores in {"a": (0.5, value, 0.6), "c": (0.7,)}.items():
        results = {seed: {ACCURACY: score, "seconds_per_epoch": score} for seed, score in enumerate(scores)}
        write_method(tmp_path, method, results)
    write_method(tmp_path, "b", {0: {}})  # that it lacks the keys is no fault
    collected = collect(make_study(), tmp_path)
    assert list(curve_points(make_curve(), collected.cells)[ACCURACY]) == ["c"]
    captions = {picture.name: picture.caption for picture in draw_pictures(collected)}
    assert (
        captions["c"] == "C: mean and standard error over seeds. Left out because a seed has no number: x=1,method=a."
    )
    assert captions["training_times"].endswith(" Left out because a seed has no number: x = 1, a.")


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        (ACCURACY, "abc", "a number, got 'abc'"),
        (ACCURACY, [0.5, 0.6], r"a number, got \[0.5, 0.6\]"),
        (ACCURACY, True, "a number, got True"),
        ("seconds_per_epoch", "1 s", "a number, got '1 s'"),
        ("class_counts", "abc", "a list of numbers, got 'abc'"),
        ("class_counts", 3, "a list of numbers, got 3"),
        ("test/confusion", [1, 2], r"rows of as many numbers each, got \[1, 2\]"),
        ("test/confusion", [[1, 2], [3]], r"rows of as many numbers each, got \[\[1, 2\], \[3\]\]"),
    ],
)
def test_results_that_are_no_numbers_are_told(tmp_path, key, value, expected):
    write_method(tmp_path, "a", {0: {ACCURACY: 0.5, key: value}})
    study = make_study()
    with pytest.raises(InputError, match=rf"seed_0/result\.json: {key}: expected {expected}"):
        collected = collect(study, tmp_path)
        build_table(collected, study.tables[0])
        draw_pictures(collected)


def test_curves_tell_results_that_are_no_numbers(tmp_path):
    write_method(tmp_path, "a", {0: {ACCURACY: "abc"}})
    with pytest.raises(InputError, match=rf"seed_0/result\.json: {ACCURACY}: expected a number, got 'abc'"):
        curve_points(make_curve(), collect(make_study(), tmp_path).cells)


@pytest.mark.parametrize(
    ("file", "key", "value", "expected"),
    [
        ("metadata.json", "devices", 3, "a list of names, got 3"),
        ("metadata.json", "packages", ["jax"], r"an object, got \['jax'\]"),
        ("metadata.json", "wall_seconds", "90", "a number, got '90'"),
        ("config.json", "training", "none", "an object, got 'none'"),
    ],
)
def test_damaged_files_of_a_run_are_told(tmp_path, file, key, value, expected):
    run = write_method(tmp_path, "a", {0: {ACCURACY: 0.5}})
    (run / file).write_text(json.dumps({key: value}))
    study = make_study()
    with pytest.raises(InputError, match=rf"{file}: {key}: expected {expected}"):
        build_table(collect(study, tmp_path), study.tables[0])


def test_a_study_of_a_file_is_named_by_its_file(tmp_path, capsys):
    file, folder = tmp_path / "my study.py", tmp_path / "no runs"
    lines = ["from experiments.studies.quick import get_study as quick", "def get_study():"]
    file.write_text("\n".join([*lines, '    return quick()._replace(name="tiny")']))
    assert report.guarded(report.run, [str(file), f"--workdir={folder}"]) == 2
    told = capsys.readouterr().err
    assert f"python -m experiments.launch {shlex.quote(str(file))} --workdir={shlex.quote(str(folder))} " in told


def test_a_metric_that_no_result_has_is_told(tmp_path):
    write_method(tmp_path, "a", {0: {ACCURACY: 0.5}})
    study = make_study(tables=(Table("t", "T", "method", (ACCURACY, "test/acuracy")),))
    message = r"table t: metrics: in the results there is no 'test/acuracy'; did you mean 'test/accuracy'\?"
    with pytest.raises(InputError, match=message):
        build_table(collect(study, tmp_path), study.tables[0])


def test_a_metric_may_be_missing_as_long_as_some_result_has_it(tmp_path):
    write_method(tmp_path, "a", {0: {"test/loss": 0.5}, 1: {"test/loss": 0.5}})
    write_method(tmp_path, "b", {0: {ACCURACY: 0.5}})
    study = make_study(seeds=(0,))
    assert [entry.state for entry in entries(tmp_path, study).values()] == ["missing", "partial", "missing"]
    absent = Table("t", "T", "method", ("test/acuracy",), where=lambda cell: cell["method"] == "c")
    assert entries(tmp_path, make_study(tables=(absent,)))["c"].state == "missing"  # nothing has finished


def test_the_records_of_a_run_are_read_once(tmp_path, monkeypatch):
    curvature = {f"lambda_{end}{of}": [1.0, 2.0] for end in ("min", "max") for of in ("", "_residual")}
    records = [{"epoch": epoch, "class_gradient_norms": [1, 2], "class_curvature": curvature} for epoch in (1, 2)]
    write_method(tmp_path, "a", {0: {ACCURACY: 0.5}, 1: {ACCURACY: 0.6}}, records=[*records, {"epoch": 3}])
    read, paths = collecting.read, []
    monkeypatch.setattr(collecting, "read", lambda path: (paths.append(path), read(path))[1])
    study = make_study(curves=(make_curve(lines=CLASSES, metrics=("ratio",)),))
    drawn = {picture.name for picture in draw_pictures(collect(study, tmp_path))}
    assert {"gradient_norms_x_1", "curvature_x_1", "c"} <= drawn
    assert len(paths) == 2
