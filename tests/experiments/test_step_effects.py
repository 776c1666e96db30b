"""The picture of step effects: the numbers it shows, and its command line on records of real and of faulty runs."""

import json

import numpy as np
import pytest

from experiments import step_effects
from imbal_jax.main import EXIT_INPUT, guarded
from imbal_jax.main import run as train
from tests.conftest import ROOT

EPOCHS, CLASSES = 3, 4
MINORITY = [False, False, True, True]


def records(seed, epochs=EPOCHS):
    """Records with the effects of random steps; class 3 is never seen, class 2 not in the first epoch."""
    rng = np.random.default_rng(seed)
    told = []
    for epoch in range(1, epochs + 1):
        count = [*rng.integers(1, 9, 2).tolist(), 0 if epoch == 1 else int(rng.integers(1, 5)), 0]
        effects = {"count": count, "minority": MINORITY, "minority_falls": None, "majority_falls": None}
        for key in step_effects.MEANS:
            values = rng.random(CLASSES) - (0 if key == "falls" else 0.5)
            effects[key] = [float(value) if n else None for value, n in zip(values, count, strict=True)]
        told.append({"step": 5 * epoch, "epoch": epoch, "step_effects": effects})
    return told


def write(folder, by_seed):
    """A run folder with records."""
    for seed, told in by_seed.items():
        (folder / f"seed_{seed}").mkdir(parents=True)
        (folder / f"seed_{seed}" / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in told))
    return folder


@pytest.fixture
def runs(tmp_path):
    """Two seeds, the second an epoch behind, and their records."""
    by_seed = {0: records(0), 1: records(1, epochs=EPOCHS - 1)}
    return write(tmp_path / "run", by_seed), by_seed


def weighted_mean(by_seed, key, epoch, classes):
    """Over all examples of some classes at an epoch, example by example."""
    values = []
    for told in by_seed.values():
        effects = told[epoch - 1]["step_effects"]
        for label in classes:
            values += [effects[key][label]] * effects["count"][label]
    return np.mean(values) if values else np.nan


def thick(axes, group):
    """The thick line of a group."""
    colour = step_effects.GROUPS[group]
    (line,) = [line for line in axes.lines if line.get_color() == colour and line.get_linewidth() > 1.5]
    return line


def thin(axes, group):
    return [line for line in axes.lines if line.get_color() == step_effects.GROUPS[group] and line.get_linewidth() < 1]


def test_panels_hold_the_pooled_means(runs):
    folder, by_seed = runs
    effects = step_effects.read_effects(folder)
    np.testing.assert_array_equal(effects.epochs, [1, 2])
    kappa, changes, falls = step_effects.effects_figure({"run": effects}).axes
    for axes, key in ((kappa, "kappa"), (falls, "falls")):
        for group, classes in (("majority", (0, 1)), ("minority", (2,))):
            expected = [weighted_mean(by_seed, key, epoch, classes) for epoch in (1, 2)]
            np.testing.assert_array_equal(thick(axes, group).get_xdata(), [1, 2])
            np.testing.assert_allclose(thick(axes, group).get_ydata(), expected, rtol=1e-12)
    by_class = [line.get_ydata() for line in (*thin(kappa, "majority"), *thin(kappa, "minority"))]
    expected = [[weighted_mean(by_seed, "kappa", epoch, (label,)) for epoch in (1, 2)] for label in (0, 1, 2)]
    np.testing.assert_allclose(by_class, expected, rtol=1e-12)
    by_seed_lines = [line.get_ydata() for line in thin(falls, "majority")]
    expected = [[weighted_mean({0: told}, "falls", epoch, (0, 1)) for epoch in (1, 2)] for told in by_seed.values()]
    np.testing.assert_allclose(by_seed_lines, expected, rtol=1e-12)
    points = np.concatenate([cloud.get_offsets().filled(np.nan) for cloud in changes.collections])
    expected = [
        [weighted_mean(by_seed, key, epoch, (label,)) for key in ("linearised", "actual")]
        for labels in ((0, 1), (2,))
        for epoch in (1, 2)
        for label in labels
    ]
    np.testing.assert_allclose(points, expected, rtol=1e-12)


def test_pooling_weighs_examples_alike():
    means, count = np.array([[1.0, np.nan], [4.0, np.nan]]), np.array([[1, 0], [2, 0]])
    np.testing.assert_array_equal(step_effects.pooled(means, count, axis=0), [3.0, np.nan])
    assert step_effects.pooled(means, count, axis=(0, 1)) == 3.0


def test_steps_of_length_zero_leave_the_panels_empty(tmp_path):
    told = records(0, epochs=1)
    told[0]["step_effects"] |= {key: [None] * CLASSES for key in step_effects.MEANS} | {"count": [0] * CLASSES}
    folder = write(tmp_path / "run", {0: told})
    kappa, changes, falls = step_effects.effects_figure({"run": step_effects.read_effects(folder)}).axes
    assert np.isnan(thick(kappa, "majority").get_ydata()).all() and np.isnan(thick(falls, "minority").get_ydata()).all()
    assert sum(len(cloud.get_offsets()) for cloud in changes.collections) == 0


@pytest.mark.slow
def test_the_command_draws_real_runs(tmp_path, capsys):
    options = ["--config.model.name=mlp", "--config.model.hidden=(8,)", "--config.training.epochs=2"]
    options += ["--config.record.step_effects_batches=2", "--config.record.figures=false"]
    options += ["--config.record.tensorboard=false"]
    for name in ("baseline", "ief"):
        arguments = [f"--config={ROOT}/configs/digits.py:{name}", f"--workdir={tmp_path}/{name}", *options]
        assert guarded(train, arguments) == 0
    arguments = [str(tmp_path / "baseline"), str(tmp_path / "ief"), f"--output={tmp_path}/new/out"]
    assert guarded(step_effects.run, arguments) == 0
    assert "step_effects.png, step_effects.pdf" in capsys.readouterr().out
    assert (tmp_path / "new" / "out" / "step_effects.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "new" / "out" / "step_effects.pdf").read_bytes().startswith(b"%PDF")
    figure = step_effects.effects_figure({name: step_effects.read_effects(tmp_path / name) for name in ("ief",)})
    shares = thick(figure.axes[2], "minority").get_ydata()
    assert shares[0] > 0.5  # iEF lowers what it can
    assert np.isnan(shares[1])  # after the last step the cosine has come down to zero


def test_runs_of_the_same_name_are_told_apart(tmp_path, runs, monkeypatch):
    other = write(tmp_path / "other" / "run", {0: records(2)})
    names = []
    monkeypatch.setattr(step_effects, "save_figure", lambda figure, path: (path, path))
    monkeypatch.setattr(step_effects, "effects_figure", names.extend)
    assert guarded(step_effects.run, [str(runs[0]), str(other)]) == 0
    assert names == [str(runs[0]), str(other)]


def test_missing_records_are_told_in_one_line(tmp_path, capsys):
    bare = write(tmp_path / "bare", {0: [{"step": 5, "epoch": 1, "train/loss": 1.0}]})
    unequal = write(tmp_path / "unequal", {0: records(0), 1: []})
    for folder, message in (
        (
            tmp_path / "nowhere",
            f"RUN: expected a run folder with a seed_*/metrics.jsonl, found none in {tmp_path}/nowhere",
        ),
        (bare, f"found none in {bare}; train into a new folder with --config.record.step_effects_batches=1 or more"),
        (unequal, f"found none in {unequal}; train into a new folder"),
    ):
        assert guarded(step_effects.run, [str(folder), f"--output={tmp_path}/out"]) == EXIT_INPUT
        error = capsys.readouterr().err
        assert error.startswith("error: RUN: ") and message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()
