"""Study files that are none: each is refused in one line that names what is wrong, before anything is trained."""

import subprocess
import sys

import pytest

from experiments.study import Axis, Choice, Curve, Published, Search, Study, Table, config_spec, load_study
from experiments.study_checks import check_study
from imbal_jax.errors import InputError
from tests.conftest import ROOT

ALPHA, METHOD = Axis("alpha", ("0.1", "1"), key="profile.alpha"), Axis("method", ("a", "b"))
WIDTH = Axis("width", ("8", "16"), key="model.width")
TABLE, CURVE = Table("t", "T", "method"), Curve("c", "C", "alpha", "method")
GOOD = Study("s", "configs/digits.py:{method}", (ALPHA, METHOD), (TABLE,), curves=(CURVE,))
PUBLISHED = Published("thesis_4_2", lambda cell, metric: "row", lambda cell, metric: "column")

AXES = {"axes": (ALPHA, METHOD, WIDTH)}


def refused(message, **changes):
    """What is wrong with a study that is right but for these fields."""
    with pytest.raises(InputError, match=message):
        check_study(GOOD._replace(**changes))


def of_table(**changes):
    return {"tables": (TABLE._replace(**changes),)}


def of_curve(**changes):
    return {"curves": (CURVE._replace(**changes),)}


def test_what_is_right_is_taken():
    check_study(GOOD)
    check_study(GOOD._replace(axes=[ALPHA, METHOD], seeds=[0], overrides={"profile.total": 1}))
    check_study(
        GOOD._replace(config="none", tables=(TABLE._replace(published=PUBLISHED, best=Choice("alpha", "test")),))
    )
    check_study(GOOD._replace(search=Search(("alpha",)), overrides_of=lambda cell: {"model.name": cell["method"]}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"axes": (ALPHA, Axis("n", ("1",), key="seeds"))}, "axis n: key: expected Study.seeds in its place"),
        ({"overrides": {"seeds": "3"}}, "overrides: seeds: expected Study.seeds in its place, got '3'"),
        ({"overrides_of": lambda cell: {"seeds": 3}}, "alpha=0.1,method=a: seeds: expected Study.seeds in its place"),
        (
            {"axes": (ALPHA, METHOD, Axis("other", ("2",), key="profile.alpha"))},
            "axis other: key: expected another than that of axis alpha, got 'profile.alpha'",
        ),
        (
            {"overrides": {"profile.alpha": 3}},
            "overrides: expected leaves that no axis sets, got 'profile.alpha' of axis",
        ),
        (
            {"overrides_of": lambda cell: {"profile.alpha": 3} if cell["method"] == "b" else {}},
            "overrides_of, alpha=0.1,method=b: expected leaves that no axis sets, got 'profile.alpha' of axis alpha",
        ),
    ],
)
def test_a_leaf_that_would_be_overwritten_is_refused(changes, message):
    refused(message, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": None}, "study: name: expected text, got None"),
        ({"name": "s" * 201}, "study: name: expected at most 200 letters"),
        ({"config": None}, "study: config: expected text, got None"),
        ({"axes": ALPHA}, r"study: axes: expected a tuple of Axis, with a comma .*, got Axis\(name='alpha'"),
        ({"axes": (ALPHA, ("method", ("a",), None))}, "study: axes: expected a tuple of Axis"),
        ({"axes": ()}, "axes: expected at least one, got none"),
        ({"axes": (ALPHA._replace(values=(0.2, 1)),)}, r"axis alpha: values: expected a tuple of text.*got \(0.2, 1\)"),
        ({"axes": (ALPHA._replace(values="12"),)}, "axis alpha: values: expected a tuple of text, with a comma .*'12'"),
        ({"axes": (ALPHA._replace(key=3),)}, "axis alpha: key: expected text or None, got 3"),
        ({"tables": TABLE}, "study: tables: expected a tuple of Table, with a comma behind a single one, got Table"),
        ({"tables": (CURVE,)}, "study: tables: expected a tuple of Table"),
        ({"curves": CURVE}, "study: curves: expected a tuple of Curve"),
        ({"curves": (TABLE,)}, "study: curves: expected a tuple of Curve"),
        ({"search": "alpha"}, "study: search: expected Search or None, got 'alpha'"),
        ({"search": Search("alpha")}, "search: axes: expected a tuple of text.*got 'alpha'"),
        ({"overrides": [1]}, "study: overrides: expected a mapping of text"),
        ({"overrides": {1: 2}}, "study: overrides: expected a mapping of text"),
        ({"overrides_of": {}}, "study: overrides_of: expected a function or None, got {}"),
        ({"overrides_of": lambda cell: None}, "overrides_of, alpha=0.1,method=a: expected a mapping .*got None"),
        (of_table(metrics="test/accuracy"), "table t: metrics: expected a tuple of text.*got 'test/accuracy'"),
        (of_table(metrics=()), r"table t: metrics: expected a tuple of text.*got \(\)"),
        (of_table(published="thesis_4_2"), "table t: published: expected Published or None, got 'thesis_4_2'"),
        (of_table(published=PUBLISHED._replace(row="r")), "table t: published: row: expected a function, got 'r'"),
        (of_table(best="alpha"), "table t: best: expected Choice or None, got 'alpha'"),
        (of_table(best=Choice("alpha", "validaton")), "best: split: no 'validaton'; did you mean 'validation'"),
        (of_table(labels={"a": 1}), "table t: labels: expected a mapping of text to text"),
        (of_curve(metrics="test/accuracy"), "curve c: metrics: expected a tuple of text.*got 'test/accuracy'"),
        (of_curve(where="alpha"), "curve c: where: expected a function or None, got 'alpha'"),
        (of_curve(name="a/b"), "curve a/b: name: expected at most 200 letters, digits"),
    ],
)
def test_a_field_of_another_type_is_told(changes, message):
    refused(message, **changes)


@pytest.mark.parametrize("seeds", [3, "0,1", (0, 0), (-1,), (), (0.5,), ("0",), (True,), (2**32,)])
def test_what_is_no_seed_is_refused(seeds):
    refused(r"study: seeds: expected a tuple of different whole numbers in 0\.\.2\^32-1, got ", seeds=seeds)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("x.py:{metod}", "config: no 'metod'; did you mean 'method'"),
        ("x.py:{}", "config: no ''"),
        ("x.py:{method.x}", "config: no 'method.x'; did you mean 'method'"),
        ("x.py:{method:d}", "config: expected nothing beside the axis in {method}"),
        ("x.py:{method", "config: expected braces around the names of axes only"),
    ],
)
def test_braces_that_stand_for_no_axis_are_refused(config, message):
    refused(message, config=config)


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        (lambda function: {"where": function}, "study: where"),
        (lambda function: {"overrides_of": function}, "overrides_of"),
        (lambda function: of_table(where=function), "table t: where"),
        (lambda function: of_table(key=function), "table t: key"),
        (lambda function: of_table(published=PUBLISHED._replace(row=function)), "table t: published: row"),
        (lambda function: of_table(published=PUBLISHED._replace(column=function)), "table t: published: column"),
        (lambda function: of_curve(where=function), "curve c: where"),
    ],
)
@pytest.mark.parametrize(
    ("function", "error"), [(lambda *_: {}["metod"], "KeyError: 'metod'"), (lambda *_: sys.exit(3), "SystemExit: 3")]
)
def test_a_function_that_fails_is_named_with_its_cell(changes, place, function, error):
    refused(f"^{place} failed for alpha=0.1,method=a: {error}$", **changes(function))


def test_a_study_whose_winners_are_still_to_be_found_can_be_read():
    def winners(cell):
        raise InputError("winners of search: expected them, found none")

    check_study(GOOD._replace(overrides_of=winners))
    refused("^winners of search", where=winners)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tables": (TABLE, TABLE._replace(rows="alpha"))}, r"tables: expected different names, got \['t', 't'\]"),
        ({"curves": (CURVE, CURVE)}, r"curves: expected different names, got \['c', 'c'\]"),
        (
            {"axes": (ALPHA, METHOD, Axis("long", ("x" * 200,)))},
            "axes: expected at most 200 characters in the name of a cell's folder, got 2.. in 'alpha=0.1,method=",
        ),
    ],
)
def test_names_of_files_are_different_and_short(changes, message):
    refused(message, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {**AXES, **of_curve()},
            "curve c: expected one value of axis width on every line, .*got alpha=0.1,method=a,width=8 and alpha=0.1,"
            "method=a,width=16 on one",
        ),
        ({**AXES, **of_curve(x="imbalance")}, "curve c: expected one value of axis alpha or of width on every line"),
        ({**AXES, **of_curve(where=lambda cell: cell["method"] == "a")}, "expected one value of axis width"),
    ],
)
def test_a_line_through_cells_that_differ_along_a_further_axis_is_refused(changes, message):
    refused(message, **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {**AXES, **of_curve(where=lambda cell: cell["width"] == "8")},
        {**AXES, **of_curve(x="imbalance", where=lambda cell: cell["width"] == "8")},
        {
            **AXES,
            "where": lambda cell: (cell["width"] == "8") == (cell["method"] == "a"),
            **of_curve(),
        },  # its own width
        {**AXES, **of_curve(lines="classes", metrics=("ratio",))},  # a panel for every value
        {"axes": (METHOD,), **of_curve(x="imbalance")},  # a point for every method
        of_curve(x="imbalance"),
    ],
)
def test_a_line_with_one_cell_at_every_place_is_drawn(changes):
    check_study(GOOD._replace(**changes))


def written(folder, name, lines):
    """A study's file."""
    (folder / name).write_text("\n".join(("import sys", "from experiments.study import *", *lines)))
    return folder / name


def test_a_file_without_its_ending_is_told(tmp_path, monkeypatch):
    path = written(tmp_path, "tiny.py", [])
    with pytest.raises(InputError, match=f"^STUDY: no such file: '{tmp_path}/tiny'; did you mean '{path}'\\?$"):
        load_study(str(tmp_path / "tiny"))
    with pytest.raises(InputError, match=f"^STUDY: no such file: '{tmp_path}/tny'; expected the path of a .py file"):
        load_study(str(tmp_path / "tny"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"^STUDY: no such file: 'tiny'; did you mean 'tiny\.py'\?$"):
        load_study("tiny")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["def get_study(): sys.exit(0)"], "STUDY: get_study of .*tiny.py failed: SystemExit: 0"),
        (["def get_study(): return Study('s', None, (Axis('a', ('1',)),), ())"], "study: config: expected text"),
        (
            ["def get_study(): return Study('s', 'x.py', Axis('a', ('1',)), ())"],
            "study: axes: expected a tuple of Axis",
        ),
    ],
)
def test_a_file_that_gives_no_study_is_told(tmp_path, lines, message):
    with pytest.raises(InputError, match=message):
        load_study(str(written(tmp_path, "tiny.py", lines)))


def test_braces_in_the_path_of_a_study_are_no_axes(tmp_path):
    (tmp_path / "{x}").mkdir()
    (tmp_path / "{x}" / "config.py").write_text("")
    lines = ["def get_study(): return Study('s', 'config.py:{a}', (Axis('a', ('1',)),), ())"]
    study = load_study(str(written(tmp_path / "{x}", "tiny.py", lines)))
    assert config_spec(study, {"a": "1"}) == f"{tmp_path}/{{x}}/config.py:1"


@pytest.mark.parametrize("module", ["experiments.study", "experiments.study_checks"])
def test_checks_can_be_imported_first_and_without_jax(module):
    code = (
        f"import {module}, sys; from experiments.study import *; load_study('quick'); assert 'jax' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
