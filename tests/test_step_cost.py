"""The benchmark of step costs: what it prints and draws, on models of a few units."""

import json
import math
import types

import jax
import numpy as np
import pytest

from benchmarks import step_cost
from imbal_jax.errors import InputError
from imbal_jax.main import EXIT_INPUT, guarded
from imbal_jax.reports.records import read

PERIODIC = ("gdn", "ekfac")
FAST = ("--repeats=1", "--seconds=0.02")


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setitem(step_cost.MODELS, "mlp", {"hidden": (4,)})
    monkeypatch.setattr(step_cost, "IMAGE_SHAPE", (2, 2, 3))
    monkeypatch.setattr(step_cost, "PAUSE", 0.0)
    # Compilation dominates these tests.
    monkeypatch.setattr(step_cost, "compiler_options", lambda: {"xla_backend_optimization_level": 0})


@pytest.mark.slow
def test_one_line_per_method(capsys, tmp_path):
    assert step_cost.run(["--model=mlp", "--batch=8", "--repeats=2", "--seconds=0.05", f"--output={tmp_path}/a"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert read(tmp_path / "a") == lines
    conditions, *records = lines
    assert conditions["benchmark"] == "step_cost"
    assert (conditions["batch"], conditions["repeats"], conditions["no_refresh"]) == ([8], 2, False)
    assert conditions["machine"]["cpu_count"] >= 1
    names = [f"{r['method']}_{r['engine']}" if r["engine"] else r["method"] for r in records]
    assert names == list(step_cost.METHODS)
    for record in records:
        assert "skipped" not in record
        assert (record["model"], record["batch"], record["jax"]) == ("mlp", 8, jax.__version__)
        least, most = record["time_ratio_range"]
        assert least <= record["time_ratio"] <= most
        assert record["time_ratio"] > 0
        assert record["step_seconds"] > 0
        assert record["steps_per_turn"] >= 1
        # Random labels, a model that does not move.
        assert 0.5 * math.log(10) < record["cross_entropy"] < 2 * math.log(10)
        assert (record["period"] is not None) == (record["method"] in PERIODIC)
        assert ("compared_ratio" in record) == record["method"].startswith("lpf_sgd")
        assert record.get("compared", "sgd_x8") == "sgd_x8"
    sgd, adamw = records[:2]
    assert (sgd["time_ratio"], sgd["time_ratio_range"], sgd["temp_memory_ratio"]) == (1, [1, 1], 1)
    # Two moments for every parameter, and the count of the steps.
    parameters = 4 * (12 * 4 + 4 + 4 * 10 + 10)
    assert (adamw["state_mebibytes"] - sgd["state_mebibytes"]) * 2**20 >= 2 * parameters
    for record in records[-2:]:
        assert (record["period"], record["amortised"]) == (100, True)
        seconds = 0.99 * record["step_seconds"] + 0.01 * record["refresh_seconds"]
        assert record["seconds"] == pytest.approx(seconds, rel=1e-9)


@pytest.mark.parametrize("name", PERIODIC)
def test_only_the_refresh_changes_what_the_direction_reuses(name):
    case = step_cost.Case(step_cost.training_of("mlp", 8, step_cost.METHODS[name]))
    reused = "inverse" if name == "gdn" else "inputs"

    def matrices():
        return [np.asarray(getattr(layer, reused)) for layer in case.state.direction_state.layers.values()]

    case.start(seconds=1.0, repeats=1, with_refresh=False)
    before = matrices()
    assert case.refresh_seconds is None
    case.turn(0)
    for old, new in zip(before, matrices(), strict=True):
        np.testing.assert_array_equal(old, new)
    case.start(seconds=1.0, repeats=1, with_refresh=True)
    assert case.refresh_seconds > 0
    after = matrices()
    for old, new in zip(before, after, strict=True):
        assert not np.allclose(old, new)
    case.turn(0)
    for old, new in zip(after, matrices(), strict=True):
        np.testing.assert_array_equal(old, new)


def fake_case(turns, **fields):
    defaults = {"period": 1, "refresh_seconds": None, "temporary_bytes": 2**20, "state_bytes": 2**21}
    metrics = types.SimpleNamespace(cross_entropy=2.0)
    return types.SimpleNamespace(turns=turns, steps_per_turn=3, metrics=metrics, **{**defaults, **fields})


def test_ratios_are_taken_within_rounds_and_amortised():
    sgd = fake_case({0: 1.0, 1: 2.0, 2: 4.0})
    plain = step_cost.costs(fake_case({0: 3.0, 1: 4.0, 2: 12.0}, temporary_bytes=2**22), sgd, True)
    assert (plain["time_ratio"], plain["time_ratio_range"]) == (3, [2, 3])
    assert (plain["seconds"], plain["step_seconds"], plain["amortised"]) == (4, 4, None)
    assert (plain["temp_memory_ratio"], plain["temp_mebibytes"], plain["state_mebibytes"]) == (4, 4, 2)
    # A third of the rounds was too much for it; a refresh of 30 steps' length every 10 steps.
    late = step_cost.costs(fake_case({0: 3.0, 1: 6.0}, period=10, refresh_seconds=34.5), sgd, True)
    assert (late["step_seconds"], late["seconds"], late["turns"]) == (4.5, 7.5, 2)
    assert late["time_ratio"] == pytest.approx(3 + 3.0 / 1.5)
    without = step_cost.costs(fake_case({0: 3.0, 1: 6.0}, period=10), sgd, False)
    assert (without["time_ratio"], without["refresh_seconds"], without["amortised"]) == (3, None, False)


def test_small_steps_count_as_one():
    case = step_cost.Case(step_cost.training_of("mlp", 8, step_cost.METHODS["sgd_x8"]))
    case.start(seconds=1.0, repeats=1, with_refresh=False)
    before = int(case.state.step)
    case.take(2)
    assert int(case.state.step) - before == 16
    assert case.training.inputs[0].images.shape[0] == 1
    with pytest.raises(InputError, match=r"^batch: sgd_x8 needs a multiple of 8, got 12$"):
        step_cost.training_of("mlp", 12, step_cost.METHODS["sgd_x8"])


def test_a_comparison_is_within_rounds():
    assert step_cost.ratio(fake_case({0: 3.0, 1: 4.0}), fake_case({0: 1.0, 1: 2.0, 2: 9.0})) == 2.5


def test_methods_take_turns_until_their_time_is_up(monkeypatch):
    taken = []

    class Named:
        def __init__(self, name):
            self.name, self.spent = name, 0.0

        def turn(self, number):
            taken.append(self.name[0])
            self.spent += {"sgd": 2.0, "adamw": 1.0, "gdn": 5.0}[self.name]

    monkeypatch.setattr(step_cost, "_prepare", lambda model, batch, method, options: (Named(method.name), ""))
    monkeypatch.setattr(step_cost, "costs", lambda case, sgd, with_refresh: {})
    options = types.SimpleNamespace(repeats=4, seconds=2.5, no_refresh=False)
    list(step_cost.measure("mlp", 8, ["sgd", "adamw", "gdn"], options))
    assert "".join(taken) == "sag" + "sa" + "sa" + "s"


def test_plots_two_batch_sizes(capsys, tmp_path):
    assert step_cost.run(["--model=mlp", "--batch=4,2", "--methods=sgd", f"--plot={tmp_path}", *FAST]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()][1:]
    assert [(record["method"], record["batch"]) for record in records] == [("sgd", 2), ("sgd", 4)]
    assert {path.name for path in tmp_path.iterdir()} == {"step_cost.png", "step_cost.pdf"}
    assert all(path.stat().st_size > 1000 for path in tmp_path.iterdir())


def test_figure_has_a_line_per_method_and_engine():
    cost = {"model": "mlp", "device": "cpu", "engine": None, "amortised": None, "seconds": 0.5, "temp_mebibytes": 3.0}
    sgd = {**cost, "method": "sgd"}
    records = [
        {**sgd, "batch": 8},
        {**sgd, "batch": 16, "temp_mebibytes": 5.0},
        {**cost, "method": "ief", "engine": "gram", "batch": 8},
        {**cost, "method": "ief", "engine": "vmap", "batch": 8},
        {"model": "mlp", "method": "ief", "engine": "vmap", "batch": 16, "skipped": "too large"},
        {**cost, "method": "gdn", "batch": 8, "amortised": True},
        {**cost, "method": "ekfac", "batch": 8, "amortised": False},
    ]
    time_axes, memory_axes = step_cost.cost_figure(records).axes
    labels = ["sgd", "ief, gram", "ief, vmap", "gdn", "ekfac without refresh"]
    assert [line.get_label() for line in time_axes.lines] == labels
    np.testing.assert_allclose(time_axes.lines[0].get_xydata(), [[8, 500 / 8], [16, 500 / 16]])
    np.testing.assert_allclose(memory_axes.lines[0].get_xydata(), [[8, 3], [16, 5]])
    np.testing.assert_allclose(time_axes.lines[2].get_xydata(), [[8, 500 / 8]])
    for axes in (time_axes, memory_axes):
        assert [line.get_linestyle() for line in axes.lines] == ["-", "-", "--", "-", "-"]
        assert axes.lines[1].get_color() == axes.lines[2].get_color() != axes.lines[0].get_color()


def test_skips_what_needs_too_much_memory(capsys):
    assert step_cost.run(["--model=mlp", "--batch=2", "--methods=adamw", "--memory-limit=1e-9", *FAST]) == 0
    sgd, adamw = [json.loads(line) for line in capsys.readouterr().out.splitlines()][1:]
    assert "GiB needed, more than the limit of" in sgd["skipped"]
    assert (adamw["method"], adamw["skipped"]) == ("adamw", "there is no SGD step to compare with")


def test_defaults():
    options = step_cost.parse([])
    assert options.model == ["vgg11_bn", "mlp", "cnn"]
    assert (options.batch, options.methods) == ([32, 128], list(step_cost.METHODS))
    assert 0.1 < options.memory_limit < 10_000
    options = step_cost.parse(["--plot=somewhere"])
    assert (options.model, options.batch) == (["vgg11_bn"], [8, 16, 32, 64, 128, 256, 512])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model=mpl"], "--model: no 'mpl'; did you mean 'mlp'?"),
        (["--methods=sgd,ief"], "--methods: no 'ief'; did you mean 'ief_vmap' or 'ief_gram'?"),
        (["--batch=8,0"], "--batch: expected whole numbers >= 1 separated by commas, got '8,0'"),
        (["--batch="], "--batch: expected whole numbers >= 1 separated by commas, got ''"),
        (["--repeats=0"], "--repeats: expected a number >= 1, got 0"),
        (["--seconds=0"], "--seconds: expected a number > 0, got 0.0"),
        (["--memory-limit=nan"], "--memory-limit: expected a number > 0, got nan"),
        (["--plot=x", "--model=mlp,cnn"], "--model: expected one model with --plot, got mlp, cnn"),
    ],
)
def test_refuses_what_it_cannot_measure_in_one_line(arguments, message, capsys):
    with pytest.raises(InputError) as raised:
        step_cost.run(arguments)
    assert message in str(raised.value)
    assert guarded(step_cost.run, arguments) == EXIT_INPUT
    assert capsys.readouterr().err.startswith(f"error: {message}")
