"""Figures 1 and 2 of loss-conditional training, from scores."""

import json

import numpy as np
import pytest

from experiments.lct_figures import (
    AGAINST,
    RECALLS,
    adaptability_figure,
    best_anywhere,
    precision_figure,
    read_run,
    run,
)
from imbal_jax.errors import InputError
from imbal_jax.evaluation.binary_metrics import binary_metrics, operating_points, precision_at_recall

LABELS = np.r_[np.zeros(40, int), np.ones(15, int)]
CONDITIONS = np.array([[g, t] for g in (0.0, 0.3) for t in (0.0, 1.0, 2.0)])


def write_run(folder, *, grid, seeds=2, offset=0):
    """A run folder with scores only."""
    scores = {}
    for seed in range(seeds):
        rng = np.random.default_rng(10 * offset + seed)
        arrays = {"labels": LABELS, "log_odds": rng.normal(size=55) + 1.5 * LABELS}
        path = folder / f"seed_{seed}"
        path.mkdir(parents=True)
        if grid:
            arrays["conditions"] = CONDITIONS
            arrays["log_odds_at_conditions"] = rng.normal(size=(6, 55)) + LABELS * np.arange(6)[:, None] / 2
            (path / "conditions.json").write_text(json.dumps({"names": ["multiplicative", "additive"]}))
        np.savez(path / "scores.npz", **arrays)
        scores[seed] = arrays
    return scores


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A run with a grid, two with fixed hyper-parameters, and the arrays of the first."""
    root = tmp_path_factory.mktemp("runs")
    arrays = write_run(root / "lct", grid=True)
    for i in (1, 2):
        write_run(root / f"fixed_{i}", grid=False, offset=i)
    return root, arrays


def test_models_are_means_over_seeds(folders):
    root, arrays = folders
    found = read_run(root / "lct")
    assert found.names == ("multiplicative", "additive")
    np.testing.assert_array_equal(found.conditions, CONDITIONS)
    assert len(found.at_conditions) == 6
    for i, model in enumerate(found.at_conditions):
        each = [arrays[seed]["log_odds_at_conditions"][i] for seed in (0, 1)]
        for metric in AGAINST:
            expected = np.mean([binary_metrics(LABELS, scores)[metric] for scores in each])
            assert model.metrics[metric] == pytest.approx(expected)
        expected = np.mean([precision_at_recall(operating_points(LABELS, scores), 0.8) for scores in each])
        assert model.precisions[RECALLS.index(0.8)] == pytest.approx(expected)


def test_figure_1_shows_the_best_baselines_and_the_condition_of_the_best_average_precision(folders):
    root, _ = folders
    conditional = read_run(root / "lct")
    baselines = {f"fixed {i}": read_run(root / f"fixed_{i}").own for i in (1, 2)}
    (axes,) = precision_figure(conditional, baselines).axes
    *others, drawn = axes.lines
    assert [line.get_label() for line in others] == list(best_anywhere(baselines))
    best = max(conditional.at_conditions, key=lambda model: model.metrics["average_precision"])
    np.testing.assert_array_equal(drawn.get_ydata(), best.precisions)
    assert drawn.get_label() == "drawn, at multiplicative 0.3, additive 2"
    assert len(drawn.get_xdata()) == 8  # recalls, as in the paper


def test_without_baselines_figure_1_shows_the_conditions_that_are_the_best_anywhere(folders):
    conditional = read_run(folders[0] / "lct")
    (axes,) = precision_figure(conditional, {}).axes
    shown = np.array([line.get_ydata() for line in axes.lines[:-1]])
    table = np.array([model.precisions for model in conditional.at_conditions])
    np.testing.assert_array_equal(shown.max(axis=0), table.max(axis=0))
    assert len(shown) <= 6


def test_figure_2_has_a_dot_for_every_condition_and_a_cross_for_the_best_baseline(folders):
    root, _ = folders
    conditional = read_run(root / "lct")
    baselines = {f"fixed {i}": read_run(root / f"fixed_{i}").own for i in (1, 2)}
    best = max(baselines.values(), key=lambda model: model.metrics["auc"])
    figure = adaptability_figure(conditional, baselines)
    for axes, metric in zip(figure.axes[:3], AGAINST, strict=True):
        dots, cross = axes.collections
        expected = [[model.metrics[metric], model.metrics["auc"]] for model in conditional.at_conditions]
        np.testing.assert_allclose(dots.get_offsets(), expected)
        np.testing.assert_array_equal(dots.get_array(), CONDITIONS[:, 1])  # coloured by tau
        np.testing.assert_allclose(cross.get_offsets(), [[best.metrics[metric], best.metrics["auc"]]])


def test_one_command_writes_both(folders, tmp_path):
    root, _ = folders
    arguments = [str(root / "lct"), "--baselines", str(root / "fixed_1"), "--output", str(tmp_path)]
    assert run(arguments) == 0
    assert {path.name for path in tmp_path.iterdir()} == {
        f"{name}.{ending}" for name in ("precision_at_recall", "adaptability") for ending in ("png", "pdf")
    }


def test_what_is_no_such_run_is_told(folders, tmp_path):
    root, _ = folders
    with pytest.raises(InputError, match=r"^RUN: expected a finished run on two classes"):
        run([str(tmp_path)])
    with pytest.raises(InputError, match=r"^RUN: expected a run with a grid of conditions"):
        run([str(root / "fixed_1")])
    broken = tmp_path / "seed_0"
    broken.mkdir()
    (broken / "scores.npz").write_bytes(b"no archive")
    with pytest.raises(InputError, match=r"^RUN: cannot read"):
        run([str(tmp_path)])


def test_seeds_on_different_test_sets_are_told(tmp_path):
    write_run(tmp_path, grid=False)
    np.savez(tmp_path / "seed_1" / "scores.npz", labels=1 - LABELS, log_odds=np.zeros(55))
    with pytest.raises(InputError, match=r"^RUN: expected the same labels in all seeds"):
        read_run(tmp_path)
